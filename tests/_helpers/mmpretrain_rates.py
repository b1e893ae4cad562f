# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""usage: mmpretrain_rates.py PLAIN. Prints the learning rates by parameter of mmpretrain's constructor and of ours, as
JSON, for an image classifier of mmpretrain with each of our backbones.
"""

import json
import sys
from pathlib import Path
from types import ModuleType

sys.path.append(str(Path(sys.executable).parents[1] / 'beside'))
for left_out in ('mmpretrain.models.multimodal', 'mmpretrain.apis'):
    sys.modules[left_out] = ModuleType(left_out)

import tiny_models  # noqa: E402, F401 (registers small models with timm)
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor  # noqa: E402, F401
from mmpretrain.registry import MODELS  # noqa: E402

import mmhpvit  # noqa: E402, F401 (registers the backbones)

OPTIMIZER = dict(type='AdamW', lr=0.1, weight_decay=0.5)
CONSTRUCTORS = {
    'mmpretrain': ('mmpretrain.LearningRateDecayOptimWrapperConstructor', dict(layer_decay_rate=0.5)),
    'ours': ('LayerIdDecayConstructor', dict(decay_rate=0.5)),
}
found = {}
for backbone in ('HPViT', 'TwoScaleViT', 'PlainViTPyramid'):
    head = dict(type='LinearClsHead', num_classes=3, in_channels=48)
    model = MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type=backbone, plain=sys.argv[1]),
            head=head,
        )
    )
    names = {id(param): name for name, param in model.named_parameters()}
    for key, (constructor, paramwise) in CONSTRUCTORS.items():
        wrapper = dict(
            type='OptimWrapper', optimizer=OPTIMIZER, constructor=constructor, paramwise_cfg=paramwise
        )
        groups = build_optim_wrapper(model, wrapper).optimizer.param_groups
        found[f'{backbone} {key}'] = {names[id(p)]: group['lr'] for group in groups for p in group['params']}
print(json.dumps(found))
