# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""LayerNorm over the channels of feature maps, for necks and heads as ViTDet has them."""

from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from torch import Tensor


@MODELS.register_module(name='LN2d')
class ContiguousLayerNorm2d(LayerNorm2d):
    """timm's LayerNorm over the channels of (B, C, H, W), with an output that is contiguous as NCHW.

    timm's own output is channels last in memory, which mmcv's RoIAlign reads as NCHW without looking:
    the heads behind it then see wrong regions, and nothing fails.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).contiguous()
