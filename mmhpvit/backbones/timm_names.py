# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The timm names of plain ViTs that other libraries name otherwise."""

import re
from pathlib import PurePosixPath
from urllib.parse import urlparse

import timm
from timm.models import get_arch_pretrained_cfgs

_SIZES = dict(t='tiny', s='small', b='base', l='large', h='huge', g='giant', bigg='gigantic')

# Names of Hugging Face, torch.hub and torchvision in lower case, and timm's. A tag that timm lacks means that timm has
# the model, but not these weights.
RULES = (
    (r'(facebook/)?dinov2-(?P<size>\w+)(-imagenet1k-1-layer)?', 'vit_{size}_patch14_dinov2.lvd142m'),
    (
        r'(facebook/)?dinov2-with-registers-(?P<size>\w+)(-imagenet1k-1-layer)?',
        'vit_{size}_patch14_reg4_dinov2.lvd142m',
    ),
    (r'dinov2_vit(?P<size>[sblg])14(_lc)?', 'vit_{size}_patch14_dinov2.lvd142m'),
    (r'dinov2_vit(?P<size>[sblg])14_reg(_lc)?', 'vit_{size}_patch14_reg4_dinov2.lvd142m'),
    (
        r'(facebook/)?dinov3-vit(?P<size>[sbl]|7b)16-pretrain-(?P<data>\w+)',
        'vit_{size}_patch16_dinov3.{data}',
    ),
    (
        r'(facebook/)?dinov3-vit(?P<size>[sh])16plus-pretrain-(?P<data>\w+)',
        'vit_{size}_plus_patch16_dinov3.{data}',
    ),
    (r'dinov3_vit(?P<size>[sbl]|7b)16', 'vit_{size}_patch16_dinov3.lvd1689m'),
    (r'dinov3_vit(?P<size>[sh])16plus', 'vit_{size}_plus_patch16_dinov3.lvd1689m'),
    (r'(facebook/)?dino[-_]vit(?P<size>[sb])(?P<patch>8|16)', 'vit_{size}_patch{patch}_224.dino'),
    (r'(facebook/)?vit-mae-(?P<size>base|large)', 'vit_{size}_patch16_224.mae'),
    (r'(facebook/)?vit-mae-huge', 'vit_huge_patch14_224.mae'),
    (r'mae_vit_(?P<size>\w+)_patch(?P<patch>14|16)', 'vit_{size}_patch{patch}_224.mae'),
    (
        r'(google/)?vit-(?P<size>\w+)-patch(?P<patch>\d+)-(?P<image>224|384)',
        'vit_{size}_patch{patch}_{image}.orig_in21k_ft_in1k',
    ),
    (r'(google/)?vit-(?P<size>\w+)-patch(?P<patch>\d+)-224-in21k', 'vit_{size}_patch{patch}_224.orig_in21k'),
    # OpenAI's activation is not the one of the names without quickgelu.
    (
        r'(openai/)?clip-vit-(?P<size>\w+)-patch(?P<patch>\d+)',
        'vit_{size}_patch{patch}_clip_quickgelu_224.openai',
    ),
    (r'(openai/)?clip-vit-large-patch14-336', 'vit_large_patch14_clip_quickgelu_336.openai'),
    (
        r'(laion/)?clip-vit-(?P<size>b|l|h|g|bigg)-(?P<patch>\d+)-laion2b-.*',
        'vit_{size}_patch{patch}_clip_224.laion2b',
    ),
    (
        r'(google/)?siglip-(?P<size>\w+)-patch(?P<patch>\d+)-(?P<image>\d+)',
        'vit_{size}_patch{patch}_siglip_{image}.webli',
    ),
    (
        r'(google/)?siglip-(?P<size>\w+)-patch16-256-(multilingual|i18n)',
        'vit_{size}_patch16_siglip_256.webli_i18n',
    ),
    # timm names the size that 27 patches of 14 pixels cover.
    (r'(google/)?siglip2-so400m-patch14-384', 'vit_so400m_patch14_siglip_378.v2_webli'),
    (r'(google/)?siglip2-giant-opt-patch16-(?P<image>\d+)', 'vit_giantopt_patch16_siglip_{image}.v2_webli'),
    (
        r'(google/)?siglip2-(?P<size>\w+)-patch(?P<patch>\d+)-(?P<image>\d+)',
        'vit_{size}_patch{patch}_siglip_{image}.v2_webli',
    ),
    (r'(facebook/)?deit-(?P<size>\w+)-patch16-(?P<image>\d+)', 'deit_{size}_patch16_{image}.fb_in1k'),
    (
        r'(facebook/)?deit-(?P<size>\w+)-distilled-patch16-(?P<image>\d+)',
        'deit_{size}_distilled_patch16_{image}.fb_in1k',
    ),
    (
        r'(microsoft/)?beit-(?P<size>\w+)-patch16-(?P<image>\d+)',
        'beit_{size}_patch16_{image}.in22k_ft_in22k_in1k',
    ),
    (r'(microsoft/)?beit-(?P<size>\w+)-patch16-224-pt22k', 'beit_{size}_patch16_224.in22k'),
    (r'(microsoft/)?beit-(?P<size>\w+)-patch16-224-pt22k-ft22k', 'beit_{size}_patch16_224.in22k_ft_in22k'),
    (r'(facebook/)?sam-vit-(?P<size>\w+)', 'samvit_{size}_patch16.sa1b'),
    (r'(facebook/)?ijepa_vith14_(?P<data>1k|22k)', 'vit_huge_patch14_gap_224.in{data}_ijepa'),
    (r'(facebook/)?ijepa_vith16_1k', 'vit_huge_patch16_gap_448.in1k_ijepa'),
    (r'(facebook/)?ijepa_vitg16_22k', 'vit_giant_patch16_gap_224.in22k_ijepa'),
    (r'(apple/)?aimv2-(?P<size>\w+)-patch14-(?P<image>\d+)', 'aimv2_{size}_patch14_{image}.apple_pt'),
    (
        r'(apple/)?aimv2-(?P<size>\w+)-patch14-(?P<image>\d+)-distilled',
        'aimv2_{size}_patch14_{image}.apple_pt_dist',
    ),
    (
        r'(facebook/)?pe-(?P<kind>core|lang|spatial)-(?P<size>[tsbl])(?P<patch>\d+)-(?P<image>\d+)',
        'vit_pe_{kind}_{size}_patch{patch}_{image}.fb',
    ),
    (
        r'(facebook/)?pe-(?P<kind>core|lang|spatial)-g(?P<patch>\d+)-(?P<image>\d+)',
        'vit_pe_{kind}_gigantic_patch{patch}_{image}.fb',
    ),
    (r'vit_(?P<size>[blh])_(?P<patch>\d+)', 'vit_{size}_patch{patch}_224.torchvision'),
)


