# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Rotary position embeddings of timm's plain ViTs at any positions, not only at integer ones."""

import math

import torch
from timm.layers import (
    RotaryEmbeddingCat,
    RotaryEmbeddingDinoV3,
    RotaryEmbeddingMixed,
    get_mixed_freqs,
)
from torch import Tensor, nn

ROTARY = (RotaryEmbeddingCat, RotaryEmbeddingDinoV3, RotaryEmbeddingMixed)


def rotary_embedding(
    rope: nn.Module, coordinates: Tensor, extent: tuple[float, float], block: int = 0
) -> Tensor:
    """Sines and cosines for tokens at any positions.

    At the integer positions of the plain ViT's own grid this is what ``rope.get_embed`` gives, to the bit
    (RoFormer, arXiv 2104.09864; its 2-D forms are EVA-02's, PE's, DINOv3's and RoPE-ViT's).

    Args:
        rope: One of timm's embeddings in ``ROTARY``.
        coordinates: Places (y, x) of the tokens of n sequences in patches, (n, L, 2), float32.
        extent: Height and width of the image in patches, which some embeddings divide by.
        block: Index of the block; only the mixed embedding differs from block to block.

    Returns:
        (n, 1 or heads, L, 2 * head dim), the sines and then the cosines, in float32 as timm computes them
        whatever the precision of the model.
    """
    if rope.grid_indexing == 'xy':
        coordinates, extent = coordinates.flip(-1), extent[::-1]
    if isinstance(rope, RotaryEmbeddingMixed):
        n, length, _ = coordinates.shape
        first, second = coordinates.flatten(0, 1).unbind(-1)
        embed = get_mixed_freqs(rope.freqs[:, block], first, second)
        return embed.unflatten(1, (n, length)).transpose(0, 1)
    if isinstance(rope, RotaryEmbeddingDinoV3):
        places = torch.stack(
            [(c + 0.5 + rope.grid_offset) / e for c, e in zip(coordinates.unbind(-1), extent, strict=True)],
            dim=-1,
        )
        angles = 2 * math.pi * (2 * places - 1)[..., None] / rope.periods.float()
    else:
        places = coordinates + rope.grid_offset
        if rope.ref_feat_shape is not None:
            reference = rope.ref_feat_shape[::-1] if rope.grid_indexing == 'xy' else rope.ref_feat_shape
            axes = zip(places.unbind(-1), extent, reference, strict=True)
            places = torch.stack([p / e * r for p, e, r in axes], dim=-1)
        angles = places[..., None] * rope.bands.float()
    turns = [_to_pairs(turn, rope.rotate_half) for turn in (angles.sin(), angles.cos())]
    return torch.cat(turns, dim=-1)[:, None]


def _to_pairs(turn: Tensor, rotate_half: bool) -> Tensor:
    """Give the value of an angle (n, L, axes, bands) to both channels that it turns: (n, L, head dim)."""
    turn = turn.flatten(-2)
    return torch.cat([turn, turn], dim=-1) if rotate_half else turn.repeat_interleave(2, dim=-1)
