# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""2x2 pooling of token maps between the stages.

Both kinds start from the same function, the average over each 2x2 cell. At an odd height or width the
last cell is incomplete and is averaged over the tokens that it has.
"""

import torch.nn.functional as F
from torch import Tensor, nn

POOLINGS = ('conv', 'avg')


class AvgPooling(nn.Module):
    """Average of each 2x2 cell: (B, H, W, C) to (B, ceil(H/2), ceil(W/2), C), without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x.permute(0, 3, 1, 2), 2, ceil_mode=True, count_include_pad=False)
        return x.permute(0, 2, 3, 1)


class ConvPooling(nn.Conv2d):
    """2x2 convolution with stride 2: (B, H, W, C) to (B, ceil(H/2), ceil(W/2), C).

    Held as the average of the cell plus a convolution that starts at zero, so that a network with freshly
    inserted poolings computes exactly what it computes with :class:`AvgPooling`, at any precision: under
    autocast only the learned part is in half precision, and the tokens that pass through are not rounded.
    Weight decay pulls towards the average.

    Args:
        channels: Number of channels C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=2, stride=2)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        _, h, w, _ = x.shape
        x = x.permute(0, 3, 1, 2)
        if h % 2 or w % 2:
            # Repeating the last token makes an incomplete cell's average that of the tokens it has.
            x = F.pad(x, (0, w % 2, 0, h % 2), mode='replicate')
        return (F.avg_pool2d(x, 2) + super().forward(x)).permute(0, 2, 3, 1)


def build_pooling(kind: str, channels: int) -> nn.Module:
    """Build the pooling layer of that kind.

    Args:
        kind: ``'conv'`` or ``'avg'``.
        channels: Number of channels of the tokens.

    Raises:
        ValueError: An unknown kind.
    """
    if kind == 'conv':
        return ConvPooling(channels)
    if kind == 'avg':
        return AvgPooling()
    raise ValueError(f'pooling {kind!r} is unknown; choose one of {", ".join(POOLINGS)}')
