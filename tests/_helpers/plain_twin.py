# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""timm's own forward of a plain ViT, to compare a backbone with: on the image, and on each shifted image."""

import math

import timm
import torch
import torch.nn.functional as F
from timm.layers import RotaryEmbeddingMixed, get_mixed_freqs, resample_abs_pos_embed
from torch import Tensor, nn

from mmhpvit import HPViT


def noisy(module: nn.Module) -> nn.Module:
    """Move every parameter away from its symmetric start, so that an error cannot hide."""
    for p in module.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return module


def without_norms(backbone: HPViT) -> HPViT:
    """The maps as the last block of each stage leaves them."""
    for name in backbone.out_norms:
        backbone.out_norms[name] = nn.Identity()
    return backbone


def twin(backbone: HPViT, **options) -> nn.Module:
    """timm's own model of the backbone's name, with the backbone's weights."""
    pool = 'token' if 'distilled' in backbone.plain else ''
    vit = timm.create_model(backbone.plain, num_classes=0, global_pool=pool, **options).double().eval()
    own = backbone.state_dict()
    kernel = own['patch_embed.proj.weight'].shape[-1]
    if kernel != vit.patch_embed.patch_size[0]:
        grid = vit.patch_embed.grid_size
        vit = timm.create_model(
            backbone.plain,
            num_classes=0,
            global_pool=pool,
            **options | dict(patch_size=kernel, img_size=tuple(kernel * g for g in grid)),
        )
        vit = vit.double().eval()
    missing, unexpected = vit.load_state_dict(own, strict=False)
    assert not [name for name in unexpected if not name.startswith(('pools.', 'out_norms.'))]
    assert not [name for name in missing if not name.startswith(('norm.', 'neck.', 'fc_norm.'))]
    return vit


def last_map(vit: nn.Module, x: Tensor) -> Tensor:
    """The map after the last block, without the final norm."""
    return vit.forward_intermediates(x, [len(vit.blocks) - 1], norm=False, intermediates_only=True)[0]


def on_shifted_images(backbone: HPViT, vit: nn.Module, x: Tensor, shifts) -> dict[tuple, Tensor]:
    """The plain ViT on the image moved by multiples of 4 pixels, with the positions of the tokens there.

    The image is a multiple of the patch size, and the ViT is built for that size.
    """
    patch = vit.patch_embed.patch_size[0]
    step, grid = patch // 4, (x.shape[2] // patch, x.shape[3] // patch)
    margin = patch // 2 - 2
    canvas = F.pad(x, (margin, patch, margin, patch))
    positions = _positions(backbone, step, grid)
    outs = {}
    for i, j in shifts:
        shifted = canvas[:, :, 4 * i : 4 * i + x.shape[2], 4 * j : 4 * j + x.shape[3]]
        if positions is not None:
            new = positions[:, i::step, j::step]
            if vit.pos_embed.dim() == 3:
                prefix = backbone.pos_embed[:, : backbone.prefix_in_pos_embed]
                new = torch.cat([prefix, new.flatten(1, 2)], dim=1)
            vit.pos_embed.data = new
        if getattr(vit, 'rope', None) is not None:
            turns = rotary_reference(
                vit.rope, grid, ((i - (step - 1) / 2) / step, (j - (step - 1) / 2) / step)
            )
            vit.rope.get_embed = lambda *args, turns=turns, **options: turns
        outs[i, j] = last_map(vit, shifted)
    return outs


def _positions(backbone: HPViT, step: int, grid: tuple[int, int]) -> Tensor | None:
    if backbone.pos_embed is None:
        return None
    places = backbone.pos_embed.reshape(1, -1, backbone.embed_dims)[:, backbone.prefix_in_pos_embed :]
    size = grid[0] * step, grid[1] * step
    new = resample_abs_pos_embed(places, size, old_size=backbone.pos_grid, num_prefix_tokens=0)
    return new.reshape(1, *size, -1)


def rotary_reference(rope: nn.Module, grid: tuple[int, int], shift: tuple[float, float]) -> Tensor:
    """timm's rotary embedding of a grid that lies a part of a patch beside its own."""
    # In float32, as timm has it.
    kind = type(rope).__name__
    y, x = (torch.arange(g, dtype=torch.float32) + s for g, s in zip(grid, shift, strict=True))
    y, x = (c.flatten() for c in torch.meshgrid(y, x, indexing='ij'))
    if rope.grid_indexing == 'xy':
        y, x, grid = x, y, grid[::-1]
    if isinstance(rope, RotaryEmbeddingMixed):
        return torch.stack([get_mixed_freqs(f, y, x) for f in rope.freqs.transpose(0, 1)])
    if kind == 'RotaryEmbeddingDinoV3':
        y, x = ((c + 0.5) / g * 2 - 1 for c, g in zip((y, x), grid, strict=True))
        angles = torch.cat([2 * math.pi * c[:, None] / rope.periods.float() for c in (y, x)], dim=1)
    else:
        y, x = y + rope.grid_offset, x + rope.grid_offset
        if rope.ref_feat_shape is not None:
            reference = rope.ref_feat_shape[::-1] if rope.grid_indexing == 'xy' else rope.ref_feat_shape
            y, x = (c / g * r for c, g, r in zip((y, x), grid, reference, strict=True))
        angles = torch.cat([c[:, None] * rope.bands.float() for c in (y, x)], dim=1)
    angles = torch.cat([angles, angles], dim=1) if rope.rotate_half else angles.repeat_interleave(2, dim=1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
