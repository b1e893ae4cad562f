# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The simple feature pyramid of ViTDet: levels at other strides from maps at 1/16."""

from collections.abc import Mapping, Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn


class SimpleFeaturePyramid(nn.ModuleDict):
    """Feature levels at 1/4, 1/8, 1/16 and 1/32, each from a map at 1/16 (arXiv 2203.16527, section 3).

    Two transposed convolutions give 1/4, one gives 1/8, the map itself is 1/16, and 2x2 max pooling gives 1/32.

    Args:
        channels: Number of channels C of the maps; levels have as many.
        levels: Which levels to build, 0 for 1/4 to 3 for 1/32.
    """

    def __init__(self, channels: int, levels: Sequence[int]) -> None:
        def double() -> nn.Module:
            return nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)

        makers = (
            lambda: nn.Sequential(double(), LayerNorm2d(channels), nn.GELU(), double()),
            double,
            nn.Identity,
            lambda: nn.MaxPool2d(2, ceil_mode=True),
        )
        super().__init__({str(i): makers[i]() for i in sorted(levels)})

    def forward(self, maps: Mapping[int, Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Compute the levels.

        Args:
            maps: A map (B, C, ceil(H / 16), ceil(W / 16)) for each level.
            size: H and W of the image.

        Returns:
            A level (B, C, ceil(H / s), ceil(W / s)) for each map in their order, s = 4 * 2**level, contiguous.
        """
        levels = []
        for i, x in maps.items():
            rows, columns = (-(-side // (4 * 2**i)) for side in size)
            levels.append(self[str(i)](x)[:, :, :rows, :columns].contiguous())
        return tuple(levels)
