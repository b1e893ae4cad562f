# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""What is exported equals torch, and what cannot be is refused."""

import sys

import onnxruntime
import pytest
import torch
from tool_runs import DETECTOR, ROOT, SEGMENTER, run, train
from torch import nn


def export(*command, env, fails=False):
    return run(sys.executable, 'tools/export.py', *command, env=env, fails=fails)


@pytest.fixture(scope='module')
def adaptive_pool():
    sys.path.insert(0, str(ROOT / 'tools'))
    from export import SummedAdaptivePool

    return SummedAdaptivePool


@pytest.mark.parametrize('cells', [1, 2, 3, 6, (3, 5)])
@pytest.mark.parametrize('size', [(6, 6), (7, 13), (2, 3)])
def test_pooling_by_sums_is_adaptive_pooling(adaptive_pool, cells, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(adaptive_pool(cells)(x), nn.AdaptiveAvgPool2d(cells)(x), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_segmenter_as_onnx(tmp_path, env):
    """Three batches and odd sizes are compared by the tool; one more here."""
    train(SEGMENTER, tmp_path, '--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=9', env=env)
    out = tmp_path / 'segmenter.onnx'
    output = export(SEGMENTER, out, '--checkpoint', tmp_path / 'iter_2.pth', env=env)
    assert 'at three sizes' in output
    assert 'RANDOM' not in output
    (logits,) = onnxruntime.InferenceSession(out).run(None, {'images': torch.zeros(1, 3, 77, 50).numpy()})
    assert logits.shape == (1, 5, 77, 50)


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['.pt2', '.onnx'])
@pytest.mark.parametrize('kind', ['HPViT', 'TwoScaleViT', 'PlainViTPyramid'])
def test_every_backbone_in_both_formats(kind, suffix, tmp_path, env):
    """The tool compares batches of 1, 2 and 3 with torch."""
    config, out = tmp_path / 'detector.py', tmp_path / f'backbone{suffix}'
    options = f"model = dict(backbone=dict(type='{kind}', out_indices=(3, 1), drop_path_rate=0.1))"
    config.write_text(f"_base_ = '{ROOT / DETECTOR}'\n{options}\n")
    output = export(config, out, '--backbone', env=env)
    assert 'RANDOM weights' in output
    assert 'at three sizes' in output
    if suffix == '.pt2':
        maps = torch.export.load(out).module()(torch.randn(2, 3, 64, 320))
        assert [m.shape for m in maps] == [(2, 64, 2, 10), (2, 64, 8, 40)]


@pytest.mark.slow
def test_a_program_that_differs_is_not_left_behind(tmp_path, shapes, monkeypatch):
    import export as tool

    out = tmp_path / 'backbone.pt2'
    monkeypatch.setenv('SHAPES', str(shapes))
    monkeypatch.setattr('sys.argv', ['export.py', DETECTOR, str(out), '--backbone'])
    monkeypatch.setattr(tool, 'compare', lambda part, path: path.stat().st_size and 0.1)
    with pytest.raises(SystemExit, match=r'differs from torch by 1\.0e-01'):
        tool.main()
    assert not out.exists()


@pytest.mark.slow
def test_what_cannot_be_exported_is_refused_in_a_line(tmp_path, env):
    config = tmp_path / 'sam.py'
    config.write_text(
        f"_base_ = '{ROOT / DETECTOR}'\n"
        "custom_imports = dict(imports=['mmhpvit', 'tiny_models'], allow_failed_imports=False)\n"
        "model = dict(backbone=dict(plain='tiny_sam'))\n"
    )
    for command, message in (
        ((DETECTOR, tmp_path / 'd.onnx'), 'only segmenters are exported whole; add --backbone'),
        ((DETECTOR, tmp_path / 'd.torch', '--backbone'), r'expected a name that ends in .onnx or .pt2'),
        (
            ('configs/ade20k/mask2former_hpvit-b-mae_8xb2-160k_ade20k-512x512.py', tmp_path / 'd.onnx'),
            'add --backbone',
        ),
        (('no.py', tmp_path / 'd.onnx'), "config 'no.py' does not exist"),
        ((config, tmp_path / 'd.pt2', '--backbone'), 'blocks of tiny_sam cut windows'),
    ):
        output = export(*command, env=env, fails=True)
        assert message in output
        assert output.strip().splitlines()[-1].startswith('error: ')
