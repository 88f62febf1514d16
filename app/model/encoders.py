"""What the models make of a prompt and of a picture, each computed once: no random draw has a part in it."""

import hashlib
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline

from app.model.lru import Cache
from app.pixels import Pixels


@dataclass(frozen=True)
class Prompt:
    """What the text encoders make of a prompt.

    Attributes:
        hidden: `[1, 77, d]`, both encoders' penultimate layers side by side.
        pooled: `[1, p]`, the second one's projection.
        tokens_cut: the prompt's tokens beyond the 77th.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor
    tokens_cut: int


class Encoders:
    """The text encoders and the VAE's encoder of a pipeline, with what they made lately. Not thread-safe.

    Args:
        pipe: the pipeline; all its parts on `device`.
        device: where the tensors live.
        cache_bytes: how much may be kept there.
    """

    def __init__(self, pipe: StableDiffusionXLImg2ImgPipeline, device: torch.device, cache_bytes: int) -> None:
        self.pipe = pipe
        self.device = device
        # Half of it for each: a prompt takes five times the room of a picture, and would push many out.
        self._prompts = Cache[Prompt](cache_bytes // 2, lambda prompt: prompt.hidden.nbytes + prompt.pooled.nbytes)
        self._images = Cache[torch.Tensor](cache_bytes // 2, lambda moments: moments.nbytes)

    def prompt(self, prompt: str) -> tuple[Prompt, bool]:
        """A prompt's embeddings, and whether they were there already."""
        return self._prompts.get(_digest(prompt.encode(errors="surrogatepass")), lambda: self._encode_prompt(prompt))

    def image(self, pixels: Pixels) -> tuple[torch.Tensor, bool]:
        """A picture's moments, and whether they were there already.

        They are the parameters of the VAE's posterior, `[1, 2c, height / f, width / f]`, or a tiny one's latents, which
        have half of the channels.
        """
        return self._images.get(_digest(pixels.data), lambda: self._encode_image(pixels))

    def forget(self) -> None:
        """Keep nothing of what was made so far: some of it may be broken."""
        self._prompts.clear()
        self._images.clear()

    def _encode_prompt(self, prompt: str) -> Prompt:
        pipe, hidden = self.pipe, []
        for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
            length = tokenizer.model_max_length
            tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            output = encoder(tokens.input_ids.to(self.device), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
        tokens_cut = max(0, len(tokenizer(prompt).input_ids) - length)
        return Prompt(torch.concat(hidden, dim=-1).to(encoder.dtype), output[0], tokens_cut)

    def _encode_image(self, pixels: Pixels) -> torch.Tensor:
        vae = self.pipe.vae
        raw = torch.frombuffer(bytearray(pixels.data), dtype=torch.uint8).view(1, pixels.height, pixels.width, 3)
        # On the CPU, since CUDA divides by multiplying with the reciprocal, which is not what diffusers feeds its VAE;
        # and a view in channels-last order, as diffusers has it: convolutions round differently in another.
        image = 2.0 * (raw.permute(0, 3, 1, 2).float() / 255.0) - 1.0
        encoded = vae.encode(image.to(device=self.device, dtype=self.pipe.unet.dtype).to(vae.dtype))
        moments: torch.Tensor = encoded.latent_dist.parameters if hasattr(encoded, "latent_dist") else encoded.latents
        return moments


def _digest(data: bytes) -> bytes:
    """Stands for a prompt or a picture: callers' own words and pictures are not kept."""
    return hashlib.blake2b(data, digest_size=16).digest()
