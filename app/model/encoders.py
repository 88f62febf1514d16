"""Encodes prompts and images, and caches the results: no random draw has a part in them."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import torch
from cachetools import LRUCache
from diffusers import StableDiffusionXLImg2ImgPipeline

from app.model.graphs import Graphs
from app.model.transfer import upload
from app.model.vae import Vae
from app.pixels import Pixels

Value = TypeVar("Value")


@dataclass(frozen=True)
class Prompt:
    """A prompt's embeddings.

    Attributes:
        hidden: `[1, 77, d]`, the penultimate hidden states of both encoders, concatenated (d = 768 + 1280 for SDXL).
        pooled: `[1, p]`, the projection of the second encoder (p = 1280 for SDXL).
        tokens_cut: the number of the prompt's tokens beyond the 77th.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor
    tokens_cut: int


class Encoders:
    """A pipeline's text encoders and VAE encoder, with caches of their latest results. Not thread-safe.

    Args:
        pipe: the pipeline; all its parts are on `device`.
        device: the device of all tensors.
        cache_bytes: the most bytes of results that the caches hold there; 0 to cache nothing.
        vae: the pipeline's VAE, which encodes the images.
        graphs: the model's CUDA graphs, of which the text encoders' is a part.
    """

    def __init__(
        self, pipe: StableDiffusionXLImg2ImgPipeline, device: torch.device, cache_bytes: int, vae: Vae, graphs: Graphs
    ) -> None:
        self.pipe = pipe
        self.device = device
        self._vae = vae
        self._embeddings = graphs.part(self._compute_embeddings)
        # Half for each: a prompt takes five times the memory of an image and would evict many of them.
        self._prompts = LRUCache[bytes, Prompt](
            cache_bytes // 2, lambda prompt: prompt.hidden.nbytes + prompt.pooled.nbytes
        )
        self._images = LRUCache[bytes, torch.Tensor](cache_bytes // 2, lambda moments: moments.nbytes)

    def prompt(self, prompt: str) -> tuple[Prompt, bool]:
        """A prompt's embeddings, and whether they were in the cache."""
        key = _digest(prompt.encode(errors="surrogatepass"))
        return cached(self._prompts, key, lambda: self._encode_prompt(prompt))

    def image(self, pixels: Pixels) -> tuple[torch.Tensor, bool]:
        """An image's moments (`Vae.moments`), and whether they were in the cache."""
        return cached(self._images, _digest(pixels.data), lambda: self._vae.moments(pixels))

    def clear_cache(self) -> None:
        """Drop all cached values, to free memory or because some may hold NaN."""
        self._prompts.clear()
        self._images.clear()

    def _encode_prompt(self, prompt: str) -> Prompt:
        ids = []
        for tokenizer in (self.pipe.tokenizer, self.pipe.tokenizer_2):
            length = tokenizer.model_max_length
            tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            ids.append(upload(tokens.input_ids, self.device))
        tokens_cut = max(0, len(tokenizer(prompt).input_ids) - length)
        hidden, pooled = self._embeddings(*ids)
        return Prompt(hidden, pooled, tokens_cut)

    def _compute_embeddings(self, *ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The `hidden` and `pooled` of a prompt, from its token ids `[1, 77]` for each of the two encoders."""
        hidden = []
        for encoder, tokens in zip((self.pipe.text_encoder, self.pipe.text_encoder_2), ids, strict=True):
            output = encoder(tokens, output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
        return torch.concat(hidden, dim=-1).to(encoder.dtype), output[0]


def cached(cache: "LRUCache[bytes, Value]", key: bytes, make: Callable[[], Value]) -> tuple[Value, bool]:
    """The value of `key`, and whether it was in the cache. If not, `make` computes it; its exceptions propagate."""
    if key in cache:
        return cache[key], True
    value = make()
    # A value that is larger than the whole cache is not kept.
    with suppress(ValueError):
        cache[key] = value
    return value, False


def _digest(data: bytes) -> bytes:
    """A cache key, so that the cache holds no prompts and no images of callers."""
    return hashlib.blake2b(data, digest_size=16).digest()
