# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import pytest
import torch

from mmhpvit import HPViT
from mmhpvit.backbones.timm_vit import build_plain_vit

# One of each family, with its depth to see that it is the right one.
USABLE = {
    'vit_tiny_patch16_224': 12,
    'vit_base_patch16_224.mae': 12,
    'vit_small_patch8_224.dino': 12,
    'vit_base_patch32_clip_224.openai': 12,
    'vit_large_patch14_clip_336': 24,
    'vit_small_patch14_dinov2.lvd142m': 12,
    'vit_base_patch14_reg4_dinov2.lvd142m': 12,
    'vit_giant_patch14_dinov2.lvd142m': 40,
    'deit3_base_patch16_224': 12,
    'vit_base_patch16_siglip_256': 12,
    'flexivit_small': 12,
    'deit_small_distilled_patch16_224': 12,
    'beit_base_patch16_224': 12,
    'eva02_base_patch14_224': 12,
    'vit_base_patch16_dinov3.lvd1689m': 12,
    'vit_pe_core_base_patch16_224.fb': 12,
    'samvit_base_patch16.sa1b': 12,
    'vit_relpos_base_patch16_224': 12,
    'vit_base_patch16_radio_v3': 12,
}
REFUSED = {
    'resnet50': 'not a plain Vision Transformer',
    'swin_tiny_patch4_window7_224': 'not a plain Vision Transformer',
    'vit_base_r50_s16_224': 'hybrid',
    'naflexvit_base_patch16_gap': 'lists of patches',
    'cait_s24_224': 'class token comes in after the body',
    'qwen3_vit_88m': 'tower of a language model',
}


@pytest.mark.parametrize(('name', 'depth'), USABLE.items())
def test_plain_vits_of_timm_are_taken(name, depth):
    vit = build_plain_vit(name, device='meta')
    assert len(vit.blocks) == depth
    assert not [n for n in vit.state_dict() if n.startswith(('head', 'attn_pool'))]


@pytest.mark.parametrize(('name', 'reason'), REFUSED.items())
def test_other_models_are_refused_by_name_and_reason(name, reason):
    with pytest.raises(ValueError, match=reason) as error:
        build_plain_vit(name)
    assert name in str(error.value)
    assert '\n' not in str(error.value)


def test_unknown_names_get_the_closest():
    with pytest.raises(ValueError, match=r"'vit_baze_patch16_224'.*vit_base_patch16_224"):
        build_plain_vit('vit_baze_patch16_224')
    with pytest.raises(ValueError, match=r"no weights 'mea'.*mae"):
        build_plain_vit('vit_base_patch16_224.mea')


@pytest.mark.parametrize('prefix', ['timm/', 'hf-hub:timm/', 'hf_hub:timm/'])
def test_names_of_timm_on_hugging_face_are_taken(prefix):
    vit = build_plain_vit(f'{prefix}vit_base_patch16_224.mae', device='meta')
    assert vit.pretrained_cfg['tag'] == 'mae'
    with torch.device('meta'):
        assert HPViT(f'{prefix}vit_tiny_patch16_224').plain == 'vit_tiny_patch16_224'
    with pytest.raises(ValueError, match=r"plain='.*timm/vit_baze_patch16_224'.*vit_base_patch16_224"):
        build_plain_vit(f'{prefix}vit_baze_patch16_224')
