# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""What the tools share: options, reading configs, and starting and ending a runner with or without GPUs."""

import argparse
import gc
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import NoReturn

# So that a clone works without installing it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmhpvit import PreflightHook
from mmhpvit.preflight.errors import ConfigError
from mmhpvit.preflight.hook import OptimizerCheckHook

# Settings of mmcv 1.x, which nothing reads any more, and what replaced them.
OLD_SETTINGS = {
    'optimizer': 'optim_wrapper.optimizer',
    'optimizer_config': 'optim_wrapper',
    'lr_config': 'param_scheduler',
    'runner': 'train_cfg',
    'total_epochs': 'train_cfg.max_epochs',
    'evaluation': 'val_evaluator and train_cfg.val_interval',
    'checkpoint_config': 'default_hooks.checkpoint',
    'log_config': 'default_hooks.logger',
    'data': 'train_dataloader, val_dataloader and test_dataloader',
    'workflow': 'train_cfg.val_interval',
}
# Settings that any config may add, so not misspellings of others.
KNOWN_SETTINGS = (*inspect.signature(Runner.__init__).parameters, 'tta_model', 'tta_pipeline')


def stop(message: str) -> NoReturn:
    """End the tool with one line on stderr and exit status 1."""
    sys.exit(f'error: {message}')


def run(main: Callable[[], None]) -> None:
    """Run a tool; a fault that a check finds in a config ends it with one line."""
    try:
        main()
    except ConfigError as error:
        stop(str(error))


class Settings(DictAction):
    """key=value as mmengine reads them, but blanks stay in a value that is not a list, such as a path."""

    @staticmethod
    def _parse_iterable(val: str) -> object:
        if set('([,') & set(val):
            return DictAction._parse_iterable(val)
        return DictAction._parse_int_float_bool(val.strip('\'"'))


def add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/CONFIG)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Settings,
        help='settings to override, as key=value, key=a,b or key="[(a,b),(c,d)]"',
    )
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher'
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def read_config(path: str) -> Config:
    """Read a config file; stop if it needs mmpretrain and that cannot be imported."""
    leave_out_multimodal()
    try:
        cfg = Config.fromfile(path)
    except ModuleNotFoundError as error:
        if 'mmpretrain' in str(error):
            require_mmpretrain()
        raise
    if cfg.get('default_scope') == 'mmpretrain':
        require_mmpretrain()
    return cfg


def load_config(args: argparse.Namespace) -> Config:
    """Read the config file and apply the options that every tool has."""
    if not Path(args.config).is_file():
        stop(f'config {args.config!r} does not exist; this project has its own in configs/')
    local_rank = os.environ.get('OMPI_COMM_WORLD_LOCAL_RANK', args.local_rank)  # set by mpirun
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    cfg = read_config(args.config)
    cfg.launcher = args.launcher
    for key in args.cfg_options or {}:
        name = key.partition('.')[0]
        if name in OLD_SETTINGS:  # which mmseg's configs still have, as a part of others
            stop(f'--cfg-options {key}: nothing reads {name!r} since mmcv 2; set {OLD_SETTINGS[name]}')
        if name in cfg or name in KNOWN_SETTINGS:
            continue
        close = get_close_matches(name, list(cfg), n=1, cutoff=0.85)
        if close:
            stop(f'--cfg-options {key}: the config has no {name!r}; did you mean {close[0]!r}?')
    cfg.merge_from_dict(args.cfg_options or {})
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    return cfg


def leave_out_multimodal() -> None:
    """Make mmpretrain importable with any version of transformers.

    If transformers is installed, mmpretrain 1.2.0 imports its multimodal models, which fails with transformers 5. mmdet
    imports mmpretrain if it can, so it fails too. Nothing here needs those models.
    """
    if importlib.util.find_spec('mmpretrain'):
        name = 'mmpretrain.models.multimodal'
        sys.modules.setdefault(name, ModuleType(name))


