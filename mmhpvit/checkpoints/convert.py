# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Convert the weights of an encoder to the names and shapes of timm's plain ViT, and validate them."""

import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv, beit, eva, vision_transformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from .key_mapping import Encoder, Naming, to_names_of, to_timm_names, why_not_of_the_body
from .validate import KERNEL, POSITIONS, WHICH, Target, Weights, check_sizes, validate

Entry = tuple[str, str]  # a name and the reason why it is left out
_TABLE = 'relative_position_bias_table'


@dataclass(frozen=True)
class Converted:
    """Weights by the names and in the shapes of a plain ViT, and what conversion says of them in the report.

    Attributes:
        weights: By timm's names.
        shapes: Their shapes in the file, by the same names.
        dropped: Names that were left out, and why.
        zero: Names that the file leaves out because they are zero there.
    """

    weights: Weights
    shapes: dict[str, tuple[int, ...]]
    dropped: tuple[Entry, ...]
    zero: tuple[str, ...]


def convert(encoder: Encoder, target: Target) -> Converted:
    """Bring the weights of an encoder to the names and shapes of a plain ViT, and validate them.

    Raises:
        ValueError: Weights that do not belong to this ViT, or are missing, unknown or no finite numbers.
    """
    named = _renamed(encoder, target)
    body, heads = _without_heads(named, encoder.naming.prefix)
    body = _spread_shared_table(body, target.expected)
    # timm's conversion silently drops a non-zero qkv bias that the model lacks, so this comes before it. It is
    # repeated after it for CLIP and others, whose weights get timm's names only there.
    body, zeros = _fit_attention(body, target)
    shapes = {name: tuple(tensor.shape) for name, tensor in body.items()}
    if encoder.kernel.dim() == 4:
        shapes[KERNEL] = tuple(encoder.kernel.shape)
    check_sizes(body, tuple(encoder.kernel.shape), target)
    body, lost = _through_timm(_marked_as_dinov2(body, named, target), target)
    body = to_names_of(_fuse_gates(body, target.expected), target.expected)
    body, more_zeros = _fit_attention(body, target)
    body, zero = _with_left_out_bias(body, encoder.naming, target.expected)
    body, more_heads = _without_heads(body)
    body, tables = _without_zero_tables(body, target.expected)
    if KERNEL in body and body[KERNEL].dim() == 4:
        # One that the file has as a matrix is listed with the channels that it has there.
        shapes[KERNEL] = shapes[KERNEL] if encoder.kernel.dim() == 4 else tuple(body[KERNEL].shape)
        body[KERNEL] = _with_channels(body[KERNEL], target)
    validate(body, target, encoder)
    dropped = (*heads, *zeros, *lost, *more_zeros, *more_heads, *tables)
    return Converted(body, shapes, dropped, zero)


def _renamed(encoder: Encoder, target: Target) -> Weights:
    try:
        weights = to_timm_names(encoder.weights, encoder.naming)
    except ValueError as error:
        raise ValueError(f'checkpoint {target.source!r}: {error}') from error
    return {name: _with_batch(name, tensor) for name, tensor in weights.items()}


def _marked_as_dinov2(body: Weights, named: Weights, target: Target) -> Weights:
    """timm recognises DINOv2, whose registers are outside its position embedding, by its mask token."""
    marked = 'mask_token' in named or 'register_tokens' in named
    if marked and isinstance(target.vit, vision_transformer.VisionTransformer):
        return body | {'mask_token': torch.zeros(1)}
    return body


def _with_left_out_bias(
    weights: Weights, naming: Naming, expected: Weights
) -> tuple[Weights, tuple[str, ...]]:
    """mmseg's ViT has no bias in its patch embedding by default: zeros."""
    bias = 'patch_embed.proj.bias'
    if naming.name != 'openmmlab' or bias in weights or bias not in expected:
        return weights, ()
    return weights | {bias: torch.zeros(expected[bias].shape)}, (bias,)


def _with_batch(name: str, tensor: Tensor) -> Tensor:
    """Add timm's batch axis to a class token (C) or position embedding (N, C)."""
    if name == 'cls_token' and tensor.dim() == 1:
        return tensor[None, None]
    return tensor[None] if name == POSITIONS and tensor.dim() == 2 else tensor


def _without_heads(weights: Weights, prefix: str = '') -> tuple[Weights, list[Entry]]:
    reasons = {name: why_not_of_the_body(name.removeprefix(prefix)) for name in weights}
    kept = {name: tensor for name, tensor in weights.items() if not reasons[name]}
    return kept, [(name, reason) for name, reason in reasons.items() if reason]


def _spread_shared_table(weights: Weights, expected: Weights) -> Weights:
    """Copy the one table of relative positions that BEiT's pre-training shares into every block."""
    shared = f'rel_pos_bias.{_TABLE}'
    tables = [name for name in expected if name.endswith(f'.attn.{_TABLE}')]
    if shared not in weights or not tables:
        return weights
    apart = {name: weights[shared].clone() for name in tables}
    return {k: v for k, v in weights.items() if k != shared} | apart


def _fit_attention(weights: Weights, target: Target) -> tuple[Weights, list[Entry]]:
    """Fuse or split queries, keys and values as the model has them, with or without a key bias."""
    expected, fitted, dropped = target.expected, dict(weights), []
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
                    f'checkpoint {target.source!r} has a {kind} of queries, keys or values that '
                    f'plain={target.name!r} has not, and it is not zero: {", ".join(names)}; set plain= to '
                    'the timm name of the ViT that has them (some names end on _qkvb)'
                )
            for name in names:
                del fitted[name]
            fitted |= made
            if not wanted:
                dropped += [(name, 'zeros, which add nothing') for name in names]
    return fitted, dropped


