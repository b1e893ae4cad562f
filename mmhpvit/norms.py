# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""LayerNorm over the channels of feature maps, for necks and heads as ViTDet has them."""

from mmengine.registry import MODELS
from timm.layers import LayerNorm2d

MODELS.register_module(name='LN2d', module=LayerNorm2d)
