"""How many jobs share a device. Imports no torch, so that torch-free models of tests follow the same rule."""

from typing import Literal

_SHARED = 4


def capacity(max_batch: int | Literal["auto"], device: str, *, large: bool) -> int:
    """Jobs on board at once, for the setting `max_batch`, a device's resolved name, and a model that is large or not.

    Four small pictures together cost a CPU less than one by one; of a large model's, the first would be done with the
    last, for nothing. A GPU is expected to gain with any. `scripts/bench --case load` and `--case batch` measure it.
    """
    if max_batch == "auto":
        return 1 if large and device == "cpu" else _SHARED
    return max_batch
