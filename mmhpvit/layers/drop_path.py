# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Stochastic depth that drops a residual branch for whole images."""

from timm.layers import DropPath
from torch import Tensor, nn


class ImageDropPath(DropPath):
    """Stochastic depth with one draw per image, shared by all of its attention sequences.

    timm's DropPath draws once for each row of its input. Here rows are attention sequences, and dropping some of an
    image's interleaved sequences would put a pattern into its token map.

    Attributes:
        kept: (images, 1), 0 for an image that skips the branch and 1 / (1 - drop_prob) for one that does not. Set by
            :class:`ImageDropPathBlock` from the arguments of its call; while it is None, a row counts as an image.
    """

    kept: Tensor | None = None

    def draw(self, images: int, like: Tensor) -> Tensor:
        """Draw a ``kept`` with the device and dtype of ``like``."""
        return like.new_empty(images, 1).bernoulli_(1 - self.drop_prob).div_(1 - self.drop_prob)

    def forward(self, x: Tensor) -> Tensor:
        """Drop the rows (images * sequences, ...) of some images and scale up the others, in training."""
        if not self.training or self.kept is None:
            return super().forward(x)
        return (x.reshape(self.kept.shape[0], -1) * self.kept).reshape(x.shape)


class ImageDropPathBlock(nn.Module):
    """Mixed into a transformer block, it takes the draws of its stochastic depth as an argument of the call.

    So a block that is run again in the backward pass, by whomever, drops the same images again.
    """

    def forward(self, x: Tensor, *args) -> Tensor:
        """Run the block on ``x``; a list behind it holds a draw for each of its :class:`ImageDropPath` modules."""
        paths = drop_paths(self)
        kept = [None] * len(paths)
        if args and isinstance(args[0], list):
            kept, *args = args
        for path, drawn in zip(paths, kept, strict=True):
            path.kept = drawn
        return super().forward(x, *args)


def drop_paths(block: nn.Module) -> list[ImageDropPath]:
    """The stochastic depth modules of a block."""
    return [module for module in block.modules() if isinstance(module, ImageDropPath)]


def draw_kept(block: nn.Module, images: int, like: Tensor) -> list[Tensor] | None:
    """Draw which images keep the branches of a block; None outside of training or without stochastic depth."""
    paths = drop_paths(block)  # whose mode counts, since wrappers of the block have one of their own
    return [path.draw(images, like) for path in paths] if any(path.training for path in paths) else None
