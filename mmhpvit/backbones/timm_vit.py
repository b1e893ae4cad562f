# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The plain ViT that a backbone is made from: built by timm, and checked to be one that can be used."""

from collections.abc import Iterable
from contextlib import nullcontext
from copy import deepcopy
from difflib import get_close_matches

import timm
import torch
from timm.layers import PatchEmbed
from timm.models import is_model_in_modules
from torch import nn

from ..layers.block_adapters import adapter_of
from ..layers.rope import ROTARY
from .stages import expect, is_number
from .timm_names import timm_name, timm_name_of

# In the order in which timm's ViTs put them before the tokens.
PREFIX_TOKENS = ('cls_token', 'dist_token', 'reg_token')
# What the blocks of a ViT have in common to tell positions by: rotary embedding, relative positions.
SHARED_POSITIONS = ('rope', 'shared_rel_pos')

_TOWER = 'it is the tower of a language model, with position embeddings of its own'
# By the file that timm has them in.
_REASONS = {
    'vision_transformer_hybrid': 'it is a hybrid: its patch embedding is a network, not one convolution',
    'vitamin': 'it is a hybrid: its patch embedding is a network, not one convolution',
    'naflexvit': 'it takes lists of patches, not images; use the vit_ model of the same size',
    'cait': 'its heads talk to each other and its class token comes in after the body',
    'xcit': 'it attends over channels and embeds patches by several convolutions',
    'convit': 'its attention gates a table of positions of one image size',
    'crossvit': 'it has two ViTs of different patch sizes',
    'tnt': 'it has a second ViT inside each patch',
    'volo': 'its first blocks attend to outlooks at another resolution',
    'qwen3_vit': _TOWER,
    'gemma4_vit': _TOWER,
    'deepseek_vit': _TOWER,
}


def build_plain_vit(
    name: str, drop_path_rate: float = 0.0, device: str | None = None, in_channels: int = 3
) -> nn.Module:
    """Build a plain ViT by its timm name, with random weights and without a head.

    Args:
        name: A timm model name, with or without a pre-training tag, such as
            ``'vit_base_patch16_224.mae'``; Hugging Face's ``timm/`` may stand before it.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 at the first.
        device: Where to build; None is the default device, ``'meta'`` builds the shapes alone.
        in_channels: Channels of the images.

    Raises:
        ValueError: A name that timm does not know, or a model that is no plain ViT or cannot be made right
            at other resolutions; the message names the model and the reason.
    """
    expect(isinstance(name, str), 'plain', name, "a timm model name, such as 'vit_base_patch16_224.mae'")
    number = isinstance(drop_path_rate, int | float) and not isinstance(drop_path_rate, bool)
    fits = number and 0 <= drop_path_rate < 1
    expect(fits, 'drop_path_rate', drop_path_rate, 'a probability, at least 0 and below 1')
    fits = is_number(in_channels) and in_channels > 0
    expect(fits, 'in_channels', in_channels, 'a positive integer')
    given, name = name, timm_name(name)
    base, _, tag = name.partition('.')
    if not timm.is_model(base):
        _refuse_other_name(given)
        raise ValueError(f'plain={given!r}: timm {timm.__version__} has no such model{_suggest(base)}')
    tags = {config.tag for config in timm.models.get_arch_pretrained_cfgs(base).values()}
    if tag and tag not in tags:
        raise ValueError(f'plain={name!r}: timm knows no weights {tag!r} of {base}; it has {_listing(tags)}')
    reason = next((why for file, why in _REASONS.items() if is_model_in_modules(base, [file])), None)
    if reason is None:
        shapes = _create(name, drop_path_rate, 'meta', in_channels)
        reason = _why_not_plain(shapes)
    if reason:
        raise ValueError(
            f'plain={name!r} cannot be used: {reason}; give a plain ViT of timm, '
            "such as 'vit_base_patch16_224.mae'"
        )
    return shapes if device == 'meta' else _create(name, drop_path_rate, device, in_channels)


def final_norms(vit: nn.Module, levels: Iterable[int]) -> nn.ModuleDict:
    """A copy of the ViT's final norm for each level; a LayerNorm where it has none."""
    norm = getattr(vit, 'norm', None)
    if norm is None or isinstance(norm, nn.Identity):
        norm = nn.LayerNorm(vit.embed_dim, eps=1e-6)
    return nn.ModuleDict({str(i): deepcopy(norm) for i in sorted(levels)})


def _create(name: str, drop_path_rate: float, device: str | None, in_channels: int) -> nn.Module:
    # global_pool='' makes timm place the final norm before the pooling, where a map of tokens has it; models
    # with a distillation token have it there in any case, and know no other pooling than their own.
    pool = 'token' if 'distilled' in name else ''
    with torch.device(device) if device else nullcontext():
        try:
            return timm.create_model(
                name,
                num_classes=0,
                global_pool=pool,
                drop_path_rate=drop_path_rate,
                in_chans=in_channels,
            )
        except (TypeError, AssertionError, ValueError, RuntimeError) as error:
            raise ValueError(
                f'plain={name!r} cannot be used: timm does not build it as a headless ViT ({error})'
            ) from error


def _why_not_plain(vit: nn.Module) -> str | None:
    rope = getattr(vit, 'rope', None)
    if adapter_of(vit) is None:
        return f'it is not a plain Vision Transformer (timm class {type(vit).__name__})'
    if type(vit.patch_embed) is not PatchEmbed:
        return f'it is a hybrid: its patches are embedded by a {type(vit.patch_embed).__name__}'
    if vit.patch_embed.patch_size[0] != vit.patch_embed.patch_size[1]:
        return f'its patches are not square ({vit.patch_embed.patch_size})'
    if rope is not None and not isinstance(rope, ROTARY):
        return f'its rotary embedding is a {type(rope).__name__}, unknown between patches'
    return None


def _refuse_other_name(name: str) -> None:
    """Refuse the name that another library has for a model, with timm's name of it."""
    known = timm_name_of(name)
    if known is None:
        return
    model, tag = known
    if tag:
        raise ValueError(f"plain={name!r} is timm's {model}.{tag}: give plain='{model}.{tag}'")
    raise ValueError(
        f"plain={name!r} is timm's {model}, and timm does not have these weights: give plain={model!r} and "
        "init_cfg=dict(type='PlainViT', checkpoint=FILE)"
    )


def _suggest(base: str) -> str:
    known = timm.list_models(['vit_*', 'deit*', 'beit*', 'eva*', 'samvit*', 'aimv2*', 'flexivit*'])
    close = get_close_matches(base.lower(), known, n=3, cutoff=0.6)
    if close:
        return f'; the closest are {_listing(close)}'
    return '; tools/inspect_checkpoint.py FILE lists the names that a checkpoint fits'


def _listing(names) -> str:
    return ', '.join(sorted(names)) or 'none'