def require_mmpretrain() -> None:
    """Stop if mmpretrain cannot be imported."""
    try:
        importlib.import_module('mmpretrain')
    except ImportError as error:
        stop(f"classification needs mmpretrain: pip install 'mmpretrain==1.2.0' ({error})")


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config, with or without GPUs; the tools have run the checks of PreflightHook already."""
    if not torch.cuda.is_available() and cfg.launcher != 'none':
        _use_gloo(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.hooks[:] = [hook for hook in runner.hooks if not isinstance(hook, PreflightHook)]
    runner.register_hook(OptimizerCheckHook())
    return runner


def latest_checkpoint(work_dir: str) -> str | None:
    """The checkpoint to resume from: the one that ``last_checkpoint`` names, or else the newest complete one.

    None if there is none. A process killed while it writes ``last_checkpoint`` leaves it empty. One killed after it
    removed an old checkpoint and before it wrote the next leaves the name of the removed one.
    """
    name = Path(work_dir, 'last_checkpoint')
    last = name.read_text().strip() if name.is_file() else ''
    # A zip archive has its table at the end, so a file that was cut off is not one. Some strategies write folders.
    if last and ('://' in last or os.path.isdir(last) or zipfile.is_zipfile(last)):
        return last
    found = [
        (int(m[1]), path) for path in Path(work_dir).glob('*.pth') if (m := _CHECKPOINT.match(path.name))
    ]
    for _, path in sorted(found, reverse=True):
        if zipfile.is_zipfile(path):
            said = f'names {last!r}, which is not a complete file' if last else 'is empty or missing'
            print(f'{name} {said}; resuming from {path}', flush=True)
            return str(path)
    if name.exists():
        stop(
            f'{work_dir} has no complete checkpoint to resume from; {name} says {last!r}, delete it to start over'
        )
    if found:
        print(f'{found[0][1]} was cut off, and nothing was saved before it; starting over', flush=True)
    return None


_CHECKPOINT = re.compile(r'(?:iter|epoch)_(\d+)\.pth$')


def leave_processes() -> None:
    """Synchronise the processes, then destroy the process group; delete the runner before.

    The first process may still write the last checkpoint when the others are done, and torchrun would end it if one of
    them failed. Threads of gloo may hold tensors and abort the process if they release them after the interpreter is
    gone. They end with the process group, which ends when nothing refers to it.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    torch.distributed.barrier()
    gc.collect()
    torch.distributed.destroy_process_group()


def _use_gloo(cfg: Config) -> None:
    """Make several processes work without a GPU.

    mmengine's own start-up always selects a CUDA device; it leaves a process group alone that is there.
    """
    if cfg.launcher == 'mpi':
        stop('--launcher mpi needs GPUs; without one use --launcher pytorch (tools/dist_train.sh)')
    if cfg.launcher == 'slurm':
        _read_slurm_environment()
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        if name not in os.environ:
            stop(f'--launcher {cfg.launcher}: {name} is not set; start with tools/dist_train.sh or torchrun')
    torch.distributed.init_process_group('gloo')
    cfg.setdefault('env_cfg', {})['dist_cfg'] = dict(backend='gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    if _replace_sync_bn(cfg.model) and torch.distributed.get_rank() == 0:
        print('No GPU: SyncBN becomes BN, so each process normalises over its own images.', flush=True)


def _read_slurm_environment() -> None:
    if 'SLURM_PROCID' not in os.environ:
        stop('--launcher slurm: SLURM_PROCID is not set; start with tools/slurm_train.sh or srun')
    os.environ['RANK'] = os.environ['SLURM_PROCID']
    os.environ['WORLD_SIZE'] = os.environ['SLURM_NTASKS']
    os.environ['LOCAL_RANK'] = os.environ.get('SLURM_LOCALID', '0')
    os.environ.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' not in os.environ:
        nodes = subprocess.run(
            ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']],
            capture_output=True,
            text=True,
            check=True,
        )
        os.environ['MASTER_ADDR'] = nodes.stdout.split()[0]


def _replace_sync_bn(node: object) -> bool:
    """Replace SyncBN by BN everywhere in a config; whether there was any."""
    found = False
    if isinstance(node, dict):
        if node.get('type') == 'SyncBN':
            node['type'], found = 'BN', True
        return any([_replace_sync_bn(v) for v in node.values()]) or found
    if isinstance(node, list | tuple):
        return any([_replace_sync_bn(v) for v in node])
    return False
