# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Whether the parts of a model fit each other, its data and the operators that mmcv has."""

import copy
from collections.abc import Iterator

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import DATASETS, MODELS, Registry
from torch import nn

from ..backbones.base import PlainViTBackbone
from ..backbones.hpvit import HPViT
from ..backbones.plain_vit import PlainViTPyramid
from ..backbones.two_scale_vit import TwoScaleViT
from .data import as_list, datasets_of, named_classes, type_name
from .errors import ConfigError

BACKBONES = (HPViT, PlainViTPyramid, TwoScaleViT)
LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')
# Heads that classify; a region proposal network only finds objects.
HEADS = (
    *('bbox_head', 'mask_head', 'panoptic_head', 'panoptic_fusion_head'),
    *('decode_head', 'auxiliary_head', 'head'),
)
NOT_OF_CLASSES = ('STDCHead', 'GroundingDINOHead', 'ATSSVLFusionHead')  # of edges, of tokens of a text
# Parts of models that need mmcv's compiled operators on a GPU.
OPERATORS = (
    *('RoIAlign', 'nms', 'soft_nms', 'DCN', 'DCNv2'),
    *('MSDeformAttnPixelDecoder', 'MultiScaleDeformableAttention'),
    *('DINO', 'DeformableDETR', 'DDQDETR', 'GroundingDINO'),
)


def own_backbone(name: object) -> type | None:
    """The backbone of this package with this name, or a class that is one; None for any other."""
    if isinstance(name, type):
        return name if issubclass(name, PlainViTBackbone) else None
    # Configs in pure Python have the module in front of the class.
    return next((kind for kind in BACKBONES if kind.__name__ == str(name).rpartition('.')[2]), None)


def on_meta(cfg: Config) -> nn.Module | None:
    """The backbone of a config without memory for its weights; None if it is not of this package.

    Raises:
        ConfigError: Options with which it cannot be built.
    """
    options = copy.deepcopy(cfg.model.get('backbone') or {})
    kind = own_backbone(options.pop('type', None))
    if kind is None:
        return None
    # mmseg's segmenters hand it on to the backbone; elsewhere it is the model's own.
    segmenter = _registered(MODELS, cfg.model.get('type'), cfg.get('default_scope'))
    hands_on = any(base.__name__ == 'EncoderDecoder' for base in getattr(segmenter, '__mro__', ()))
    if hands_on and (leftover := cfg.model.get('pretrained')):
        raise ConfigError(
            f'model.pretrained={leftover!r} is of the backbone before {kind.__name__}: set model.pretrained=None; '
            "weights of a plain ViT go into model.backbone.init_cfg=dict(type='PlainViT', checkpoint=FILE)"
        )
    try:
        with torch.device('meta'):
            return kind(**options)
    except (TypeError, ValueError) as error:
        hint = '; to replace the backbone of a base config: backbone=dict(_delete_=True, ...)'
        hint = hint if isinstance(error, TypeError) else ''
        raise ConfigError(f'model.backbone: {error}{hint}') from error


def check_backbone(cfg: Config) -> None:
    """Check that a backbone of this package can be built and that ``in_channels`` behind it fit its width.

    Otherwise the first image fails in a convolution, and the error names no option. Only parts of mmdet, mmseg and
    mmpretrain are checked: in other libraries ``in_channels`` may mean something else.

    Raises:
        ConfigError: Options of the backbone that cannot be, or other ``in_channels``.
    """
    backbone = on_meta(cfg)
    if backbone is None:
        return
    model, width, levels = cfg.model, backbone.embed_dims, len(backbone.out_indices)
    # Later necks take what the first one returns.
    parts = _listed(model.get('neck'), 'model.neck')[:1]
    if not parts:
        names = 'decode_head', 'auxiliary_head', 'panoptic_head', 'head'
        parts = [part for name in names for part in _listed(model.get(name), f'model.{name}')]
    for key, part in parts:
        kind = _registered(MODELS, part.get('type'), cfg.get('default_scope'))
        given, index = part.get('in_channels'), part.get('in_index')
        if not isinstance(given, int | list | tuple):
            continue
        if kind and kind.__module__.partition('.')[0] not in LIBRARIES:
            continue
        count = len(index) if isinstance(index, list | tuple) else levels
        given = given if isinstance(given, int) else list(given)
        wanted = width if isinstance(given, int) else [width] * count
        if given != wanted:
            raise ConfigError(
                f'{key}.in_channels={given}: expected {wanted}, the width of {backbone.plain} for each feature map '
                'that it takes, one for each index in model.backbone.out_indices'
            )


