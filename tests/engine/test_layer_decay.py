# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from torch import nn

import mmhpvit.engine.layer_decay
from mmhpvit import HPViT, LayerIdDecayConstructor, PlainViTPyramid, TwoScaleViT


class Detector(nn.Module):
    """A model with a backbone, as mmdet, mmseg and mmpretrain have it."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(nn.Conv2d(48, 8, 1), nn.GroupNorm(2, 8))


def config(**paramwise):
    return dict(
        type='OptimWrapper',
        constructor='LayerIdDecayConstructor',
        optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.5),
        paramwise_cfg=dict(dict(decay_rate=0.5), **paramwise),
    )


def by_name(optimizer):
    """Name -> (lr, weight decay); fails on a parameter in two groups."""
    found = {}
    for group in optimizer.param_groups:
        assert len(group['params']) == len(group['param_names'])
        for name in group['param_names']:
            assert name not in found
            found[name] = (round(group['lr'], 9), group['weight_decay'])
    return found


@pytest.mark.parametrize('backbone', [HPViT, PlainViTPyramid, TwoScaleViT])
def test_groups_by_name(backbone):
    model = Detector(backbone('tiny_registers'))
    found = by_name(build_optim_wrapper(model, config()).optimizer)
    expected = {
        'backbone.patch_embed.proj.weight': (0.1 / 2**5, 0.5),
        'backbone.patch_embed.proj.bias': (0.1 / 2**5, 0.0),
        'backbone.pos_embed': (0.1 / 2**5, 0.0),
        'backbone.cls_token': (0.1 / 2**5, 0.0),
        'backbone.reg_token': (0.1 / 2**5, 0.0),
        'backbone.blocks.0.attn.qkv.weight': (0.1 / 2**4, 0.5),
        'backbone.blocks.0.attn.qkv.bias': (0.1 / 2**4, 0.0),
        'backbone.blocks.0.ls1.gamma': (0.1 / 2**4, 0.0),
        'backbone.blocks.3.norm2.weight': (0.1 / 2**1, 0.0),
        'backbone.blocks.3.mlp.fc2.weight': (0.1 / 2**1, 0.5),
        'backbone.out_norms.2.weight': (0.1, 0.0),
        'head.0.weight': (0.1, 0.5),
        'head.0.bias': (0.1, 0.0),
        'head.1.weight': (0.1, 0.0),
    }
    if backbone is HPViT:
        expected['backbone.pools.0.weight'] = (0.1 / 2**4, 0.5)
        expected['backbone.pools.0.bias'] = (0.1 / 2**4, 0.0)
    assert {name: found[name] for name in expected} == {
        k: (round(lr, 9), wd) for k, (lr, wd) in expected.items()
    }
    assert set(found) == {name for name, _ in model.named_parameters()}


def test_groups_are_plain_dicts_also_from_a_config():
    """torch.compile of the optimiser step breaks on mmengine's ConfigDict."""
    optimizer = build_optim_wrapper(Detector(HPViT('tiny_patch16')), ConfigDict(config())).optimizer
    assert {type(group) for group in optimizer.param_groups} == {dict}


def test_groups_are_merged_by_rate_and_decay():
    groups = build_optim_wrapper(Detector(HPViT('tiny_patch16')), config()).optimizer.param_groups
    keys = [(g['lr'], g['weight_decay']) for g in groups]
    assert len(set(keys)) == len(keys) == 12  # 6 depths, with and without weight decay


def test_custom_keys_multiply_and_the_longest_match_counts():
    custom = {
        'backbone': dict(lr_mult=0.1),
        'backbone.blocks.1': dict(lr_mult=10.0),
        'pos_embed': dict(decay_mult=1.0),
        'head.0': dict(lr_mult=2.0, decay_mult=0.0),
    }
    model = Detector(HPViT('tiny_patch16'))
    found = by_name(build_optim_wrapper(model, config(custom_keys=custom)).optimizer)
    assert found['backbone.blocks.0.attn.qkv.weight'] == (round(0.1 / 2**4 * 0.1, 9), 0.5)
    assert found['backbone.blocks.1.attn.qkv.weight'] == (0.1 / 2**3 * 10, 0.5)
    assert found['backbone.blocks.1.attn.qkv.bias'] == (0.1 / 2**3 * 10, 0.0)
    assert found['backbone.pos_embed'] == (0.1 / 2**5, 0.5)
    assert found['head.0.weight'] == (0.2, 0.0)


