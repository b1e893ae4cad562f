# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Loading the weights of a plain ViT into a backbone made from it, with a report and without guessing."""

import os
import re
import zipfile
from dataclasses import dataclass, field

import torch
from mmengine.logging import print_log
from mmengine.model.weight_init import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from timm.models import load_state_dict_from_hf
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from .checkpoint import local_file, read_checkpoint
from .embed import resize_kernel
from .plain import build_plain_vit

# What checkpoints of plain ViTs carry beside the body, by name, and why it is left out.
_NOT_OF_THE_BODY = (
    (r'(head|head_dist|fc_norm|pre_logits|fc)\.', 'classifier head'),
    (r'attn_pool\.', 'attention pooling of the head'),
    (r'decoder', 'decoder of the pre-training'),
    (r'mask_token$', 'mask token of the pre-training'),
)
_KERNEL, _POSITIONS = 'patch_embed.proj.weight', 'pos_embed'


@dataclass
class LoadReport:
    """What became of every weight.

    Attributes:
        source: File, URL or timm name that the weights came from.
        plain: timm name of the plain ViT.
        loaded: Names of the backbone's parameters that took a tensor as it is.
        resized: Name, shape in the source, shape in the backbone.
        new: Names of the backbone's parameters that the plain ViT does not have.
        dropped: Name in the source and the reason why the backbone has no place for it.
        mean, std: What timm's weights of this name expect images to be normalised with, on a scale of 0 to
            255; None where timm does not know.
    """

    source: str
    plain: str
    loaded: list[str] = field(default_factory=list)
    resized: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    mean: list[float] | None = None
    std: list[float] | None = None

    def __str__(self) -> str:
        """The report as a table, one line for each group and for each exception."""
        lines = [('loaded', len(self.loaded), ', '.join(_abbreviate(self.loaded)))]
        lines += [('resized', 1, f'{name}: {old} -> {new}') for name, old, new in self.resized]
        lines += [('new', len(self.new), ', '.join(_abbreviate(self.new)))] if self.new else []
        for reason in dict.fromkeys(reason for _, reason in self.dropped):
            names = [name for name, r in self.dropped if r == reason]
            lines.append(('dropped', len(names), f'{", ".join(_abbreviate(names))} ({reason})'))
        table = '\n'.join(f'  {group:<8} {count:>4}  {text}' for group, count, text in lines)
        text = f'Weights of {self.plain} from {self.source}:\n{table}'
        if self.mean:
            text += f"\n  images: timm's weights of this name expect mean={self.mean}, std={self.std}"
        return text


def load_plain_weights(backbone: nn.Module, checkpoint: str | os.PathLike | None = None) -> LoadReport:
    """Load the weights of a plain ViT into a backbone built from it.

    Args:
        backbone: An :class:`~mmhpvit.HPViT` or :class:`~mmhpvit.PlainViTPyramid`.
        checkpoint: File or URL, as for :func:`~mmhpvit.checkpoint.read_checkpoint`; None means the
            weights that timm has under the backbone's ``plain`` name.

    Returns:
        What became of every weight.

    Raises:
        FileNotFoundError, OSError: A file that is not there, a download that failed.
        ValueError: A file that cannot be read, does not belong to this plain ViT, lacks weights or has
            weights that are not known to be superfluous.
    """
    checkpoint = os.fspath(checkpoint) if checkpoint else None
    plain = build_plain_vit(backbone.plain)
    source = checkpoint or f"timm's weights of {backbone.plain}"
    raw = _read(checkpoint, plain, backbone.plain) if checkpoint else _timm_weights(plain, backbone.plain)
    report = LoadReport(source, backbone.plain)
    report.mean, report.std = (_to_255(plain.pretrained_cfg.get(key)) for key in ('mean', 'std'))
    raw = _keep_backbone(raw, report)
    raw = _drop_heads(raw, report)
    shapes = {name: tuple(tensor.shape) for name, tensor in raw.items()}
    weights = _to_timm_names(raw, plain, source)
    _check_geometry(weights, plain, report)
    _check_names(weights, plain, report)
    _copy(weights, shapes, plain, backbone, report)
    return report


