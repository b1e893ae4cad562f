# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The plain ViT that a backbone is made from: built by timm, and checked to be one that can be used."""

from contextlib import nullcontext
from difflib import get_close_matches

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

PREFIX_TOKENS = ('cls_token', 'reg_token')


def build_plain_vit(name: str, drop_path_rate: float = 0.0, device: str | None = None) -> VisionTransformer:
    """Build a plain ViT by its timm name, with random weights and without a head.

    Args:
        name: A timm model name, with or without a pre-training tag, such as
            ``'vit_base_patch16_224.mae'``.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 at the first.
        device: Where to build; None is the default device, ``'meta'`` builds the shapes alone.

    Raises:
        ValueError: A name that timm does not know, or a model that is not a plain ViT whose blocks act
            alike at any position; the message names the model and the reason.
    """
    if not isinstance(name, str):
        raise ValueError(f"plain={name!r}: expected a timm model name, such as 'vit_base_patch16_224.mae'")
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f'drop_path_rate={drop_path_rate}: expected a probability, at least 0 and below 1')
    base, _, tag = name.partition('.')
    if not timm.is_model(base):
        raise ValueError(f'plain={name!r}: timm {timm.__version__} has no such model{_suggest(base)}')
    tags = {n.partition('.')[2] for n in timm.list_pretrained(base + '*') if n.partition('.')[0] == base}
    if tag and tag not in tags:
        raise ValueError(f'plain={name!r}: timm knows no weights {tag!r} of {base}; it has {_listing(tags)}')
    _check_plain_vit(name, _create(name, drop_path_rate, 'meta'))
    return _create(name, drop_path_rate, device)


def _create(name: str, drop_path_rate: float, device: str | None) -> nn.Module:
    # global_pool='' makes timm place the final norm before the pooling, where a map of tokens has it.
    with torch.device(device) if device else nullcontext():
        try:
            return timm.create_model(name, num_classes=0, global_pool='', drop_path_rate=drop_path_rate)
        except (TypeError, AssertionError, ValueError, RuntimeError) as error:
            raise ValueError(
                f'plain={name!r} cannot be used: timm does not build it as a headless ViT ({error})'
            ) from error


def _check_plain_vit(name: str, vit: nn.Module) -> None:
    reason = None
    if not isinstance(vit, VisionTransformer):
        needs = {
            'Eva': 'its blocks need rotary position embeddings',
            'Beit': 'its blocks need relative position tables',
            'VisionTransformerSAM': 'its blocks need windows and relative position tables',
            'VisionTransformerRelPos': 'its blocks need relative position tables',
        }.get(type(vit).__name__, 'it is not a plain Vision Transformer')
        reason = f'{needs} (timm class {type(vit).__name__})'
    elif type(vit.patch_embed) is not PatchEmbed:
        reason = (
            f'it is a hybrid: its patch embedding is a {type(vit.patch_embed).__name__}, not one convolution'
        )
    elif 'radio' in name:
        reason = 'RADIO crops and resizes its position embedding in a way of its own'
    elif vit.patch_embed.patch_size[0] != vit.patch_embed.patch_size[1]:
        reason = f'its patches are not square ({vit.patch_embed.patch_size})'
    if reason:
        raise ValueError(
            f'plain={name!r} cannot be used: {reason}; give a plain ViT of timm, '
            "such as 'vit_base_patch16_224.mae'"
        )


def _suggest(base: str) -> str:
    close = get_close_matches(base, timm.list_models(['vit_*', 'deit*', '*_patch*']), n=3, cutoff=0.6)
    return f'; the closest are {_listing(close)}' if close else "; see timm.list_models('vit*')"


def _listing(names) -> str:
    return ', '.join(sorted(names)) or 'none'
