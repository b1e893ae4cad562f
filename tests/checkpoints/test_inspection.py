# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import transformers
from forked import run_script
from safetensors.torch import load_file, save_file

from mmhpvit import HPViT, load_plain_weights
from mmhpvit.checkpoints.inspection import inspect_checkpoint
from mmhpvit.checkpoints.trained import trained_as

ROOT = Path(__file__).resolve().parents[2]


def run(tool: str, *args) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / 'tools' / tool), *map(str, args)]
    return run_script(command, ROOT, {**os.environ, 'PYTHONWARNINGS': 'ignore'}, timeout=300)


@pytest.mark.parametrize(
    ('plain', 'positions', 'tokens', 'words'),
    [
        ('tiny_patch16', 17, {'cls_token': 1}, 'positions  17 (4 x 4)'),
        ('tiny_registers', 16, {'cls_token': 1, 'reg_token': 4}, 'positions  16 (4 x 4)'),
        ('tiny_no_class', 16, {}, 'prefix     none'),
        ('tiny_wide_grid', 19, {'cls_token': 1}, 'positions  19\n'),
        ('tiny_dinov3', None, {'cls_token': 1, 'reg_token': 4}, 'no absolute embedding'),
        ('tiny_sam', 16, {}, '3 heads'),
    ],
)
def test_what_a_file_holds(plain, positions, tokens, words, tmp_path):
    weights = timm.create_model(plain).state_dict()
    torch.save({'model': {f'module.{k}': v for k, v in weights.items()}}, tmp_path / 'vit.pth')
    found = inspect_checkpoint(tmp_path / 'vit.pth', plain)
    assert (found.naming, found.prefix) == ('timm', 'model.module.')
    assert (found.width, found.depth, found.patch) == (48, 4, 16)
    assert (found.positions, found.tokens) == (positions, tokens)
    assert words in str(found)
    assert found.report.plain == plain


@pytest.mark.slow
def test_the_vits_that_fit_are_found(real_weights):
    result = run('inspect_checkpoint.py', real_weights)
    assert result.returncode == 0, result.stderr
    fits = 'vit_tiny_patch16_224, deit_tiny_patch16_224, vit_tiny_patch16_384 (3 heads, GELU, eps 1e-06)'
    assert f'fits       {fits}' in result.stdout
    assert 'loaded    156' in result.stdout


@pytest.mark.slow
def test_names_that_compute_something_else_are_told_apart(tmp_path):
    """A CLIP fits ViTs with another activation and with rotary positions; its configuration tells."""
    vision = dict(
        hidden_size=768, num_attention_heads=12, intermediate_size=3072, patch_size=16, num_hidden_layers=12
    )
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision))
    model.save_pretrained(tmp_path)
    found = inspect_checkpoint(tmp_path)
    assert 'quickgelu' in found.fits[0]
    assert found.positions == 197
    assert len(set(found.traits.values())) > 1
    assert 'compute different things' in str(found)
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision))
    model.save_pretrained(tmp_path / 'siglip')
    assert 'siglip' in inspect_checkpoint(tmp_path / 'siglip').fits[0]


@pytest.mark.slow
def test_inspecting_what_does_not_load_fails(real_weights, tmp_path):
    result = run('inspect_checkpoint.py', real_weights, '--plain', 'vit_small_patch16_224')
    assert result.returncode == 1
    assert 'error: checkpoint' in result.stderr
    assert 'width 192 (the model has 384)' in result.stderr
    save_file(timm.create_model('tiny_patch16').state_dict(), tmp_path / 'odd.safetensors')
    result = run('inspect_checkpoint.py', tmp_path / 'odd.safetensors')
    assert result.returncode == 1
    assert 'width      48' in result.stdout
    assert 'fits       no plain ViT of timm; none has this width and patch' in result.stdout
    torch.save({k: v.to(torch.int8) for k, v in load_file(real_weights).items()}, tmp_path / 'int8.pth')
    assert 'before quantisation' in run('inspect_checkpoint.py', tmp_path / 'int8.pth').stderr
    short = {k: v for k, v in load_file(real_weights).items() if not k.startswith('blocks.11.')}
    save_file(short, tmp_path / 'short.safetensors')
    assert 'has depth 11' in run('inspect_checkpoint.py', tmp_path / 'short.safetensors').stdout
    result = run('inspect_checkpoint.py', tmp_path / 'nowhere.pth')
    assert result.returncode == 1
    assert 'does not exist' in result.stderr
    (tmp_path / 'augreg.npz').touch()
    with pytest.raises(ValueError, match=r'convert it first with tools/convert_checkpoint\.py'):
        inspect_checkpoint(tmp_path / 'augreg.npz')


