# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""2x2 pooling of token maps between the stages.

Both kinds start from the same function, the average over each 2x2 cell. At an odd height or width the
last cell is incomplete and is averaged over the tokens that it has.
"""

import torch
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

    Initialised to the average of the cell (each tap is a quarter of the identity, no bias), so that a
    network with freshly inserted convolutions computes what it computes with :class:`AvgPooling`.

    Args:
        channels: Number of channels C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=2, stride=2)

    def reset_parameters(self) -> None:
        with torch.no_grad():
            quarter = torch.eye(self.out_channels, dtype=self.weight.dtype, device=self.weight.device) / 4
            self.weight.copy_(quarter[:, :, None, None].expand_as(self.weight))
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        _, h, w, _ = x.shape
        x = x.permute(0, 3, 1, 2)
        if h % 2 or w % 2:
            # Repeating the last token makes an incomplete cell's average that of the tokens it has.
            x = F.pad(x, (0, w % 2, 0, h % 2), mode='replicate')
        return super().forward(x).permute(0, 2, 3, 1)


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
