# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""From the weights of a file to those of a plain ViT of timm: names first, then shapes, then checks."""

import re
from contextlib import redirect_stdout
from functools import partial
from io import StringIO

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import beit, eva, vision_transformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from .key_mapping import NOT_OF_THE_BODY, find_encoder, names_under, to_names_of, to_timm_names
from .report import LoadReport
from .validate import (
    KERNEL,
    POSITIONS,
    WHICH,
    Weights,
    check_geometry,
    check_names,
    check_patch,
    check_positions,
    check_values,
)

_TABLE = 'relative_position_bias_table'


def expected_weights(plain: nn.Module) -> Weights:
    """The weights of the body of a plain ViT, without neck and head."""
    return {k: v for k, v in plain.state_dict().items() if not _why_dropped(k)}


def convert(raw: Weights, plain: nn.Module, source: str | None, report: LoadReport) -> tuple[Weights, dict]:
    """Bring the weights of a file to the names and shapes of a plain ViT.

    Args:
        raw: Names and tensors of the file.
        plain: timm's model.
        source: Naming or prefix in the file; None to tell them by the names.
        report: Gets the naming, the prefix and what was dropped.

    Returns:
        Weights of :func:`expected_weights`, and the shapes that they had in the file by the same names.

    Raises:
        ValueError: A file that does not belong to this plain ViT, lacks weights, has weights that are not
            known to be superfluous, or values that are no numbers.
    """
    expected = expected_weights(plain)
    naming, prefix, others = find_encoder(raw, source, report.source)
    report.naming, report.prefix = naming.name, prefix
    kernel = tuple(raw[prefix + naming.patch].shape)
    check_patch(kernel, plain, report)
    weights = names_under(raw, prefix, others)
    own = {prefix + name for name in weights}
    report.dropped += [(name, 'not of the encoder') for name in raw if name not in own]
    try:
        weights = to_timm_names(weights, naming)
    except ValueError as error:
        raise ValueError(f'checkpoint {report.source!r}: {error}') from error
    weights = {name: _with_batch(name, tensor) for name, tensor in weights.items()}
    mask_token = 'mask_token' in weights or 'register_tokens' in weights
    weights = _drop_heads(weights, naming.prefix, report)
    if mask_token and isinstance(plain, vision_transformer.VisionTransformer):
        # timm tells DINOv2, whose registers stand outside of its position embedding, by its mask token.
        weights['mask_token'] = torch.zeros(1)
    weights = _spread_shared_table(weights, expected)
    weights = _fit_attention(weights, expected, report)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if len(kernel) == 4:
        shapes[KERNEL] = kernel
    check_positions(weights, plain, report)
    weights = _through_timm(weights, plain, report)
    weights = to_names_of(_fuse_gates(weights, expected), expected)
    weights = _fit_attention(weights, expected, report)
    if naming.name == 'openmmlab' and 'patch_embed.proj.bias' not in weights:
        # mmseg's ViT leaves it out by default.
        weights |= {k: torch.zeros(v.shape) for k, v in expected.items() if k == 'patch_embed.proj.bias'}
        report.zero += [name for name in ('patch_embed.proj.bias',) if name in expected]
    weights = _drop_heads(weights, '', report)
    weights = _drop_zeros(weights, expected, report)
    check_geometry(weights, plain, report)
    check_names(weights, expected, report)
    check_values(weights, report.source)
    return weights, shapes


def _why_dropped(name: str) -> str | None:
    return next((why for pattern, why in NOT_OF_THE_BODY if re.match(pattern, name)), None)


def _with_batch(name: str, tensor: Tensor) -> Tensor:
    """Class token (C) and positions (N, C) as timm has them, with a batch axis."""
    if name == 'cls_token' and tensor.dim() == 1:
        return tensor[None, None]
    return tensor[None] if name == POSITIONS and tensor.dim() == 2 else tensor


def _drop_heads(weights: Weights, prefix: str, report: LoadReport) -> Weights:
    kept = {}
    for name, tensor in weights.items():
        reason = _why_dropped(name.removeprefix(prefix))
        if reason and name not in (known for known, _ in report.dropped):
            report.dropped.append((name, reason))
        if not reason:
            kept[name] = tensor
    return kept


def _spread_shared_table(weights: Weights, expected: Weights) -> Weights:
    """BEiT's pre-training shares one table of relative positions, its fine-tuning has one in each block."""
    shared = f'rel_pos_bias.{_TABLE}'
    tables = [name for name in expected if name.endswith(f'.attn.{_TABLE}')]
    if shared not in weights or not tables:
        return weights
    apart = {name: weights[shared].clone() for name in tables}
    return {k: v for k, v in weights.items() if k != shared} | apart


def _fit_attention(weights: Weights, expected: Weights, report: LoadReport) -> Weights:
    """Bring queries, keys and values to the form of the model: fused or apart, with or without key bias."""
    fitted = dict(weights)
    blocks = {m[0] for name in expected if (m := re.match(r'blocks\.\d+\.attn\.', name))}
    for block in sorted(blocks):
        for kind in ('weight', 'bias'):
            names = _attention_names(block, kind, fitted)
            if not names or all(name in expected for name in names):
                continue
            parts = _queries_keys_values([fitted[name] for name in names], names)
            if parts is None:
                continue
            wanted = _attention_names(block, kind, expected)
            made = _as_wanted(parts, wanted)
            if made is None:
                raise ValueError(
                    f'checkpoint {report.source!r} has a {kind} of queries, keys or values that '
                    f'plain={report.plain!r} has not, and it is not zero: {", ".join(names)}; set plain= to '
                    'the timm name of the ViT that has them (some names end on _qkvb)'
                )
            for name in names:
                del fitted[name]
            fitted |= made
            if not wanted:
                report.dropped += [(name, 'zeros, which add nothing') for name in names]
    return fitted


