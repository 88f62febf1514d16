"""Moving weights from mapped files into memory."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from app.model.weights import move_to_device, stored_dtype

CPU = torch.device("cpu")


def resident() -> int:
    """The resident size of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class Model(nn.Module):
    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2, bias=False)
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.own = nn.Parameter(torch.zeros(2))
        self.load_state_dict(weights, assign=True)


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, torch.Tensor]:
    tensors = {
        "first.weight": torch.randn(2, 3).half(),
        "inner.0.weight": torch.randn(2, 2).half(),
        "inner.0.bias": torch.randn(2).half(),
        "inner.1.weight": torch.randn(2).half(),
        "inner.1.bias": torch.randn(2).half(),
        "inner.1.running_mean": torch.randn(2).half(),
        "inner.1.running_var": torch.rand(2).half(),
        "inner.1.num_batches_tracked": torch.tensor(5),
        "own": torch.randn(2).half(),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    loaded: dict[str, torch.Tensor] = load_file(tmp_path / "model.safetensors")
    return loaded


def test_move_casts_only_floating_point_tensors(weights: dict[str, torch.Tensor]) -> None:
    expected = {name: tensor.clone() for name, tensor in weights.items()}
    model = Model(weights)
    move_to_device(model, CPU, torch.float32)
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == (torch.float32 if expected[name].is_floating_point() else torch.int64)
        assert torch.equal(tensor.double(), expected[name].double())


def test_tensor_shared_by_two_modules_is_moved_in_both(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(4096, 8).half()}, tmp_path / "model.safetensors")
    shared = load_file(tmp_path / "model.safetensors")["weight"]
    layers = [nn.Linear(8, 4096, bias=False), nn.Linear(8, 4096, bias=False)]
    for layer in layers:
        layer.weight = nn.Parameter(shared, requires_grad=False)
    move_to_device(nn.Sequential(*layers), CPU, torch.float32)
    assert all(torch.equal(layer.weight, torch.ones(4096, 8)) for layer in layers)


def test_change_replaces_modules(weights: dict[str, torch.Tensor]) -> None:
    def change(module: nn.Module) -> nn.Module:
        if isinstance(module, nn.Linear):
            assert module.weight.dtype == torch.float32
            return nn.Identity()
        return module

    model = Model(weights)
    move_to_device(model, CPU, torch.float32, change)
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    assert isinstance(model.inner[1], nn.BatchNorm1d)


def test_pages_of_the_file_are_released(tmp_path: Path) -> None:
    count, side = 16, 2048
    save_file({f"{index}.weight": torch.ones(side, side).half() for index in range(count)}, tmp_path / "m.safetensors")
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(side, side, bias=False) for _ in range(count)))
    model.load_state_dict(load_file(tmp_path / "m.safetensors"), assign=True)
    before = resident()
    move_to_device(model, CPU, torch.float32)
    wanted = count * side * side * 4
    assert resident() - before < 1.15 * wanted
    assert all(bool((parameter == 1).all()) for parameter in model.parameters())


def test_move_restores_the_thread_count_of_torch(weights: dict[str, torch.Tensor]) -> None:
    before = torch.get_num_threads()
    move_to_device(Model(weights), CPU, torch.float32)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stored_dtype_is_read_from_the_header(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a": torch.zeros(2, dtype=dtype)}, tmp_path / "model.safetensors")
    assert stored_dtype(tmp_path / "model.safetensors") == dtype
