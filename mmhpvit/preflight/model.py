# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Whether the parts of a config fit each other."""

import copy
import importlib.util
import inspect
from collections.abc import Iterator
from difflib import get_close_matches

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, MODELS, Registry, init_default_scope

from .data import named_classes, train_datasets
from .errors import stop

LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')
# Heads that tell classes apart; a region proposal's only tells objects.
HEADS = (
    *('bbox_head', 'mask_head', 'panoptic_head', 'panoptic_fusion_head'),
    *('decode_head', 'auxiliary_head', 'head'),
)
NOT_OF_CLASSES = ('STDCHead', 'GroundingDINOHead', 'ATSSVLFusionHead')  # of edges, of tokens of a text
# What of a model runs on a GPU only by operators of mmcv that were compiled for it.
OPERATORS = (
    'RoIAlign',
    'nms',
    'soft_nms',
    'DCN',
    'DCNv2',
    'MSDeformAttnPixelDecoder',
    'MultiScaleDeformableAttention',
)
WITH_OPERATORS = ('DINO', 'DeformableDETR', 'DDQDETR', 'GroundingDINO')


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


def _registered(root: Registry, name: str | type | None, library: str) -> type | None:
    """What a library calls by a name; a class, which configs in pure Python have, is itself."""
    if not isinstance(name, str):
        return name
    with root.switch_scope_and_registry(library) as registry:
        return registry.get(name)


def check_num_classes(cfg: Config) -> None:
    """Stop where a head has another number of classes than the training data."""
    for key, dataset in train_datasets(cfg):
        named = known_classes(dataset, cfg.get('default_scope') or 'mmengine')
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
            if keys:
                _check_class_weight(name, head, given)
                _check_one_class(name, head, key)


def _check_class_weight(name: str, head: ConfigDict, classes: int) -> None:
    """Stop where a softmax over the classes and none of them has another number of weights."""
    loss = head.get('loss_cls') or {}
    weights = loss.get('class_weight')
    if isinstance(weights, list | tuple) and not loss.get('use_sigmoid') and len(weights) != classes + 1:
        stop(
            f'{name}.loss_cls.class_weight has {len(weights)} weights: expected {classes + 1}, one for each class and '
            f'the last for none, as [1.0] * {classes} + [{weights[-1]}]'
        )


def _check_one_class(name: str, head: ConfigDict, data: str) -> None:
    """Stop where a segmenter's softmax is over one class: whatever it says is right, and it learns nothing."""
    losses = head.get('loss_decode') or []
    losses = [losses] if isinstance(losses, dict) else losses
    softmax = [
        loss for loss in losses if loss.get('type') == 'CrossEntropyLoss' and not loss.get('use_sigmoid')
    ]
    if head.get('num_classes') == 1 and softmax:
        stop(
            f'{name}.num_classes=1: a softmax over one class learns nothing; name the background as a class of {data} '
            'as well, with a number of its own in the label maps, and have num_classes=2'
        )


def known_classes(dataset: ConfigDict, library: str) -> dict:
    """Names of the classes of a data set: the config's, or its type's own; none where it tells them by its files.

    Panoptic data has ``thing_classes`` as well, the part of them that boxes and masks are of.
    """
    named = named_classes(dataset)
    if named is not None:
        return dict(dataset.metainfo, classes=named)
    kind = _registered(DATASETS, dataset.get('type'), library)
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


def own_backbone(name: object) -> type | None:
    """The backbone of this package that a config has by this name, or as this class; None where it is none."""
    import mmhpvit

    # A config in pure Python is written with the name of the module before that of the class.
    kind = getattr(mmhpvit, name.rpartition('.')[2], None) if isinstance(name, str) else name
    return kind if isinstance(kind, type) and issubclass(kind, mmhpvit.HPViT) else None


def check_backbone(cfg: Config) -> None:
    """Stop where a backbone of this package cannot be built as configured, or what follows takes maps of another width
    than its ViT's; its weights take no memory here."""
    options = copy.deepcopy(cfg.model.get('backbone') or {})
    kind = own_backbone(options.pop('type', None))
    if kind is None:
        return
    try:
        with torch.device('meta'):
            backbone = kind(**options)
    except TypeError as error:
        known = list(inspect.signature(kind).parameters)
        unknown = [name for name in options if name not in known]
        if not unknown:
            stop(f'model.backbone: {error}')
        close = get_close_matches(unknown[0], known, n=1)
        hint = f'did you mean {close[0]!r}?' if close else f'it has {", ".join(known)}.'
        stop(
            f'model.backbone: {kind.__name__} has no option {unknown[0]!r}; {hint} Options of the backbone before it '
            'go by backbone=dict(_delete_=True, ...)'
        )
    except ValueError as error:
        stop(f'model.backbone: {error}')
    levels = len(backbone.out_indices)
    _check_channels(cfg, backbone.embed_dims, levels, options['plain'])


def _check_channels(cfg: Config, width: int, levels: int, plain: str) -> None:
    """Stop where the neck, or without one a head, takes other maps than ``levels`` of ``width`` channels each.

    What ``in_channels`` means is known of the libraries' own parts; those of others are left to them.
    """
    model = cfg.model
    # Of several necks the others take what the first one gives.
    parts = _listed(model.get('neck'), 'model.neck')[:1]
    if not parts:
        names = 'decode_head', 'auxiliary_head', 'panoptic_head', 'head'
        parts = [part for name in names for part in _listed(model.get(name), f'model.{name}')]
    for key, part in parts:
        kind = _registered(MODELS, part.get('type'), cfg.get('default_scope') or 'mmengine')
        if kind and kind.__module__.partition('.')[0] not in LIBRARIES:
            continue
        given = part.get('in_channels')
        index = part.get('in_index')
        if isinstance(given, int):
            fits, wanted = given == width, width
        elif isinstance(given, list | tuple):
            count = len(index) if isinstance(index, list | tuple) else levels
            fits, wanted = list(given) == [width] * count, [width] * count
        else:
            continue
        if not fits:
            given = given if isinstance(given, int) else list(given)
            stop(
                f'{key}.in_channels={given}: expected {wanted}, the width of {plain} for each of the maps that it '
                'takes; a level fewer in model.backbone.out_indices is a number fewer here'
            )


def _listed(node: object, key: str) -> list[tuple[str, ConfigDict]]:
    """A part of a config, or all of a list of them, and where the config has them."""
    if isinstance(node, list | tuple):
        return [(f'{key}.{i}', part) for i, part in enumerate(node)]
    return [(key, node)] if node else []


def check_operators(model: dict) -> None:
    """Stop where a model would run on a GPU by operators that mmcv was compiled without."""
    types = _types(model)
    needed = [kind for kind in (*OPERATORS, *WITH_OPERATORS) if kind in types]
    if not needed or not torch.cuda.is_available():
        return
    from mmcv.ops import get_compiling_cuda_version

    if get_compiling_cuda_version() == 'not available':
        stop(
            f'mmcv here was compiled without CUDA, and the model needs its operators on the GPU ({", ".join(needed)}); '
            'run tools/setup/setup_env.py on a machine with a GPU and nvcc, or set CUDA_VISIBLE_DEVICES= for the CPU'
        )


def _types(node: object) -> set[str]:
    """Names of all types in a config, of mmdet's without its prefix."""
    if isinstance(node, list | tuple):
        return set().union(*map(_types, node))
    if not isinstance(node, dict):
        return set()
    kind = node.get('type')
    own = {kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', '')}
    return own.union(*map(_types, node.values()))
