# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Whether a training can go as its config says: precision, schedule, rates, the metric it is judged by."""

import torch
from mmengine.config import Config, ConfigDict

from .errors import stop, warn
from .model import own_backbone


def check_amp(cfg: Config) -> None:
    """Stop where mixed precision is asked for on a machine without a GPU."""
    kind = (cfg.get('optim_wrapper') or {}).get('type')
    if kind == 'AmpOptimWrapper' and not torch.cuda.is_available():
        stop(
            "the config trains with optim_wrapper.type='AmpOptimWrapper', which needs a GPU, and none is "
            'here; for float32 on the CPU add: --cfg-options optim_wrapper.type=OptimWrapper'
        )


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
    warn(
        f'{text} is more than the first layers begin with by layer-wise decay, so that their rate rises all through '
        f'the training: {cure}'
    )


def _decayed_rates(cfg: Config) -> tuple[float, float] | None:
    """Those of the first layer and of the head; None without layer-wise decay of a backbone of this package."""
    from ..backbones.timm_vit import build_plain_vit

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
        if rises and iterations < 2 * end < float('inf'):
            warn(
                f'the learning rate rises for {end} iterations (param_scheduler.{i}.end), and the training has '
                f'{iterations}; it will hardly learn: --cfg-options param_scheduler.{i}.end={iterations // 10 + 1}'
            )


def warn_of_length(cfg: Config, processes: int) -> None:
    """Say where another total of images an iteration makes a training of iterations shorter or longer in epochs."""
    iterations, base = cfg.train_cfg.get('max_iters'), cfg.auto_scale_lr.base_batch_size
    batch = processes * (cfg.train_dataloader.get('batch_size') or base)
    if iterations and batch != base:
        warn(
            f'--auto-scale-lr scales the rate, not the length: {iterations} iterations of {batch} images are '
            f'{batch / base:.3g} times as many images as of {base}; for as many, train_cfg.max_iters='
            f'{round(iterations * base / batch)}, with the ends and milestones of param_scheduler in proportion'
        )