@pytest.mark.slow
def test_converted_weights_are_the_same(real_weights, tmp_path):
    name, out = 'vit_tiny_patch16_224', tmp_path / 'new' / 'vit.safetensors'
    result = run('convert_checkpoint.py', real_weights, out, '--plain', name)
    assert result.returncode == 0, result.stderr
    assert 'head.bias, head.weight (classifier head)' in result.stdout
    original = load_file(real_weights)
    converted = load_file(out)
    assert set(converted) == {k for k in original if not k.startswith('head.')}
    assert all(torch.equal(tensor, original[k]) for k, tensor in converted.items())
    assert load_plain_weights(HPViT(name), out).dropped == []
    again = run('convert_checkpoint.py', real_weights, out, '--plain', name)
    assert again.returncode == 1
    assert 'exists; delete it first' in again.stderr
    wrong = run('convert_checkpoint.py', real_weights, tmp_path / 'vit.pth', '--plain', name)
    assert wrong.returncode == 1
    assert 'ends on .safetensors' in wrong.stderr


@pytest.mark.parametrize('plain', ['tiny_wide_grid', 'tiny_beit_wide'])
def test_grids_that_are_not_square(plain, tmp_path):
    weights = timm.create_model(plain).state_dict()
    save_file(weights, tmp_path / 'vit.safetensors')
    backbone = HPViT(plain)
    report = load_plain_weights(backbone, tmp_path / 'vit.safetensors')
    assert report.resized == []
    assert torch.equal(backbone.pos_embed, weights['pos_embed'])


@pytest.mark.parametrize(
    ('cfg', 'trained'),
    [
        ("model = dict(backbone=dict(type='HPViT', plain='tiny_patch16'))", 'HPViT of tiny_patch16'),
        ("model = dict(backbone=dict(type='mmhpvit.HPViT'))", 'HPViT'),
        ('model = own()', 'unknown backbone'),
        ('model = (', 'unknown backbone'),
    ],
)
def test_checkpoints_of_a_training_say_what_they_are(cfg, trained, tmp_path):
    state = {f'backbone.{name}': value for name, value in HPViT('tiny_patch16').state_dict().items()}
    meta = dict(cfg=cfg, iter=3, dataset_meta=dict(classes=('cat', 'dog')))
    torch.save(dict(state_dict=state, meta=meta), tmp_path / 'own.pth')
    found = inspect_checkpoint(tmp_path / 'own.pth')
    assert f'  trained    {trained}, iteration 3, 2 classes (cat, dog)\n' in str(found)
    assert re.search(
        r"fits +no plain ViT of timm; .* of a backbone of this package.*type='Pretrained'", str(found)
    )
    assert found.report is None


def test_only_what_a_training_wrote_is_called_trained(tmp_path):
    weights = timm.create_model('tiny_patch16').state_dict()
    for meta in (dict(iter='3'), dict(cfg='', iter=None), [], None):
        torch.save(dict(state_dict=weights, meta=meta), tmp_path / 'vit.pth')
        assert 'trained' not in str(inspect_checkpoint(tmp_path / 'vit.pth', 'tiny_patch16'))
    names = [f'c{i}' for i in range(9)]
    assert trained_as(dict(cfg='', iter=1, dataset_meta=dict(classes=names))).endswith('c7, ...)')
    assert trained_as(dict(cfg='', iter=1, dataset_meta=[])) == 'unknown backbone, iteration 1'
