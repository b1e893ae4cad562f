# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Stochastic depth that drops a residual branch for whole images."""

from collections.abc import Callable

from timm.layers import DropPath
from torch import Tensor, nn


class ImageDropPath(nn.Module):
    """Stochastic depth with one draw an image, shared by all of its attention sequences.

    timm's DropPath draws once for each row of its input. Here the rows are attention sequences, and
    dropping a part of an image's interleaved sequences would put a pattern into its map of tokens.

    Args:
        drop_prob: Probability with which an image skips the branch, in [0, 1).

    Attributes:
        kept: (images, 1), 0 for an image that skips and 1 / (1 - drop_prob) for one that does not; set
            before each forward in training.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.kept: Tensor | None = None

    def draw(self, like: Tensor, images: int) -> Tensor | None:
        """Draw ``kept`` on the device and in the type of ``like``; None outside of training."""
        if not self.training:
            return None
        return like.new_empty(images, 1).bernoulli_(1 - self.drop_prob).div_(1 - self.drop_prob)

    def forward(self, x: Tensor) -> Tensor:
        """Drop (images * sequences, ...) for some images, and scale up what stays, in training."""
        if not self.training:
            return x
        return (x.reshape(self.kept.shape[0], -1) * self.kept).reshape(x.shape)


def drop_whole_images(block: nn.Module) -> None:
    """Replace each of timm's DropPath modules in a block by one that draws once an image."""
    for module in list(block.modules()):
        for name, child in module.named_children():
            if isinstance(child, DropPath):
                setattr(module, name, ImageDropPath(child.drop_prob))


def drop_paths(block: nn.Module) -> list[ImageDropPath]:
    """The stochastic depth modules of a block."""
    return [module for module in block.modules() if isinstance(module, ImageDropPath)]


def run_block(
    call: Callable,
    block: nn.Module,
    index: int,
    x: Tensor,
    images: int,
    part: slice,
    kept: list[Tensor | None],
) -> Tensor:
    """Run a block on sequences (images * n, L, C) by ``call(block, index, x, images, part)``.

    ``kept`` holds what was drawn for each of its stochastic depth modules.
    """
    for module, drawn in zip(drop_paths(block), kept, strict=True):
        module.kept = drawn
    return call(block, index, x, images, part)
