# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The checks of a training in one place, and the hook that runs them under any training tool."""

from mmengine.config import Config
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.optim import BaseOptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import FlexibleRunner, Runner

from .data import check_data
from .errors import ConfigError
from .model import check_backbone, check_num_classes, check_operators, check_preprocessor
from .schedule import (
    check_amp,
    check_rates,
    check_save_best,
    follow_config,
    warn_of_accumulation,
    warn_of_end,
    warn_of_length,
    warn_of_sgd,
    warn_of_warm_up,
)
from .weights import (
    check_files,
    check_groups,
    check_loaded,
    check_plain_weights,
    check_pretrained,
    check_trained,
    warn_of_normalisation,
    warn_of_random_weights,
)


def check_training(cfg: Config) -> None:
    """Check the config of a training, without reading ``load_from``.

    Raises:
        ConfigError: The first fault found.
    """
    check_amp(cfg)
    check_backbone(cfg)
    check_preprocessor(cfg)
    check_operators(cfg.model)
    check_files(cfg)
    check_pretrained(cfg)
    check_save_best(cfg)
    check_data(cfg, 'train_dataloader', *(['val_dataloader'] if cfg.get('val_cfg') is not None else []))
    check_num_classes(cfg)
    check_plain_weights(cfg)


def warn_of_training(runner: Runner | FlexibleRunner) -> None:
    """Warn of what may be meant, but makes most trainings worse; to the log of a runner, which has its loop."""
    cfg, iterations = runner.cfg, runner.train_loop.max_iters
    warn_of_random_weights(cfg)
    warn_of_normalisation(cfg)
    warn_of_sgd(cfg)
    warn_of_warm_up(cfg, iterations)
    warn_of_end(cfg, iterations)
    warn_of_length(cfg, runner.world_size)


@HOOKS.register_module()
class PreflightHook(Hook):
    """Stop before the first iteration if the config has a fault that mmengine would pass over.

    Use it with the training and test tools of mmdet, mmseg and mmpretrain:
    ``custom_hooks = [dict(type='PreflightHook')]``. ``tools/train.py`` and ``tools/test.py`` of this project run the
    same checks before they build anything, and do without the hook. mmengine has built model and data before a hook
    runs, so what cannot be built ends in its own error.

    Before a training it checks the config. When mmengine has read a checkpoint, it checks that the checkpoint belongs
    to the model: its backbone in a training, all of it in a test.

    Raises:
        ConfigError: The first fault found, in every process.
    """

    priority = 'HIGHEST'

    def before_run(self, runner: Runner | FlexibleRunner) -> None:
        """Check the config of a training; a test is checked when its checkpoint is read."""
        if not _trains(runner):
            return
        if 'model' not in runner.cfg:
            raise ConfigError(
                'PreflightHook: the runner has no config to check; build it with Runner.from_cfg'
            )
        error: Exception | None = None
        try:
            check_training(runner.cfg)
        except Exception as found:
            error = found
        # Files are read by one process of a machine, and the others must not wait for it in vain.
        text = str(error) if isinstance(error, ConfigError) else error and repr(error)
        if faults := list(filter(None, all_gather_object(text))):
            raise ConfigError(faults[0]) from error
        warn_of_training(runner)
        warn_of_accumulation(runner.cfg)
        OptimizerCheckHook().before_run(runner)

    def after_load_checkpoint(self, runner: Runner | FlexibleRunner, checkpoint: dict) -> None:
        """Check that a checkpoint belongs to the model."""
        if isinstance(runner, FlexibleRunner) and 'state_dict' not in checkpoint:
            return  # DeepSpeed has loaded the weights itself
        path = runner.cfg.get('load_from') or f'the last checkpoint in {runner.work_dir}'
        check = check_loaded if _trains(runner) else check_trained
        check(runner.cfg, checkpoint, path)
        OptimizerCheckHook().after_load_checkpoint(runner, checkpoint)


class OptimizerCheckHook(Hook):
    """The checks of :class:`PreflightHook` that need the optimiser, so the tools of this project run them as a hook."""

    def before_run(self, runner: Runner | FlexibleRunner) -> None:
        """Run the schedule.

        Raises:
            ConfigError: It undoes layer-wise decay.
        """
        if groups := _groups(runner):
            highest = max(group.get('initial_lr', group['lr']) for group in groups)
            check_rates(runner.cfg, highest, runner.train_loop)

    def after_load_checkpoint(self, runner: Runner | FlexibleRunner, checkpoint: dict) -> None:
        """Compare groups and schedule of a checkpoint to resume with those of this training.

        Raises:
            ConfigError: A parameter is in another group, or another schedule that cannot be followed.
        """
        groups = _groups(runner)
        if runner._resume and groups:
            path = runner.cfg.get('load_from') or 'the last checkpoint'
            check_groups(groups, checkpoint, path)
            follow_config(runner.cfg, checkpoint, runner.train_loop, runner.param_schedulers, groups, path)


def _groups(runner: Runner | FlexibleRunner) -> list[dict] | None:
    """Parameter groups of the optimiser; None if there is none yet, or several."""
    return getattr(getattr(runner.optim_wrapper, 'optimizer', None), 'param_groups', None)


def _trains(runner: Runner | FlexibleRunner) -> bool:
    """Whether a runner trains: only then has it built its optimiser."""
    return isinstance(runner.optim_wrapper, BaseOptimWrapper)
