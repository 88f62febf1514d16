"""An additional loss that supervises the UNet's cross-attention in training. The shipped UNet is an ordinary one.

The text encoders' slots hold the icon patch by patch, but a UNet has no input that says which patch a position belongs
to. It would have to infer this from the zero padding at the edges, and upsampling spreads a patch over several
positions that look the same. So the loss trains each position's attention. At 8 x 8 a position attends to its own
patch. At 16 x 16 a patch covers four positions, and each of the four heads serves one of them. For the other three, and
outside of the icon's square, a head attends to the first token, which is always the same.
"""

from functools import cache
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from scripts.embedded.text import FIRST_SLOT, SIDE

PATCHES = 8
"""Patches along a side of the image; the icon's square is in the middle."""


@cache
def wanted(side: int, heads: int) -> Tensor:
    """The token that each head should look at from each position, (heads, side * side)."""
    ratio, margin = side // PATCHES, (PATCHES - SIDE) // 2
    at = torch.arange(side)
    patch = at // ratio - margin
    inside = (patch >= 0) & (patch < SIDE)
    tokens = FIRST_SLOT + patch[:, None] * SIDE + patch[None, :]
    tokens = torch.where(inside[:, None] & inside[None, :], tokens, 0)
    if ratio == 1:
        return tokens.flatten().expand(heads, -1)
    part = (at[:, None] % ratio) * ratio + at[None, :] % ratio
    own = part.flatten() == torch.arange(heads)[:, None]
    return torch.where(own, tokens.flatten(), 0)


class Alignment:
    """Records the cross-attention of a UNet's up blocks until it is stopped."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._losses: list[Tensor] = []
        self._own = {}
        for name, module in unet.named_modules():
            if name.startswith("up_blocks") and name.endswith("attn2"):
                self._own[module] = module.processor
                module.set_processor(_Watched(self._losses))

    def loss(self) -> Tensor:
        """The cross-entropy, in nats, between the attention since the last call and its targets."""
        total = torch.stack(self._losses).mean()
        self._losses.clear()
        return total

    def stop(self) -> None:
        """Restore the UNet's attention processors."""
        for module, processor in self._own.items():
            module.set_processor(processor)


class _Watched:
    """diffusers' attention without the fused kernel, which does not return the probabilities."""

    def __init__(self, losses: list[Tensor]) -> None:
        self._losses = losses

    def __call__(self, attention: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        def split(states: Tensor) -> Tensor:
            return states.view(*states.shape[:2], attention.heads, -1).transpose(1, 2)

        query, key = split(attention.to_q(hidden_states)), split(attention.to_k(encoder_hidden_states))
        value = split(attention.to_v(encoder_hidden_states))
        likely = (query @ key.transpose(-1, -2) * attention.scale).log_softmax(-1)
        if torch.is_grad_enabled():
            tokens = wanted(round(likely.shape[2] ** 0.5), attention.heads)
            index = tokens[None, :, :, None].expand(len(likely), -1, -1, 1)
            self._losses.append(-likely.gather(-1, index).float().mean())
        mixed = (likely.exp() @ value).transpose(1, 2).flatten(2)
        return attention.to_out[0](mixed)  # type: ignore[no-any-return]
