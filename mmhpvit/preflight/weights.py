# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Whether the checkpoints of a config exist and belong to its model."""

import copy
import inspect
import pickle
import re
import zipfile
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from ..backbones.timm_names import timm_name
from ..backbones.timm_vit import build_plain_vit
from ..checkpoints.load import expected_images, plain_weights
from ..checkpoints.trained import backbone_in
from .data import as_list, missing_paths, type_name
from .errors import ConfigError, first_on_machine, warn
from .model import on_meta, own_backbone

# Options of a backbone that change how it is trained, not what it computes.
OF_TRAINING = ('init_cfg', 'frozen_stages', 'drop_path_rate', 'with_cp', 'compile_blocks')

# mmengine's initialisers that load nothing.
RANDOM = ('Constant', 'Xavier', 'Normal', 'TruncNormal', 'Uniform', 'Kaiming', 'Caffe2Xavier')


def check_files(cfg: Config) -> None:
    """Check that the checkpoints to resume, to start from and of the plain ViT exist.

    Raises:
        ConfigError: An empty name, which mmengine takes for none, or a missing file.
    """
    named = [('load_from', cfg.get('load_from'))]
    for one in as_list((cfg.model.get('backbone') or {}).get('init_cfg')):
        if isinstance(one, dict) and (one.get('type') == 'PlainViT' or _is_pretrained(cfg, one)):
            named.append(('model.backbone.init_cfg.checkpoint', one.get('checkpoint')))
    for key, path in named:
        if path == '':
            raise ConfigError(f'{key} is empty (a variable that is not set?); give a file or URL, or None')
        if path and missing_paths([path], cfg):
            raise ConfigError(
                f'checkpoint {path!r} does not exist ({key}, looked from {Path.cwd()}); give a file or URL, or None'
            )


def check_plain_weights(cfg: Config) -> None:
    """Check that a local file of plain ViT weights is of the backbone's ViT; once a machine.

    Raises:
        ConfigError: It is not, or cannot be read.
    """
    backbone = None if cfg.get('load_from') or not first_on_machine() else on_meta(cfg)
    if backbone is None:
        return
    for one in as_list(cfg.model.backbone.get('init_cfg')):
        path = one.get('checkpoint') if isinstance(one, dict) and _initialiser(one) == 'PlainViT' else None
        if not path or '://' in path or Path(path).is_dir():
            continue
        try:
            plain_weights(
                build_plain_vit(backbone.plain, device='meta'), backbone.plain, path, one.get('source')
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f'model.backbone.init_cfg: {error}') from error


def check_pretrained(cfg: Config) -> None:
    """Check local files of ``model.backbone.init_cfg=dict(type='Pretrained')``, once per machine.

    mmengine would only log what does not fit, and leave it random.

    Raises:
        ConfigError: A file of a plain ViT, without such a backbone or without ``prefix``, or one that cannot be read.
    """
    for one in as_list((cfg.model.get('backbone') or {}).get('init_cfg')):
        path = one.get('checkpoint') if isinstance(one, dict) and _is_pretrained(cfg, one) else None
        if path and '://' not in path and _reads_as_data() and first_on_machine():
            _check_pretrained(cfg, path, one.get('prefix'))


def _check_pretrained(cfg: Config, path: str, prefix: str | None) -> None:
    hint = f"weights of a plain ViT take init_cfg=dict(type='PlainViT', checkpoint={path!r})"
    found = {}
    if not Path(path).is_dir() and Path(path).suffix not in ('.safetensors', '.npz'):
        try:
            found = _weights_in(_read(path), path)
        except ConfigError as error:
            raise ConfigError(f'{error}; {hint}') from error
    start = f'{prefix.removesuffix(".")}.' if prefix else ''
    part = {name.removeprefix(start): value for name, value in found.items() if name.startswith(start)}
    own = on_meta(cfg).state_dict()
    fits = any(name in part and part[name].shape == own[name].shape for name in own)
    # Every backbone of this package has them, and no plain ViT. With other options a part of the weights may fit.
    if fits and any(name.startswith('out_norms.') for name in part):
        return
    kind = own_backbone(cfg.model.backbone.type).__name__
    if not prefix and any(f'backbone.{name}' in found for name in own):
        raise ConfigError(
            f'model.backbone.init_cfg loads nothing of {path}, which has its {kind} under another name: add '
            "prefix='backbone.'"
        )
    where = f' under {start}' if start else ''
    raise ConfigError(f"model.backbone.init_cfg: type='Pretrained' finds no {kind} in {path}{where}; {hint}")


def _is_pretrained(cfg: Config, init_cfg: dict) -> bool:
    """Whether mmengine would load a file into a backbone of this package."""
    return _initialiser(init_cfg) == 'Pretrained' and own_backbone(cfg.model.backbone.get('type')) is not None


