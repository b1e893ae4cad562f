# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The checks under other training and test tools: mmengine's runner, and the tools of mmdet and mmseg."""

import re
import socket
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from tool_runs import DETECTOR, ROOT, SEGMENTER, STOCK, run, train

from mmhpvit import PreflightHook
from mmhpvit.preflight.errors import ConfigError

pytestmark = pytest.mark.slow

HOOK = "custom_hooks = [dict(type='PreflightHook')]\ntrain_cfg = dict(max_iters=1, val_interval=1)\n"
# The categories of the file are in another order.
SWAPPED = (
    "train_dataloader = dict(dataset=dict(metainfo=dict(classes=('star', 'disc', 'box', 'triangle'))))\n"
)
RISING = "param_scheduler = [dict(type='PolyLR', eta_min=0.1, by_epoch=False, end=10)]\n"
ONE_CYCLE = "param_scheduler = [dict(type='OneCycleLR', eta_max=1e-3, by_epoch=False, end=10)]\n"
WIDE = 'model = dict(neck=dict(in_channels=[256, 512, 1024, 2048]))\n'
NINE = 'model = dict(decode_head=dict(num_classes=9))\n'
# Of the tiny configs' ViT, timm's weights expect another mean.
WARNING = 'model.data_preprocessor has mean='


@pytest.fixture
def env(env) -> dict:
    """Tools of others find this package without installing it."""
    return env | {'PYTHONPATH': f'{ROOT}:{env["PYTHONPATH"]}'}


@pytest.fixture
def build(tmp_path, shapes, monkeypatch):
    """A function that builds a runner as the tools of mmdet and mmseg do, in a work dir of its own."""
    monkeypatch.setenv('SHAPES', str(shapes))
    numbers = count()

    def build(base: str, lines: str = '', **options) -> Runner:
        name = f'{tmp_path.name}-{next(numbers)}'
        cfg = Config.fromfile(write(tmp_path, base, lines))
        cfg.merge_from_dict(dict(work_dir=str(tmp_path / name), experiment_name=name) | options)
        return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)

    return build


def write(folder: Path, base: str, lines: str = '') -> Path:
    path = folder / 'own.py'
    path.write_text(f"_base_ = '{ROOT / base}'\n{HOOK}{lines}")
    return path


def log_of(runner: Runner) -> str:
    return next(Path(runner.work_dir).rglob('*.log')).read_text()


def test_good_config_trains_resumes_and_is_tested(build):
    first = build(SEGMENTER)
    first.train()
    assert log_of(first).count(WARNING) == 1
    checkpoint = f'{first.work_dir}/iter_1.pth'
    more = dict(load_from=checkpoint, resume=True) | {'train_cfg.max_iters': 2}
    again = build(SEGMENTER, **more)
    again.train()
    assert 'Iter(train) [2/2]' in log_of(again)
    assert 'was trained with' not in log_of(again)
    assert 'mIoU' in build(SEGMENTER, load_from=checkpoint).test()
    # Weights that fit and compute something else.
    other = build(SEGMENTER, 'model = dict(backbone=dict(grid_spacing=1))\n', **more)
    other.train()
    assert 'was trained with model.backbone of grid_spacing=2 (here 1)' in log_of(other)
    light = build(SEGMENTER, "model = dict(backbone=dict(depths='light'))\n", load_from=checkpoint)
    with pytest.raises(
        ConfigError, match=r'does not fit this config: .* weights unexpected \(backbone\.pools'
    ):
        light.test()


@pytest.mark.parametrize(
    ('base', 'lines', 'message'),
    [
        (DETECTOR, SWAPPED, r'dataset\.metainfo\.classes=.*, in which mmdet numbers the labels'),
        (DETECTOR, RISING, r'param_scheduler\.0\.eta_min=0\.1: expected less'),
        (DETECTOR, WIDE, r'model\.neck\.in_channels=\[256, .*expected \[64, 64, 64, 64\]'),
        (
            SEGMENTER,
            ONE_CYCLE,
            r'one learning rate \(0\.001\), so paramwise_cfg\.decay_rate=0\.65 does nothing',
        ),
        (SEGMENTER, NINE, r'decode_head\.num_classes=9: expected 5'),
    ],
)
def test_faults_end_a_training_before_its_first_iteration(base, lines, message, build):
    runner = build(base, lines, **{'train_cfg.max_iters': 10})
    with pytest.raises(ConfigError, match=message):
        runner.train()
    assert 'Iter(train)' not in log_of(runner)
    assert not list(Path(runner.work_dir).glob('*.pth'))


@pytest.mark.parametrize('options', [{}, dict(runner_type='FlexibleRunner')])
def test_other_parameter_groups_end_a_resumed_training(options, build):
    first = build(SEGMENTER, **options)
    first.train()
    resumed = {
        'load_from': f'{first.work_dir}/iter_1.pth',
        'resume': True,
        'train_cfg.max_iters': 2,
        **options,
    }
    for other in ({'model.backbone.frozen_stages': 1}, {'optim_wrapper.paramwise_cfg.decay_rate': 1.0}):
        with pytest.raises(
            ConfigError, match=r'iter_1\.pth cannot be resumed: \d+ parameters, such as backbone'
        ):
            build(SEGMENTER, **resumed, **other).train()
    second = build(SEGMENTER, **resumed)
    second.train()
    assert second.iter == 2


def falling(end: int, **options) -> dict:
    """Options of a training whose learning rate falls from 1e-3 to 0 in so many iterations."""
    poly = dict(type='PolyLR', by_epoch=False, power=1.0, eta_min=0.0, end=end)
    return {'param_scheduler': [poly], 'train_cfg.val_interval': 100, 'train_cfg.max_iters': end} | options


