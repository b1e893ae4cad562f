# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Whether a training can run as configured: precision, learning rates, length, the metric of the best checkpoint."""

from math import inf

import torch
from mmengine.config import Config, ConfigDict

from ..backbones.timm_vit import build_plain_vit
from .data import as_list, type_name
from .errors import ConfigError, warn
from .model import own_backbone


def check_amp(cfg: Config) -> None:
    """Raise ConfigError for mixed precision without a GPU."""
    if type_name(cfg.get('optim_wrapper') or {}) == 'AmpOptimWrapper' and not torch.cuda.is_available():
        raise ConfigError(
            "the config trains with optim_wrapper.type='AmpOptimWrapper', which needs a GPU, and none is "
            'here; for float32 on the CPU add: --cfg-options optim_wrapper.type=OptimWrapper'
        )


def check_last_rates(cfg: Config) -> None:
    """Check that learning rates fall below the highest one in a training with layer-wise decay.

    ``eta_min`` is the same for all layers, so one that suits a higher rate undoes the decay.

    Raises:
        ConfigError: ``eta_min`` is no less than the learning rate of the head.
    """
    i, floor, _, highest = _last_rates(cfg)
    # auto_scale_lr changes the rate by the number of processes, which is not known yet.
    if floor >= highest and not (cfg.get('auto_scale_lr') or {}).get('enable'):
        raise ConfigError(
            f'param_scheduler.{i}.eta_min={floor:g}: expected less than optim_wrapper.optimizer.lr={highest:g}; as it '
            'is, no learning rate falls, and those of layer-wise decay rise to it: '
            f'--cfg-options param_scheduler.{i}.eta_min=0'
        )


def warn_of_last_rates(cfg: Config) -> None:
    """Warn if ``eta_min`` is above the learning rate that layer-wise decay gives to the first layer."""
    i, floor, lowest, _ = _last_rates(cfg)
    if floor >= lowest:
        warn(
            f'param_scheduler.{i}.eta_min={floor:g} is more than the first layers begin with by layer-wise decay '
            f'({lowest:.1e}), so their learning rate rises during the whole training: '
            f'--cfg-options param_scheduler.{i}.eta_min=0'
        )


def _last_rates(cfg: Config) -> tuple[int, float, float, float]:
    """The last scheduler of learning rates, its ``eta_min``, and the initial rates of the first layer and of the head.

    Without layer-wise decay of a backbone of this package no ``eta_min`` is too high: (0, 0, inf, inf).
    """
    i, last = _last_scheduler(cfg)
    optim_wrapper, backbone = cfg.get('optim_wrapper') or {}, cfg.model.get('backbone') or {}
    rate = (optim_wrapper.get('optimizer') or {}).get('lr')
    decay = (optim_wrapper.get('paramwise_cfg') or {}).get('decay_rate')
    if own_backbone(backbone.get('type')) is None or not rate or not decay:
        return 0, 0.0, inf, inf
    depth = len(build_plain_vit(backbone.plain, device='meta').blocks)
    return i, last.get('eta_min') or 0.0, rate * decay ** (depth + 1), rate


def _last_scheduler(cfg: Config) -> tuple[int, dict]:
    """The last scheduler of learning rates and its index; there are others, of momentum and weight decay."""
    found = list(enumerate(as_list(cfg.get('param_scheduler'))))
    return next(((i, one) for i, one in reversed(found) if type_name(one).endswith('LR')), (0, {}))


def check_save_best(cfg: Config) -> None:
    """Check that the evaluation measures the metric of ``save_best``; otherwise its first validation ends the training.

    Raises:
        ConfigError: A metric that no evaluator has. Evaluators of other kinds than COCO's, VOC's and mmseg's pass.
    """
    best = ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('save_best')
    evaluators = as_list(cfg.get('val_evaluator'))
    if not best or not evaluators or cfg.get('val_cfg') is None:
        return
    found = [_metrics(one) for one in evaluators]
    if not all(found):
        return
    found = [name for names in found for name in names]
    for name in [best] if isinstance(best, str) else best:
        if name != 'auto' and not any(name == metric or name.startswith(f'{metric}_') for metric in found):
            raise ConfigError(
                f'default_hooks.checkpoint.save_best={name!r}: val_evaluator gives {", ".join(found)}, so the '
                'training would end at its first validation: --cfg-options '
                f'default_hooks.checkpoint.save_best={found[0]}'
            )


def _metrics(evaluator: ConfigDict) -> list[str]:
    """The names that COCO's, VOC's or mmseg's evaluator gives its metrics; empty if they are not known."""
    kind, prefix = type_name(evaluator), evaluator.get('prefix')
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
    """Warn if the learning rate rises for more than half of the training."""
    for i, one in enumerate(as_list(cfg.get('param_scheduler'))):
        end = one.get('end', inf)
        rises = type_name(one) in ('LinearLR', 'ConstantLR') and one.get('by_epoch') is False
        if rises and iterations < 2 * end < inf:
            warn(
                f'the learning rate rises for {end} iterations (param_scheduler.{i}.end), and the training has '
                f'{iterations}; it will hardly learn: --cfg-options param_scheduler.{i}.end={iterations // 10 + 1}'
            )


def warn_of_end(cfg: Config, iterations: int) -> None:
    """Warn if the learning rate reaches its minimum before the training ends, or never does."""
    i, one = _last_scheduler(cfg)
    unit = 'epochs' if one.get('by_epoch', True) else 'iterations'
    length = cfg.train_cfg.get('max_epochs') if unit == 'epochs' else iterations
    end = one.get('end')
    falls_to_end = type_name(one) in ('PolyLR', 'CosineAnnealingLR') and 'T_max' not in one
    if falls_to_end and end and length and end != length:
        warn(
            f'the learning rate falls until {end} {unit} (param_scheduler.{i}.end), and the training has {length}: '
            f'--cfg-options param_scheduler.{i}.end={length}'
        )


def warn_of_length(cfg: Config, processes: int) -> None:
    """Warn if scaling the learning rate leaves a training of fewer or more images than the config was made for."""
    scale = cfg.get('auto_scale_lr') or {}
    iterations, base = cfg.train_cfg.get('max_iters'), scale.get('base_batch_size')
    if not scale.get('enable') or not iterations or not base:
        return
    batch = processes * (cfg.train_dataloader.get('batch_size') or base)
    if batch != base:
        warn(
            f'auto_scale_lr scales the learning rate, not the length: {iterations} iterations of {batch} images are '
            f'{batch / base:.3g} times as many images as of {base}; for as many, train_cfg.max_iters='
            f'{round(iterations * base / batch)}, with the ends and milestones of param_scheduler in proportion'
        )
