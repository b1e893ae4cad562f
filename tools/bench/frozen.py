# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Backbones with pre-trained weights, as functions from an image to any number of maps, for linear probes."""

from collections.abc import Sequence

import timm
import torch.nn.functional as F
from torch import Tensor, nn

from bench.models import OWN, parse_spec
from mmhpvit import load_plain_weights
from mmhpvit.checkpoints.load import plain_weights


class PlainLevels(nn.Module):
    """timm's own plain ViT with maps at 1/16 after some of its blocks, each through the final norm.

    Args:
        name: timm name.
        after: Numbers of blocks; default: after each quarter of them.
        upsample: Factor by which the image is enlarged before, to the nearest whole patches.
    """

    def __init__(self, name: str, after: Sequence[int] | None = None, upsample: float = 1) -> None:
        super().__init__()
        self.vit = timm.create_model(name, num_classes=0, global_pool='', dynamic_img_size=True)
        depth = len(self.vit.blocks)
        quarters = [depth * quarter // 4 for quarter in (1, 2, 3, 4)]
        self.after = [n - 1 for n in (quarters if after is None else check_after(after, depth))]
        self.upsample = upsample

    def forward(self, x: Tensor) -> list[Tensor]:
        patch = self.vit.patch_embed.patch_size[0]
        if self.upsample != 1:
            size = [patch * round(side * self.upsample / patch) for side in x.shape[-2:]]
            x = F.interpolate(x, size=size, mode='bilinear')
        elif any(side % patch for side in x.shape[-2:]):
            raise ValueError(
                f'images of {tuple(x.shape[-2:])} pixels: expected multiples of the patch size {patch}'
            )
        return self.vit.forward_intermediates(x, self.after, norm=True, intermediates_only=True)


def check_after(after: Sequence[int], blocks: int) -> list[int]:
    """Numbers of blocks in their order.

    Raises:
        ValueError: Anything but different numbers from 1 to the number of blocks.
    """
    numbers = after if isinstance(after, tuple | list) else ()
    if not numbers or len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(1, blocks + 1)):
        raise ValueError(f'after={after}: expected different numbers of blocks, 1 to {blocks}, as (3, 6)')
    return sorted(numbers)


def frozen(spec: str, weights: str) -> nn.Module:
    """Build a backbone with pre-trained weights, in evaluation mode.

    Args:
        spec: ``hpvit:NAME``, ``two-scale:NAME`` or ``plain:NAME`` with the timm name of a plain ViT, then options as
            ``:name=value``: those of HPViT and TwoScaleViT; for a plain one ``after=`` and ``upsample=`` of
            :class:`PlainLevels`.
        weights: File of the plain ViT.

    Raises:
        ValueError: Another kind of backbone, or an option that it does not have.
    """
    kind, name, options = parse_spec(spec)
    kinds = OWN | dict(plain=PlainLevels)
    if kind not in kinds:
        raise ValueError(f'{spec!r}: expected hpvit:NAME, two-scale:NAME or plain:NAME')
    try:
        model = kinds[kind](name, **options)
    except TypeError as error:
        raise ValueError(f'{spec!r}: {error}') from error
    if kind == 'plain':
        found, _, _ = plain_weights(model.vit, name, weights)
        model.vit.load_state_dict(found)
    else:
        load_plain_weights(model, weights)
    return model.eval()
