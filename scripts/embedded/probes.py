"""Deep supervision of the UNet: throwaway linear readings of its inner states, which must say what it needs to know.

Lee et al. 2015 (arXiv:1409.5185). The loss at the output says little to the coarse levels, where few positions decide
much. So the middle block must say where each position lies, and the way up, which latents of the target lie under it: a
patch of them at 8 x 8, a quarter of one at 16 x 16. What is shipped has none of it.
"""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

from scripts.embedded.alignment import PATCHES
from scripts.embedded.text import PATCH

WHERE_WEIGHT = 0.05
"""What a nat of a position's row and column counts for, beside an error of 1 in the latents under it."""


class Probes(nn.Module):
    """Reads a UNet's inner states at each call of it, until it is told to stop."""

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
        """What the probe `name` reads next: an inner state of the last call, (B, channels, height, width)."""
        self._states[name] = state

    def loss(self, targets: Tensor) -> Tensor:
        """How badly the last call's inner states tell the positions and the targets.

        Args:
            targets: (B, 8, 32, 32), what was to come out.

        Returns:
            A number: mean squared errors, and cross-entropies in nats times `WHERE_WEIGHT`.
        """
        # Where the processor is faster so, the UNet has run in bfloat16.
        states = {name: state.float() for name, state in self._states.items()}
        rows, columns = self.where(states["where"]).float().split(PATCHES, 1)
        at = torch.arange(PATCHES).expand(len(rows), PATCHES, PATCHES)
        total = WHERE_WEIGHT * (functional.cross_entropy(rows, at.mT) + functional.cross_entropy(columns, at))
        for probe, name, side in ((self.patch, "patch", PATCH), (self.quarter, "quarter", PATCH // 2)):
            total = total + functional.mse_loss(probe(states[name]).float(), functional.pixel_unshuffle(targets, side))
        return total

    def stop(self) -> None:
        """Leaves the UNet alone."""
        for hook in self._hooks:
            hook.remove()
        self._states.clear()