def check_preprocessor(cfg: Config) -> None:
    """Check that images are normalised with as many values as a backbone of this package takes channels.

    Raises:
        ConfigError: Another number of values in ``mean`` or ``std``, a number that the preprocessor does not take, or
            colours to be swapped in images of other than 3 channels.
    """
    backbone = cfg.model.get('backbone') or {}
    # mmengine prefers the model's own.
    given = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    if own_backbone(backbone.get('type')) is None:
        return
    channels = backbone.get('in_channels', 3)
    for name in ('mean', 'std'):
        values = given.get(name)
        if values is not None and len(values) not in (1, channels):
            raise ConfigError(
                f'model.data_preprocessor.{name} has {len(values)} values and model.backbone.in_channels is '
                f'{channels}: expected one value for each channel, or one for all'
            )
    if channels == 3:
        return
    swap = next((name for name in ('bgr_to_rgb', 'rgb_to_bgr', 'to_rgb') if given.get(name)), None)
    if swap:
        raise ConfigError(
            f'model.data_preprocessor.{swap}=True swaps the colours of 3 channels, and '
            f'model.backbone.in_channels is {channels}: set it to False'
        )
    kind = _registered(MODELS, given.get('type'), cfg.get('default_scope')) if given.get('type') else None
    if kind and issubclass(kind, ImgDataPreprocessor) and len(given.get('mean') or ()) > 3:
        raise ConfigError(
            f'model.data_preprocessor: {kind.__name__} takes 1 or 3 values as mean and std, not {channels}; set both '
            "to None there, and add dict(type='Normalize', mean=..., std=..., to_rgb=False) to the pipelines"
        )


def _listed(node: object, key: str) -> list[tuple[str, ConfigDict]]:
    """A part of a config, or each of a list of them, with its config key."""
    if isinstance(node, list | tuple):
        return [(f'{key}.{i}', part) for i, part in enumerate(node)]
    return [(key, node)] if node else []


def _registered(root: Registry, name: str | type | None, library: str | None) -> type | None:
    """The class that a library registers under a name; configs in pure Python have the class itself."""
    if not isinstance(name, str):
        return name
    with root.switch_scope_and_registry(library or 'mmengine') as registry:
        return registry.get(name)


def check_num_classes(cfg: Config) -> None:
    """Check that heads have as many classes as the training data.

    Raises:
        ConfigError: Another ``num_classes``, another number of class weights, a softmax over a single class.
    """
    for key, dataset in datasets_of(cfg, 'train_dataloader'):
        named = known_classes(dataset, cfg.get('default_scope'))
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
                raise ConfigError(
                    f'{name}.{keys[0]}={head[keys[0]]}: expected {len(classes)}, the classes of {key} ({few}); '
                    'heads and metainfo.classes must agree'
                )
            if keys:
                _check_class_weight(name, head, given)
                _check_one_class(name, head, key)


def _check_class_weight(name: str, head: ConfigDict, classes: int) -> None:
    """A softmax over the classes and "none of them" needs a weight for each."""
    loss = head.get('loss_cls') or {}
    weights = loss.get('class_weight')
    if isinstance(weights, list | tuple) and not loss.get('use_sigmoid') and len(weights) != classes + 1:
        raise ConfigError(
            f'{name}.loss_cls.class_weight has {len(weights)} weights: expected {classes + 1}, one for each class and '
            f'the last for none, as [1.0] * {classes} + [{weights[-1]}]'
        )


def _check_one_class(name: str, head: ConfigDict, data: str) -> None:
    """A softmax over a single class is always 1, so a segmenter with one learns nothing."""
    softmax = [
        loss
        for loss in as_list(head.get('loss_decode'))
        if loss.get('type') == 'CrossEntropyLoss' and not loss.get('use_sigmoid')
    ]
    if head.get('num_classes') == 1 and softmax:
        raise ConfigError(
            f'{name}.num_classes=1: a softmax over one class learns nothing; name the background as a class of {data} '
            'as well, with its own number in the label maps, and set num_classes=2'
        )


def known_classes(dataset: ConfigDict, library: str | None) -> dict:
    """The ``metainfo`` of a data set: the config's, or that of its type; empty if only its files know the classes.

    Panoptic data has ``thing_classes`` as well, the part of the classes that have boxes and masks.
    """
    named = named_classes(dataset)
    if named is not None:
        return dict(dataset.metainfo, classes=named)
    return getattr(_registered(DATASETS, dataset.get('type'), library), 'METAINFO', None) or {}


def _heads(node: object, key: str, is_head: bool = False) -> Iterator[tuple[str, ConfigDict]]:
    """The heads of a model, with their config keys."""
    if isinstance(node, list | tuple):
        for i, inner in enumerate(node):
            yield from _heads(inner, f'{key}.{i}', is_head)
    elif isinstance(node, dict):
        if is_head:
            if type_name(node) not in NOT_OF_CLASSES:
                yield key, node
            return
        for name, inner in node.items():
            yield from _heads(inner, f'{key}.{name}', name in HEADS)


def check_operators(model: dict) -> None:
    """Check that mmcv was compiled with the operators that a model runs on a GPU.

    Raises:
        ConfigError: There is a GPU, and mmcv was compiled without CUDA.
    """
    needed = [kind for kind in OPERATORS if kind in _types(model)]
    if not needed or not torch.cuda.is_available():
        return
    from mmcv.ops import get_compiling_cuda_version

    if get_compiling_cuda_version() == 'not available':
        raise ConfigError(
            f'mmcv here was compiled without CUDA, and the model needs its operators on the GPU ({", ".join(needed)}); '
            'run tools/setup/setup_env.py on a machine with a GPU and nvcc, or set CUDA_VISIBLE_DEVICES= for the CPU'
        )


def _types(node: object) -> set[str]:
    """The names of all types in a part of a config, without their libraries."""
    if isinstance(node, list | tuple):
        return set().union(*map(_types, node))
    if not isinstance(node, dict):
        return set()
    return {type_name(node)}.union(*map(_types, node.values()))
