# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Stochastic depth that drops a residual branch for whole images."""

from collections.abc import Callable

from timm.layers import DropPath
from torch import Tensor, nn


class ImageDropPath(nn.Module):
    """Stochastic depth with one draw an image, shared by all of its attention sequences.

    timm's DropPath draws once for each row of its input. Here the rows are attention sequences, and
    dropping a part of an image's interleaved sequences would put a pattern into its map of tokens. (Where a
    layout makes groups of sequences of different shapes, each group of an image draws for itself.)

    Args:
        drop_prob: Probability with which an image skips the branch, in [0, 1).

    Attributes:
        images: Number of images in the batch; set before each forward.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.images = 1

    def forward(self, x: Tensor) -> Tensor:
        """Drop (images * sequences, ...) for some images, and scale up what stays, in training."""
        if not self.training:
            return x
        keep = 1 - self.drop_prob
        mask = x.new_empty(self.images, 1).bernoulli_(keep).div_(keep)
        return (x.reshape(self.images, -1) * mask).reshape(x.shape)


def drop_whole_images(block: nn.Module) -> None:
    """Replace each of timm's DropPath modules in a block by one that draws once an image."""
    for module in list(block.modules()):
        for name, child in module.named_children():
            if isinstance(child, DropPath):
                setattr(module, name, ImageDropPath(child.drop_prob))


def run_block(call: Callable, block: nn.Module, index: int, x: Tensor, images: int, part: slice) -> Tensor:
    """Run a block on sequences (images * n, L, C) by ``call(block, index, x, images, part)``."""
    for module in block.modules():
        if isinstance(module, ImageDropPath):
            module.images = images
    return call(block, index, x, images, part)
