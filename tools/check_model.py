# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Whether the parts of a config fit each other, before anything is built."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from check_data import first_of_the_machine, named_classes, train_datasets
from launch import missing_paths, own_backbone, stop
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, MODELS, Registry, init_default_scope

LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')
# Heads that tell classes apart; a region proposal's only tells objects.
HEADS = ('bbox_head', 'mask_head', 'panoptic_head', 'decode_head', 'auxiliary_head', 'head')
NOT_OF_CLASSES = ('STDCHead',)  # tells edges


def check_library(cfg: Config) -> None:
    """Stop where the model is of another library than the config's ``default_scope``."""
    kind, scope = cfg.model.get('type'), cfg.get('default_scope') or 'mmengine'
    init_default_scope(scope)
    if not isinstance(kind, str) or '.' in kind or _registered(MODELS, kind, scope):
        return
    for library in filter(importlib.util.find_spec, LIBRARIES):
        if _registered(MODELS, kind, library):
            stop(
                f'model.type={kind!r} is of {library}, and the config is one of {scope} (default_scope); begin with a '
                f'config of {library}'
            )
    stop(f'model.type={kind!r}: {scope} has no such model; is its module in custom_imports?')


def _registered(root: Registry, name: str, library: str) -> type | None:
    """What a library calls by a name."""
    with root.switch_scope_and_registry(library) as registry:
        return registry.get(name)


def check_num_classes(cfg: Config) -> None:
    """Stop where a head has another number of classes than the training data."""
    for key, dataset in train_datasets(cfg):
        named = _classes(dataset, cfg.get('default_scope') or 'mmengine')
        classes = named.get('classes')
        if not classes:
            continue
        fitting = {len(classes), len(named.get('thing_classes', classes))}
        if dataset.get('reduce_zero_label'):
            fitting.add(len(classes) - 1)
        for name, head in _heads(cfg.model, 'model'):
            keys = [k for k in ('num_classes', 'num_things_classes', 'num_stuff_classes') if k in head]
            given = sum(head[k] for k in keys)
            if keys and given not in fitting:
                few = ', '.join(map(str, classes[:4])) + (', ...' if len(classes) > 4 else '')
                stop(
                    f'{name}.{keys[0]}={head[keys[0]]}: expected {len(classes)}, the classes of {key} ({few}); '
                    'heads and metainfo.classes must agree'
                )


def _classes(dataset: ConfigDict, library: str) -> dict:
    """Names of the classes of a data set: the config's, or its type's own; none where it tells them by its files.

    Panoptic data has ``thing_classes`` as well, the part of them that boxes and masks are of.
    """
    named = named_classes(dataset)
    if named is not None:
        return dict(classes=named)
    kind = dataset.get('type')
    kind = _registered(DATASETS, kind, library) if isinstance(kind, str) else kind
    return getattr(kind, 'METAINFO', None) or {}


def _heads(node: object, key: str, is_head: bool = False) -> Iterator[tuple[str, ConfigDict]]:
    """The heads of a model and where the config has them."""
    if isinstance(node, list | tuple):
        for i, inner in enumerate(node):
            yield from _heads(inner, f'{key}.{i}', is_head)
    elif isinstance(node, dict):
        if is_head:
            if node.get('type') not in NOT_OF_CLASSES:
                yield key, node
            return
        for name, inner in node.items():
            yield from _heads(inner, f'{key}.{name}', name in HEADS)


def check_schedule(cfg: Config) -> None:
    """Stop where a part of the learning-rate schedule ends before it begins, as a shortened training's does."""
    schedulers = cfg.get('param_scheduler') or []
    for i, one in enumerate([schedulers] if isinstance(schedulers, dict) else schedulers):
        begin, end = one.get('begin', 0), one.get('end', float('inf'))
        if begin >= end:
            stop(
                f'param_scheduler.{i} ({one.get("type")}) begins at {begin} and ends at {end}; shorten the '
                f'warm-up before it too: --cfg-options param_scheduler.0.end=N param_scheduler.{i}.begin=N, below {end}'
            )


def warn_of_warm_up(cfg: Config, iterations: int) -> None:
    """Say where the learning rate still rises for most of the training."""
    schedulers = cfg.get('param_scheduler') or []
    for i, one in enumerate([schedulers] if isinstance(schedulers, dict) else schedulers):
        end = one.get('end', float('inf'))
        rises = one.get('type') in ('LinearLR', 'ConstantLR') and one.get('by_epoch') is False
        if rises and iterations < 2 * end < float('inf') and int(os.environ.get('RANK', 0)) == 0:
            print(
                f'WARNING: the learning rate rises for {end} iterations (param_scheduler.{i}.end), and the training '
                f'has {iterations}; it will hardly learn: --cfg-options param_scheduler.{i}.end={iterations // 10 + 1}',
                flush=True,
            )


def check_plain_weights(cfg: Config) -> None:
    """Stop where a local file of plain ViT weights is not of the backbone's ViT. Once a machine."""
    from mmhpvit.plain import build_plain_vit
    from mmhpvit.weights import plain_weights

    backbone = cfg.model.get('backbone') or {}
    if own_backbone(backbone.get('type')) is None or cfg.get('load_from') or not first_of_the_machine():
        return
    init_cfg = backbone.get('init_cfg') or []
    for one in [init_cfg] if isinstance(init_cfg, dict) else init_cfg:
        path = one.get('checkpoint') if one.get('type') == 'PlainViT' else None
        if not path or '://' in path or missing_paths([path], cfg) or Path(path).is_dir():
            continue
        try:
            plain_weights(build_plain_vit(backbone.plain), backbone.plain, path, one.get('source'))
        except (OSError, ValueError) as error:
            stop(f'model.backbone.init_cfg: {error}')
