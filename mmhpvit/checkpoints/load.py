# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Load the weights of a plain ViT into a backbone: read, find the encoder, convert, copy."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

import torch
from mmengine.logging import print_log
from mmengine.model.weight_init import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from timm.models import get_arch_pretrained_cfgs
from torch import Tensor, nn

from ..backbones.timm_names import timm_name
from ..backbones.timm_vit import PREFIX_TOKENS, build_plain_vit
from ..layers.patch_embed import resize_kernel
from .convert import convert
from .download import local_file
from .key_mapping import find_encoder
from .npz import read_npz
from .reader import read_checkpoint, read_timm_weights
from .report import LoadReport
from .validate import KERNEL, POSITIONS, Target, Weights


def load_plain_weights(
    backbone: nn.Module, checkpoint: str | os.PathLike | None = None, source: str | None = None
) -> LoadReport:
    """Load the weights of a plain ViT into a backbone built from it.

    Args:
        backbone: A backbone of this package, such as :class:`~mmhpvit.HPViT`.
        checkpoint: File or URL, as for :func:`~mmhpvit.checkpoints.reader.read_checkpoint`, with the names of any
            library in :mod:`mmhpvit.checkpoints.key_mapping`. None (default) downloads timm's weights for the
            backbone's ``plain`` name.
        source: Naming of the file, or prefix of the wanted encoder. None (default) detects both from the names.

    Returns:
        The report of every weight.

    Raises:
        TypeError: The module is not a backbone of this package, or the checkpoint is not a path.
        FileNotFoundError, OSError: The file does not exist, or a download failed.
        ValueError: The file is unreadable or of another ViT, has missing or unknown weights, or values that are NaN or
            infinite; or the backbone is on ``meta``.
    """
    backbone = getattr(backbone, '_orig_mod', backbone)  # as torch.compile wraps it
    if not isinstance(getattr(backbone, 'plain', None), str):
        raise TypeError(
            f'weights are loaded into a backbone of this package, not into a {type(backbone).__name__}'
        )
    if any(param.is_meta for param in backbone.parameters()):
        raise ValueError(
            'weights are loaded into a backbone that has memory for them, and this one is on meta'
        )
    plain = build_plain_vit(backbone.plain, device='meta', in_channels=backbone.in_channels)
    weights, shapes, report = plain_weights(plain, backbone.plain, checkpoint, source)
    return _copy(weights, shapes, backbone, report)


def plain_weights(
    plain: nn.Module, name: str, checkpoint: str | os.PathLike | None = None, source: str | None = None
) -> tuple[Weights, dict[str, tuple[int, ...]], LoadReport]:
    """Read the weights of a plain ViT, with timm's names and the shapes of timm's model.

    Args:
        plain: timm's model; only its names and shapes are used, so it may be on ``meta``.
        name: Its timm name.
        checkpoint, source: As for :func:`load_plain_weights`.

    Returns:
        The weights without the head; their shapes in the file; the report, with ``loaded`` and ``new`` still empty.

    Raises:
        FileNotFoundError, OSError, ValueError: As :func:`load_plain_weights`.
    """
    if checkpoint is not None and not isinstance(checkpoint, str | os.PathLike):
        raise TypeError(
            f'checkpoint is a {type(checkpoint).__name__}; expected the path or address of a file'
        )
    checkpoint = None if checkpoint is None else os.fspath(checkpoint)
    if checkpoint == '':
        raise ValueError(
            "checkpoint='' is empty (a variable that is not set?); give the path or address of a file, or leave it out "
            'for the weights that timm has'
        )
    name = timm_name(name)
    target = Target(plain, name, checkpoint or f"timm's weights of {name}")
    raw, in_file = _read(checkpoint, plain, name)
    encoder = find_encoder(raw, source, target.source)
    converted = convert(encoder, target)
    weights, shapes = converted.weights, converted.shapes | in_file
    kinds = Counter(str(t.dtype).removeprefix('torch.') for t in weights.values())
    report = LoadReport(
        target.source,
        name,
        encoder.naming.name,
        encoder.prefix,
        resized=[
            (n, shapes[n], tuple(tensor.shape))
            for n, tensor in weights.items()
            if n in shapes and _was_resized(n, shapes[n], tensor, target)
        ],
        cast=[(count, kind) for kind, count in kinds.items() if kind != 'float32'],
        zero=list(converted.zero),
        dropped=_merged(encoder.dropped, converted.dropped),
        images=expected_images(plain, name, of_timm=checkpoint is None),
    )
    return weights, shapes, report


