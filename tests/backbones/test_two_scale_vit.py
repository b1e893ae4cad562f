# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import pytest
import timm
import torch
from mmengine.registry import MODELS
from plain_twin import noisy
from safetensors.torch import load_file
from tiny_models import KINDS, TRAITS

from mmhpvit import HPViT, TwoScaleViT, load_plain_weights

TINY, TI = 'tiny_patch16', 'vit_tiny_patch16_224'


@torch.no_grad()
def test_deep_map_is_timms_and_fine_ones_are_hpvits_with_the_real_weights(real_weights):
    backbone = TwoScaleViT(TI)
    report = load_plain_weights(backbone, real_weights)
    assert report.new == []
    backbone = backbone.double().eval()
    vit = timm.create_model(TI, num_classes=0, global_pool='', dynamic_img_size=True)
    vit.load_state_dict({k: v for k, v in load_file(real_weights).items() if not k.startswith('head')})
    x = torch.randn(2, 3, 96, 160).double()
    deep = vit.double().eval().forward_intermediates(x, [11], norm=True, intermediates_only=True)[0]
    outs = backbone(x)
    torch.testing.assert_close(outs[2], deep, rtol=0, atol=1e-10)
    torch.testing.assert_close(outs[3], torch.nn.functional.max_pool2d(deep, 2), rtol=0, atol=1e-10)
    # Without blocks the map at 1/4 is what HPViT's first block takes.
    taken = []
    for level, depths in enumerate([(1, 11, 0, 0), (0, 3, 9, 0)]):
        hpvit = HPViT(TI, depths, out_indices=(level,))
        load_plain_weights(hpvit, real_weights)
        hpvit.blocks[0].register_forward_pre_hook(lambda _, args: taken.append(args[0]))
        (expected,) = hpvit.double().eval()(x)
        if level == 0:
            tokens = (
                torch.cat(taken).unflatten(0, (2, 16))[:, :, 1:].unflatten(1, (4, 4)).unflatten(3, (6, 10))
            )
            expected = backbone.out_norms['0'](tokens.permute(0, 3, 1, 4, 2, 5).flatten(1, 2).flatten(2, 3))
            expected = expected.permute(0, 3, 1, 2)
        torch.testing.assert_close(outs[level], expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_map_at_16_after_fewer_blocks_is_timms_too(real_weights):
    backbone = TwoScaleViT(TI, middle_depth=5)
    assert load_plain_weights(backbone, real_weights).new == []
    vit = timm.create_model(TI, num_classes=0, global_pool='', dynamic_img_size=True)
    vit.load_state_dict({k: v for k, v in load_file(real_weights).items() if not k.startswith('head')})
    x = torch.randn(2, 3, 96, 160).double()
    maps = vit.double().eval().forward_intermediates(x, [4, 11], norm=True, intermediates_only=True)
    outs = backbone.double().eval()(x)
    torch.testing.assert_close(outs[2], maps[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(outs[3], torch.nn.functional.max_pool2d(maps[1], 2), rtol=0, atol=1e-10)
    # The fine maps are the same.
    alike = TwoScaleViT(TI)
    load_plain_weights(alike, real_weights)
    for found, expected in zip(outs[:2], alike.double().eval()(x), strict=False):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@torch.no_grad()
# A patch-8 model works with patches of 16 here, at 1/16, and with its own in HPViT, at 1/8.
@pytest.mark.parametrize('name', [n for n in (*TRAITS, *KINDS) if n != 'tiny_patch8'])
def test_every_family(name):
    """The maps are those of backbones that have one each; with patches of 32 the deep one has grids too."""
    backbone = noisy(TwoScaleViT(name, fine_depths=(1, 2), grid_spacing=(2, 1))).double().eval()
    x = torch.randn(2, 3, 48, 80).double()
    *outs, _ = backbone(x)
    n = backbone.depth
    for level, depths, spacing in ((0, (1, n - 1, 0, 0), 2), (1, (0, 2, n - 2, 0), 1), (2, (0, 0, n, 0), 1)):
        model = HPViT(name, depths, grid_spacing=spacing, out_indices=(level,)).double().eval()
        own = model.state_dict()
        model.load_state_dict({key: value for key, value in backbone.state_dict().items() if key in own})
        torch.testing.assert_close(outs[level], model(x)[0])


@pytest.mark.parametrize('size', [(1, 1), (64, 96), (33, 61)])
def test_same_shapes_as_hpvit(size):
    x = torch.randn(1, 3, *size)
    outs = TwoScaleViT(TINY)(x)
    assert [o.shape for o in outs] == [o.shape for o in HPViT(TINY)(x)]
    assert all(o.is_contiguous() for o in outs)


@pytest.mark.parametrize('levels', [(0, 1, 2, 3), (3, 0), (1, 2), (2,)])
@pytest.mark.parametrize('depths', [None, 0, [2, 0], (1, 3)])
@pytest.mark.parametrize('middle', [None, 1])
def test_levels_and_use_of_every_parameter(levels, depths, middle):
    middle = middle if {2, 3} <= set(levels) else None
    options = dict(
        out_indices=levels, fine_depths=depths, middle_depth=middle, with_cp=True, drop_path_rate=0.2
    )
    backbone = TwoScaleViT(TINY, **options).train()
    outs = backbone(torch.randn(2, 3, 64, 64))
    assert [o.shape[-1] for o in outs] == [16 // 2**level for level in levels]
    sum(o.square().sum() for o in outs).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


def test_has_the_parameters_of_the_plain_vit_and_norms():
    names = {n for n, _ in TwoScaleViT(TINY).named_parameters()}
    plain = {
        n for n, _ in timm.create_model(TINY, num_classes=0).named_parameters() if not n.startswith('norm.')
    }
    assert {n for n in names if not n.startswith('out_norms.')} == plain


def test_layer_depths_and_freezing():
    half = TwoScaleViT(TINY, fine_depths=(0, 2), frozen_stages=2).train()
    trained = {'.'.join(n.split('.')[:2]) for n, p in half.named_parameters() if p.requires_grad}
    assert trained == {'blocks.2', 'blocks.3', 'out_norms.2'}
    assert [block.training for block in half.blocks] == [False, False, True, True]
    # Nothing runs again for a level that is not asked for.
    deep = TwoScaleViT(TINY, fine_depths=(3, 2), frozen_stages=2, out_indices=(2, 3)).train()
    assert [block.training for block in deep.blocks] == [True] * 4
    backbone = TwoScaleViT(TINY, middle_depth=2, frozen_stages=3).train()
    ids = {n: backbone.get_layer_depth(n)[0] for n, _ in backbone.named_parameters()}
    assert set(ids.values()) == set(range(6))
    assert [n for n, p in backbone.named_parameters() if p.requires_grad] == []
    trained = {
        n.split('.')[0] for n, p in TwoScaleViT(TINY, frozen_stages=0).named_parameters() if p.requires_grad
    }
    assert trained == {'blocks', 'out_norms'}


def test_registered_and_refuses_what_cannot_be():
    assert MODELS.get('TwoScaleViT') is TwoScaleViT
    assert [stage.stop for stage in TwoScaleViT(TI).fine] == [0, 3]
    for options, message in (
        (dict(fine_depths=(0, 5)), r'fine_depths=\(0, 5\): expected two numbers, .*one for both, of 0 to 4'),
        (dict(fine_depths=-1), 'fine_depths=-1: expected two numbers'),
        (dict(fine_depths=(1, True)), r'fine_depths=\(1, True\): expected two numbers'),
        (dict(middle_depth=0), 'middle_depth=0: expected 1 to 4'),
        (dict(middle_depth=(2, 4)), r'middle_depth=\(2, 4\): expected 1 to 4'),
        (dict(middle_depth=2, out_indices=(0, 2)), r'expected 2 and 3 in out_indices, which is \(0, 2\)'),
        (dict(middle_depth=2, out_indices=(3,)), r'expected 2 and 3 in out_indices, which is \(3,\)'),
        (dict(grid_spacing=0), r'grid_spacing=0: expected two numbers, .*one for both, of 1 or more'),
        (dict(grid_spacing=[1, 1, 1]), r'grid_spacing=\[1, 1, 1\]: expected two numbers'),
        (dict(grid_spacing=2.5), r'grid_spacing=2.5: expected two numbers'),
        (dict(out_indices=(0, 1)), r'out_indices=\(0, 1\): expected 2 or 3 among them'),
        (dict(out_indices=(5,)), r'out_indices=\(5,\)'),
    ):
        with pytest.raises(ValueError, match=message):
            TwoScaleViT(TINY, **options)
    with pytest.raises(ValueError, match=r'TwoScaleViT got an input of shape \(3, 8, 8\)'):
        TwoScaleViT(TINY)(torch.zeros(3, 8, 8))
