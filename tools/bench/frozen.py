# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Backbones with pre-trained weights, as functions from an image to any number of maps, for linear probes."""

from collections.abc import Sequence

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.models import OWN, parse_spec
from mmhpvit import HPViT, load_plain_weights
from mmhpvit.checkpoints.load import plain_weights
from mmhpvit.layers.partition import Layout, partition, restore


class PlainLevels(nn.Module):
    """timm's own plain ViT with maps at 1/16 after some of its blocks, each through the final norm.

    Args:
        name: timm name.
        weights: File of the plain ViT.
        after: Numbers of blocks; default: after each quarter of them.
        upsample: Factor by which the image is enlarged before, to the nearest whole patches.
    """

    def __init__(
        self, name: str, weights: str, after: Sequence[int] | None = None, upsample: float = 1
    ) -> None:
        super().__init__()
        self.vit = timm.create_model(name, num_classes=0, global_pool='', dynamic_img_size=True)
        found, _, _ = plain_weights(self.vit, name, weights)
        self.vit.load_state_dict(found)
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


class WithEarlyLevel(nn.Module):
    """The plain ViT's maps, and beside them one at a finer stride that only its first blocks have made.

    Args:
        plain: What gives the plain ViT's maps.
        name: timm name.
        weights: File of the plain ViT.
        depths: Of an HPViT whose first stage with blocks gives that map.
    """

    def __init__(self, plain: PlainLevels, name: str, weights: str, depths: Sequence[int]) -> None:
        super().__init__()
        self.plain = plain
        first = next(i for i, d in enumerate(depths) if d)
        self.early = HPViT(name, depths=depths, out_indices=(first,))
        load_plain_weights(self.early, weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [*self.early(x), *self.plain(x)]


class TappedLevels(nn.Module):
    """HPViT with maps after some of its blocks instead of at the ends of its stages.

    Each map goes through the final norm of the plain ViT and has the stride of the stage that its block is in.

    Args:
        hpvit: The backbone, with its weights.
        after: Numbers of blocks.
    """

    def __init__(self, hpvit: HPViT, after: Sequence[int]) -> None:
        super().__init__()
        self.hpvit = hpvit
        self.after = check_after(after, len(hpvit.blocks))
        self.outputs: dict[int, list[Tensor]] = {}
        for n in self.after:
            hpvit.blocks[n - 1].register_forward_hook(lambda _, args, out, n=n: self.outputs[n].append(out))

    def forward(self, x: Tensor) -> list[Tensor]:
        self.outputs = {n: [] for n in self.after}
        h, w = x.shape[-2:]
        self.hpvit(x)
        norm = self.hpvit.out_norms[max(self.hpvit.out_norms, key=int)]
        maps = []
        for n in self.after:
            stage = next(s for s in self.hpvit.stages if s.start < n <= s.stop)
            size = -(-h // stage.stride), -(-w // stage.stride)
            prefix = self.hpvit.num_prefix_tokens
            groups = regroup(self.outputs[n], stage.layout, size, len(x), prefix)
            tokens = restore(groups, stage.layout, size)
            maps.append(norm(tokens).permute(0, 3, 1, 2))
        return maps


@torch.no_grad()
def pick_partly(pools: nn.ModuleList, share: float) -> None:
    """Set poolings that start as the average of a cell to have a share of one token of it instead, as 'pick' takes."""
    for i, pool in enumerate(pools):
        towards = torch.full((2, 2), -share / 4)
        towards[i % 2, i % 2] += share
        pool.weight.copy_(torch.eye(pool.in_channels)[:, :, None, None] * towards)


def check_after(after: Sequence[int], blocks: int) -> list[int]:
    """Numbers of blocks in their order.

    Raises:
        ValueError: Anything but different numbers from 1 to the number of blocks.
    """
    numbers = after if isinstance(after, tuple | list) else ()
    if not numbers or len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(1, blocks + 1)):
        raise ValueError(f'after={after}: expected different numbers of blocks, 1 to {blocks}, as (3, 6)')
    return sorted(numbers)


def regroup(
    outputs: list[Tensor], layout: Layout, size: tuple[int, int], images: int, prefix: int
) -> list[Tensor]:
    """What a block took or gave, part by part, as the groups of sequences that :func:`restore` takes.

    Args:
        outputs: Tokens of each call, (images * some sequences, prefix + L, C), in the order of the calls.
        layout: Layout of the block's stage.
        size: Rows and columns of the stage's map.
        images: Number of images.
        prefix: Number of prefix tokens, which are left out.
    """
    parts = iter(outputs)
    groups = []
    for like in partition(torch.zeros(1, *size, 1), layout):
        group = []
        while sum(part.shape[1] for part in group) < like.shape[1]:
            group.append(next(parts).unflatten(0, (images, -1)))
        groups.append(torch.cat(group, dim=1)[:, :, prefix:])
    return groups


def frozen(spec: str, weights: str) -> nn.Module:
    """A backbone with pre-trained weights, in evaluation mode.

    Args:
        spec: ``hpvit:NAME``, ``two-scale:NAME`` or ``plain:NAME`` with the timm name of a plain ViT, then options as
            ``:name=value``: those of HPViT and TwoScaleViT; for HPViT ``after=(3,6)`` for maps after these blocks and
            ``picked=0.5`` for poolings half of the average and half of one token of their cell; for a plain one
            ``after=``, ``upsample=`` and ``early=(0,3,9,0)`` for the map that HPViT with these depths has at its first
            stage.
        weights: File of the plain ViT.

    Raises:
        ValueError: Another kind of backbone.
    """
    kind, name, options = parse_spec(spec)
    if kind == 'plain':
        depths = options.pop('early', None)
        model = PlainLevels(name, weights, **options)
        return (model if depths is None else WithEarlyLevel(model, name, weights, depths)).eval()
    if kind not in ('hpvit', 'two-scale'):
        raise ValueError(f'{spec!r}: expected hpvit:NAME, two-scale:NAME or plain:NAME')
    after = options.pop('after', None)
    if after is not None and kind != 'hpvit':
        raise ValueError(f'{spec!r}: after= is for hpvit:NAME and plain:NAME')
    share = options.pop('picked', None)
    model = OWN[kind](name, **options)
    load_plain_weights(model, weights)
    if share is not None:
        pick_partly(model.pools, share)
    return (model if after is None else TappedLevels(model, after)).eval()
