"""The device that a setting selects, and GPUs that torch cannot use."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from app.errors import CheckpointError
from app.model import devices, gpus
from app.model.describe import Gpu, describe_cuda
from app.model.load import load
from app.settings import Settings
from tests.support.drivers import OLD_DRIVER, OLD_VERSION

BUILT = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


def show_gpus(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int] | str) -> None:
    """Have torch show a GPU for each compute capability, or one that fails with an error."""

    def of(index: int) -> tuple[int, int]:
        match capabilities[index]:
            case str(error):
                raise RuntimeError(f"{error}\nCompile with `TORCH_USE_CUDA_DSA`.")
            case capability:
                return capability

    def memory(index: int) -> tuple[int, int]:
        of(index)
        return 20_000_000_000, 24_000_000_000

    def properties(index: int) -> SimpleNamespace:
        major, minor = of(index)
        return SimpleNamespace(name="NVIDIA A10G", major=major, minor=minor)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: BUILT)
    monkeypatch.setattr(torch.cuda, "set_device", of)
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    monkeypatch.setattr(torch.cuda, "get_device_capability", of)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_auto_device_without_cuda_is_cpu_and_cuda_is_refused() -> None:
    assert devices.resolve_device("auto") == devices.resolve_device("cpu") == "cpu"
    for name in ("cuda", "cuda:3"):
        with pytest.raises(CheckpointError, match=f"^torch cannot use {name}: .*IMG2IMG_DEVICES=cpu"):
            devices.resolve_device(name)


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
@pytest.mark.usefixtures("old_driver")
def test_gpu_with_an_old_driver_is_refused_with_the_message_of_torch(device: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        devices.resolve_device(device)
    named = "the NVIDIA GPU of this machine" if device == "auto" else device
    assert str(refused.value) == (
        f"torch cannot use {named}: {OLD_DRIVER} torch is built for CUDA 13.0, which needs driver 580 or later; the "
        f"driver is {OLD_VERSION}. Upgrade the driver, install torch's build for an older CUDA, or set "
        "IMG2IMG_DEVICES=cpu."
    )


@pytest.mark.usefixtures("old_driver")
def test_load_on_auto_with_an_unusable_gpu_fails() -> None:
    with pytest.raises(CheckpointError, match="580 or later"):
        load(Settings(), "auto")


@pytest.mark.usefixtures("old_driver")
def test_driver_file_alone_counts_as_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices.resolve_device("auto") == "cpu"
    (tmp_path / "no-nvidiactl").touch()
    with pytest.raises(CheckpointError, match="torch cannot use the NVIDIA GPU"):
        devices.resolve_device("auto")


@pytest.mark.usefixtures("old_driver")
def test_cpu_device_ignores_an_unusable_gpu() -> None:
    assert devices.resolve_device("cpu") == "cpu"


@pytest.mark.parametrize("hidden", ["", "-1"])
@pytest.mark.usefixtures("old_driver")
def test_auto_device_with_hidden_gpus_is_cpu(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert devices.resolve_device("auto") == "cpu"


@pytest.mark.usefixtures("old_driver")
def test_auto_device_with_torch_built_without_cuda_is_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert devices.resolve_device("auto") == "cpu"
    with pytest.raises(CheckpointError, match="Install torch's CUDA build, or set IMG2IMG_DEVICES=cpu"):
        devices.resolve_device("cuda")


@pytest.mark.usefixtures("old_driver")
def test_unusable_gpu_without_a_reason_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    with pytest.raises(CheckpointError, match=r"cuda:0: it gives no reason\. torch is built for CUDA 13\.0"):
        devices.resolve_device("cuda:0")


@pytest.mark.usefixtures("old_driver")
def test_gpu_device_that_may_not_be_opened_asks_for_a_new_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.model.gpus.VERSION_FILE", tmp_path / "none")
    monkeypatch.setattr("app.model.gpus.CONTROL_FILE", tmp_path)  # a folder cannot be opened for writing
    with pytest.raises(CheckpointError) as refused:
        devices.resolve_device("cuda:0")
    assert "the driver's version is not known. This process may not open" in str(refused.value)
    assert str(refused.value).endswith("Start the container again.")


@pytest.mark.usefixtures("old_driver")
def test_unusable_gpu_with_a_new_driver_is_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version, control = tmp_path / "version", tmp_path / "control"
    version.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\nGCC 12.2.0\n"
    )
    control.touch()
    monkeypatch.setattr("app.model.gpus.VERSION_FILE", version)
    monkeypatch.setattr("app.model.gpus.CONTROL_FILE", control)
    with pytest.raises(CheckpointError, match=r"the driver is 580\.95\.05\. Check `nvidia-smi`, CUDA_VISIBLE_DEVICES"):
        devices.resolve_device("auto")


def test_driver_version_is_empty_where_the_file_names_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.model.gpus.VERSION_FILE", tmp_path / "version")
    (tmp_path / "version").write_text("nothing\n")
    assert gpus.driver_version() == ""


def test_usable_gpu_is_selected_by_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(monkeypatch, (8, 6), (8, 9))
    resolved = [devices.resolve_device(name) for name in ("auto", "cuda", "cuda:1")]
    assert resolved == ["cuda:0", "cuda:0", "cuda:1"]
    with pytest.raises(CheckpointError, match="torch finds no cuda:2 among 2 CUDA devices"):
        devices.resolve_device("cuda:2")


@pytest.mark.parametrize("device", ["auto", "cuda:0"])
def test_gpu_without_kernels_in_this_build_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(monkeypatch, (6, 1), (8, 6))
    with pytest.raises(CheckpointError) as refused:
        devices.resolve_device(device)
    named = "the NVIDIA GPU of this machine" if device == "auto" else device
    assert str(refused.value) == (
        f"torch cannot use {named}: its compute capability is 6.1, and torch {torch.__version__} has kernels for "
        f"{', '.join(BUILT)} only. Install a build of torch that supports it, or set IMG2IMG_DEVICES to another device."
    )
    assert devices.resolve_device("cuda:1") == "cuda:1"


def test_gpu_that_fails_at_its_first_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(monkeypatch, "CUDA error: uncorrectable ECC error encountered")
    with pytest.raises(
        CheckpointError, match=r"cuda: CUDA error: uncorrectable ECC error encountered\. torch is built"
    ):
        devices.resolve_device("cuda")


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((8, 9), ["sm_86"], True),
        ((8, 6), ["sm_89"], False),
        ((9, 0), ["sm_86"], False),
        ((12, 1), ["sm_120"], True),
        ((9, 0), ["sm_90a"], True),
        ((10, 3), ["sm_100a"], False),
        ((10, 3), ["sm_100f"], True),
        ((11, 0), ["sm_86", "compute_100"], True),
        ((7, 5), ["compute_80"], False),
        ((8, 6), [], False),
    ],
)
def test_kernels_run_on_the_capabilities_that_cuda_documents(
    capability: tuple[int, int], built: list[str], runs: bool
) -> None:
    assert gpus.has_kernels(capability, built) is runs


def test_description_has_each_gpu_or_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(monkeypatch, (8, 6), "CUDA error: unknown error")
    facts = describe_cuda()
    assert (facts.build, facts.architectures) == ("13.0", tuple(BUILT))
    assert facts.gpus[0] == Gpu("NVIDIA A10G", 20_000_000_000, 24_000_000_000, "8.6")
    assert facts.gpus[1].reason.startswith("CUDA error: unknown error. torch is built for CUDA 13.0")