def _initialiser(init_cfg: dict) -> str:
    """The name of an initialiser; configs in pure Python have its class."""
    return type_name(init_cfg).removesuffix('Init')


def warn_of_random_weights(cfg: Config) -> None:
    """Warn if a backbone of this package starts from random weights."""
    backbone = cfg.model.get('backbone') or {}
    if own_backbone(backbone.get('type')) is None or cfg.get('load_from') or cfg.get('resume'):
        return
    given = [*as_list(backbone.get('init_cfg')), *as_list(cfg.model.get('init_cfg'))]
    name = backbone.get('plain', 'model.backbone')
    if all(_initialiser(one) in RANDOM for one in given):
        warn(
            f'{name} starts from random weights: neither model.backbone.init_cfg nor '
            'load_from names any; '
            "set model.backbone.init_cfg=dict(type='PlainViT', checkpoint=FILE)"
        )


def check_start(cfg: Config) -> None:
    """Read the local checkpoint of ``load_from`` and check it with :func:`check_loaded`, once per machine.

    Raises:
        ConfigError: A file that cannot be read, or as :func:`check_loaded`.
    """
    path = cfg.get('load_from')
    # DeepSpeed writes folders, which only mmengine reads.
    if path and '://' not in path and not Path(path).is_dir() and _reads_as_data() and first_on_machine():
        check_loaded(cfg, _read(path), path)


def check_loaded(cfg: Config, checkpoint: object, path: str) -> None:
    """Check a checkpoint that a training resumes or starts from; mmengine leaves out what does not fit.

    Args:
        cfg: The config, with ``resume``.
        checkpoint: What ``path`` holds.
        path: Its name for messages.

    Raises:
        ConfigError: No weight fits ``model.backbone``; to resume, a checkpoint that no training wrote, or any weight
            of the backbone that is missing or has another shape.
    """
    found = _weights_in(checkpoint, path)
    if cfg.get('resume') and not {'meta', 'state_dict'} <= checkpoint.keys():
        raise ConfigError(
            f'{path} is no checkpoint of a training to resume; to start from its weights set load_from without resume'
        )
    backbone = on_meta(cfg)
    if backbone is None:
        return
    own = {f'backbone.{name}': value for name, value in backbone.state_dict().items()}
    other = [name for name in own if name not in found or found[name].shape != own[name].shape]
    if len(other) == len(own):
        raise ConfigError(
            f'{path} holds nothing of model.backbone; weights of a plain ViT go into '
            'model.backbone.init_cfg.checkpoint and not into load_from'
        )
    if cfg.get('resume'):
        if other:
            raise ConfigError(
                f'{path} is of another model.backbone: {len(other)} weights missing or of another shape ({other[0]}, '
                '...); training writes its config beside its checkpoints'
            )
        _warn_of_other_options(cfg, path, checkpoint['meta'].get('cfg'))


def check_checkpoint(cfg: Config, path: str) -> None:
    """Read a local checkpoint and check it with :func:`check_trained`; mmengine reads URLs.

    Raises:
        ConfigError: A file that cannot be read, or as :func:`check_trained`.
    """
    if '://' not in path and _reads_as_data():
        check_trained(cfg, _read(path), path)


def check_groups(groups: list[dict], checkpoint: dict, path: str) -> None:
    """Check that a checkpoint to resume has the parameter groups of this training, where both name their parameters.

    Args:
        groups: Parameter groups of this training's optimiser.
        checkpoint: What the file holds.
        path: Its name, for the message.

    Raises:
        ConfigError: A parameter is in another group. torch would only say that sizes differ, or would give parameters
            each other's state.
    """
    state = checkpoint.get('optimizer')
    saved = state.get('param_groups') if isinstance(state, dict) else None
    if not saved or not all('param_names' in group for group in (*saved, *groups)):
        return
    was, now = (
        {name: i for i, group in enumerate(some) for name in group['param_names']} for some in (saved, groups)
    )
    moved = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    if moved:
        raise ConfigError(
            f'{path} cannot be resumed: {len(moved)} parameters, such as {moved[0]}, are in other groups of the '
            'optimizer, or the groups in another order; resume with the frozen_stages and paramwise_cfg of that '
            'training (and its version: poolings have other rates since 0.7), or start from its weights with load_from '
            'and resume=False'
        )


