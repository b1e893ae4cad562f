# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Pictures of features, attention and predictions."""

import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from plain_twin import noisy
from regroup import regroup
from tiny_models import KINDS, TRAITS
from tool_runs import ROOT, SEGMENTER, run, train
from visualize import attention_of, colours, load_backbones, place_of, plain_twin

from mmhpvit import HPViT, PlainViTPyramid, TwoScaleViT
from mmhpvit.layers.partition import partition


@torch.no_grad()
@pytest.mark.parametrize(
    'backbone',
    [
        lambda: HPViT('test_vit'),
        lambda: HPViT('test_vit', attention='window_grid', window_size=2),
        lambda: HPViT('test_vit', grid_spacing=2),
        lambda: HPViT('test_vit', keep_prefix=False),
        lambda: HPViT('tiny_qk_norm'),
        lambda: PlainViTPyramid('test_vit'),
        lambda: TwoScaleViT('test_vit', fine_depths=(1, 2), grid_spacing=(2, 1)),
    ],
)
def test_attention_is_that_of_the_tokens_sequence(backbone):
    """Against queries and keys of what the last block of the stage takes, in float64."""
    backbone = noisy(backbone()).double().eval()
    x, point = torch.randn(1, 3, 72, 90).double(), (40, 30)
    expected_maps = backbone(x)
    found = attention_of(backbone, x, point)
    for level, expected in zip(backbone(x), expected_maps, strict=True):
        torch.testing.assert_close(level, expected, rtol=0, atol=0)
    stages = [*getattr(backbone, 'fine', ()), *backbone.stages]
    stages = [stage for stage in stages if stage.stop > stage.start]
    assert [stride for stride, _, _ in found] == [stage.stride for stage in stages]
    for stage, (stride, weights, token) in zip(stages, found, strict=True):
        size = -(-72 // stride), -(-90 // stride)
        assert weights.shape == size
        assert token == (point[0] // stride, point[1] // stride)
        index = token[0] * size[1] + token[1]
        places = partition(torch.arange(size[0] * size[1]).reshape(1, *size, 1), stage.layout)
        group = next(i for i, p in enumerate(places) if (p == index).any())
        sequence, position = (places[group][0, :, :, 0] == index).nonzero()[0].tolist()
        members = places[group][0, sequence, :, 0]
        assert sorted(np.flatnonzero(~np.isnan(weights))) == sorted(members.tolist())
        layer, inputs = backbone.blocks[stage.stop - 1].attn, []
        hook = layer.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
        if stage in backbone.stages:
            backbone(x)
        else:
            # TwoScaleViT runs this block at 1/16 as well.
            backbone.run_stage(stage, *backbone.embed(x, stride))
        hook.remove()
        tokens = regroup(inputs, stage.layout, size, 1, 0)[group][0, sequence]
        qkv = layer.qkv(tokens).reshape(len(tokens), 3, layer.num_heads, -1).permute(1, 2, 0, 3)
        query, key = layer.q_norm(qkv[0]), layer.k_norm(qkv[1])
        prefix = backbone.num_prefix_tokens
        rows = (query * layer.scale @ key.transpose(1, 2)).softmax(-1).mean(0)
        np.testing.assert_allclose(weights.ravel()[members], rows[prefix + position, prefix:], atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize('name', [*TRAITS, *KINDS])
def test_attention_of_every_family(name):
    """All but SAM's blocks, which have windows of their own, show it; the picture's run changes no feature."""
    backbone = noisy(HPViT(name)).eval()
    x = torch.randn(1, 3, 72, 90)
    before = backbone(x)
    found = attention_of(backbone, x, (40, 30))
    for level, expected in zip(backbone(x), before, strict=True):
        torch.testing.assert_close(level, expected, rtol=0, atol=0)
    assert [stride for stride, _, _ in found] == ([8, 32] if name == 'tiny_sam' else [4, 8, 16, 32])
    for _, weights, _ in found:
        assert 0 < np.nansum(weights) <= 1 + 1e-5
        assert np.nanmin(weights) >= 0


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ("plain='test_vit', patch_kernel='resample'", 'patches have 4 pixels'),
        ("plain='test_vit', out_indices=(0, 1)", 'leaves blocks out'),
        ("plain='vit_tiny_patch16_224', keep_prefix=False", None),
        ("plain='tiny_dinov3'", None),
        ("plain='tiny_beit', type='TwoScaleViT'", None),
        ("plain='tiny_patch14', type='PlainViTPyramid'", None),
    ],
)
def test_plain_vit_beside_it(options, message, tmp_path, capsys):
    config = tmp_path / 'config.py'
    config.write_text(
        'model = dict(data_preprocessor=dict(mean=[0] * 3, std=[1] * 3),\n'
        f"    backbone=dict(dict(type='HPViT'), **dict({options})))\n"
    )
    backbone, plain, _, _ = load_backbones(SimpleNamespace(config=str(config), checkpoint=None))
    output = capsys.readouterr().out
    if message:
        assert plain is None
        assert 'The plain ViT is not drawn beside it: ' in output
        assert message in output
        return
    assert plain.num_prefix_tokens == backbone.num_prefix_tokens
    x = torch.randn(1, 3, 64, 96)
    expected = backbone
    if type(backbone) is HPViT:
        # Made of the same parts, and with the backbone's weights in them.
        expected = TwoScaleViT(backbone.plain, keep_prefix=bool(backbone.prefix_names))
        own = expected.state_dict()
        state = backbone.state_dict()
        state |= {
            k: state[k.replace('out_norms.2', 'out_norms.3')] for k in own if k.startswith('out_norms.2')
        }
        expected.load_state_dict({key: state[key] for key in own})
    with torch.no_grad():
        torch.testing.assert_close(plain(x)[0], expected.eval()(x)[2])


@torch.no_grad()
def test_plain_vit_has_the_norm_of_the_deepest_map():
    backbone = noisy(PlainViTPyramid('tiny_patch16', after=(1, 2, 4, 3))).eval()
    x = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(plain_twin(backbone).eval()(x)[0], backbone(x)[2])
    deepest = noisy(TwoScaleViT('tiny_patch16', middle_depth=1)).eval()
    pooled = torch.nn.functional.max_pool2d(plain_twin(deepest).eval()(x)[0], 2)
    torch.testing.assert_close(pooled, deepest(x)[3])


def test_points():
    assert place_of(None, (100, 200), (50, 100)) == (25, 50)
    assert place_of('10,99', (100, 200), (50, 100)) == (49, 5)
    for text, message in (('10', 'expected X,Y'), ('200,0', 'lies outside'), ('x,1', 'expected X,Y')):
        with pytest.raises(SystemExit, match=message):
            place_of(text, (100, 200), (50, 100))


def test_colours_are_the_principal_components():
    features = torch.randn(1, 8, 5, 7)
    assert colours(features).shape == (5, 7, 3)
    assert 0 <= colours(features).min() <= colours(features).max() <= 1
    assert colours(features[:, :2]).shape == (5, 7, 3)
    assert np.isfinite(colours(torch.ones(1, 4, 3, 3))).all()


@pytest.mark.slow
def test_pictures_of_a_trained_segmenter(shapes, tmp_path, env):
    train(SEGMENTER, tmp_path / 'trained', env=env)
    image = sorted((shapes / 'val').glob('*.png'))[0]
    command = (sys.executable, 'tools/visualize.py', image, '--config', SEGMENTER, '--out', tmp_path / 'out')
    run(*command, '--checkpoint', tmp_path / 'trained/iter_6.pth', '--point', '10,20', env=env)
    for name in ('levels', 'attention', 'prediction'):
        assert cv2.imread(str(tmp_path / f'out/{name}.png')).std() > 1
    output = run(*command, '--point', '10,200', env=env, fails=True)
    assert '--point 10,200 lies outside of the image' in output
    config = tmp_path / 'plain.py'
    config.write_text(f"_base_ = '{ROOT / SEGMENTER}'\nmodel = dict(backbone=dict(type='TwoScaleViT'))\n")
    command = (sys.executable, 'tools/visualize.py', image, '--config', config, '--out', tmp_path)
    run(*command, env=env)
    assert cv2.imread(str(tmp_path / 'attention.png')).std() > 1
    config.write_text(f"_base_ = '{ROOT / SEGMENTER}'\nmodel = dict(backbone=dict(type='SwinTransformer'))\n")
    assert 'expected HPViT, PlainViTPyramid or TwoScaleViT' in run(*command, env=env, fails=True)
