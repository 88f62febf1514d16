"""Deep supervision of the UNet (Lee et al. 2015, arXiv:1409.5185): linear probes of its hidden states.

The loss at the output gives the coarse levels, where few positions decide much, only a weak gradient. So a probe must
read each position's row and column from the middle block, and the target's latents at that position from the up blocks:
a patch at 8 x 8, a quarter of one at 16 x 16. The shipped UNet has no probes.
"""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

from scripts.embedded.alignment import PATCHES
from scripts.embedded.text import PATCH

WHERE_WEIGHT = 0.05
"""The weight of a nat in row and column, relative to a squared error of 1 in the latents."""


class Probes(nn.Module):
    """Records a UNet's hidden states in each call until it is stopped."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        channels, latents = unet.config.block_out_channels, unet.config.in_channels
        self.where = nn.Conv2d(channels[-1], 2 * PATCHES, 1)
        self.patch = nn.Conv2d(channels[-1], latents * PATCH**2, 1)
        self.quarter = nn.Conv2d(channels[-2], latents * (PATCH // 2) ** 2, 1)
        self._states: dict[str, Tensor] = {}
        watched = {"where": unet.mid_block, "patch": unet.up_blocks[0].attentions[-1]}
        watched["quarter"] = unet.up_blocks[1].attentions[-1]
        self._hooks = [
            # A transformer's output is a tuple.
            module.register_forward_hook(
                lambda *call, name=name: self.keep(name, call[2] if isinstance(call[2], Tensor) else call[2][0])
            )
            for name, module in watched.items()
        ]

    def keep(self, name: str, state: Tensor) -> None:
        """The input of the probe `name`: a hidden state of the last call, (B, channels, height, width)."""
        self._states[name] = state

    def loss(self, targets: Tensor) -> Tensor:
        """The probes' loss on the hidden states of the last call.

        Args:
            targets: (B, 8, 32, 32), the target latents.

        Returns:
            A scalar: mean squared errors, plus cross-entropies in nats times `WHERE_WEIGHT`.
        """
        # On some processors the UNet runs in bfloat16.
        states = {name: state.float() for name, state in self._states.items()}
        rows, columns = self.where(states["where"]).float().split(PATCHES, 1)
        at = torch.arange(PATCHES).expand(len(rows), PATCHES, PATCHES)
        total = WHERE_WEIGHT * (functional.cross_entropy(rows, at.mT) + functional.cross_entropy(columns, at))
        for probe, name, side in ((self.patch, "patch", PATCH), (self.quarter, "quarter", PATCH // 2)):
            total = total + functional.mse_loss(probe(states[name]).float(), functional.pixel_unshuffle(targets, side))
        return total

    def stop(self) -> None:
        """Remove the hooks from the UNet."""
        for hook in self._hooks:
            hook.remove()
        self._states.clear()
