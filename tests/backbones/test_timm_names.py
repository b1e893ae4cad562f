# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import re

import pytest
import timm
from timm.models import get_arch_pretrained_cfgs

from mmhpvit.backbones.timm_names import RULES, timm_name, timm_name_of
from mmhpvit.backbones.timm_vit import build_plain_vit

# Names as other libraries have them, at least one for each rule.
NAMES = {
    'facebook/dinov2-small': 'vit_small_patch14_dinov2.lvd142m',
    'facebook/dinov2-base': 'vit_base_patch14_dinov2.lvd142m',
    'facebook/dinov2-giant': 'vit_giant_patch14_dinov2.lvd142m',
    'facebook/dinov2-base-imagenet1k-1-layer': 'vit_base_patch14_dinov2.lvd142m',
    'facebook/dinov2-with-registers-base': 'vit_base_patch14_reg4_dinov2.lvd142m',
    'dinov2_vits14': 'vit_small_patch14_dinov2.lvd142m',
    'dinov2_vitb14_lc': 'vit_base_patch14_dinov2.lvd142m',
    'dinov2_vitb14_reg': 'vit_base_patch14_reg4_dinov2.lvd142m',
    'dinov2_vitg14_reg_lc': 'vit_giant_patch14_reg4_dinov2.lvd142m',
    'facebook/dinov3-vits16-pretrain-lvd1689m': 'vit_small_patch16_dinov3.lvd1689m',
    'facebook/dinov3-vits16plus-pretrain-lvd1689m': 'vit_small_plus_patch16_dinov3.lvd1689m',
    'facebook/dinov3-vitl16-pretrain-sat493m': 'vit_large_patch16_dinov3.sat493m',
    'facebook/dinov3-vith16plus-pretrain-lvd1689m': 'vit_huge_plus_patch16_dinov3.lvd1689m',
    'facebook/dinov3-vit7b16-pretrain-lvd1689m': 'vit_7b_patch16_dinov3.lvd1689m',
    'dinov3_vits16': 'vit_small_patch16_dinov3.lvd1689m',
    'dinov3_vith16plus': 'vit_huge_plus_patch16_dinov3.lvd1689m',
    'facebook/dino-vits16': 'vit_small_patch16_224.dino',
    'dino_vitb8': 'vit_base_patch8_224.dino',
    'facebook/vit-mae-base': 'vit_base_patch16_224.mae',
    'facebook/vit-mae-huge': 'vit_huge_patch14_224.mae',
    'mae_vit_large_patch16': 'vit_large_patch16_224.mae',
    'google/vit-base-patch16-224': 'vit_base_patch16_224.orig_in21k_ft_in1k',
    'google/vit-large-patch32-384': 'vit_large_patch32_384.orig_in21k_ft_in1k',
    'google/vit-large-patch16-224': 'vit_large_patch16_224',
    'google/vit-base-patch16-224-in21k': 'vit_base_patch16_224.orig_in21k',
    'google/vit-huge-patch14-224-in21k': 'vit_huge_patch14_224.orig_in21k',
    'openai/clip-vit-base-patch16': 'vit_base_patch16_clip_quickgelu_224.openai',
    'openai/clip-vit-large-patch14-336': 'vit_large_patch14_clip_quickgelu_336.openai',
    'laion/CLIP-ViT-B-16-laion2B-s34B-b88K': 'vit_base_patch16_clip_224.laion2b',
    'laion/CLIP-ViT-bigG-14-laion2B-39B-b160k': 'vit_gigantic_patch14_clip_224.laion2b',
    'google/siglip-base-patch16-224': 'vit_base_patch16_siglip_224.webli',
    'google/siglip-so400m-patch14-384': 'vit_so400m_patch14_siglip_384.webli',
    'google/siglip-base-patch16-256-multilingual': 'vit_base_patch16_siglip_256.webli_i18n',
    'google/siglip2-base-patch32-256': 'vit_base_patch32_siglip_256.v2_webli',
    'google/siglip2-so400m-patch14-384': 'vit_so400m_patch14_siglip_378.v2_webli',
    'google/siglip2-giant-opt-patch16-256': 'vit_giantopt_patch16_siglip_256.v2_webli',
    'facebook/deit-base-patch16-224': 'deit_base_patch16_224.fb_in1k',
    'facebook/deit-tiny-distilled-patch16-224': 'deit_tiny_distilled_patch16_224.fb_in1k',
    'microsoft/beit-base-patch16-224': 'beit_base_patch16_224.in22k_ft_in22k_in1k',
    'microsoft/beit-base-patch16-224-pt22k': 'beit_base_patch16_224',
    'microsoft/beit-large-patch16-224-pt22k-ft22k': 'beit_large_patch16_224.in22k_ft_in22k',
    'facebook/sam-vit-huge': 'samvit_huge_patch16.sa1b',
    'facebook/ijepa_vith14_22k': 'vit_huge_patch14_gap_224.in22k_ijepa',
    'facebook/ijepa_vith16_1k': 'vit_huge_patch16_gap_448.in1k_ijepa',
    'facebook/ijepa_vitg16_22k': 'vit_giant_patch16_gap_224.in22k_ijepa',
    'apple/aimv2-1B-patch14-224': 'aimv2_1b_patch14_224.apple_pt',
    'apple/aimv2-large-patch14-224-distilled': 'aimv2_large_patch14_224.apple_pt_dist',
    'facebook/PE-Core-B16-224': 'vit_pe_core_base_patch16_224.fb',
    'facebook/PE-Spatial-G14-448': 'vit_pe_spatial_gigantic_patch14_448.fb',
    'vit_b_16': 'vit_base_patch16_224',
    # Files, by timm's own addresses.
    'mae_pretrain_vit_base.pth': 'vit_base_patch16_224.mae',
    'dinov2_vits14_reg4_pretrain': 'vit_small_patch14_reg4_dinov2.lvd142m',
    'https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth': 'samvit_base_patch16.sa1b',
}


@pytest.mark.parametrize(('name', 'own'), NAMES.items())
def test_the_error_for_a_name_of_others_has_that_of_timm(name, own):
    model, _, tag = own.partition('.')
    assert timm.is_model(model)
    assert not tag or tag in {config.tag for config in get_arch_pretrained_cfgs(model).values()}
    for given in (name, f'hf-hub:{name}') if '://' not in name else (name,):
        with pytest.raises(ValueError, match=re.escape(f"is timm's {own}")) as error:
            build_plain_vit(given)
        assert f'give plain={own!r}' in str(error.value)
        assert ('checkpoint=FILE' in str(error.value)) == (not tag)
        assert '\n' not in str(error.value)


def test_every_rule_is_tested():
    for pattern, _ in RULES:
        assert any(re.fullmatch(pattern, name.lower()) for name in NAMES), pattern


@pytest.mark.parametrize(
    'name',
    ['facebook/dinov2-huge', 'vit_base', 'google/siglip2-base-patch16-naflex', 'someone/dinov2-base', ''],
)
def test_other_names_are_not_guessed(name):
    assert timm_name_of(name) is None
    assert timm_name(name) == name
