# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Whether a training can run as configured: precision, learning rates, length, the metric of the best checkpoint."""

from math import inf, isclose

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop
from torch.optim import Optimizer

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


def learning_rates(cfg: Config, rates: list[float], loop: BaseLoop, iterations: int) -> tuple[list, list]:
    """Run the schedulers of learning rates of a config over an optimiser without weights.

    Args:
        cfg: The config, with ``param_scheduler``.
        rates: Learning rate of each parameter group before any scheduler.
        loop: Training loop, of which ``max_iters``, ``max_epochs`` and ``dataloader`` are read.
        iterations: Number of training iterations.

    Returns:
        The schedulers as they are afterwards, and the rates of all groups in each iteration and after the last.
    """
    groups = [dict(params=[torch.zeros(1)], lr=rate) for rate in rates]
    optimizer = Optimizer(groups, dict(lr=0.0))
    schedulers = []
    for one in as_list(cfg.get('param_scheduler')):
        if type_name(one).endswith('LR') and type_name(one) != 'ReduceOnPlateauLR':  # which follows a metric
            given = dict(end=loop.max_epochs if one.get('by_epoch', True) else loop.max_iters) | one
            built = dict(optimizer=optimizer, epoch_length=len(loop.dataloader))
            schedulers.append(PARAM_SCHEDULERS.build(given, default_args=built))
    optimizer._global_step = 0  # or each scheduler warns that nothing was trained
    epoch = loop.max_iters // loop.max_epochs  # a loop of iterations is one epoch to mmengine
    found = [[group['lr'] for group in optimizer.param_groups]]
    for done in range(1, iterations + 1):
        for one in schedulers:
            if not one.by_epoch or done % epoch == 0:
                one.step()
        found.append([group['lr'] for group in optimizer.param_groups])
    return schedulers, found


def check_rates(cfg: Config, highest: float, loop: BaseLoop) -> None:
    """Check that a training keeps the layer-wise decay of a backbone of this package.

    A scheduler that sets rates, such as OneCycleLR, and one with ``eta_min`` have one value for all layers.

    Args:
        cfg: The config.
        highest: Learning rate of the head before any scheduler.
        loop: Training loop, see :func:`learning_rates`.

    Raises:
        ConfigError: The first layers have the learning rate of the head where that is highest.
    """
    optim_wrapper, backbone = cfg.get('optim_wrapper') or {}, cfg.model.get('backbone') or {}
    decay = (optim_wrapper.get('paramwise_cfg') or {}).get('decay_rate')
    if own_backbone(backbone.get('type')) is None or not highest or not decay or decay == 1:
        return
    lowest = highest * decay ** (len(build_plain_vit(backbone.plain, device='meta').blocks) + 1)
    _, found = learning_rates(cfg, [highest, lowest], loop, loop.max_iters - 1)
    peak = max(head for head, _ in found)
    i, last = _last_scheduler(cfg)
    # A rate that stays the same is highest in the last iteration.
    if any(isclose(head, first, rel_tol=1e-3) for head, first in found if isclose(head, peak)):
        if last.get('eta_min'):
            raise ConfigError(
                f'param_scheduler.{i}.eta_min={last.eta_min:g}: expected less than optim_wrapper.optimizer.lr='
                f'{highest:g}; as it is, no learning rate falls, and those of layer-wise decay rise to it: '
                f'--cfg-options param_scheduler.{i}.eta_min=0'
            )
        raise ConfigError(
            f'param_scheduler gives all layers one learning rate ({peak:g}), so paramwise_cfg.decay_rate={decay} does '
            f'nothing ({type_name(last)}, param_scheduler.{i}): expected a scheduler that scales the rate of each '
            'layer, such as LinearLR, then CosineAnnealingLR or PolyLR'
        )
    end = found[-1]
    if end[1] >= lowest and end[0] < peak and last.get('eta_min'):
        warn(
            f'param_scheduler.{i}.eta_min={last.eta_min:g} is more than the first layers begin with by layer-wise '
            f'decay ({lowest:.1e}), so their learning rate rises during the whole training: '
            f'--cfg-options param_scheduler.{i}.eta_min=0'
        )


