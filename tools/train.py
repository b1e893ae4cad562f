# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Train a detector, segmenter or classifier from a config; its ``default_scope`` decides which."""

import argparse

from launch import (
    add_common_options,
    build_runner,
    latest_checkpoint,
    leave_processes,
    load_config,
    run,
    stop,
)
from mmengine.runner import FlexibleRunner, Runner

from mmhpvit import SkipTrainedData
from mmhpvit.preflight.hook import check_training, warn_of_training
from mmhpvit.preflight.schedule import accumulated
from mmhpvit.preflight.weights import check_start


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint, or without a value from the last one in the work dir',
    )
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the images of a step over auto_scale_lr.base_batch_size',
    )
    add_common_options(parser)
    return parser.parse_args()


def scale_by_accumulation(runner: Runner | FlexibleRunner) -> None:
    """Make auto_scale_lr count all images of an optimiser step; mmengine counts those of an iteration."""
    flexible = isinstance(runner, FlexibleRunner)
    owner, name = (runner.strategy, '_auto_scale_lr') if flexible else (runner, 'auto_scale_lr')
    scale = getattr(owner, name) or {}
    if scale.get('enable'):
        setattr(owner, name, scale | dict(base_batch_size=scale['base_batch_size'] / accumulated(runner.cfg)))


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            stop('--auto-scale-lr: the config has no auto_scale_lr.base_batch_size to scale from')
        cfg.auto_scale_lr.enable = True
    if args.resume == '':
        stop(
            '--resume is empty (a variable that is not set?); give a checkpoint, or --resume alone for the last one'
        )
    # A first start has nothing to resume from and begins as without --resume.
    found = latest_checkpoint(cfg.work_dir) if args.resume == 'auto' else args.resume
    if found:
        cfg.resume, cfg.load_from = True, found
    check_training(cfg)
    check_start(cfg)
    runner = build_runner(cfg)
    runner.register_hook(SkipTrainedData())
    warn_of_training(runner)
    scale_by_accumulation(runner)
    runner.train()
    del runner
    leave_processes()


if __name__ == '__main__':
    run(main)
