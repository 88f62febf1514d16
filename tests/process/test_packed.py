"""Packed layers against the plain layers that they replace."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from app.engine.messages import Job
from app.model import packed as module
from app.model.diffusion import SdxlDiffusion
from app.model.load import load
from app.model.packed import (
    InplaceResnetBlock,
    Packed,
    PackedConv2d,
    PackedLinear,
    PackedUpsample,
    StoredLinear,
    can_pack,
    channels_last,
    has_kernels,
    keep_stored,
    replace_layers,
    unpacked,
)
from app.model.weights import MAX_THREADS, move_to_device
from app.pixels import IMAGE_SIZE, Pixels
from app.settings import Settings
from scripts.benchmarks.likeness import psnr
from tests.support.models import MIXED, together

CPU = torch.device("cpu")
DEMO = Path(__file__).parents[2] / "scripts" / "demo.png"


DTYPES = [
    torch.float32,
    pytest.param(
        torch.bfloat16, marks=pytest.mark.skipif(not has_kernels(torch.bfloat16), reason="oneDNN has no bfloat16 here")
    ),
]


def faster(layer: nn.Module, dtype: torch.dtype = torch.float32) -> Any:
    """The layer that `replace_layers` puts in place of `layer`."""
    model = nn.Sequential(layer)
    replace_layers(model, dtype)
    return model[0]


@pytest.fixture
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGE_WEIGHT", 1)


@pytest.mark.usefixtures("all_are_large")
@pytest.mark.parametrize("dtype", DTYPES)
class TestPackedLayer:
    @pytest.mark.parametrize("rows", [(1,), (77,), (2, 256), (3, 1000)])
    @pytest.mark.parametrize("bias", [True, False])
    def test_packed_linear_matches_the_plain_layer(self, rows: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
        plain = nn.Linear(48, 80, bias=bias)
        self.compare(plain, PackedLinear, torch.randn(*rows, 48), dtype)

    @pytest.mark.parametrize("groups", [1, 4])
    @pytest.mark.parametrize(
        ("kernel", "stride", "padding", "dilation"), [(3, 1, 1, 1), (3, 2, 0, 1), (1, 1, 0, 1), (3, 1, 2, 2)]
    )
    @pytest.mark.parametrize("shape", [(1, 8, 8), (2, 17, 5)])
    def test_packed_convolution_matches_the_plain_layer(
        self,
        shape: tuple[int, int, int],
        kernel: int,
        stride: int,
        padding: int,
        dilation: int,
        groups: int,
        dtype: torch.dtype,
    ) -> None:
        n, height, width = shape
        plain = nn.Conv2d(16, 32, kernel, stride, padding, dilation, groups)
        self.compare(plain, PackedConv2d, torch.randn(n, 16, height, width), dtype)

    @pytest.mark.parametrize("name", ["conv", "Conv2d_0"])
    @pytest.mark.parametrize("shape", [(1, 8, 8), (2, 17, 5)])
    def test_packed_upsample_matches_the_plain_block(
        self, shape: tuple[int, int, int], name: str, dtype: torch.dtype
    ) -> None:
        n, height, width = shape
        plain = Upsample2D(16, use_conv=True, out_channels=32, name=name)
        self.compare(plain, PackedUpsample, torch.randn(n, 16, height, width), dtype)

    @staticmethod
    @torch.inference_mode()
    def compare(plain: nn.Module, kind: type[Packed], x: torch.Tensor, dtype: torch.dtype) -> None:
        """Weights stored in float16, as in a checkpoint. The plain layer computes in float32."""
        plain = plain.half()
        other = faster(copy.deepcopy(plain), dtype)
        assert type(other) is kind
        plain.float()
        other.to(dtype)
        rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (2**-6, 2**-6)
        assert other.stored is not None
        assert other.stored.dtype == torch.float16
        wanted = plain(x)
        torch.testing.assert_close(other(x.to(dtype)).float(), wanted, rtol=rtol, atol=atol)
        assert list(unpacked(other)) == [other]
        other.pack()
        torch.testing.assert_close(other(x.to(dtype)).float(), wanted, rtol=rtol, atol=atol)
        assert other.stored is None
        assert not list(unpacked(other))
        other.pack()


@pytest.mark.usefixtures("all_are_large")
class TestReplacement:
    def test_packed_upsample_refuses_another_output_size(self) -> None:
        with pytest.raises(ValueError, match="multiples of 32"):
            faster(Upsample2D(8, use_conv=True))(torch.randn(1, 8, 4, 4), (7, 7))

    @pytest.mark.parametrize(
        "how",
        [{"use_conv_transpose": True}, {"kernel_size": 5, "padding": 2}, {"norm_type": "ln_norm"}, {"use_conv": False}],
    )
    def test_other_upsample_blocks_are_not_replaced(self, how: dict[str, Any]) -> None:
        plain = Upsample2D(8, **{"use_conv": True, **how})
        assert faster(plain) is plain

    def test_layer_without_a_packed_variant_is_not_replaced(self) -> None:
        class Special(nn.Linear):
            """A subclass, which may compute something else."""

        for plain in (
            nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(4, 4, 3, padding="same"),
            nn.Conv1d(4, 4, 3),
            nn.LayerNorm(8),
            nn.SiLU(),
            Special(8, 8),
        ):
            assert faster(plain) is plain


@torch.inference_mode()
def test_stored_linear_is_bit_equal_to_the_plain_layer(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4, bias=False)).half()
    other = copy.deepcopy(plain)
    keep_stored(other)
    for model in (plain, other):
        move_to_device(model, CPU, torch.float32)
    first = other[0]
    assert isinstance(first, StoredLinear)
    assert first.stored.dtype == torch.float16
    x = torch.randn(3, 8)
    assert torch.equal(other(x), plain(x))


class TestResnetBlock:
    @pytest.mark.parametrize("channels", [8, 16])
    @pytest.mark.parametrize("temb", [None, 4])
    @torch.inference_mode()
    def test_inplace_block_is_bit_equal_to_the_plain_block(self, channels: int, temb: int | None) -> None:
        plain = ResnetBlock2D(in_channels=8, out_channels=channels, temb_channels=temb, groups=4).eval()
        other = faster(plain)
        assert type(other) is InplaceResnetBlock
        x, time = torch.randn(2, 8, 9, 9), None if temb is None else torch.randn(2, temb)
        before = x.clone(), None if time is None else time.clone()
        assert torch.equal(other(x, time), plain(x, time))
        assert torch.equal(x, before[0])
        assert before[1] is None or time is None or torch.equal(time, before[1])

    @pytest.mark.parametrize(
        "how", [{"up": True}, {"down": True}, {"output_scale_factor": 2.0}, {"non_linearity": "gelu"}]
    )
    def test_block_with_other_options_is_not_replaced(self, how: dict[str, Any]) -> None:
        plain = ResnetBlock2D(in_channels=8, temb_channels=None, groups=4, **how)
        assert faster(plain) is plain


def test_small_layer_is_not_replaced() -> None:
    for small in (nn.Linear(16, 16), Upsample2D(8, use_conv=True)):
        assert faster(small) is small
    assert type(faster(nn.Linear(1024, 1024))) is PackedLinear


def test_only_a_large_model_on_the_cpu_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        small, large = nn.Linear(1000, 1000), nn.Linear(20_000, 10_000)
    assert can_pack(large, CPU, torch.float32)
    assert not can_pack(small, CPU, torch.float32)
    assert not can_pack(large, CPU, torch.float16)
    assert not can_pack(large, torch.device("cuda:0"), torch.float32)
    assert can_pack(large, CPU, torch.bfloat16) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not can_pack(large, CPU, torch.float32)


@pytest.fixture
def prepared(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, all_are_large: None) -> SdxlDiffusion:
    monkeypatch.setattr(module, "_LARGE_MODEL", 1)
    return load(Settings(model=str(tiny_checkpoint), dtype="float32"), "cpu")


@pytest.mark.parametrize("settled", [0, 2, 1000])
def test_image_differs_by_at_most_one_at_any_stage_of_packing(
    tiny_checkpoint: Path, prepared: SdxlDiffusion, monkeypatch: pytest.MonkeyPatch, settled: int
) -> None:
    monkeypatch.setattr(module, "_LARGE_MODEL", 2**40)
    plain = load(Settings(model=str(tiny_checkpoint)), "cpu")
    for _ in range(settled):
        prepared.pack_next_layers()
    for each in MIXED:
        (ours,), (theirs,) = together(prepared, [each]), together(plain, [each])
        assert np.abs(ours - theirs).max() <= 1


@pytest.mark.skipif(not has_kernels(torch.bfloat16), reason="oneDNN has no bfloat16 here")
@pytest.mark.usefixtures("all_are_large")
def test_packed_bfloat16_image_is_within_35_db_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load(Settings(model="embedded", dtype="float32"), "cpu")
    monkeypatch.setattr(module, "_LARGE_MODEL", 1)
    fast = load(Settings(model="embedded", dtype="bfloat16"), "cpu")
    while fast.pack_next_layers():
        pass
    with Image.open(DEMO) as demo:
        pixels = Pixels(IMAGE_SIZE, IMAGE_SIZE, demo.convert("RGB").tobytes())
    for seed, (prompt, strength, guidance) in enumerate(
        [("a wizard", 0.5, 0.0), ("a red apple", 0.9, 0.0), ("a tree", 0.9, 3.0)]
    ):
        job = Job("a", pixels, prompt, None, 4, strength, guidance, seed, float("inf"))
        (wanted,), (image,) = together(plain, [job]), together(fast, [job])
        assert psnr(image, wanted) >= 35


def test_large_checkpoint_is_packed_step_by_step_and_a_small_one_is_not(
    tiny_checkpoint: Path, prepared: SdxlDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds_of_packed = {PackedLinear, PackedConv2d, PackedUpsample, InplaceResnetBlock}

    def kinds(diffusion: SdxlDiffusion) -> set[type[nn.Module]]:
        return {type(layer) for layer in (*diffusion.pipe.unet.modules(), *diffusion.pipe.vae.modules())}

    def waiting() -> int:
        return len(list(unpacked(prepared.pipe.unet, prepared.pipe.vae)))

    assert kinds_of_packed <= kinds(prepared)
    while before := waiting():
        assert prepared.pack_next_layers()
        assert waiting() == max(0, before - MAX_THREADS)
    assert not prepared.pack_next_layers()
    monkeypatch.setattr(module, "_LARGE_MODEL", 2**40)
    small = load(Settings(model=str(tiny_checkpoint)), "cpu")
    assert not kinds_of_packed & kinds(small)
    assert not small.pack_next_layers()


def test_layer_whose_packing_fails_keeps_its_stored_weight(
    prepared: SdxlDiffusion, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Packed) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(Packed, "pack", fail)
    while prepared.pack_next_layers():
        pass
    assert "packing failed: some layers keep their stored weights" in caplog.text
    assert list(unpacked(prepared.pipe.unet))
    assert len(together(prepared, MIXED)) == len(MIXED)


def test_one_layer_of_each_class_is_packed_after_loading(prepared: SdxlDiffusion) -> None:
    parts = prepared.pipe.unet, prepared.pipe.vae
    done = [layer for part in parts for layer in part.modules() if isinstance(layer, Packed) and layer.stored is None]
    assert sorted(type(layer).__name__ for layer in done) == ["PackedConv2d", "PackedLinear", "PackedUpsample"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@torch.inference_mode()
def test_weights_of_any_stored_dtype_are_packed(tmp_path: Path, dtype: torch.dtype) -> None:
    plain = nn.Linear(512, 512).to(dtype)
    save_file(dict(plain.state_dict()), tmp_path / "layer.safetensors")
    weights = load_file(tmp_path / "layer.safetensors")
    layer = PackedLinear(weights["weight"], weights["bias"].float(), torch.float32)
    layer.pack()
    x = torch.randn(3, 512)
    torch.testing.assert_close(layer(x), plain.float()(x), rtol=1e-4, atol=1e-5)


def test_plain_convolution_of_a_packed_model_is_channels_last() -> None:
    convolution, linear = nn.Conv2d(4, 8, 3), nn.Linear(4, 8)
    before = convolution.weight.detach().clone()
    assert channels_last(convolution) is convolution
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(convolution.weight, before)
    assert channels_last(linear) is linear
