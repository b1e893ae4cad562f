# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Plain ViTs as hierarchical backbones for MMDetection and MMSegmentation.

Importing this package registers its modules in mmengine's root registries, where mmdet, mmseg and
mmpretrain find them.
"""

from . import norms as norms
from .hpvit import HPViT
from .inspection import Inspection, inspect_checkpoint
from .optim import LayerIdDecayConstructor
from .pyramid import PlainViTPyramid
from .report import LoadReport
from .resuming import SkipTrainedData
from .safe_loading import allow_mmengine_checkpoints
from .sharding import ShardedStrategy
from .two_scale import TwoScaleViT
from .weights import PlainViTInit, load_plain_weights

allow_mmengine_checkpoints()

__version__ = '0.6.0'
__all__ = [
    'HPViT',
    'Inspection',
    'LayerIdDecayConstructor',
    'LoadReport',
    'PlainViTInit',
    'PlainViTPyramid',
    'ShardedStrategy',
    'SkipTrainedData',
    'TwoScaleViT',
    'inspect_checkpoint',
    'load_plain_weights',
]
