# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Pictures of features, attention and predictions."""

import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from bench.frozen import regroup
from plain_twin import noisy
from test_tools import ROOT, SEGMENTER, env, run, train  # noqa: F401 (env is a fixture)
from visualize import attention_of, colours, load_backbones, place_of

from mmhpvit import HPViT
from mmhpvit.layouts import partition


@torch.no_grad()
@pytest.mark.parametrize(
    'options',
    [{}, dict(attention='window_grid', window_size=2), dict(grid_spacing=2), dict(keep_prefix=False)],
)
def test_attention_is_timms_own_of_the_tokens_sequence(options):
    """Against the weights that timm's attention drops out, without its fused kernel, in the call that has the token."""
    backbone = noisy(HPViT('test_vit', **options)).eval()
    x, point = torch.randn(1, 3, 72, 90), (40, 30)
    found = attention_of(backbone, x, point)
    stages = [stage for stage in backbone.stages if stage.stop > stage.start]
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
        layer, calls = backbone.blocks[stage.stop - 1].attn, []
        layer.fused_attn = False
        hook = layer.attn_drop.register_forward_hook(lambda _, args, out, calls=calls: calls.append(out))
        backbone(x)
        hook.remove()
        prefix = backbone.num_prefix_tokens
        calls = regroup([c.mean(1) for c in calls], stage.layout, size, 1, 0)
        expected = calls[group][0, sequence, prefix + position, prefix:]
        np.testing.assert_allclose(weights.ravel()[members], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ("plain='beit_base_patch16_224'", 'positions in their attention'),
        ("patch_kernel='resample'", 'patches have 4 pixels'),
        ('out_indices=(0, 1)', 'leaves blocks out'),
        ("plain='vit_tiny_patch16_224', keep_prefix=False", None),
    ],
)
def test_what_cannot_be_compared_is_said(options, message, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        'model = dict(data_preprocessor=dict(mean=[0] * 3, std=[1] * 3),\n'
        f"    backbone=dict(type='HPViT', **(dict(plain='test_vit') | dict({options}))))\n"
    )
    args = SimpleNamespace(config=str(config), checkpoint=None)
    if message is None:
        backbone, plain, _, _ = load_backbones(args)
        assert plain.num_prefix_tokens == backbone.num_prefix_tokens == 0
        return
    with pytest.raises(SystemExit, match=message):
        load_backbones(args)


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
def test_pictures_of_a_trained_segmenter(shapes, tmp_path, env):  # noqa: F811
    train(SEGMENTER, tmp_path / 'trained', env=env)
    image = sorted((shapes / 'val').glob('*.png'))[0]
    command = (sys.executable, 'tools/visualize.py', image, '--config', SEGMENTER, '--out', tmp_path / 'out')
    run(*command, '--checkpoint', tmp_path / 'trained/iter_6.pth', '--point', '10,20', env=env)
    for name in ('levels', 'attention', 'prediction'):
        assert cv2.imread(str(tmp_path / f'out/{name}.png')).std() > 1
    output = run(*command, '--point', '10,200', env=env, fails=True)
    assert '--point 10,200 lies outside of the image' in output
    config = tmp_path / 'plain.py'
    config.write_text(f"_base_ = '{ROOT / SEGMENTER}'\nmodel = dict(backbone=dict(type='PlainViTPyramid'))\n")
    command = (sys.executable, 'tools/visualize.py', image, '--config', config, '--out', tmp_path)
    assert 'expected HPViT' in run(*command, env=env, fails=True)
