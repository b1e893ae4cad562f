# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The backbone of the study that is none of the package: the plain ViT on an enlarged image."""

import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor

from mmhpvit import PlainViTPyramid


@MODELS.register_module()
class UpsampledPlainViT(PlainViTPyramid):
    """The plain ViT on the image enlarged twice: its map is at 1/8 and costs at least four times the plain ViT's."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, out_indices=(1, 2, 3), **kwargs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps at 1/4 to 1/32 of the image as it is, by way of those of the enlarged one at 1/8 to 1/32."""
        levels = super().forward(F.interpolate(x, scale_factor=2, mode='bilinear'))
        return (*levels, F.max_pool2d(levels[-1], 2, ceil_mode=True))