def check_trained(cfg: Config, checkpoint: object, path: str) -> None:
    """Check that a checkpoint holds the whole model of a config; mmengine would leave random weights in the rest.

    Args:
        cfg: The config. Its model is built once more, without memory if it can be.
        checkpoint: What ``path`` holds.
        path: Its name for messages.

    Raises:
        ConfigError: Weights of the model that are missing or have another shape, or unexpected ones of the backbone.
    """
    found = _weights_in(checkpoint, path)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') and not model.get('data_preprocessor'):
        model.data_preprocessor = cfg.data_preprocessor
    try:
        with torch.device('meta'):
            own = _unwrapped(MODELS.build(model).state_dict())
    except (RuntimeError, NotImplementedError):  # Swin and others read values while they are built
        own = _unwrapped(MODELS.build(model).state_dict())
    missing = [key for key in own if key not in found]
    wrong = [key for key in own if key in found and found[key].shape != own[key].shape]
    unknown = [key for key in found if key not in own]
    if missing and not any(key.startswith('backbone.') for key in found):
        raise ConfigError(
            f'{path} holds no detector, segmenter or classifier: no name begins with backbone.; weights of a plain ViT '
            'go into model.backbone.init_cfg.checkpoint'
        )
    lists = dict(missing=missing, unexpected=unknown) | {'of another shape': wrong}
    text = ', '.join(f'{len(keys)} weights {what} ({keys[0]}, ...)' for what, keys in lists.items() if keys)
    if missing or wrong or any(key.startswith('backbone.') for key in unknown):
        raise ConfigError(
            f'{path} does not fit this config: {text}; training writes its config beside its checkpoints'
        )
    if unknown:
        warn(f'{path} has more than this config: {text}; they are left out')
    _warn_of_other_options(cfg, path, (checkpoint.get('meta') or {}).get('cfg'))


def _reads_as_data() -> bool:
    """Whether this torch reads mmengine's checkpoints without executing anything in them."""
    return tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 6)


def _read(path: str) -> object:
    try:
        # Only names and shapes are needed, so the weights of a zip archive stay on the disk.
        return torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ConfigError(f'{path} cannot be read as a checkpoint ({reason}); it may be cut off') from error


def _weights_in(checkpoint: object, path: str) -> dict[str, Tensor]:
    if not isinstance(checkpoint, dict):
        raise ConfigError(f'{path} holds a {type(checkpoint).__name__}: expected a dict of weights')
    weights = _unwrapped(checkpoint.get('state_dict', checkpoint))
    return {name: value for name, value in weights.items() if isinstance(value, Tensor)}


def _unwrapped(state: dict) -> dict:
    """Weights by their names in the model itself, without that of a wrapper."""
    return {re.sub(r'^module\.', '', name): value for name, value in state.items()}


def _warn_of_other_options(cfg: Config, path: str, trained: str | None) -> None:
    """Warn if a checkpoint was trained with other options of the backbone: its weights may fit all the same.

    Args:
        cfg: The config.
        path: Name of the checkpoint.
        trained: The config that mmengine wrote into it, which is parsed and not run; None if there is none.
    """
    model = cfg.model.get('module') or cfg.model  # test-time augmentation wraps the model
    now = _all_options(model.get('backbone') or {})
    if now is None or not trained:
        return
    try:
        before = _all_options(backbone_in(trained))
    except (SyntaxError, ValueError):
        warn(
            f'the model.backbone that {path} was trained with is not known: its config there is no plain data'
        )
        return
    if before is None:
        return
    others = [name for name in before | now if before.get(name) != now.get(name)]
    if others:
        text = ', '.join(f'{name}={before.get(name)!r} (here {now.get(name)!r})' for name in others)
        warn(
            f'{path} was trained with model.backbone of {text}: the same weights compute something else here; '
            'training writes its config beside its checkpoints'
        )


def _all_options(backbone: dict) -> dict | None:
    """The options of a backbone of this package that change what it computes, with defaults; None for others."""
    kind = own_backbone(backbone.get('type'))
    if kind is None:
        return None
    known = inspect.signature(kind).parameters.values()
    options = {one.name: one.default for one in known} | backbone
    plain = options.get('plain')
    plain = plain and timm_name(plain).partition('.')[0]  # a tag names weights
    options |= dict(type=kind.__name__, plain=plain)
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    return {name: value for name, value in listed.items() if name not in OF_TRAINING}


def warn_of_normalisation(cfg: Config) -> None:
    """Warn if images are normalised otherwise than for any weights that timm has of the plain ViT."""
    # mmengine prefers the model's own.
    given = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    own = [*(given.get('mean') or ()), *(given.get('std') or ())]
    model = on_meta(cfg)
    if model is None or len(own) != 6:
        return
    plain = model.plain
    known = expected_images(build_plain_vit(plain, device='meta'), plain)
    fits = [max(abs(a - b) for a, b in zip(own, (*mean, *std), strict=True)) < 1 for mean, std in known]
    if known and not any(fits):
        wanted = ' or '.join(f'mean={list(mean)}, std={list(std)}' for mean, std in known)
        warn(
            f'model.data_preprocessor has mean={list(given.mean)}, std={list(given.std)}; weights of {plain} were '
            f'trained with {wanted} and are much worse otherwise; set model.data_preprocessor'
        )
