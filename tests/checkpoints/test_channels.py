# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Patch kernels for images of other than 3 channels: what timm makes of them, and what the report says."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from plain_twin import noisy
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from mmhpvit import HPViT, PlainViTPyramid, TwoScaleViT, load_plain_weights
from mmhpvit.checkpoints.inspection import inspect_checkpoint
from mmhpvit.layers.patch_embed import resize_kernel

ROOT = Path(__file__).resolve().parents[2]
KERNEL = 'patch_embed.proj.weight'
EXACT = dict(rtol=0, atol=1e-10)
BACKBONES = [
    (HPViT, dict(depths=(0, 0, 4, 0), out_indices=(2,))),
    (TwoScaleViT, dict(out_indices=(2,))),
    (PlainViTPyramid, dict(out_indices=(2,))),
]


def timm_model(name: str = 'tiny_patch16', channels: int = 3) -> nn.Module:
    """A plain ViT of timm with weights that no initialisation would give."""
    vit = timm.create_model(name, num_classes=0, global_pool='', dynamic_img_size=True, in_chans=channels)
    return noisy(vit).eval()


def stored(vit: nn.Module, folder: Path, **changed: Tensor) -> str:
    save_file(vit.state_dict() | changed, folder / 'vit.safetensors')
    return str(folder / 'vit.safetensors')


def last_map(vit: nn.Module, x: Tensor) -> Tensor:
    return vit.forward_intermediates(x, [len(vit.blocks) - 1], norm=True, intermediates_only=True)[0]


@pytest.mark.parametrize(('kind', 'options'), BACKBONES)
@pytest.mark.parametrize('channels', [1, 2, 3, 4, 7])
def test_features_are_those_of_the_vit_that_timm_adapts(kind, options, channels, tmp_path):
    vit, backbone = timm_model(), kind('tiny_patch16', in_channels=channels, **options)
    report = load_plain_weights(backbone, stored(vit, tmp_path))
    adapted = timm_model(channels=channels)
    adapted.load_state_dict(vit.state_dict() | {KERNEL: adapt_input_conv(channels, vit.state_dict()[KERNEL])})
    x = torch.randn(2, channels, 48, 80).double()
    (found,) = backbone.double().eval()(x)
    torch.testing.assert_close(found, last_map(adapted.double(), x), **EXACT)
    changed = (KERNEL, (48, 3, 16, 16), (48, channels, 16, 16))
    assert report.resized == ([changed] if channels != 3 else [])
    assert (f'patch kernel adapted from 3 to {channels} channels' in str(report)) == (channels != 3)


@pytest.mark.parametrize('kind', [HPViT, TwoScaleViT, PlainViTPyramid])
@pytest.mark.parametrize(('channels', 'copies'), [(1, [0, 0, 0]), (6, [0, 1, 2])])
def test_adapted_features_are_those_of_the_same_picture_in_rgb(kind, channels, copies, tmp_path):
    """Grey as one channel or three; a picture once or twice."""
    path, x = stored(timm_model(), tmp_path), torch.randn(2, channels, 37, 70).double()
    if channels == 6:
        x[:, 3:] = x[:, :3]
    maps, initial = [], kind('tiny_patch16').state_dict()
    for number, images in ((channels, x), (3, x[:, copies])):
        backbone = kind('tiny_patch16', in_channels=number)
        # For what the plain ViT does not have.
        backbone.load_state_dict({n: v for n, v in initial.items() if n != KERNEL}, strict=False)
        load_plain_weights(backbone, path)
        maps.append(backbone.double().eval()(images))
    for level, other in zip(*maps, strict=True):
        torch.testing.assert_close(level, other, rtol=1e-5, atol=1e-5)  # timm adapts in float32