def rates_of(runner: Runner) -> dict[int, float]:
    """The learning rate in each iteration of the log."""
    found = re.findall(r'Iter\(train\) \[ *(\d+)/.* lr: (\S+)', log_of(runner))
    return {int(i): float(rate) for i, rate in found}


@pytest.mark.parametrize(
    ('before', 'after', 'options'),
    [(4, 8, {}), (16, 6, {}), (8, 8, {}), (4, 8, dict(runner_type='FlexibleRunner'))],
)
def test_resumed_training_follows_the_schedule_of_its_config(before, after, options, build):
    first = build(SEGMENTER, **falling(before, **options) | {'train_cfg.max_iters': 4})
    first.train()
    resumed = dict(load_from=f'{first.work_dir}/iter_4.pth', resume=True)
    second = build(SEGMENTER, **falling(after, **options, **resumed))
    second.train()
    first_iteration = 6 if options else 5  # mmengine's FlexibleRunner counts one too many when it saves
    expected = {i: 1e-3 * (1 - (i - 1) / (after - 1)) for i in range(first_iteration, after + 1)}
    assert rates_of(second) == pytest.approx(expected, rel=1e-3, abs=1e-9)
    said = f'param_scheduler.0.end={before} (here {after})'
    assert (said in log_of(second)) == ('another schedule' in log_of(second)) == (before != after)


def test_resumed_training_follows_the_rate_of_its_config(build):
    first = build(SEGMENTER, **falling(8) | {'train_cfg.max_iters': 4})
    first.train()
    again = dict(load_from=f'{first.work_dir}/iter_4.pth', resume=True) | {'optim_wrapper.optimizer.lr': 2e-3}
    second = build(SEGMENTER, **falling(8, **again))
    second.train()
    assert rates_of(second)[5] == pytest.approx(2e-3 * 3 / 7, rel=1e-3)
    assert 'optim_wrapper.optimizer.lr=0.001 (here 0.002)' in log_of(second)


def test_schedule_that_cannot_be_followed_ends_a_resumed_training(build):
    first = build(SEGMENTER, **falling(4))
    first.train()
    again = falling(8, load_from=f'{first.work_dir}/iter_4.pth', resume=True)
    again['param_scheduler'].append(dict(type='CosineAnnealingMomentum', by_epoch=False))
    with pytest.raises(ConfigError, match=r'another schedule: 1 schedulers \(here 2\)'):
        build(SEGMENTER, **again).train()


@pytest.mark.parametrize('options', [{}, dict(runner_type='FlexibleRunner')])
def test_checkpoints_of_something_else_end_a_training(options, build, tmp_path):
    plain = str(tmp_path / 'plain.pth')
    torch.save(dict(state_dict={'cls_token': torch.zeros(1, 1, 64)}), plain)
    runner = build(SEGMENTER, load_from=plain, **options)
    with pytest.raises(
        ConfigError, match=r'holds nothing of model\.backbone; weights of a plain ViT go into'
    ):
        runner.train()
    runner = build(SEGMENTER, load_from=plain, resume=True)
    with pytest.raises(ConfigError, match='is no checkpoint of a training to resume'):
        runner.train()


def test_runner_without_config_is_refused(build):
    optim_wrapper = build(SEGMENTER).build_optim_wrapper
    wrapper = optim_wrapper(dict(optimizer=dict(type='SGD', lr=0.1)))
    with pytest.raises(ConfigError, match=r'build it with Runner\.from_cfg'):
        PreflightHook().before_run(SimpleNamespace(cfg=Config(), optim_wrapper=wrapper))


@pytest.mark.parametrize(('base', 'lines'), [(DETECTOR, SWAPPED), (SEGMENTER, NINE)])
def test_tools_of_mmdet_and_mmseg_check(base, lines, env, tmp_path):
    tool, work = STOCK[base] / 'train.py', ('--work-dir', tmp_path / 'work')
    output = run(sys.executable, tool, write(tmp_path, base, lines), *work, env=env, fails=True)
    assert 'mmhpvit.preflight.errors.ConfigError: ' in output
    assert 'Iter(train)' not in output
    output = run(sys.executable, tool, write(tmp_path, base), *work, env=env)
    assert 'Iter(train) [1/1]' in output


def test_tools_of_this_project_check_once(env, tmp_path):
    assert train(write(tmp_path, SEGMENTER), tmp_path / 'work', env=env).count(WARNING) == 1


TWO_PROCESSES = """
import sys
sys.path.insert(0, 'tools')
import launch
import tiny_models
from mmengine.config import Config
from mmengine.runner import Runner

cfg = Config.fromfile(sys.argv[1])
cfg.update(launcher='pytorch', work_dir=sys.argv[2])
launch._use_gloo(cfg)  # mmengine itself starts several processes on GPUs only
Runner.from_cfg(cfg).train()
"""


def test_every_process_raises_what_one_has_found(env, tmp_path):
    """The categories of a file are read by the first process of a machine."""
    script = tmp_path / 'two.py'
    script.write_text(TWO_PROCESSES)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    start = (sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', '--master_port', port)
    config = write(tmp_path, DETECTOR, SWAPPED)
    logs = ('--redirects=3', '--log-dir', tmp_path / 'logs')
    run(*start, *logs, script, config, tmp_path / 'work', env=env, fails=True)
    said = [path.read_text() for path in (tmp_path / 'logs').rglob('stderr.log')]
    assert len(said) == 2
    assert all('ConfigError: train_dataloader.dataset.metainfo.classes=' in text for text in said)