def _to_255(values: tuple[float, ...] | None) -> list[float] | None:
    return [round(255 * value, 3) for value in values] if values else None


def _read(checkpoint: str, plain: VisionTransformer, name: str) -> dict[str, Tensor]:
    if not checkpoint.endswith('.npz'):
        return read_checkpoint(checkpoint)
    path = local_file(checkpoint)
    try:
        # The original AugReg format; timm reads it with numpy, pickles not allowed, straight into its model.
        plain.load_pretrained(str(path))
    except (ValueError, KeyError, RuntimeError, OSError, zipfile.BadZipFile) as error:
        reason = str(error).split('\n')[0]
        raise ValueError(
            f'checkpoint {checkpoint!r} is no .npz file of a ViT that fits plain={name!r} ({reason})'
        ) from error
    return plain.state_dict()


def _timm_weights(plain: VisionTransformer, name: str) -> dict[str, Tensor]:
    cfg = plain.pretrained_cfg
    where = [cfg[key] for key in ('hf_hub_id', 'hf_hub_filename') if cfg.get(key)]
    if not cfg.get('hf_hub_id'):
        if not cfg.get('url'):
            raise ValueError(f'timm has no weights of {name!r}; give checkpoint=FILE, or a name with a tag')
        return read_checkpoint(cfg['url'])
    try:
        return load_state_dict_from_hf(*where, weights_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).split('\n')[0][:160]
        raise OSError(
            f"timm's weights of {name!r} could not be fetched ({reason}); fetch them elsewhere and give "
            'the file: model.backbone.init_cfg.checkpoint=FILE'
        ) from error


def _keep_backbone(raw: dict[str, Tensor], report: LoadReport) -> dict[str, Tensor]:
    """Of a whole model, keep what is under ``backbone.``."""
    if not any(name.startswith('backbone.') for name in raw):
        return raw
    report.dropped += [(name, 'not of the backbone') for name in raw if not name.startswith('backbone.')]
    return {k.removeprefix('backbone.'): v for k, v in raw.items() if k.startswith('backbone.')}


def _drop_heads(raw: dict[str, Tensor], report: LoadReport) -> dict[str, Tensor]:
    kept = {}
    for name, tensor in raw.items():
        reason = next((why for pattern, why in _NOT_OF_THE_BODY if re.match(pattern, name)), None)
        if reason:
            report.dropped.append((name, reason))
        # timm's filter tells the DINOv2 family by its mask token, and drops the token itself.
        if not reason or name == 'mask_token':
            kept[name] = tensor
    return kept


def _to_timm_names(raw: dict[str, Tensor], plain: VisionTransformer, source: str) -> dict[str, Tensor]:
    # FlexiViT was trained with plain bilinear resizing; timm's own loading makes the same exception.
    flexi = plain.pretrained_cfg.get('architecture', '').startswith('flexi')
    try:
        return checkpoint_filter_fn(
            dict(raw),
            plain,
            adapt_layer_scale=True,
            interpolation='bilinear' if flexi else 'bicubic',
            antialias=not flexi,
        )
    except (RuntimeError, KeyError, IndexError, ValueError, TypeError) as error:
        raise ValueError(
            f'the weights of {source} cannot be brought to the shapes of their plain ViT ({error})'
        ) from error


def _check_geometry(weights: dict[str, Tensor], plain: VisionTransformer, report: LoadReport) -> None:
    """Refuse another width or depth in one line, before the names are compared one by one."""
    if _KERNEL not in weights:
        raise ValueError(
            f'checkpoint {report.source!r} is not a plain ViT that can be told by its names: it has no '
            f'{_KERNEL}; its first names are {list(weights)[:5]}'
        )
    blocks = [int(m[1]) for name in weights if (m := re.match(r'blocks\.(\d+)\.', name))]
    found = {'width': weights[_KERNEL].shape[0], 'depth': max(blocks, default=-1) + 1}
    expected = {'width': plain.embed_dim, 'depth': len(plain.blocks)}
    wrong = [f'{k} {found[k]} (the model has {expected[k]})' for k in found if found[k] != expected[k]]
    if wrong:
        raise ValueError(
            f'checkpoint {report.source!r} has {" and ".join(wrong)}: it is not of '
            f'plain={report.plain!r}; set plain= to the timm name of a ViT of that width and depth'
        )


