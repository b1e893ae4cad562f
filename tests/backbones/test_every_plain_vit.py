# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Every ViT of timm: refused with a reason, or equal to timm's own forward (made small, in float64)."""

import functools

import pytest
import timm
import torch
from plain_twin import last_map, noisy, on_shifted_images, twin, without_norms

from mmhpvit import HPViT
from mmhpvit.backbones.timm_vit import build_plain_vit

EXACT = dict(rtol=0, atol=1e-10)
# The files of timm that hold ViTs of one resolution: those that can be used, those that cannot.
PLAIN = ('vision_transformer', 'deit', 'eva', 'beit', 'vision_transformer_sam', 'vision_transformer_relpos')
OTHER = (
    *('vision_transformer_hybrid', 'vitamin', 'naflexvit', 'qwen3_vit', 'gemma4_vit', 'deepseek_vit'),
    *('cait', 'convit', 'xcit', 'volo', 'tnt', 'crossvit'),
)


def models(files: tuple[str, ...]) -> list[str]:
    return [name for file in files for name in timm.list_models(module=file)]


@functools.cache
def small_options(name: str) -> dict:
    """Two blocks of width 48 on 4 x 4 patches, everything else as timm has it."""
    with torch.device('meta'):
        patch = timm.create_model(name, num_classes=0).patch_embed.patch_size[0]
    options = dict(embed_dim=48, depth=2, num_heads=3, img_size=4 * patch)
    if 'sapiens2' in name:
        # Built for any size, timm computes its rotary embedding in float64 here; for one size, in float32.
        options |= dict(num_kv_heads=3, dynamic_img_size=False)
    return options


@pytest.fixture
def small(monkeypatch):
    """Let backbones be built from small versions of timm's models."""
    create = timm.create_model

    def use(options: dict) -> None:
        monkeypatch.setattr(timm, 'create_model', lambda name, **own: create(name, **options | own))

    yield use
    monkeypatch.undo()


@pytest.mark.parametrize('name', models(PLAIN))
def test_equal_to_timm(name, small):
    options = small_options(name)
    small(options)
    backbone = without_norms(noisy(HPViT(name, depths=(2, 0, 0, 0), out_indices=(0,)).double().eval()))
    patch = backbone.patch
    image = torch.randn(1, 3, 4 * patch, 4 * patch).double()
    step = patch // 4
    (out,) = backbone(image)
    shifts = [(0, 0), (step // 2, step - 1)]
    for (i, j), expected in on_shifted_images(backbone, twin(backbone), image, shifts).items():
        torch.testing.assert_close(out[:, :, i::step, j::step], expected, **EXACT)
    if patch != 16:
        return
    plain = without_norms(
        noisy(HPViT(name, depths=(0, 0, 2, 0), attention='grid', out_indices=(2,)).double().eval())
    )
    torch.testing.assert_close(plain(image)[0], last_map(twin(plain), image), **EXACT)


@pytest.mark.parametrize('name', models(OTHER))
def test_refused_with_a_reason(name):
    with pytest.raises(ValueError, match=r'cannot be used: it') as error:
        build_plain_vit(name)
    assert name in str(error.value)
    assert '\n' not in str(error.value)


def test_no_vit_of_timm_is_forgotten():
    """Whatever timm names a ViT of one patch size is in one of the lists."""
    named = {
        n for n in timm.list_models('*_patch*') if n.startswith(('vit', 'deit', 'beit', 'eva', 'samvit'))
    }
    assert named - {*models(PLAIN), *models(OTHER)} == set()
    assert len(models(PLAIN)) > 250