def _attention_names(block: str, kind: str, among: Weights) -> list[str]:
    forms = [[f'{block}qkv.{kind}'], [f'{block}{x}_proj.{kind}' for x in 'qkv']]
    if kind == 'bias':
        forms.append([f'{block}{x}_bias' for x in 'qv'])
    found = ([name for name in form if name in among] for form in forms)
    return next((names for names in found if names), [])


def _queries_keys_values(tensors: list[Tensor], names: list[str]) -> dict[str, Tensor] | None:
    """The three parts; None where one is missing, but for the bias of keys, which BEiT and its heirs lack."""
    if len(tensors) == 1 and '.qkv.' in names[0]:
        return dict(zip('qkv', tensors[0].chunk(3), strict=True))
    parts = {re.search(r'([qkv])_(?:proj|bias)', n)[1]: t for n, t in zip(names, tensors, strict=True)}
    if set(parts) == {'q', 'v'} and 'bias' in names[0]:
        parts['k'] = torch.zeros_like(parts['q'])
    return parts if len(parts) == 3 else None


def _as_wanted(parts: dict[str, Tensor], wanted: list[str]) -> Weights | None:
    """The parts under the names that a model has; None where a part that is not zero has no place there."""
    if len(wanted) == 1:
        return {wanted[0]: torch.cat([parts[x] for x in 'qkv'])}
    letters = [re.search(r'([qkv])_(?:proj|bias)', name)[1] for name in wanted]
    if any(parts[x].any() for x in 'qkv' if x not in letters):
        return None
    return {name: parts[x] for name, x in zip(wanted, letters, strict=True)}


def _fuse_gates(weights: Weights, expected: Weights) -> Weights:
    """The gate and the value of a gated MLP as one layer, where the model has them so."""
    fused = dict(weights)
    for name in weights:
        first, gate, rest = name.partition('.mlp.gate_proj.')
        together, value = f'{first}.mlp.fc1.{rest}', f'{first}.mlp.up_proj.{rest}'
        if gate and together in expected and value in fused:
            fused[together] = torch.cat([fused.pop(name), fused.pop(value)])
    return fused


def _through_timm(weights: Weights, plain: nn.Module, report: LoadReport) -> Weights:
    """timm's own conversion of names where it knows them, and of shapes."""
    try:
        if isinstance(plain, VisionTransformerSAM):
            return {k: _sam_positions(v, plain) if k == POSITIONS else v for k, v in weights.items()}
        with redirect_stdout(StringIO()):  # timm prints what it tries
            converted = _timm_filter(plain)(dict(weights), plain)
        report.dropped += [(name, 'left out by the conversion of timm') for name in _lost(weights, converted)]
        return converted
    except (RuntimeError, KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).split('\n')[0]
        raise ValueError(
            f'the weights of {report.source} cannot be brought to the shapes of '
            f'plain={report.plain!r} ({reason}); {WHICH}'
        ) from error


# What conversions make anew out of weights of the file: resized, added up or joined.
_REMADE = re.compile(
    r'pos_embed|positional_embedding|embed_positions|patch_embed|conv1|embedder|patchifier|vision_embed|'
    r'relative_position_bias_table|cls_token|class_embedding|mask_token|[qkv]_proj\.'
)


def _lost(before: Weights, after: Weights) -> list[str]:
    """Names whose tensors a conversion has neither kept nor made anything of."""
    kept = {tensor.untyped_storage().data_ptr() for tensor in after.values()}
    return [
        name
        for name, tensor in before.items()
        if tensor.untyped_storage().data_ptr() not in kept
        and (not _REMADE.search(name) or '.B.' in name)
        and name not in after
    ]


def _timm_filter(plain: nn.Module):
    architecture = plain.pretrained_cfg.get('architecture', '')
    if isinstance(plain, eva.Eva):
        return eva.checkpoint_filter_fn
    if isinstance(plain, beit.Beit):
        return beit.checkpoint_filter_fn
    if not isinstance(plain, vision_transformer.VisionTransformer):
        return lambda weights, plain: weights
    # timm's own loading makes the same exceptions for ViTs that were trained with bilinear resizing.
    options = {}
    if architecture.startswith('flexi') or 'radio' in architecture:
        options = dict(interpolation='bilinear', antialias=False)
    if 'radio' in architecture:
        corners = vision_transformer._RADIO_ALIGN_CORNERS
        options['align_corners'] = any(name in architecture for name in corners)
    return partial(vision_transformer.checkpoint_filter_fn, adapt_layer_scale=True, **options)


def _sam_positions(positions: Tensor, plain: VisionTransformerSAM) -> Tensor:
    """A position embedding as a map, without the entry of a class token: ViTDet's has one, SAM's not."""
    grid = plain.patch_embed.grid_size
    flat = positions.reshape(1, -1, positions.shape[-1])
    side = int(flat.shape[1] ** 0.5)
    flat = flat[:, flat.shape[1] - side * side :]
    old = positions.shape[1:3] if positions.dim() == 4 else (side, side)
    return resample_abs_pos_embed(flat, grid, old_size=old, num_prefix_tokens=0).reshape(1, *grid, -1)


def _drop_zeros(weights: Weights, expected: Weights, report: LoadReport) -> Weights:
    """Tables that were never trained, which mmseg's MAE has beside its position embedding."""
    zeros = [k for k, v in weights.items() if k not in expected and k.endswith(_TABLE) and not v.any()]
    report.dropped += [(name, 'zeros, which add nothing') for name in zeros]
    return {k: v for k, v in weights.items() if k not in zeros}