@pytest.mark.parametrize('given', [dict(lr_mul=0.1), 0.1, None])
def test_custom_keys_that_say_nothing_are_refused(given):
    with pytest.raises(
        ValueError, match=r"custom_keys\['backbone'\].*expected 'lr_mult' and 'decay_mult'"
    ) as error:
        build_optim_wrapper(Detector(HPViT('tiny_patch16')), config(custom_keys={'backbone': given}))
    assert '\n' not in str(error.value)


def test_custom_keys_that_meet_no_parameter_are_said(monkeypatch):
    said = []
    monkeypatch.setattr(
        mmhpvit.engine.layer_decay, 'print_log', lambda message, *args, **options: said.append(message)
    )
    custom = {'absolute_pos_embed': dict(decay_mult=0.0), 'head': dict(lr_mult=2.0)}
    build_optim_wrapper(Detector(HPViT('tiny_patch16')), config(custom_keys=custom))
    assert [message for message in said if "no trained parameter has 'absolute_pos_embed'" in message]
    assert not [message for message in said if "has 'head'" in message]


def test_frozen_parameters_are_in_no_group():
    model = Detector(HPViT('tiny_patch16', frozen_stages=2))
    found = by_name(build_optim_wrapper(model, config()).optimizer)
    assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert 'backbone.pos_embed' not in found


def test_a_wrapped_model_has_the_same_groups():
    model = Detector(HPViT('tiny_patch16'))
    plain = by_name(build_optim_wrapper(model, config()).optimizer)
    model.backbone = torch.compile(model.backbone)
    assert by_name(build_optim_wrapper(model, config()).optimizer) == plain
    parallel = nn.Module()
    parallel.module = model
    assert by_name(build_optim_wrapper(parallel, config()).optimizer) == plain


def test_mmpretrains_constructor_gives_the_same_rates():
    script = Path(__file__).parents[1] / '_helpers/mmpretrain_rates.py'
    command = [sys.executable, '-W', 'ignore', str(script), 'tiny_registers']
    result = subprocess.run(command, cwd=script.parents[2], check=True, capture_output=True)
    found = json.loads(result.stdout.splitlines()[-1])
    for backbone in ('HPViT', 'TwoScaleViT', 'PlainViTPyramid'):
        ours = found[f'{backbone} ours']
        assert len(set(ours.values())) == 6  # the embedding, four blocks, and the head
        assert found[f'{backbone} mmpretrain'] == pytest.approx(ours)


def test_a_backbone_without_layer_depths_is_refused():
    with pytest.raises(ValueError, match=r'Conv2d has none.*HPViT') as error:
        build_optim_wrapper(Detector(nn.Conv2d(3, 48, 1)), config())
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('rate', [None, 0, 1.5, 'half'])
def test_decay_rate_must_be_given_and_sensible(rate):
    with pytest.raises(ValueError, match=r'decay_rate=.*\(0, 1\]'):
        LayerIdDecayConstructor(config(), dict(decay_rate=rate))


@pytest.mark.parametrize('missing', ['lr', 'weight_decay'])
def test_the_optimiser_must_say_what_is_scaled(missing):
    cfg = config()
    del cfg['optimizer'][missing]
    with pytest.raises(ValueError, match=f'{missing}=None'):
        LayerIdDecayConstructor(cfg, dict(decay_rate=0.5))


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match='num_layers'):
        LayerIdDecayConstructor(config(), dict(decay_rate=0.5, num_layers=12))


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_it_wins_under_both_libraries(scope):
    """Not replaced by another constructor of the library's own registry."""
    if scope == 'mmdet':
        from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS as SCOPED
    else:
        from mmseg.registry import OPTIM_WRAPPER_CONSTRUCTORS as SCOPED
    assert SCOPED.get('LayerIdDecayConstructor') is LayerIdDecayConstructor


def test_flattened_weights_are_refused():
    """FSDP 1 wraps modules under this name and makes every weight a vector."""
    model = nn.Module()
    model._fsdp_wrapped_module = HPViT('test_vit')
    with pytest.raises(ValueError, match='ShardedStrategy'):
        build_optim_wrapper(model, config())
