# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Whether weights are of a plain ViT: its patch, positions, width, depth and names, and values that are numbers.

Each check takes weights by timm's names and raises a ValueError of one line, with what was found, what was expected
and what to do.
"""

import math
import re

import torch
from torch import Tensor, nn

from .report import LoadReport, abbreviate

KERNEL, POSITIONS = 'patch_embed.proj.weight', 'pos_embed'

Weights = dict[str, Tensor]

WHICH = 'set plain= to the timm name of the ViT that it is of (tools/inspect_checkpoint.py FILE lists those that fit)'
# What the backbones of this package have beside a plain ViT.
_OURS = re.compile(r'(pools|out_norms|pyramid)\.\d')


def check_positions(weights: Weights, plain: nn.Module, report: LoadReport) -> None:
    """Refuse a position embedding with entries for other prefix tokens than the model has."""
    own = getattr(plain, 'pos_embed', None)
    if (
        POSITIONS not in weights
        or own is None
        or own.dim() != 3
        or 'reg_token' not in dict(plain.named_parameters())
    ):
        return
    prefix = own.shape[1] - plain.patch_embed.num_patches
    given = weights[POSITIONS].shape[1] - (1 if 'register_tokens' in weights else prefix)
    if given != plain.patch_embed.num_patches and math.isqrt(given) ** 2 != given:
        raise ValueError(
            f'checkpoint {report.source!r} has {weights[POSITIONS].shape[1]} positions, which is no square beside '
            f'the {prefix} of prefix tokens that plain={report.plain!r} has; a ViT with another number of class or '
            'register tokens has another timm name'
        )


def check_patch(kernel: tuple[int, ...], plain: nn.Module, report: LoadReport) -> None:
    """Refuse another patch: its kernel would be resized, and see the image at another scale than it was trained at."""
    if len(kernel) in (2, 4) and is_of_another_patch(patch_side(kernel), plain, report.plain):
        raise ValueError(
            f'checkpoint {report.source!r} has patch {patch_side(kernel)} (the model has '
            f'{plain.patch_embed.patch_size[0]}): it is not of plain={report.plain!r}; {WHICH}'
        )


def patch_side(kernel: tuple[int, ...]) -> int:
    """Side of a patch in pixels, by the shape of a kernel (C, 3, P, P) or of its matrix (C, 3 * P * P)."""
    return kernel[-1] if len(kernel) == 4 else math.isqrt(kernel[1] // 3)


def is_of_another_patch(side: int, plain: nn.Module, name: str) -> bool:
    """Whether patches of a side are far from those of a ViT.

    Between 14 and 16 authors go themselves, as for EVA-02's detectors. FlexiViTs are trained with all sides.
    """
    sides = side, plain.patch_embed.patch_size[0]
    return max(sides) > 1.25 * min(sides) and not name.startswith('flexivit')


def check_geometry(weights: Weights, plain: nn.Module, report: LoadReport) -> None:
    """Refuse another width or depth in one line, before the names are compared one by one."""
    if KERNEL not in weights:
        raise ValueError(
            f'checkpoint {report.source!r} has names of {report.naming}, which belong to another kind of ViT '
            f'than plain={report.plain!r}; {WHICH}'
        )
    blocks = [int(m[1]) for name in weights if (m := re.match(r'blocks\.(\d+)\.', name))]
    found = {'width': weights[KERNEL].shape[0], 'depth': max(blocks, default=-1) + 1}
    expected = {'width': plain.embed_dim, 'depth': len(plain.blocks)}
    wrong = [f'{k} {found[k]} (the model has {expected[k]})' for k in found if found[k] != expected[k]]
    if wrong:
        raise ValueError(
            f'checkpoint {report.source!r} has {" and ".join(wrong)}'
            f'{f" under {report.prefix}" if report.prefix else ""}: it is not of plain={report.plain!r}; {WHICH}'
        )


def check_names(weights: Weights, expected: Weights, report: LoadReport) -> None:
    """Refuse weights that are missing, unknown or of another shape; the norms of the levels may start anew."""
    if any(_OURS.match(name) for name in weights):
        raise ValueError(
            f'checkpoint {report.source!r} is of a backbone of this package, not of a plain ViT; load it by '
            "init_cfg=dict(type='Pretrained', checkpoint=FILE, prefix='backbone.'), or by load_from"
        )
    missing = [name for name in expected if name not in weights]
    if not any(name.startswith('norm.') for name in weights):
        # A ViT without a final norm, or with one behind its pooling: the norms of the levels start anew.
        missing = [name for name in missing if not name.startswith('norm.')]
    unexpected = [name for name in weights if name not in expected]
    wrong = [
        f'{name} {tuple(weights[name].shape)} for {tuple(expected[name].shape)}'
        for name in expected
        if name in weights and weights[name].shape != expected[name].shape
    ]
    problems = (('lacks', missing), ('has unknown', unexpected), ('has other shapes of', wrong))
    found = [
        f'{problem} {len(names)} weights ({", ".join(abbreviate(names)[:8])})'
        for problem, names in problems
        if names
    ]
    if found:
        raise ValueError(
            f'checkpoint {report.source!r} does not fit plain={report.plain!r}: it {", ".join(found)}; '
            'nothing was loaded'
        )


_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_values(weights: Weights, source: str) -> None:
    """Refuse weights in other types than floating-point, and such as are NaN or infinite.

    Raises:
        ValueError: Weights that are.
    """
    kinds = [name for name, tensor in weights.items() if tensor.dtype not in _PRECISIONS]
    if kinds:
        raise ValueError(
            f'checkpoint {source!r} has {len(kinds)} weights that are not in floating-point of 16 to 64 bits, '
            f'such as {kinds[0]} in {weights[kinds[0]].dtype}; give them as they were before quantisation'
        )
    broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(
            f'checkpoint {source!r} has values that are NaN or infinite in {len(broken)} weights: '
            f'{", ".join(abbreviate(broken)[:8])}; the training that wrote it had diverged, or the file is '
            'damaged; nothing was loaded'
        )
