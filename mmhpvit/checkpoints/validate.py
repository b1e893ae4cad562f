# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Check that weights are those of a plain ViT: patch, positions, width, depth, names, shapes and finite values.

Each check raises a one-line ValueError: what was found, what was expected, what to type.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from .key_mapping import Encoder, why_not_of_the_body
from .report import abbreviate

KERNEL, POSITIONS = 'patch_embed.proj.weight', 'pos_embed'

Weights = dict[str, Tensor]

WHICH = 'set plain= to the timm name of the ViT that it is of (tools/inspect_checkpoint.py FILE lists those that fit)'
# Modules that the backbones of this package add to a plain ViT.
_OURS = re.compile(r'(pools|out_norms|pyramid)\.\d')


@dataclass(frozen=True)
class Target:
    """The plain ViT that weights are brought to.

    Attributes:
        vit: timm's model; only its names and shapes count, so it may be on ``meta``.
        name: Its timm name.
        source: Where the weights come from, for errors.
    """

    vit: nn.Module
    name: str
    source: str

    @property
    def patch(self) -> int:
        """Side of its patches in pixels."""
        return self.vit.patch_embed.patch_size[0]

    @property
    def in_channels(self) -> int:
        """Channels of its images."""
        return self.vit.patch_embed.proj.in_channels

    @property
    def grid(self) -> int:
        """Number of patches of an image of its size."""
        return self.vit.patch_embed.num_patches

    @cached_property
    def expected(self) -> Weights:
        """The weights of its body, by timm's names, without neck and head."""
        return {k: v for k, v in self.vit.state_dict().items() if not why_not_of_the_body(k)}


def check_sizes(weights: Weights, kernel: tuple[int, ...], target: Target) -> None:
    """Refuse a patch or a number of positions that conversion would silently resize.

    A kernel of another patch would see the image at another scale than it was trained at. A position embedding with
    entries for other prefix tokens would be cut at the wrong place.

    Args:
        weights: By timm's names, in the shapes of the file.
        kernel: Shape of the patch kernel in the file.
        target: The ViT they are for.
    """
    if len(kernel) in (2, 4) and is_of_another_patch(patch_side(kernel), target.patch, target.name):
        raise ValueError(
            f'checkpoint {target.source!r} has patch {patch_side(kernel)} (the model has {target.patch}): '
            f'it is not of plain={target.name!r}; {WHICH}'
        )
    own = getattr(target.vit, 'pos_embed', None)
    if POSITIONS not in weights or own is None or own.dim() != 3 or 'reg_token' not in target.expected:
        return
    count, prefix = weights[POSITIONS].shape[1], own.shape[1] - target.grid
    given = count - (1 if 'register_tokens' in weights else prefix)
    if given != target.grid and (given < 0 or math.isqrt(given) ** 2 != given):
        raise ValueError(
            f'checkpoint {target.source!r} has {count} positions, which is no square beside the {prefix} of prefix '
            f'tokens that plain={target.name!r} has; a ViT with another number of class or register tokens has '
            'another timm name'
        )


def patch_side(kernel: tuple[int, ...]) -> int:
    """Side of a patch in pixels, by the shape of a kernel (C, I, P, P) or of its matrix (C, 3 * P * P)."""
    return kernel[-1] if len(kernel) == 4 else math.isqrt(kernel[1] // 3)


def is_of_another_patch(side: int, own: int, name: str) -> bool:
    """Whether a patch side is too far from a ViT's own to be resized.

    Authors resize between 14 and 16 themselves, as for EVA-02's detectors. FlexiViTs are trained with all sides.
    """
    sides = side, own
    return max(sides) > 1.25 * min(sides) and not name.startswith('flexivit')


def validate(weights: Weights, target: Target, encoder: Encoder) -> None:
    """Refuse converted weights that are not those of the ViT, or whose values are not finite numbers.

    Raises:
        ValueError: Another width or depth; missing or unknown weights, or other shapes; values that are not
            floating-point, NaN or infinite.
    """
    _check_geometry(weights, target, encoder)
    _check_names(weights, target)
    check_values(weights, target.source)


def _check_geometry(weights: Weights, target: Target, encoder: Encoder) -> None:
    """Refuse another width or depth in one line, before the names are compared one by one."""
    if KERNEL not in weights:
        raise ValueError(
            f'checkpoint {target.source!r} has names of {encoder.naming.name}, which belong to another kind of ViT '
            f'than plain={target.name!r}; {WHICH}'
        )
    blocks = [int(m[1]) for name in weights if (m := re.match(r'blocks\.(\d+)\.', name))]
    found = {'width': weights[KERNEL].shape[0], 'depth': max(blocks, default=-1) + 1}
    expected = {'width': target.vit.embed_dim, 'depth': len(target.vit.blocks)}
    wrong = [f'{k} {found[k]} (the model has {expected[k]})' for k in found if found[k] != expected[k]]
    if wrong:
        raise ValueError(
            f'checkpoint {target.source!r} has {" and ".join(wrong)}'
            f'{f" under {encoder.prefix}" if encoder.prefix else ""}: it is not of plain={target.name!r}; {WHICH}'
        )


def refuse_trained(weights: Weights, source: str) -> None:
    """Refuse the weights of a backbone of this package, which a training wrote."""
    if any(_OURS.match(name) for name in weights):
        raise ValueError(
            f'checkpoint {source!r} is of a backbone of this package, not of a plain ViT; load it by '
            "init_cfg=dict(type='Pretrained', checkpoint=FILE, prefix='backbone.'), or by load_from"
        )


def _check_names(weights: Weights, target: Target) -> None:
    """Refuse weights that are missing, unknown or of another shape; the norms of the levels may start anew."""
    refuse_trained(weights, target.source)
    expected = target.expected
    missing = [name for name in expected if name not in weights]
    if not any(name.startswith('norm.') for name in weights):
        # A ViT without a final norm, or with one behind its pooling: the norms of the levels are newly initialised.
        missing = [name for name in missing if not name.startswith('norm.')]
    unexpected = [name for name in weights if name not in expected]
    wrong = [
        f'{name} {tuple(weights[name].shape)} for {tuple(expected[name].shape)}'
        for name in expected
        if name in weights and weights[name].shape != expected[name].shape
    ]
    problems = (('lacks', missing), ('has unexpected', unexpected), ('has other shapes of', wrong))
    found = [
        f'{problem} {len(names)} weights ({", ".join(abbreviate(names)[:8])})'
        for problem, names in problems
        if names
    ]
    if found:
        raise ValueError(
            f'checkpoint {target.source!r} does not fit plain={target.name!r}: it {", ".join(found)}; '
            'nothing was loaded'
        )


_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_values(weights: Weights, source: str) -> None:
    """Refuse weights that are not floating-point, or are NaN or infinite."""
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
