# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Plain ViTs as hierarchical backbones for MMDetection and MMSegmentation.

Importing this package registers its modules in mmengine's root registries, where mmdet, mmseg and
mmpretrain find them.
"""

from .backbones.hpvit import HPViT
from .backbones.plain_vit import PlainViTPyramid
from .backbones.two_scale_vit import TwoScaleViT
from .checkpoints.inspection import Inspection, inspect_checkpoint
from .checkpoints.load import PlainViTInit, load_plain_weights
from .checkpoints.report import LoadReport
from .engine.layer_decay import LayerIdDecayConstructor
from .engine.resume_hook import SkipTrainedData
from .engine.safe_globals import allow_mmengine_checkpoints
from .engine.sharded_strategy import ShardedStrategy
from .layers import norm as norm
from .preflight.hook import PreflightHook

allow_mmengine_checkpoints()

__version__ = '0.7.0'
__all__ = [
    'HPViT',
    'Inspection',
    'LayerIdDecayConstructor',
    'LoadReport',
    'PlainViTInit',
    'PlainViTPyramid',
    'PreflightHook',
    'ShardedStrategy',
    'SkipTrainedData',
    'TwoScaleViT',
    'inspect_checkpoint',
    'load_plain_weights',
]
