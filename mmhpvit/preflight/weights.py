# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Whether the weights that a config names are there and are of its model."""

import ast
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

from .data import first_of_the_machine, missing_paths
from .errors import stop, warn
from .model import own_backbone

# Options of a backbone that change how it is trained, not what it computes.
OF_TRAINING = ('init_cfg', 'frozen_stages', 'drop_path_rate', 'with_cp', 'compile_blocks')


def check_weights(cfg: Config) -> None:
    """Stop where a checkpoint to resume from or to start from is not there."""
    if cfg.get('load_from') == '':
        stop('load_from is empty (a variable that is not set?); give a checkpoint, or leave it out')
    if cfg.get('load_from') and missing_paths([cfg.load_from], cfg):
        stop(f'checkpoint {cfg.load_from!r} does not exist (to resume or to load from)')
    init_cfg = cfg.model.get('backbone', {}).get('init_cfg') or []
    for one in [init_cfg] if isinstance(init_cfg, dict) else init_cfg:
        path = one.get('checkpoint') if _is_ours(one) else None
        if path == '':
            stop(
                'model.backbone.init_cfg.checkpoint is empty (a variable that is not set?); give a file or URL, or '
                'None for the weights that timm has'
            )
        if path and missing_paths([path], cfg):
            stop(
                f'checkpoint {path!r} does not exist (model.backbone.init_cfg.checkpoint, looked from '
                f'{Path.cwd()}); give a file or URL, or None for the weights that timm has'
            )


def _is_ours(init_cfg: object) -> bool:
    return isinstance(init_cfg, dict) and init_cfg.get('type') == 'PlainViT'


def check_start(cfg: Config) -> None:
    """Stop where the checkpoint to go on or to start from cannot be read, or holds no such backbone. Once a machine.

    mmengine would start with random weights in place of what it does not find, or fail after all is built.
    """
    path = cfg.get('load_from')
    options = copy.deepcopy(cfg.model.get('backbone') or {})
    kind = own_backbone(options.pop('type', None))
    if not path or '://' in path or not _reads_as_data() or not first_of_the_machine():
        return
    if Path(path).is_dir():
        if 'runner_type' not in cfg:  # some strategies of FlexibleRunner write folders
            stop(f'{path} is a folder: expected one of the checkpoints in it')
        return
    checkpoint = _read(path)
    if cfg.get('resume') and not {'meta', 'state_dict'} <= checkpoint.keys():
        stop(f'{path} is no checkpoint of a training to go on with; to start from its weights set load_from')
    if kind is None:
        return
    with torch.device('meta'):
        own = {f'backbone.{name}': value for name, value in kind(**options).state_dict().items()}
    found = _weights_in(checkpoint)
    other = [name for name in own if name not in found or found[name].shape != own[name].shape]
    if len(other) == len(own):
        stop(
            f'{path} holds nothing of model.backbone; weights of a plain ViT go into '
            'model.backbone.init_cfg.checkpoint and not into load_from'
        )
    if cfg.get('resume') and other:
        stop(
            f'{path} is of another model.backbone: {len(other)} weights missing or of another shape ({other[0]}, ...); '
            'training writes its config beside its checkpoints'
        )


def _reads_as_data() -> bool:
    """Whether this torch reads a checkpoint of mmengine without executing what is in it."""
    return tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 6)


def _read(path: str) -> dict:
    """What a checkpoint holds; nothing in it is executed."""
    import mmhpvit  # noqa: F401 (what mmengine's checkpoints hold may be read)

    try:
        # Of weights in a zip archive only names and shapes are looked at, so that they need not be in memory.
        checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        stop(f'{path} cannot be read as a checkpoint ({reason}); it may be cut off')
    if not isinstance(checkpoint, dict):
        stop(f'{path} holds a {type(checkpoint).__name__}: expected a dict of weights')
    return checkpoint


def _weights_in(checkpoint: dict) -> dict[str, Tensor]:
    return _named(checkpoint.get('state_dict', checkpoint))


def _named(state: dict) -> dict:
    """Weights by their names in the model itself, without that of a wrapper."""
    return {re.sub(r'^module\.', '', key): value for key, value in state.items()}


def check_plain_weights(cfg: Config) -> None:
    """Stop where a local file of plain ViT weights is not of the backbone's ViT. Once a machine."""
    from ..backbones.timm_vit import build_plain_vit
    from ..checkpoints.load import plain_weights

    backbone = cfg.model.get('backbone') or {}
    if own_backbone(backbone.get('type')) is None or cfg.get('load_from') or not first_of_the_machine():
        return
    init_cfg = backbone.get('init_cfg') or []
    for one in [init_cfg] if isinstance(init_cfg, dict) else init_cfg:
        path = one.get('checkpoint') if _is_ours(one) else None
        if not path or '://' in path or missing_paths([path], cfg) or Path(path).is_dir():
            continue
        try:
            plain_weights(
                build_plain_vit(backbone.plain, device='meta'), backbone.plain, path, one.get('source')
            )
        except (OSError, ValueError) as error:
            stop(f'model.backbone.init_cfg: {error}')