def _read(checkpoint: str | None, plain: nn.Module, name: str) -> tuple[Weights, dict[str, tuple[int, ...]]]:
    """The weights of a file, and the shapes that they had in it where reading has resized them already."""
    if checkpoint is None:
        return read_timm_weights(plain, name), {}
    if (path := local_file(checkpoint)).suffix == '.npz':
        return read_npz(path, build_plain_vit(name), name)
    return read_checkpoint(checkpoint), {}


def _merged(*entries: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The entries of several steps; where two name the same weight, the first."""
    merged: dict[str, str] = {}
    for name, reason in chain(*entries):
        merged.setdefault(name, reason)
    return list(merged.items())


def expected_images(plain: nn.Module, name: str, of_timm: bool = False) -> dict[tuple, list[str]]:
    """Image mean and standard deviation on a scale of 0 to 255, each with the timm tags that expect it.

    ``of_timm=True`` returns only those of timm's default tag for this name. Names of older timm versions have one tag.
    """
    all_of_name = [] if of_timm or '.' in name else list(get_arch_pretrained_cfgs(name).values())
    config = plain.pretrained_cfg
    own = all_of_name or ([config] if config.get('hf_hub_id') or config.get('url') else [])
    found: dict[tuple, list[str]] = {}
    for config in own:
        mean, std, tag = (
            (config.get(k) if isinstance(config, dict) else getattr(config, k))
            for k in ('mean', 'std', 'tag')
        )
        if mean and std:
            key = tuple(tuple(round(255 * value, 3) for value in values) for values in (mean, std))
            found.setdefault(key, []).append(tag or 'untagged')
    return found


def _copy(
    weights: Weights, shapes: dict[str, tuple[int, ...]], backbone: nn.Module, report: LoadReport
) -> LoadReport:
    """Copy the weights into a backbone; the report with what became of them there."""
    own = backbone.state_dict()
    resized = [entry for entry in report.resized if entry[0] != KERNEL]
    old, new = shapes.get(KERNEL, ()), tuple(own[KERNEL].shape)
    old = old if len(old) == 4 else tuple(weights[KERNEL].shape)
    resized += [(KERNEL, old, new)] if old != new else []
    taken, loaded, dropped = set(), [], []
    for name, tensor in weights.items():
        targets = [name] if name in own else []
        if name.startswith('norm.'):
            targets = [t for t in own if re.fullmatch(rf'out_norms\.\d+\.{name[5:]}', t)]
        if not targets:
            dropped.append((name, _why_not_built(name)))
        if name == KERNEL:
            tensor = resize_kernel(tensor, new[-1])
        for target in targets:
            with torch.no_grad():
                own[target].copy_(tensor)
        taken.update(targets)
        loaded += [] if name in (entry[0] for entry in resized) else targets
    return replace(
        report,
        loaded=loaded,
        resized=resized,
        new=[name for name in own if name not in taken],
        dropped=[*report.dropped, *dropped],
    )


def _was_resized(name: str, old: tuple[int, ...], own: Tensor, target: Target) -> bool:
    if name != POSITIONS or len(old) == 4:
        # A kernel stored as a matrix is not resized.
        return len(old) == own.dim() and old != tuple(own.shape)
    # Entries for prefix tokens may be included or not; only the grid decides.
    return not target.grid <= old[1] <= target.grid + getattr(target.vit, 'num_prefix_tokens', 0) + 1


def _why_not_built(name: str) -> str:
    if name in PREFIX_TOKENS:
        return 'prefix tokens are left out'
    if name.startswith('blocks.'):
        return 'behind the last output'
    return 'final norm, and no output norm takes it'


@WEIGHT_INITIALIZERS.register_module(name='PlainViT')
class PlainViTInit:
    """Weight initialiser ``dict(type='PlainViT', checkpoint=...)`` for backbones of this package.

    Args:
        checkpoint: File or URL of plain ViT weights. None (default) downloads timm's weights for the backbone's
            ``plain`` name.
        source: Naming of the file, or prefix of the wanted encoder. None (default) detects both from the names.
    """

    def __init__(self, checkpoint: str | None = None, source: str | None = None) -> None:
        self.checkpoint = checkpoint
        self.source = source

    def __call__(self, module: nn.Module) -> None:
        """Load the weights and log the report.

        Raises:
            TypeError: The module is not a backbone of this package.
            FileNotFoundError, OSError, ValueError: As :func:`load_plain_weights`.
        """
        report = load_plain_weights(module, self.checkpoint, self.source)
        print_log(str(report), logger='current')
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'PlainViT: {report.source}')
