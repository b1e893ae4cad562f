# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Loading the weights of a plain ViT into a backbone made from it, with a report and without guessing."""

import os
import re
from collections import Counter

import torch
from mmengine.logging import print_log
from mmengine.model.weight_init import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from safetensors import SafetensorError
from timm.models import get_arch_pretrained_cfgs, load_state_dict_from_hf
from torch import Tensor, nn

from ..backbones.timm_vit import PREFIX_TOKENS, build_plain_vit
from ..layers.patch_embed import resize_kernel
from .convert import convert
from .npz import read_npz
from .reader import local_file, read_checkpoint
from .report import LoadReport
from .validate import KERNEL, POSITIONS, Weights


def load_plain_weights(
    backbone: nn.Module, checkpoint: str | os.PathLike | None = None, source: str | None = None
) -> LoadReport:
    """Load the weights of a plain ViT into a backbone built from it.

    Args:
        backbone: A backbone of this package, such as :class:`~mmhpvit.HPViT`.
        checkpoint: File or URL, as for :func:`~mmhpvit.checkpoints.reader.read_checkpoint`, with the names of any
            library in :mod:`mmhpvit.checkpoints.key_mapping`; None means the weights that timm has under the backbone's
            ``plain`` name.
        source: Whose names the file has, or the prefix of the encoder that is meant in it; None (default)
            tells both by the names.

    Returns:
        What became of every weight.

    Raises:
        TypeError: Another module than these, or something else than a path.
        FileNotFoundError, OSError: A file that is not there, a download that failed.
        ValueError: A file that cannot be read, does not belong to this plain ViT, lacks weights or has
            weights that are not known to be superfluous, or values that are no numbers; a backbone on ``meta``.
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
    plain = build_plain_vit(backbone.plain, device='meta')
    weights, shapes, report = plain_weights(plain, backbone.plain, checkpoint, source)
    _copy(weights, shapes, backbone, report)
    return report


def plain_weights(
    plain: nn.Module, name: str, checkpoint: str | os.PathLike | None = None, source: str | None = None
) -> tuple[Weights, dict[str, tuple[int, ...]], LoadReport]:
    """Read the weights of a plain ViT, by timm's names and in the shapes of timm's model.

    Args:
        plain: timm's model; its names and shapes count, so it may be on ``meta``.
        name: Its timm name.
        checkpoint, source: As for :func:`load_plain_weights`.

    Returns:
        The weights of the body, without a head; the shapes that they had in the file; the report, whose
        ``loaded`` and ``new`` are empty.

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
    report = LoadReport(checkpoint or f"timm's weights of {name}", name)
    report.images = expected_images(plain, name, of_timm=checkpoint is None)
    in_file = {}
    if checkpoint is None:
        raw = _timm_weights(plain, name)
    elif (path := local_file(checkpoint)).suffix == '.npz':
        raw, in_file = read_npz(path, build_plain_vit(name), name)
    else:
        raw = read_checkpoint(checkpoint)
    weights, shapes = convert(raw, plain, source, report)
    shapes |= in_file
    report.resized = [
        (n, shapes[n], tuple(tensor.shape))
        for n, tensor in weights.items()
        if n in shapes and _was_resized(n, shapes[n], tensor, plain)
    ]
    kinds = Counter(str(t.dtype).removeprefix('torch.') for t in weights.values())
    report.cast = [(count, kind) for kind, count in kinds.items() if kind != 'float32']
    return weights, shapes, report


def expected_images(plain: nn.Module, name: str, of_timm: bool = False) -> dict[tuple, list[str]]:
    """Mean and standard deviation of images, 0 to 255, with the tags of timm's weights of a name that expect them.

    ``of_timm`` asks for those that timm takes itself under the name alone. Names of older versions stand for one.
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


def _timm_weights(plain: nn.Module, name: str) -> dict[str, Tensor]:
    cfg = plain.pretrained_cfg
    where = [cfg[key] for key in ('hf_hub_id', 'hf_hub_filename') if cfg.get(key)]
    if not cfg.get('hf_hub_id'):
        if not cfg.get('url'):
            raise ValueError(f'timm has no weights of {name!r}; give checkpoint=FILE, or a name with a tag')
        return read_checkpoint(cfg['url'])
    try:
        return load_state_dict_from_hf(*where, weights_only=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).split('\n')[0][:160]
        raise OSError(
            f"timm's weights of {name!r} could not be fetched ({reason}); fetch them elsewhere and give "
            'the file: model.backbone.init_cfg.checkpoint=FILE'
        ) from error


def _copy(
    weights: dict[str, Tensor],
    shapes: dict[str, tuple[int, ...]],
    backbone: nn.Module,
    report: LoadReport,
) -> None:
    own = backbone.state_dict()
    taken = set()
    for name, tensor in weights.items():
        targets = [name] if name in own else []
        if name.startswith('norm.'):
            targets = [t for t in own if re.fullmatch(rf'out_norms\.\d+\.{name[5:]}', t)]
        if not targets:
            report.dropped.append((name, _why_not_built(name)))
        if name == KERNEL:
            tensor = _kernel(tensor, shapes.get(name), own[name], report)
        for target in targets:
            with torch.no_grad():
                own[target].copy_(tensor)
            taken.add(target)
            if name not in (resized for resized, *_ in report.resized):
                report.loaded.append(target)
    report.new = [name for name in own if name not in taken]


def _kernel(kernel: Tensor, in_file: tuple[int, ...] | None, own: Tensor, report: LoadReport) -> Tensor:
    """The patch kernel in the size that the backbone has it in, with its line in the report."""
    report.resized = [entry for entry in report.resized if entry[0] != KERNEL]
    old = in_file if in_file and len(in_file) == 4 else tuple(kernel.shape)
    if old != tuple(own.shape):
        report.resized.append((KERNEL, old, tuple(own.shape)))
    return resize_kernel(kernel, own.shape[-1])


def _was_resized(name: str, old: tuple[int, ...], own: Tensor, plain: nn.Module) -> bool:
    if name != POSITIONS or len(old) == 4:
        # A kernel may come as a matrix, which is no other size.
        return len(old) == own.dim() and old != tuple(own.shape)
    # Positions of prefix tokens may come along or not; what counts is the grid.
    grid = plain.patch_embed.num_patches
    return not grid <= old[1] <= grid + getattr(plain, 'num_prefix_tokens', 0) + 1


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
        checkpoint: File or URL of plain ViT weights; None (default) means the weights that timm has
            under the backbone's ``plain`` name.
        source: Whose names the file has, or the prefix of the encoder that is meant in it; None (default)
            tells both by the names.
    """

    def __init__(self, checkpoint: str | None = None, source: str | None = None) -> None:
        self.checkpoint = checkpoint
        self.source = source

    def __call__(self, module: nn.Module) -> None:
        """Load the weights and log the report.

        Raises:
            TypeError: A module that is not made from a plain ViT.
            FileNotFoundError, OSError, ValueError: As :func:`load_plain_weights`.
        """
        report = load_plain_weights(module, self.checkpoint, self.source)
        print_log(str(report), logger='current')
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'PlainViT: {report.source}')