def check_checkpoint(cfg: Config, path: str) -> None:
    """Stop where a checkpoint is not of the config's model; mmengine would go on with random weights in its place.

    The model is built without memory for its weights where it can be. URLs are left to mmengine.
    """
    if '://' in path or not _reads_as_data():
        return
    checkpoint = _read(path)
    found = _weights_in(checkpoint)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') and not model.get('data_preprocessor'):
        model.data_preprocessor = cfg.data_preprocessor
    try:
        with torch.device('meta'):
            own = _named(MODELS.build(model).state_dict())
    except (RuntimeError, NotImplementedError):  # Swin and others read values while they are built
        own = _named(MODELS.build(model).state_dict())
    missing = [key for key in own if key not in found]
    wrong = [key for key in own if key in found and found[key].shape != own[key].shape]
    unknown = [key for key in found if key not in own]
    if missing and not any(key.startswith('backbone.') for key in found):
        stop(
            f'{path} holds no detector, segmenter or classifier: no name begins with backbone.; weights of a plain ViT '
            'go into model.backbone.init_cfg.checkpoint'
        )
    lists = dict(missing=missing, unknown=unknown) | {'of another shape': wrong}
    text = ', '.join(f'{len(keys)} weights {what} ({keys[0]}, ...)' for what, keys in lists.items() if keys)
    if missing or wrong or any(key.startswith('backbone.') for key in unknown):
        stop(
            f'{path} is not of this config, which has {text}; training writes its config beside its checkpoints'
        )
    if unknown:
        warn(f'{path} has more than this config, {text}; they are left out')
    _warn_of_other_options(cfg, path, (checkpoint.get('meta') or {}).get('cfg'))


def _warn_of_other_options(cfg: Config, path: str, trained: str | None) -> None:
    """Say which options of the backbone a checkpoint was trained with otherwise: its weights may fit all the same.

    Args:
        cfg: The config at hand.
        path: Of the checkpoint.
        trained: The config that mmengine wrote into it; it is read and not run. None where there is none.
    """
    model = cfg.model.get('module') or cfg.model  # test-time augmentation wraps the model
    now = _all_options(model.get('backbone') or {})
    if now is None or not trained:
        return
    try:
        before = _all_options(_backbone_in(trained))
    except (SyntaxError, ValueError):
        warn(f'what model.backbone {path} was trained with is not told: its config there is no plain data')
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
    """The options of a backbone of this package that tell what it computes, defaults as well; None of others."""
    kind = own_backbone(backbone.get('type'))
    if kind is None:
        return None
    known = inspect.signature(kind).parameters.values()
    options = {one.name: one.default for one in known} | backbone
    options |= dict(type=kind.__name__, plain=backbone['plain'].partition('.')[0])  # a tag names weights
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    return {name: value for name, value in listed.items() if name not in OF_TRAINING}


def _backbone_in(text: str) -> dict:
    """``model.backbone`` of a config as mmengine writes it; empty where it has none.

    Raises:
        SyntaxError: It is no Python.
        ValueError: It is more than numbers, names and the like.
    """
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'model':
            parts = getattr(node.value, 'keywords', ())
            return next((_value(part.value) for part in parts if part.arg == 'backbone'), {})
    return {}


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == 'dict' and not node.args:
        parts = [{k.arg: _value(k.value)} if k.arg else _value(k.value) for k in node.keywords]
        return {key: value for part in parts for key, value in part.items()}
    if isinstance(node, ast.Dict):
        return {_value(k): _value(v) for k, v in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(one) for one in node.elts]
    return ast.literal_eval(node)


def warn_of_normalisation(cfg: Config) -> None:
    """Say where images are normalised otherwise than for any of the weights that timm has of the plain ViT."""
    from ..backbones.timm_vit import build_plain_vit
    from ..checkpoints.load import expected_images

    backbone = cfg.model.get('backbone') or {}
    # As mmengine has it: the model's own first.
    given = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    own = [*(given.get('mean') or ()), *(given.get('std') or ())]
    if own_backbone(backbone.get('type')) is None or len(own) != 6:
        return
    plain = backbone.plain
    known = expected_images(build_plain_vit(plain, device='meta'), plain)
    fits = [max(abs(a - b) for a, b in zip(own, (*mean, *std), strict=True)) < 1 for mean, std in known]
    if known and not any(fits):
        wanted = ' or '.join(f'mean={list(mean)}, std={list(std)}' for mean, std in known)
        warn(
            f'model.data_preprocessor has mean={list(given.mean)}, std={list(given.std)}; weights of {plain} were '
            f'trained with {wanted}, and lose much of what they know without; set model.data_preprocessor'
        )
