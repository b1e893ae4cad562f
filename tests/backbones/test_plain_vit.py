# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import pytest
import timm
import torch
from mmengine.registry import MODELS
from safetensors.torch import load_file

from mmhpvit import HPViT, PlainViTPyramid, load_plain_weights

TINY = 'tiny_patch16'


def test_its_16th_level_is_the_plain_vit_with_the_real_weights(real_weights):
    backbone = PlainViTPyramid('vit_tiny_patch16_224')
    load_plain_weights(backbone, real_weights)
    backbone = backbone.double().eval()
    vit = timm.create_model('vit_tiny_patch16_224', num_classes=0, global_pool='', dynamic_img_size=True)
    vit.load_state_dict({k: v for k, v in load_file(real_weights).items() if not k.startswith('head')})
    x = torch.randn(1, 3, 96, 160).double()
    expected = vit.double().eval().forward_intermediates(x, [11], norm=True, intermediates_only=True)[0]
    torch.testing.assert_close(backbone(x)[2], expected, rtol=0, atol=1e-10)


def test_levels_after_several_blocks_are_the_plain_vits_with_the_real_weights(real_weights):
    backbone = PlainViTPyramid('vit_tiny_patch16_224', after=(12, 3, 6, 12))
    report = load_plain_weights(backbone, real_weights)
    assert {name.partition('.')[0] for name in report.new} == {'pyramid'}
    backbone = backbone.double().eval()
    vit = timm.create_model('vit_tiny_patch16_224', num_classes=0, global_pool='', dynamic_img_size=True)
    vit.load_state_dict({k: v for k, v in load_file(real_weights).items() if not k.startswith('head')})
    x = torch.randn(2, 3, 96, 160).double()
    maps = vit.double().eval().forward_intermediates(x, [2, 5, 11], norm=True, intermediates_only=True)
    outs = backbone(x)
    for out, level, expected in zip(outs, '0123', (maps[2], maps[0], maps[1], maps[2]), strict=True):
        torch.testing.assert_close(out, backbone.pyramid[level](expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize('size', [(1, 1), (64, 96), (33, 61)])
def test_same_shapes_as_hpvit(size):
    x = torch.randn(1, 3, *size)
    assert [o.shape for o in PlainViTPyramid(TINY)(x)] == [o.shape for o in HPViT(TINY)(x)]


@pytest.mark.parametrize('after', [None, (4, 1, 1, 3), (2, 1, 1, 4)])
def test_levels_and_use_of_every_parameter(after):
    backbone = PlainViTPyramid(TINY, after, out_indices=(3, 0)).train()
    outs = backbone(torch.randn(1, 3, 64, 64))
    assert [o.shape[-1] for o in outs] == [2, 16]
    sum(o.square().sum() for o in outs).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


def test_layer_depths():
    backbone = PlainViTPyramid(TINY)
    ids = {n: backbone.get_layer_depth(n)[0] for n, _ in backbone.named_parameters()}
    assert {n.split('.')[0] for n, i in ids.items() if i == 5} == {'pyramid', 'out_norms'}
    assert {i for n, i in ids.items() if n.startswith('blocks')} == {1, 2, 3, 4}


def test_whole_plain_vit_can_be_frozen():
    backbone = PlainViTPyramid(TINY, frozen_stages=3).train()
    assert {n.split('.')[0] for n, p in backbone.named_parameters() if p.requires_grad} == {'pyramid'}
    backbone = PlainViTPyramid(TINY, after=(1, 2, 3, 4), frozen_stages=4).train()
    assert {n.split('.')[0] for n, p in backbone.named_parameters() if p.requires_grad} == {'pyramid'}
    assert {m.training for n, m in backbone.named_modules() if n.startswith('out_norms.')} == {False}


def test_registered_and_refuses_wrong_levels():
    assert MODELS.get('PlainViTPyramid') is PlainViTPyramid
    with pytest.raises(ValueError, match=r'out_indices=\(5,\)'):
        PlainViTPyramid(TINY, out_indices=(5,))
    for options, message in (
        (dict(after=4), 'after=4: expected 4 numbers of blocks, 1 to 4'),
        (dict(after=(1, 2, 4)), r'after=\(1, 2, 4\): expected 4 numbers'),
        (dict(after=(0, 1, 2, 4)), r'after=\(0, 1, 2, 4\): expected 4 numbers'),
        (dict(after=(1, 2, 3, 3)), r'expected 4 for one of these levels'),
        (dict(after=(1, 2, 3, 4), out_indices=(0, 1)), r'with out_indices=\(0, 1\): expected 4 for one'),
    ):
        with pytest.raises(ValueError, match=message):
            PlainViTPyramid(TINY, **options)
    with pytest.raises(ValueError, match=r'PlainViTPyramid got an input of shape \(3, 8, 8\)'):
        PlainViTPyramid(TINY)(torch.zeros(3, 8, 8))
