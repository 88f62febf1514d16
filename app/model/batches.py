"""UNet calls of a few numbers of rows only: those that are compiled, or recorded as CUDA graphs."""

from collections.abc import Iterator, Sequence

import torch

from app.model.graphs import Part

_ALL_UP_TO = 8


def compiled_sizes(max_rows: int) -> tuple[int, ...]:
    """The numbers of rows to compile, ascending: the powers of two up to `max_rows`, and `max_rows`.

    Each takes a minute or more, so unused rows are cheaper than one size more.
    """
    return tuple(sorted({max_rows, *(2**power for power in range(max_rows.bit_length()))}))


def graph_sizes(max_rows: int) -> tuple[int, ...]:
    """The numbers of rows to record as CUDA graphs, ascending: all up to 8, then multiples of 8, and `max_rows`.

    Each takes a tenth of a second and some megabytes.
    """
    few = range(1, min(max_rows, _ALL_UP_TO) + 1)
    return tuple(sorted({*few, *range(_ALL_UP_TO, max_rows + 1, _ALL_UP_TO), max_rows}))


def in_calls(part: Part, inputs: Sequence[torch.Tensor], sizes: Sequence[int]) -> torch.Tensor:
    """The first result of a part for any number of rows, in calls of the given numbers of rows.

    Args:
        part: takes tensors `[rows, ...]`; its first result has as many rows.
        inputs: tensors with the same number of rows.
        sizes: the numbers of rows that a call may have, ascending. Missing rows repeat the last one.
    """
    results = []
    for start, stop, size in _calls(len(inputs[0]), sizes):
        result, *_ = part(*(_rows(tensor, start, stop, size) for tensor in inputs))
        results.append(result[: stop - start])
    return torch.cat(results)


def _calls(rows: int, sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Start row, stop row (exclusive) and size of each call."""
    for start in range(0, rows, sizes[-1]):
        stop = min(rows, start + sizes[-1])
        yield start, stop, next(size for size in sizes if size >= stop - start)


def _rows(tensor: torch.Tensor, start: int, stop: int, size: int) -> torch.Tensor:
    """Some rows, padded to a number of rows. Aligned as a tensor of its own, which compiled code expects."""
    if (start, stop, size) == (0, len(tensor), len(tensor)):
        return tensor
    last = tensor[stop - 1 : stop].expand(size - (stop - start), *tensor.shape[1:])
    return torch.cat([tensor[start:stop], last])
