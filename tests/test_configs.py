# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope

from mmhpvit.preflight.model import check_backbone

ROOT = Path(__file__).resolve().parents[1]
# Those of imagenet1k need mmpretrain: test_classification.py.
LEAVES = sorted(
    str(p.relative_to(ROOT)) for p in (ROOT / 'configs').glob('[!_]*/*.py') if p.parent.name != 'imagenet1k'
)
RECIPES = [c for c in LEAVES if not c.startswith('configs/demo')]
_SEGMENTERS = ['fpn_hpvit-b', 'segformer_hpvit-b', 'mask2former_hpvit-b']
WANTED = {
    'coco': [
        *(
            f'mask-rcnn_{m}_{s}'
            for m in ('hpvit-b', 'hpvit-l', 'hpvit-s', 'plain-vit-b', 'two-scale-vit-b')
            for s in ('1x', 'lsj-100e')
        ),
        *(f'{m}_hpvit-b' for m in ('cascade-mask-rcnn', 'retinanet', 'atss', 'dino-4scale', 'mask2former')),
    ],
    'ade20k': [
        *(f'upernet_{m}' for m in ('hpvit-s', 'hpvit-b', 'hpvit-l', 'plain-vit-b', 'two-scale-vit-b')),
        *_SEGMENTERS,
    ],
    'cityscapes': [
        *(f'upernet_{m}' for m in ('hpvit-b', 'hpvit-l', 'plain-vit-b', 'two-scale-vit-b')),
        *_SEGMENTERS,
    ],
}
WIDTH = {'s': 384, 'b': 768, 'l': 1024}


def load(path) -> Config:
    return Config.fromfile(ROOT / path)


def test_every_recipe_is_there():
    for folder, names in WANTED.items():
        files = [c for c in RECIPES if c.startswith(f'configs/{folder}/')]
        assert len(files) == len(names)
        for name in names:
            head, *parts = name.split('_')
            fitting = [c for c in files if Path(c).name.startswith(f'{head}_')]
            assert sum(all(re.search(rf'[_-]{p}[-_]', c) for p in parts) for c in fitting) == 1, name


@pytest.mark.parametrize('path', LEAVES)
def test_model_and_optimiser_build(path):
    """On the meta device: shapes alone, so that L takes no memory."""
    cfg = load(path)
    assert 'mmhpvit' in cfg.custom_imports.imports
    check_backbone(cfg)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.get(cfg.optim_wrapper.constructor)(
        dict(cfg.optim_wrapper, type='OptimWrapper'), cfg.optim_wrapper.paramwise_cfg
    )
    groups = constructor.param_groups(model)
    grouped = [n for g in groups for n in g['param_names']]
    assert sorted(grouped) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    decayed = [n for g in groups if g['weight_decay'] for n in g['param_names']]
    assert not [n for n in decayed if re.search(r'pos_embed|token|bias|norm', n)]
    assert len(groups) == 2 * (model.backbone.depth + 2)
    assert groups[0]['lr'] == cfg.optim_wrapper.optimizer.lr


@pytest.mark.parametrize('path', RECIPES)
def test_names_tell_the_truth(path):
    cfg, name = load(path), Path(path).stem
    assert ('amp' in name) == (cfg.optim_wrapper.type == 'AmpOptimWrapper')
    size = re.search(r'vit-([sbl])-', name)[1]
    assert {'s': 'vit_small', 'b': 'vit_base', 'l': 'vit_large'}[size] in cfg.model.backbone.plain
    assert cfg.model.backbone.plain.endswith(re.search(r'vit-[sbl]-([a-z0-9]+)_', name)[1])
    assert ('plain' in name) == (cfg.model.backbone.type == 'PlainViTPyramid')
    gpus, images = map(int, re.search(r'(\d+)xb(\d+)', name).groups())
    assert cfg.train_dataloader.batch_size == images
    assert cfg.auto_scale_lr.base_batch_size == gpus * images
    first = next(cfg.model[k] for k in ('neck', 'decode_head', 'panoptic_head') if k in cfg.model)
    levels = cfg.model.backbone.get('out_indices', (0, 1, 2, 3))
    assert list(first.in_channels) == [WIDTH[size]] * len(levels)
    if crop := re.search(r'(\d+)x(\d+)$', name):
        crop = tuple(map(int, crop.groups()))
        assert tuple(cfg.model.data_preprocessor.size) == tuple(cfg.crop_size) == crop
        transforms = {t.type: t for t in cfg.train_dataloader.dataset.pipeline}
        assert tuple(transforms['RandomCrop'].crop_size) == crop
    if iters := re.search(r'(\d+)k_', name):
        assert cfg.train_cfg.max_iters == cfg.param_scheduler[-1].end == int(iters[1]) * 1000


BASELINES = {'plain-vit': 'PlainViTPyramid', 'two-scale-vit': 'TwoScaleViT'}
# Segmenters have maps of several depths.
SEGMENTERS = {'plain-vit': dict(after=(3, 6, 9, 12)), 'two-scale-vit': dict(middle_depth=6)}


@pytest.mark.parametrize(('path', 'name'), [(c, n) for c in RECIPES for n in BASELINES if n in c])
def test_other_backbones_differ_by_their_type_and_the_maps_of_segmenters(path, name):
    baseline, hpvit = load(path), load(path.replace(name, 'hpvit'))
    assert baseline.model.backbone.pop('type') == BASELINES[name]
    assert hpvit.model.backbone.pop('type') == 'HPViT'
    hpvit.model.backbone.pop('grid_spacing', None)
    baseline.pop('plain_vit')  # what the base has for its leaves
    if hpvit.default_scope == 'mmseg':
        hpvit.model.backbone |= SEGMENTERS[name]
    assert baseline.to_dict() == hpvit.to_dict()


@pytest.mark.parametrize(
    'path', [c for c in RECIPES if '_hpvit' in c and not c.startswith('configs/imagenet1k')]
)
def test_detectors_and_segmenters_attend_on_a_grid_of_twice_the_spacing(path):
    assert load(path).model.backbone.grid_spacing == 2


def test_large_scale_jitter_follows_vitdet():
    cfg = load('configs/coco/mask-rcnn_hpvit-b-mae_fpn_8xb8-amp-lsj-100e_coco.py')
    assert cfg.train_cfg.max_iters == 184375
    assert cfg.param_scheduler[1].milestones == [163889, 177546]
    assert cfg.param_scheduler[0].end == 250
    resize = next(t for t in cfg.train_dataloader.dataset.pipeline if t['type'] == 'RandomResize')
    assert resize.ratio_range == (0.1, 2.0)
    assert resize.scale == (1024, 1024)
    assert cfg.test_dataloader.dataset.pipeline == cfg.val_dataloader.dataset.pipeline
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (1024, 1024)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 0.1)
    assert 'sampler' in cfg.train_dataloader
    assert cfg.train_dataloader.get('batch_sampler') is None