def _attention_names(block: str, kind: str, among: Weights) -> list[str]:
    forms = [[f'{block}qkv.{kind}'], [f'{block}{x}_proj.{kind}' for x in 'qkv']]
    if kind == 'bias':
        forms.append([f'{block}{x}_bias' for x in 'qv'])
    found = ([name for name in form if name in among] for form in forms)
    return next((names for names in found if names), [])


def _queries_keys_values(tensors: list[Tensor], names: list[str]) -> dict[str, Tensor] | None:
    """The three parts, or None if one is missing. BEiT and its successors have no key bias: zeros."""
    if len(tensors) == 1 and '.qkv.' in names[0]:
        return dict(zip('qkv', tensors[0].chunk(3), strict=True))
    parts = {re.search(r'([qkv])_(?:proj|bias)', n)[1]: t for n, t in zip(names, tensors, strict=True)}
    if set(parts) == {'q', 'v'} and 'bias' in names[0]:
        parts['k'] = torch.zeros_like(parts['q'])
    return parts if len(parts) == 3 else None


def _as_wanted(parts: dict[str, Tensor], wanted: list[str]) -> Weights | None:
    """The parts under the model's names, or None if a non-zero part has no place there."""
    if len(wanted) == 1:
        return {wanted[0]: torch.cat([parts[x] for x in 'qkv'])}
    letters = [re.search(r'([qkv])_(?:proj|bias)', name)[1] for name in wanted]
    if any(parts[x].any() for x in 'qkv' if x not in letters):
        return None
    return {name: parts[x] for name, x in zip(wanted, letters, strict=True)}


def _fuse_gates(weights: Weights, expected: Weights) -> Weights:
    """Fuse the gate and the value of a gated MLP if the model has them as one layer."""
    fused = dict(weights)
    for name in weights:
        first, gate, rest = name.partition('.mlp.gate_proj.')
        together, value = f'{first}.mlp.fc1.{rest}', f'{first}.mlp.up_proj.{rest}'
        if gate and together in expected and value in fused:
            fused[together] = torch.cat([fused.pop(name), fused.pop(value)])
    return fused


def _through_timm(weights: Weights, target: Target) -> tuple[Weights, list[Entry]]:
    """Apply timm's own conversion of names and shapes."""
    plain = target.vit
    try:
        if isinstance(plain, VisionTransformerSAM):
            return {k: _sam_positions(v, plain) if k == POSITIONS else v for k, v in weights.items()}, []
        with redirect_stdout(StringIO()):  # timm prints what it tries
            converted = _timm_filter(plain)(dict(weights), plain)
        return converted, [(name, 'left out by the conversion of timm') for name in _lost(weights, converted)]
    except (RuntimeError, KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).split('\n')[0]
        raise ValueError(
            f'the weights of {target.source} cannot be brought to the shapes of '
            f'plain={target.name!r} ({reason}); {WHICH}'
        ) from error


# Weights that conversions replace by resized, summed or fused ones.
_REMADE = re.compile(
    r'pos_embed|positional_embedding|embed_positions|patch_embed|conv1|embedder|patchifier|vision_embed|'
    r'relative_position_bias_table|cls_token|class_embedding|mask_token|[qkv]_proj\.'
)


def _lost(before: Weights, after: Weights) -> list[str]:
    """Names of tensors that a conversion neither keeps nor uses."""
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
    # As timm's own loading: these ViTs were trained with bilinear resizing.
    options = {}
    if architecture.startswith('flexi') or 'radio' in architecture:
        options = dict(interpolation='bilinear', antialias=False)
    if 'radio' in architecture:
        corners = vision_transformer._RADIO_ALIGN_CORNERS
        options['align_corners'] = any(name in architecture for name in corners)
    return partial(vision_transformer.checkpoint_filter_fn, adapt_layer_scale=True, **options)


def _sam_positions(positions: Tensor, plain: VisionTransformerSAM) -> Tensor:
    """Position embedding as a map (1, H, W, C). ViTDet's has an entry for a class token, which SAM lacks."""
    grid = plain.patch_embed.grid_size
    flat = positions.reshape(1, -1, positions.shape[-1])
    side = int(flat.shape[1] ** 0.5)
    flat = flat[:, flat.shape[1] - side * side :]
    old = positions.shape[1:3] if positions.dim() == 4 else (side, side)
    return resample_abs_pos_embed(flat, grid, old_size=old, num_prefix_tokens=0).reshape(1, *grid, -1)


def _with_channels(kernel: Tensor, target: Target) -> Tensor:
    """A patch kernel for the channels of the model, made from one for RGB as timm makes it."""
    given, wanted = kernel.shape[1], target.in_channels
    if given not in (3, wanted):
        raise ValueError(
            f'checkpoint {target.source!r} has a patch kernel for {given} channels, and the model has '
            f'in_channels={wanted}: only kernels for 3 channels are adapted; set in_channels={given}'
        )
    return kernel if given == wanted else adapt_input_conv(wanted, kernel)


def _without_zero_tables(weights: Weights, expected: Weights) -> tuple[Weights, list[Entry]]:
    """Leave out tables that were never trained, which mmseg's MAE has beside its position embedding."""
    zeros = [k for k, v in weights.items() if k not in expected and k.endswith(_TABLE) and not v.any()]
    kept = {k: v for k, v in weights.items() if k not in zeros}
    return kept, [(name, 'zeros, which add nothing') for name in zeros]
