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
HEADS = (
    *('bbox_head', 'mask_head', 'panoptic_head', 'panoptic_fusion_head'),
    *('decode_head', 'auxiliary_head', 'head'),
)
NOT_OF_CLASSES = ('STDCHead', 'GroundingDINOHead', 'ATSSVLFusionHead')  # of edges, of tokens of a text


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


def check_last_rates(cfg: Config) -> None:
    """Stop where the rates of layer-wise decay fall to no less than the highest; say where some of them rise.

    ``eta_min`` is a rate for all, whatever they begin with, so that a floor meant for a higher rate undoes the decay.
    """
    rates = _decayed_rates(cfg)
    schedulers = cfg.get('param_scheduler') or []
    schedulers = [schedulers] if isinstance(schedulers, dict) else schedulers
    # Momentum and weight decay have schedules, too; and what another one follows may rise.
    of_rates = [i for i, one in enumerate(schedulers) if str(one.get('type')).endswith('LR')]
    floor = schedulers[of_rates[-1]].get('eta_min') if of_rates else None
    if rates is None or not floor or floor < rates[0]:
        return
    text = f'param_scheduler.{of_rates[-1]}.eta_min={floor:g}'
    cure = f'--cfg-options param_scheduler.{of_rates[-1]}.eta_min=0'
    if floor >= rates[1] and not (cfg.get('auto_scale_lr') or {}).get('enable'):
        stop(
            f'{text}: expected less than optim_wrapper.optimizer.lr={rates[1]:g}; as it is, no rate falls, and those '
            f'of layer-wise decay rise to it: {cure}'
        )
    if int(os.environ.get('RANK', 0)) == 0:
        print(
            f'WARNING: {text} is more than the first layers begin with by layer-wise decay, so that their rate rises '
            f'all through the training: {cure}',
            flush=True,
        )


def _decayed_rates(cfg: Config) -> tuple[float, float] | None:
    """Those of the first layer and of the head; None without layer-wise decay of a backbone of this package."""
    from mmhpvit.plain import build_plain_vit

    optim_wrapper = cfg.get('optim_wrapper') or {}
    rate = (optim_wrapper.get('optimizer') or {}).get('lr')
    decay = (optim_wrapper.get('paramwise_cfg') or {}).get('decay_rate')
    backbone = cfg.model.get('backbone') or {}
    if own_backbone(backbone.get('type')) is None or not rate or not decay:
        return None
    return rate * decay ** (len(build_plain_vit(backbone.plain, device='meta').blocks) + 1), rate


def check_save_best(cfg: Config) -> None:
    """Stop where the metric of the best checkpoint is none that the evaluation gives."""
    best = ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('save_best')
    evaluators = cfg.get('val_evaluator')
    if not best or not evaluators or cfg.get('val_cfg') is None:
        return
    found = [_metrics(one) for one in ([evaluators] if isinstance(evaluators, dict) else evaluators)]
    if not all(found):
        return
    found = [name for names in found for name in names]
    for name in [best] if isinstance(best, str) else best:
        if name != 'auto' and not any(name == metric or name.startswith(f'{metric}_') for metric in found):
            stop(
                f'default_hooks.checkpoint.save_best={name!r}: val_evaluator gives {", ".join(found)}, so that the '
                'training would end at its first validation: --cfg-options '
                f'default_hooks.checkpoint.save_best={found[0]}'
            )


def _metrics(evaluator: ConfigDict) -> list[str]:
    """What the metrics of COCO's, VOC's or mmseg's evaluator are called; none where it is not known."""
    kind, prefix = evaluator.get('type'), evaluator.get('prefix')
    if kind == 'CocoMetric':
        values = evaluator.get('metric') or 'bbox'
        values = [values] if isinstance(values, str) else values
        others = evaluator.get('classwise') or evaluator.get('metric_items')
        if others or not set(values) <= {'bbox', 'segm'}:
            return []
        return [f'{prefix or "coco"}/{value}_mAP' for value in values]
    if kind == 'VOCMetric' and evaluator.get('metric', 'mAP') == 'mAP':
        thresholds = evaluator.get('iou_thrs') or 0.5
        thresholds = [thresholds] if isinstance(thresholds, float) else thresholds
        names = ['mAP', *(f'AP{int(threshold * 100):02d}' for threshold in thresholds)]
        return [f'{prefix or "pascal_voc"}/{name}' for name in names]
    if kind == 'IoUMetric':
        fscore = ['mFscore', 'mPrecision', 'mRecall']
        values = evaluator.get('iou_metrics') or ['mIoU']
        values = [values] if isinstance(values, str) else values
        names = [name for value in values for name in (fscore if value == 'mFscore' else [value, 'mAcc'])]
        return [f'{prefix}/{name}' if prefix else name for name in (*dict.fromkeys(names), 'aAcc')]
    return []


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


def warn_of_length(cfg: Config, processes: int) -> None:
    """Say where another total of images an iteration makes a training of iterations shorter or longer in epochs."""
    iterations, base = cfg.train_cfg.get('max_iters'), cfg.auto_scale_lr.base_batch_size
    batch = processes * (cfg.train_dataloader.get('batch_size') or base)
    if iterations and batch != base and int(os.environ.get('RANK', 0)) == 0:
        print(
            f'WARNING: --auto-scale-lr scales the rate, not the length: {iterations} iterations of {batch} images are '
            f'{batch / base:.3g} times as many images as of {base}; for as many, train_cfg.max_iters='
            f'{round(iterations * base / batch)}, with the ends and milestones of param_scheduler in proportion',
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
            plain_weights(
                build_plain_vit(backbone.plain, device='meta'), backbone.plain, path, one.get('source')
            )
        except (OSError, ValueError) as error:
            stop(f'model.backbone.init_cfg: {error}')