@pytest.mark.parametrize(('kernel', 'side'), [('keep', 16), ('resample', 4)])
@pytest.mark.parametrize('channels', [1, 4])
def test_resizing_and_adapting_agree_in_both_orders(kernel, side, channels, tmp_path):
    vit = timm_model('tiny_patch14')
    backbone = HPViT('tiny_patch14', patch_kernel=kernel, in_channels=channels)
    report = load_plain_weights(backbone, stored(vit, tmp_path))
    assert report.resized == [(KERNEL, (48, 3, 14, 14), (48, channels, side, side))]
    own, weight = backbone.patch_embed.proj.weight.data, vit.state_dict()[KERNEL]
    first = resize_kernel(adapt_input_conv(channels, weight), side)
    last = adapt_input_conv(channels, resize_kernel(weight, side))
    torch.testing.assert_close(own, first, rtol=0, atol=0)
    torch.testing.assert_close(own, last, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('channels', [1, 4])
def test_a_checkpoint_of_the_same_channels_loads_unchanged(channels, tmp_path):
    vit = timm_model(channels=channels)
    path = stored(vit, tmp_path)
    backbone = HPViT('tiny_patch16', (0, 0, 4, 0), out_indices=(2,), in_channels=channels)
    report = load_plain_weights(backbone, path)
    assert torch.equal(backbone.patch_embed.proj.weight, vit.patch_embed.proj.weight)
    assert report.resized == []
    x = torch.randn(2, channels, 48, 80).double()
    torch.testing.assert_close(backbone.double().eval()(x)[0], last_map(vit.double(), x), **EXACT)
    for other in (2, 3):
        with pytest.raises(
            ValueError, match=rf'kernel for {channels} channels.*set in_channels={channels}'
        ) as stopped:
            load_plain_weights(HPViT('tiny_patch16', in_channels=other), path)
        assert '\n' not in str(stopped.value)


def test_a_kernel_stored_as_a_matrix_is_adapted(tmp_path):
    vit = timm_model()
    matrix = vit.state_dict()[KERNEL].flatten(1)
    backbone = HPViT('tiny_patch16', in_channels=4)
    report = load_plain_weights(backbone, stored(vit, tmp_path, **{KERNEL: matrix}))
    wanted = adapt_input_conv(4, vit.state_dict()[KERNEL])
    torch.testing.assert_close(backbone.patch_embed.proj.weight.data, wanted, rtol=0, atol=0)
    assert report.resized == [(KERNEL, (48, 3, 16, 16), (48, 4, 16, 16))]
    report = load_plain_weights(HPViT('tiny_patch16'), tmp_path / 'vit.safetensors')
    assert report.resized == []


@pytest.mark.parametrize('plain', ['tiny_dinov3', 'tiny_beit', 'tiny_eva02', 'tiny_sam', 'tiny_relpos'])
def test_every_kind_of_vit_is_adapted(plain, tmp_path):
    vit, backbone = noisy(timm.create_model(plain)), HPViT(plain, in_channels=5)
    load_plain_weights(backbone, stored(vit, tmp_path))
    wanted = adapt_input_conv(5, vit.state_dict()[KERNEL])
    torch.testing.assert_close(backbone.patch_embed.proj.weight.data, wanted, rtol=0, atol=0)
    assert backbone(torch.randn(1, 5, 32, 32))[0].shape == (1, 48, 8, 8)


def test_inspection_tells_the_channels_of_a_file(tmp_path):
    found = inspect_checkpoint(stored(timm_model(channels=4), tmp_path), 'tiny_patch16')
    assert found.in_channels == 4
    assert '\n  channels   4\n' in str(found)
    assert found.report.resized == []


def test_conversion_adapts_once_for_all(tmp_path):
    name, out = 'test_vit', tmp_path / 'out.safetensors'
    save_file(timm.create_model(name, num_classes=0).state_dict(), tmp_path / 'vit.safetensors')
    command = [
        sys.executable,
        'tools/convert_checkpoint.py',
        tmp_path / 'vit.safetensors',
        out,
        '--plain',
        name,
    ]
    done = subprocess.run(
        [*command, '--in-channels', '4'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 'patch kernel adapted from 3 to 4 channels' in done.stdout
    wanted = adapt_input_conv(4, load_file(tmp_path / 'vit.safetensors')[KERNEL])
    assert torch.equal(load_file(out)[KERNEL], wanted)
    assert load_plain_weights(HPViT(name, in_channels=4), out).resized == []