def timm_name(name: str) -> str:
    """A name without what Hugging Face puts before timm's: ``timm/``, ``hf-hub:timm/`` or ``hf_hub:timm/``."""
    return re.sub(r'^(hf[-_]hub:)?timm/', '', name)


def timm_name_of(name: str) -> tuple[str, str | None] | None:
    """timm's name of a plain ViT that goes by another name, or by the name of its authors' file.

    Args:
        name: A name on Hugging Face, torch.hub or torchvision, such as ``'facebook/dinov2-base'``; or a file name or
            URL that timm's own list of weights has, such as ``'mae_pretrain_vit_base.pth'``.

    Returns:
        The model and the tag of its weights, None where timm does not have these weights; None for an unknown name.
    """
    known = _by_rule(re.sub(r'^hf[-_]hub:', '', name).lower()) or _by_file(name)
    if known is None:
        return None
    model, _, tag = known.partition('.')
    if not timm.is_model(model):
        return None
    tags = {config.tag for config in get_arch_pretrained_cfgs(model).values()}
    return model, tag if tag in tags else None


def _by_rule(name: str) -> str | None:
    for pattern, template in RULES:
        if match := re.fullmatch(pattern, name):
            parts = match.groupdict()
            return template.format(**parts | {'size': _SIZES.get(parts.get('size'), parts.get('size'))})
    return None


def _by_file(name: str) -> str | None:
    """By the name of a file, as timm's addresses end."""
    wanted = _stem(name)
    for model in timm.list_models():
        for full, config in get_arch_pretrained_cfgs(model).items():
            if config.url and _stem(config.url) == wanted:
                return full
    return None


def _stem(location: str) -> str:
    return re.sub(r'(\.(pth|pt|bin|npz|safetensors|tar))+$', '', PurePosixPath(urlparse(location).path).name)
