# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Pictures of features, attention and predictions."""

import sys

import cv2
import numpy as np
import pytest
import torch
from plain_twin import noisy
from test_tools import SEGMENTER, env, run, train  # noqa: F401 (env is a fixture)
from visualize import attention_of, colours

from mmhpvit import HPViT


@torch.no_grad()
@pytest.mark.parametrize('options', [{}, dict(attention='window_grid', window_size=2), dict(grid_spacing=2)])
def test_attention_is_that_of_the_tokens_sequence(options):
    """It reaches the tokens that the layout says, and what does not go to them goes to prefix tokens."""
    backbone = noisy(HPViT('test_vit', **options)).eval()
    x = torch.randn(1, 3, 72, 90)
    found = attention_of(backbone, x, (40, 30))
    assert [stride for stride, _, _ in found] == [s.stride for s in backbone.stages if s.stop > s.start]
    for stage, (stride, weights, token) in zip(
        [s for s in backbone.stages if s.stop > s.start], found, strict=True
    ):
        assert weights.shape == (-(-72 // stride), -(-90 // stride))
        assert token == (40 // stride, 30 // stride)
        reached = ~np.isnan(weights)
        d = stage.layout.dilation
        ys, xs = reached.nonzero()
        assert set(ys % d) == {token[0] % d}
        assert set(xs % d) == {token[1] % d}
        assert reached[token]
        assert 0 < weights[reached].sum() <= 1 + 1e-5


def test_colours_are_the_principal_components():
    features = torch.randn(1, 8, 5, 7)
    assert colours(features).shape == (5, 7, 3)
    assert 0 <= colours(features).min() <= colours(features).max() <= 1
    assert colours(features[:, :2]).shape == (5, 7, 3)
    assert np.isfinite(colours(torch.ones(1, 4, 3, 3))).all()


@pytest.mark.slow
def test_pictures_of_a_trained_segmenter(shapes, tmp_path, env):  # noqa: F811
    train(SEGMENTER, tmp_path / 'work', env=env)
    image = sorted((shapes / 'val').glob('*.png'))[0]
    command = (sys.executable, 'tools/visualize.py', image, '--config', SEGMENTER, '--out', tmp_path / 'out')
    run(*command, '--checkpoint', tmp_path / 'work/iter_6.pth', '--point', '10,20', env=env)
    for name in ('levels', 'attention', 'prediction'):
        assert cv2.imread(str(tmp_path / f'out/{name}.png')).std() > 1
    output = run(*command, '--point', '10,200', env=env, fails=True)
    assert '--point 10,200 lies outside of the image' in output
    config = tmp_path / 'plain.py'
    config.write_text(
        f"_base_ = '{tmp_path}/work/tiny_segmenter.py'\nmodel = dict(backbone=dict(type='PlainViTPyramid'))\n"
    )
    output = run(
        sys.executable,
        'tools/visualize.py',
        image,
        '--config',
        config,
        '--out',
        tmp_path,
        env=env,
        fails=True,
    )
    assert 'expected HPViT' in output
