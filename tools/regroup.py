# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""What hooks on a block have seen, part by part, as the sequences of its stage."""

import torch
from torch import Tensor

from mmhpvit.layers.partition import Layout, partition


def regroup(
    outputs: list[Tensor], layout: Layout, size: tuple[int, int], images: int, prefix: int
) -> list[Tensor]:
    """What a block took or gave, part by part, as the groups of sequences that ``partition`` gives.

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