def _check_names(weights: dict[str, Tensor], plain: VisionTransformer, report: LoadReport) -> None:
    expected = plain.state_dict()
    missing = [name for name in expected if name not in weights]
    if any(name.startswith('fc_norm.') for name, _ in report.dropped):
        # The checkpoint has its final norm behind the pooling, so its map of tokens never had one.
        missing = [name for name in missing if not name.startswith('norm.')]
    unexpected = [name for name in weights if name not in expected]
    wrong = [
        f'{name} {tuple(weights[name].shape)} for {tuple(expected[name].shape)}'
        for name in expected
        if name in weights and weights[name].shape != expected[name].shape
    ]
    for problem, names in (('lacks', missing), ('has unknown', unexpected), ('has other shapes of', wrong)):
        if names:
            raise ValueError(
                f'checkpoint {report.source!r} {problem} {len(names)} weights of plain={report.plain!r}: '
                f'{", ".join(_abbreviate(names)[:8])}; nothing was loaded'
            )


def _copy(
    weights: dict[str, Tensor],
    shapes: dict[str, tuple[int, ...]],
    plain: VisionTransformer,
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
        if name == _KERNEL:
            tensor = resize_kernel(tensor, own[name].shape[-1])
        for target in targets:
            with torch.no_grad():
                own[target].copy_(tensor)
            taken.add(target)
            special = name in (_KERNEL, _POSITIONS) and name in shapes
            if special and _was_resized(name, shapes[name], own[name], plain):
                report.resized.append((name, shapes[name], tuple(own[name].shape)))
            else:
                report.loaded.append(target)
    report.new = [name for name in own if name not in taken]


def _was_resized(name: str, old: tuple[int, ...], own: Tensor, plain: VisionTransformer) -> bool:
    if name == _KERNEL:
        return old != tuple(own.shape)
    # Positions of prefix tokens may come along or not; what counts is the grid.
    grid = plain.patch_embed.num_patches
    return name == _POSITIONS and not grid <= old[1] <= grid + plain.num_prefix_tokens + 1


def _why_not_built(name: str) -> str:
    if name in ('cls_token', 'reg_token'):
        return 'prefix tokens are left out'
    if name.startswith('blocks.'):
        return 'behind the last output'
    return 'final norm, and no output norm takes it'


def _abbreviate(names: list[str]) -> list[str]:
    """Fold ``blocks.0.x, blocks.1.x, ...`` into ``blocks.0-11 (12 weights each)`` and the like."""
    blocks: dict[int, int] = {}
    short = []
    for name in names:
        block = re.match(r'blocks\.(\d+)\.', name)
        if block:
            blocks[int(block[1])] = blocks.get(int(block[1]), 0) + 1
        else:
            short.append(name)
    if len(set(blocks.values())) == 1 and len(blocks) > 1:
        indices = sorted(blocks)
        if indices == list(range(indices[0], indices[-1] + 1)):
            each = blocks[indices[0]]
            return [*short, f'blocks.{indices[0]}-{indices[-1]} ({each} weights each)']
    return list(names)


@WEIGHT_INITIALIZERS.register_module(name='PlainViT')
class PlainViTInit:
    """Weight initialiser ``dict(type='PlainViT', checkpoint=...)`` for backbones of this package.

    Args:
        checkpoint: File or URL of plain ViT weights; None (default) means the weights that timm has
            under the backbone's ``plain`` name.
    """

    def __init__(self, checkpoint: str | None = None) -> None:
        self.checkpoint = checkpoint

    def __call__(self, module: nn.Module) -> None:
        """Load the weights and log the report.

        Raises:
            TypeError: A module that is not made from a plain ViT.
            FileNotFoundError, OSError, ValueError: As :func:`load_plain_weights`.
        """
        if not hasattr(module, 'plain'):
            raise TypeError(
                f"init_cfg type 'PlainViT' is for HPViT and PlainViTPyramid, not for {type(module).__name__}"
            )
        report = load_plain_weights(module, self.checkpoint)
        print_log(str(report), logger='current')
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'PlainViT: {report.source}')
