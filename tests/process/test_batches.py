"""UNet calls of a few numbers of rows."""

import pytest
import torch

from app.model.batches import compiled_sizes, graph_sizes, in_calls


@pytest.mark.parametrize(("most", "sizes"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (4, (1, 2, 4)), (6, (1, 2, 4, 6))])
def test_compiled_sizes_are_powers_of_two_and_the_largest(most: int, sizes: tuple[int, ...]) -> None:
    assert compiled_sizes(most) == sizes


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, (1,)), (4, (1, 2, 3, 4)), (8, tuple(range(1, 9))), (20, (*range(1, 9), 16, 20)), (24, (*range(1, 9), 16, 24))],
)
def test_graph_sizes_are_all_up_to_eight_then_multiples(most: int, sizes: tuple[int, ...]) -> None:
    assert graph_sizes(most) == sizes


@pytest.mark.parametrize(
    ("rows", "calls"), [(1, [1]), (2, [2]), (3, [4]), (4, [4]), (5, [4, 1]), (7, [4, 4]), (8, [4, 4])]
)
def test_call_is_split_and_padded_to_the_sizes(rows: int, calls: list[int]) -> None:
    seen: list[int] = []

    def part(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor]:
        seen.append(len(x))
        assert len(x) == len(y)
        assert x.storage_offset() == y.storage_offset() == 0, "compiled code expects the alignment of a whole tensor"
        return (x + y,)

    x, y = torch.randn(rows, 3), torch.randn(rows, 1)
    assert torch.equal(in_calls(part, (x, y), (1, 2, 4)), x + y)
    assert seen == calls