def follow_config(
    cfg: Config, checkpoint: dict, loop: BaseLoop, built: list, groups: list[dict], path: str
) -> None:
    """Make a resumed training follow the schedule of its config; mmengine would follow that of the checkpoint.

    Where they differ, the schedule of the config is run up to the place of the checkpoint, and the states and rates
    in the checkpoint are replaced before mmengine reads them.

    Args:
        cfg: The config.
        checkpoint: What the file holds; changed where the schedules differ.
        loop: Training loop, see :func:`learning_rates`.
        built: Schedulers of this training, before they are resumed.
        groups: Parameter groups of this training's optimiser.
        path: Name of the file, for the messages.

    Raises:
        ConfigError: The schedules differ, and one of this training is of something else than the learning rate or
            follows a metric.
    """
    saved, optimizer = checkpoint.get('param_schedulers'), checkpoint.get('optimizer')
    if not isinstance(saved, list) or not isinstance(built, list) or not isinstance(optimizer, dict):
        return
    now = [one.state_dict() for one in built]
    said = _differences(saved, now)
    if not said:
        return
    if any(one.param_name != 'lr' or hasattr(one, 'need_val_args') for one in built):
        raise ConfigError(
            f'{path} has another schedule: {said}; with schedulers of other things than the learning '
            'rate, or of a metric, expected that of the checkpoint: resume with its param_scheduler and '
            'optim_wrapper.optimizer.lr, or start from its weights with load_from and resume=False'
        )
    meta = checkpoint['meta']
    # A loop of epochs begins the unfinished one again; its length depends on the batch size.
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    done = meta['epoch'] * len(loop.dataloader) if by_epoch else meta['iter']
    initial = [group['initial_lr'] for group in groups]
    schedulers, _ = learning_rates(cfg, initial, loop, done)
    checkpoint['param_schedulers'] = [one.state_dict() for one in schedulers]
    for group, played in zip(optimizer['param_groups'], schedulers[0].optimizer.param_groups, strict=True):
        group.update((key, value) for key, value in played.items() if key == 'lr' or key.endswith('_lr'))
    warn(
        f'{path} has another schedule: {said}; training continues with the learning rate that the '
        f'config has after {done} iterations ({max(group["lr"] for group in optimizer["param_groups"]):.3g})'
    )


# What changes while a scheduler runs, or follows from its other values.
_STATE = ('last_step', 'verbose', 'total_iters', 'best', 'num_bad_epochs', 'cooldown_counter')


def _differences(saved: list[dict], now: list[dict]) -> str:
    """The options in which schedulers differ, with both values; empty if they do not."""
    if len(saved) != len(now):
        return f'{len(saved)} schedulers (here {len(now)})'
    said = []
    for i, (was, has) in enumerate(zip(saved, now, strict=True)):
        for key in dict.fromkeys((*was, *has)):
            before, after = was.get(key), has.get(key)
            if key == 'base_values':
                if not all(map(isclose, before, after)):
                    said.append(f'optim_wrapper.optimizer.lr={max(before):g} (here {max(after):g})')
            elif not key.startswith('_') and key not in _STATE and before != after:
                said.append(f'param_scheduler.{i}.{key}={before} (here {after})')
    return ', '.join(dict.fromkeys(said))


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
    images, steps = processes * (cfg.train_dataloader.get('batch_size') or base), accumulated(cfg)
    if images != base:
        each = f'{images} images' + (f', {steps} of which make a step,' if steps > 1 else '')
        warn(
            f'auto_scale_lr scales the learning rate, not the length: {iterations} iterations of {each} are '
            f'{images / base:.3g} times as many images as of {base}; for as many, train_cfg.max_iters='
            f'{round(iterations * base / images)}, with the ends and milestones of param_scheduler in proportion'
        )


def accumulated(cfg: Config) -> int:
    """Number of iterations whose gradients make one step of the optimiser."""
    return (cfg.get('optim_wrapper') or {}).get('accumulative_counts') or 1


def warn_of_accumulation(cfg: Config) -> None:
    """Warn that mmengine scales the learning rate without the iterations that make one step."""
    scale, steps = cfg.get('auto_scale_lr') or {}, accumulated(cfg)
    if scale.get('enable') and steps > 1:
        base = scale.get('base_batch_size') or 1
        warn(
            f'auto_scale_lr leaves optim_wrapper.accumulative_counts={steps} out, so the learning rate is {steps} '
            f'times too small; for the batch of a step set auto_scale_lr.base_batch_size={base / steps:g}'
        )


def warn_of_sgd(cfg: Config) -> None:
    """Warn if a ViT of this package is trained with SGD, with which ViTs hardly learn."""
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    backbone = cfg.model.get('backbone') or {}
    if type_name(optimizer) == 'SGD' and own_backbone(backbone.get('type')) is not None:
        warn(
            "optim_wrapper.optimizer.type='SGD' is for ResNets, a ViT hardly learns with it: take AdamW with "
            "layer-wise decay, as the configs of this project (constructor='LayerIdDecayConstructor')"
        )
