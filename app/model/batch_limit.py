"""The number of jobs that share a device. Imports no torch, so that the torch-free models of tests can use it."""

from typing import Literal

_SHARED = 4


def capacity(max_batch: int | Literal["auto"], device: str, *, large: bool) -> int:
    """The number of jobs on board at once.

    A CPU makes four images of a small model faster together than one by one. Of a large model it makes them no faster,
    and the first would be finished with the last. A GPU is expected to gain with any model. `scripts/bench --case load`
    and `--case batch` measure this.

    Args:
        max_batch: the setting.
        device: `cpu` or `cuda:N`.
        large: whether the model is large (`app.model.packed.is_large`).
    """
    if max_batch == "auto":
        return 1 if large and device == "cpu" else _SHARED
    return max_batch
