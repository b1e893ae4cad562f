# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The tools as users run them: as processes of their own, on a CPU."""

import argparse
import json
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import launch
import pytest
import torch
from demo import check_learned
from mmengine.optim import OptimWrapper
from tool_runs import DETECTOR, ROOT, SEGMENTER, SHARED, STOCK, run, train

import mmhpvit

pytestmark = pytest.mark.slow


def load(path):
    return torch.load(path, map_location='cpu', weights_only=True)


@pytest.mark.parametrize('config', SHARED)
def test_train_then_test_then_draw(config, tmp_path, env):
    log = train(config, tmp_path, env=env)
    assert 'Parameter groups:' in log
    metric = 'coco/segm_mAP' if config == DETECTOR else 'mIoU'
    trained = re.findall(rf'{metric}: ([\d.]+)', log)[-1]
    shown = tmp_path / 'shown'
    log = run(
        *(sys.executable, 'tools/test.py', config, tmp_path / 'iter_6.pth', '--show-dir', shown),
        *('--work-dir', tmp_path / 'test', '--out', tmp_path / 'predictions.pkl'),
        env=env,
    )
    assert re.findall(rf'{metric}: ([\d.]+)', log)[-1] == trained
    pictures = [p for p in shown.rglob('*') if p.suffix in ('.png', '.jpg')]
    assert len(pictures) == 4
    assert all(cv2.imread(str(p)).std() > 0 for p in pictures)
    found = pickle.loads((tmp_path / 'predictions.pkl').read_bytes())
    assert len(found) == 4
    if config == DETECTOR:
        assert all(
            isinstance(mask['counts'], bytes) for one in found for mask in one['pred_instances']['masks']
        )
    else:
        assert {one['pred_sem_seg']['data'].dtype for one in found} == {torch.int16}
        assert all(one['pred_sem_seg']['data'].shape[1:] == one['ori_shape'] for one in found)
    assert not [key for one in found for key in one if key.startswith('gt_') or key == 'seg_logits']


@pytest.mark.parametrize('tool', sorted(path.name for path in (ROOT / 'tools').glob('*.py')))
def test_tools_start_in_a_process_of_their_own(tool, env):
    """Other tests fork a process that has libraries imported, which would hide a missing import."""
    command = [sys.executable, f'tools/{tool}', '--help']
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('config', SHARED)
def test_stock_tools_run_the_same_configs(config, tmp_path, env):
    run(sys.executable, STOCK[config] / 'train.py', config, '--work-dir', tmp_path, env=env)
    options = ('--work-dir', tmp_path / 'test')
    log = run(sys.executable, STOCK[config] / 'test.py', config, tmp_path / 'iter_6.pth', *options, env=env)
    assert ('coco/segm_mAP' if config == DETECTOR else 'mIoU') in log


@pytest.mark.parametrize('config', SHARED)
def test_killed_training_resumes_where_it_was(config, tmp_path, env):
    """Under torch's safe loading: kill -9 in mid-training, then --resume."""
    iters = ('--cfg-options', 'train_cfg.max_iters=400', 'train_cfg.val_interval=400')
    command = [sys.executable, 'tools/train.py', config, '--work-dir', str(tmp_path), *iters]
    with open(tmp_path / 'log', 'w') as log:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
        deadline = time.time() + 300
        while not (tmp_path / 'iter_4.pth').exists() or not (tmp_path / 'last_checkpoint').exists():
            assert process.poll() is None, (tmp_path / 'log').read_text()[-3000:]
            assert time.time() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = Path(launch.latest_checkpoint(str(tmp_path)))
    before = load(last)
    done = int(re.search(r'iter_(\d+)', last.name)[1])
    assert before['meta']['iter'] == done
    assert len(before['optimizer']['state']) == sum(
        len(g['params']) for g in before['optimizer']['param_groups']
    )
    end = done + 2
    log = train(
        *(config, tmp_path, '--resume', '--cfg-options', f'train_cfg.max_iters={end}'),
        f'train_cfg.val_interval={end}',
        env=env,
    )
    assert f'resumed epoch: 0, iter: {done}' in log
    assert re.findall(r'Iter\(train\) \[ *(\d+)/', log) == [str(done + 1), str(end)]
    steps = {float(s['step']) for s in load(tmp_path / f'iter_{end}.pth')['optimizer']['state'].values()}
    assert steps == {float(end)}


def free_port() -> str:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return str(s.getsockname()[1])


@pytest.fixture
def without_chance(tmp_path) -> Path:
    """A config of a segmenter without dropout and with norms that do not look across images; it writes its losses."""
    config = tmp_path / 'segmenter.py'
    config.write_text(
        f"_base_ = '{ROOT / SEGMENTER}'\n"
        "custom_imports = dict(imports=['mmhpvit', 'mean_loss'], allow_failed_imports=False)\n"
        "custom_hooks = [dict(type='MeanLossHook')]\n"
        "norm_cfg = dict(type='LN2d')\n"
        'head = dict(norm_cfg=dict(_delete_=True, **norm_cfg), dropout_ratio=0)\n'
        'model = dict(decode_head=head, auxiliary_head=head)\n'
        'train_cfg = dict(max_iters=12, val_interval=100)\n'
        'optim_wrapper = dict(clip_grad=dict(max_norm=1.0))\n'
        'default_hooks = dict(checkpoint=dict(interval=6, max_keep_ckpts=2))\n'
    )
    return config


def losses(work_dir: Path) -> torch.Tensor:
    return torch.tensor(json.loads((work_dir / 'losses.json').read_text()), dtype=torch.float64)


def two_processes(config, work_dir, *options, env) -> str:
    command = ('bash', 'tools/dist_train.sh', config, '2', '--work-dir', work_dir, *options)
    return run(*command, env={**env, 'PORT': free_port()})


def test_two_processes_follow_the_loss_curve_of_one(without_chance, tmp_path, env):
    """Same images an iteration; replicated, sharded, and sharded after a break."""
    one, two, flexible, sharded, resumed = (
        tmp_path / name for name in ('one', 'two', 'flexible', 'sharded', 'resumed')
    )
    four = ('--cfg-options', 'train_dataloader.batch_size=4')
    train(without_chance, one, *four, env=env)
    assert 'GPU number: 2' in two_processes(without_chance, two, env=env)
    # The other runner draws its first weights later.
    train(without_chance, flexible, *four, 'runner_type=FlexibleRunner', env=env)
    parts = ('--cfg-options', 'runner_type=FlexibleRunner', 'strategy.type=ShardedStrategy')
    # Each process draws other first weights; those of the first count.
    apart = ('randomness.diff_rank_seed=True', 'train_dataloader.sampler.seed=0')
    two_processes(without_chance, sharded, *parts, *apart, env=env)
    two_processes(without_chance, resumed, '--resume', sharded / 'iter_6.pth', *parts, env=env)
    for alone in (one, flexible):
        assert len(losses(alone)) == 12
        assert losses(alone)[-1] < losses(alone)[0]
    for alone, work_dir, first in ((one, two, 0), (flexible, sharded, 0), (flexible, resumed, 6)):
        torch.testing.assert_close(losses(work_dir), losses(alone)[first:], rtol=1e-4, atol=0)
    # The weights are those of one process, and any tool reads them.
    whole, gathered = (load(f / 'iter_12.pth')['state_dict'] for f in (flexible, sharded))
    assert gathered.keys() == whole.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(gathered[name], weight, rtol=1e-3, atol=1e-4, msg=name)
    command = (sys.executable, 'tools/test.py', without_chance, sharded / 'iter_12.pth')
    expected = re.search('mIoU: .*', run(*command, '--work-dir', tmp_path / 'test', env=env))[0].split()[:2]
    # One process with the same config, and weights for another head: what fits is loaded, the rest is said.
    # What training started from is not asked for.
    gone = ('model.backbone.init_cfg.type=PlainViT', 'model.backbone.init_cfg.checkpoint=nowhere.pth')
    log = run(*command, '--work-dir', tmp_path / 'test', *parts, *gone, env=env)
    assert re.search('mIoU: .*', log)[0].split()[:2] == expected
    other = (
        'model.decode_head.channels=40',
        'train_cfg.max_iters=1',
        f'load_from={sharded / "iter_12.pth"}',
    )
    log = two_processes(without_chance, tmp_path / 'other', *parts, *other, env=env)
    assert 'decode_head.conv_seg.weight has (5, 32, 1, 1), expected (5, 40, 1, 1)' in log
    assert 'is missing' not in log
    log = run(
        *('bash', 'tools/dist_train.sh', without_chance, '2', '--work-dir', tmp_path / 'mixed'),
        *('--resume', two / 'iter_6.pth', *parts),
        env={**env, 'PORT': free_port()},
        fails=True,
    )
    assert 'was not written with ShardedStrategy' in log


def test_blocks_that_run_twice_train_in_two_processes(without_chance, tmp_path, env):
    few = (
        '--cfg-options',
        'model.backbone.type=TwoScaleViT',
        'model.backbone.with_cp=True',
        'train_cfg.max_iters=3',
    )
    train(without_chance, tmp_path / 'one', *few, 'train_dataloader.batch_size=4', env=env)
    two_processes(without_chance, tmp_path / 'two', *few, env=env)
    one, two = (losses(tmp_path / name) for name in ('one', 'two'))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=0)


LEAVING = """
import sys, time
from pathlib import Path
import torch
from torch import distributed, nn
sys.path.insert(0, 'tools')
import launch

def threads():
    return [path.read_text().strip() for path in Path('/proc/self/task').glob('*/comm')]

distributed.init_process_group('gloo')
model = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
model(torch.ones(1, 2)).sum().backward()
assert any('gloo' in name for name in threads()), threads()
model.own = model  # as runners and their hooks refer to each other
written = Path(sys.argv[1])
if distributed.get_rank() == 0:
    time.sleep(2)
    written.touch()
del model
launch.leave_processes()
assert written.exists()
assert not any('gloo' in name for name in threads()), threads()
print('left together')
"""


def test_processes_leave_together_and_without_threads(tmp_path, env):
    """What a thread of gloo still holds would abort a process that ends, and with it the one that still writes."""
    script = tmp_path / 'leaving.py'
    script.write_text(LEAVING)
    command = (
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--nproc_per_node=2',
        '--master_port',
        free_port(),
    )
    assert run(*command, script, tmp_path / 'written', env=env).count('left together') == 2


def test_what_a_death_left_behind_is_gone_on_from(tmp_path, capsys):
    """mmengine writes the name of the last checkpoint in place, and may remove that one before it writes the next."""
    assert launch.latest_checkpoint(str(tmp_path)) is None
    for number in (900, 1000):
        torch.save(dict(state_dict={}), tmp_path / f'iter_{number}.pth')
    torch.save(dict(state_dict={}), tmp_path / 'best_mIoU_iter_1200.pth')
    whole = (tmp_path / 'iter_1000.pth').read_bytes()
    (tmp_path / 'iter_1100.pth').write_bytes(whole[: len(whole) // 2])
    name = tmp_path / 'last_checkpoint'
    name.write_text(str(tmp_path / 'iter_900.pth'))
    assert launch.latest_checkpoint(str(tmp_path)) == str(tmp_path / 'iter_900.pth')
    assert capsys.readouterr().out == ''
    (tmp_path / 'folder').mkdir()
    name.write_text(str(tmp_path / 'folder'))
    assert launch.latest_checkpoint(str(tmp_path)) == str(tmp_path / 'folder')
    for left in ('', str(tmp_path / 'iter_800.pth'), str(tmp_path / 'iter_1100.pth'), None):
        name.unlink() if left is None else name.write_text(left)
        assert launch.latest_checkpoint(str(tmp_path)) == str(tmp_path / 'iter_1000.pth')
        assert 'resuming from' in capsys.readouterr().out
    for whole in (900, 1000):
        (tmp_path / f'iter_{whole}.pth').unlink()
    assert launch.latest_checkpoint(str(tmp_path)) is None
    assert 'starting over' in capsys.readouterr().out
    for left in ('', str(tmp_path / 'iter_1100.pth')):
        name.write_text(left)
        with pytest.raises(SystemExit, match='no complete checkpoint to resume from'):
            launch.latest_checkpoint(str(tmp_path))


def test_first_start_with_resume_is_a_start(tmp_path, env):
    """As a job script has it: weights to start from, and --resume for all starts."""
    one = ('--cfg-options', 'train_cfg.max_iters=1', 'train_cfg.val_interval=1')
    train(SEGMENTER, tmp_path / 'first', *one, env=env)
    weights = tmp_path / 'first/iter_1.pth'
    again = (tmp_path / 'job', '--resume', *one, f'load_from={weights}')
    log = train(SEGMENTER, *again, env=env)
    assert f'Load checkpoint from {weights}' in log
    assert 'Iter(train) [1/1]' in log
    log = train(SEGMENTER, *again, env=env)
    assert (
        f'resumed from {tmp_path}' in log.replace('Resumed', 'resumed') or 'resumed epoch: 0, iter: 1' in log
    )
    assert 'Iter(train)' not in log


def test_options_of_a_backbone_that_cannot_be_are_one_line(tmp_path, env):
    for option, message in (
        ('depths=(3,3,3,2)', 'error: model.backbone: depths=(3, 3, 3, 2) sum to 11, but test_vit has'),
        ('plain=vit_tny_patch16_224', "error: model.backbone: plain='vit_tny_patch16_224'"),
        (
            'attnetion=grid',
            "unexpected keyword argument 'attnetion'; to replace the backbone of a base config",
        ),
        ('init_cfg=vit.pth', "error: model.backbone: init_cfg='vit.pth': expected dict("),
    ):
        output = train(SEGMENTER, tmp_path, '--cfg-options', f'model.backbone.{option}', env=env, fails=True)
        assert message in output
        assert 'Traceback' not in output


class Scaler:
    """Stands for AMP's loss scale, which there is on a GPU only."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def state_dict(self) -> dict:
        return {'scale': self.scale}

    def load_state_dict(self, state: dict) -> None:
        self.scale = state['scale']


class ScaledWrapper(OptimWrapper):
    def __init__(self, optimizer, scale: float) -> None:
        super().__init__(optimizer)
        self.loss_scaler = Scaler(scale)
        self.base_param_settings = dict(params=torch.zeros(1), lr=scale)

    def state_dict(self) -> dict:
        return super().state_dict() | {'loss_scaler': self.loss_scaler.state_dict()}


@pytest.fixture
def one_process_group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Unused(torch.nn.Linear):
    """With a weight that no loss depends on."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.unused = torch.nn.Parameter(torch.ones(2))


def sharded(seed: int, scale: float) -> mmhpvit.ShardedStrategy:
    """A strategy with a small model that has made a step."""
    torch.manual_seed(seed)
    strategy = mmhpvit.ShardedStrategy(work_dir='/nowhere')
    strategy.model = strategy._wrap_model(Unused())
    optimizer = torch.optim.AdamW(strategy.model.parameters(), lr=scale)
    strategy.optim_wrapper = ScaledWrapper(optimizer, scale)
    strategy.model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return strategy


def test_sharded_state_has_what_the_wrapper_keeps(one_process_group, monkeypatch):
    monkeypatch.setattr('mmhpvit.ShardedStrategy.convert_model', lambda self, model: model)
    one, other = sharded(0, 8.0), sharded(1, 2.0)
    other.load_model_state_dict(one.model_state_dict())
    other.load_optim_state_dict(one.optim_state_dict())
    assert other.optim_wrapper.loss_scaler.scale == 8
    assert other.optim_wrapper.base_param_settings['lr'] == 8
    for name, weight in one.model_state_dict().items():
        assert torch.equal(other.model_state_dict()[name], weight)
    for name, state in one.optim_state_dict()['state'].items():
        assert torch.equal(other.optim_state_dict()['state'][name]['exp_avg'], state['exp_avg'])
    prefixed = {f'module.{name}': value for name, value in sharded(2, 1.0).model_state_dict().items()}
    other.load_model_state_dict(prefixed, strict=True)
    assert torch.equal(other.model_state_dict()['weight'], prefixed['module.weight'])
    with pytest.raises(
        RuntimeError, match='weight is missing; unused is missing; extra is unknown; bias has'
    ):
        other.load_model_state_dict({'bias': torch.zeros(5), 'extra': torch.zeros(1)}, strict=True)


def test_scalars_cannot_be_sharded(monkeypatch):
    model = torch.nn.ParameterDict(dict(scale=torch.nn.Parameter(torch.tensor(1.0))))
    monkeypatch.setattr('mmhpvit.engine.sharded_strategy.is_distributed', lambda: True)
    strategy = mmhpvit.ShardedStrategy.__new__(mmhpvit.ShardedStrategy)
    with pytest.raises(ValueError, match='cannot cut scalars, and the model has scale'):
        strategy._wrap_model(model)


def test_checkpoints_of_another_model_are_refused(tmp_path, env, real_weights):
    """By every tool that predicts, in one line, and not by the model that they are of."""
    train(SEGMENTER, tmp_path / 'work', '--cfg-options', 'train_cfg.max_iters=2', env=env)
    checkpoint = tmp_path / 'work/iter_2.pth'
    other = tmp_path / 'other.py'
    other.write_text(f"_base_ = '{ROOT / SEGMENTER}'\nmodel = dict(backbone=dict(depths='light'))\n")
    plain = tmp_path / 'plain.pth'
    torch.save({'cls_token': torch.zeros(1, 1, 64)}, plain)
    image = sorted((Path(env['SHAPES']) / 'val').glob('*.png'))[0]
    for config, file, message in (
        (other, checkpoint, '2 weights unexpected (backbone.pools.2.weight, ...)'),
        (SEGMENTER, plain, 'go into model.backbone.init_cfg.checkpoint'),
    ):
        for tool in (
            ('test', config, file, '--work-dir', tmp_path / 'test'),
            ('predict', image, '--config', config, '--checkpoint', file, '--out', tmp_path / 'p'),
            ('visualize', image, '--config', config, '--checkpoint', file, '--out', tmp_path / 'v'),
        ):
            output = run(sys.executable, f'tools/{tool[0]}.py', *tool[1:], env=env, fails=True)
            assert message in output
            assert 'Traceback' not in output


@pytest.mark.parametrize('config', SHARED)
def test_two_processes_test_as_one_does(config, tmp_path, env):
    train(config, tmp_path, env=env)
    results = []
    for command in (
        [sys.executable, 'tools/test.py', config, tmp_path / 'iter_6.pth'],
        ['bash', 'tools/dist_test.sh', config, tmp_path / 'iter_6.pth', '2'],
    ):
        log = run(*command, '--work-dir', tmp_path / 'test', env={**env, 'PORT': free_port()})
        metric = r'coco/bbox_mAP: ([\d.]+)' if config == DETECTOR else r'mIoU: ([\d.]+)'
        results.append(re.findall(metric, log)[-1])
    assert results[0] == results[1]


def test_slurm_launcher_sets_what_the_training_reads(tmp_path, env):
    """With a stand-in for srun that starts the tasks here, as srun would on the nodes of a job."""
    (tmp_path / 'srun').write_text(
        f'#!{sys.executable}\n'
        'import os, subprocess, sys\n'
        'options = [a for a in sys.argv[1:] if a.startswith("--")]\n'
        'start = next(i for i, a in enumerate(sys.argv) if i and not a.startswith("--"))\n'
        'tasks = int(next(o for o in options if o.startswith("--ntasks=")).split("=")[1])\n'
        'assert {"--partition=debug", "--job-name=tiny", "--exclusive"} <= set(options)\n'
        'runs = [subprocess.Popen(sys.argv[start:], env={**os.environ, "SLURM_PROCID": str(i),\n'
        '    "SLURM_LOCALID": str(i), "SLURM_NTASKS": str(tasks), "SLURM_NODELIST": "node[1-2]"})\n'
        '    for i in range(tasks)]\n'
        'sys.exit(max(run.wait() for run in runs))\n'
    )
    (tmp_path / 'scontrol').write_text('#!/bin/sh\necho 127.0.0.1\necho node2\n')
    for name in ('srun', 'scontrol'):
        (tmp_path / name).chmod(0o755)
    env = {**env, 'PATH': f'{tmp_path}:{env["PATH"]}', 'GPUS': '2', 'SRUN_ARGS': '--exclusive'}
    env = {**env, 'MASTER_PORT': free_port()}
    log = run('bash', 'tools/slurm_train.sh', 'debug', 'tiny', SEGMENTER, tmp_path / 'w', env=env)
    assert 'GPU number: 2' in log
    assert (tmp_path / 'w/iter_6.pth').exists()
    log = run('bash', 'tools/slurm_test.sh', 'debug', 'tiny', SEGMENTER, tmp_path / 'w/iter_6.pth', env=env)
    assert 'mIoU' in log


@pytest.mark.parametrize(
    ('command', 'message'),
    [
        (['train.py', 'configs/nowhere.py'], "config 'configs/nowhere.py' does not exist"),
        (
            ['train.py', 'configs/coco/mask-rcnn_hpvit-b-mae_fpn_8xb2-amp-1x_coco.py'],
            'needs a GPU.*--cfg-options optim_wrapper.type=OptimWrapper',
        ),
        (
            [
                *('train.py', 'configs/coco/mask-rcnn_hpvit-b-mae_fpn_8xb2-amp-1x_coco.py'),
                *(
                    '--cfg-options',
                    'optim_wrapper.type=OptimWrapper',
                    'train_dataloader.dataset.data_root=no/',
                ),
            ],
            r'no/annotations/instances_train2017\.json does not exist.*train_dataloader\.dataset\.data_root='
            r'FOLDER val_dataloader\.dataset\.data_root=FOLDER val_evaluator\.ann_file=FILE',
        ),
        (
            ['train.py', 'configs/ade20k/upernet_hpvit-b-mae_8xb2-160k_ade20k-512x512.py'],
            'data/ade/ADEChallengeData2016/images/training does not exist',
        ),
        (
            ['train.py', 'configs/cityscapes/upernet_hpvit-b-mae_8xb2-80k_cityscapes-512x1024.py'],
            'data/cityscapes/leftImg8bit/train does not exist',
        ),
        (['train.py', SEGMENTER, '--amp'], 'needs a GPU'),
        (['train.py', SEGMENTER, '--launcher', 'slurm'], 'SLURM_PROCID is not set'),
        (['train.py', SEGMENTER, '--launcher', 'pytorch'], 'RANK is not set'),
        (['train.py', SEGMENTER, '--resume', 'nowhere.pth'], "checkpoint 'nowhere.pth' does not exist"),
        (
            ['train.py', 'configs/coco/mask-rcnn_hpvit-b-mae_fpn_8xb2-amp-1x_coco.py']
            + [
                '--cfg-options',
                'optim_wrapper.type=OptimWrapper',
                'model.backbone.init_cfg.checkpoint=no.pth',
            ],
            r"checkpoint 'no\.pth' does not exist \(model\.backbone\.init_cfg\.checkpoint",
        ),
        (
            ['train.py', DETECTOR, '--cfg-options', 'val_evaluator.ann_file=no.json'],
            r'no\.json does not exist \(val_evaluator\.ann_file',
        ),
        (
            ['train.py', DETECTOR, '--cfg-options', 'optim_wraper.type=OptimWrapper'],
            "no 'optim_wraper'; did you mean 'optim_wrapper'",
        ),
        (
            ['train.py', SEGMENTER, '--cfg-options', 'optimizer.lr=1'],
            "nothing reads 'optimizer' since mmcv 2; set optim_wrapper.optimizer",
        ),
        (
            ['train.py', SEGMENTER, '--cfg-options', 'load_from=/no where/a.pth'],
            "checkpoint '/no where/a.pth' does not exist",
        ),
        (
            ['train.py', DETECTOR, '--cfg-options', 'model.backbone.init_cfg.type=PlainViT']
            + ['model.backbone.init_cfg.checkpoint=setup.py'],
            r'model\.backbone\.init_cfg: .*setup\.py',
        ),
        (
            ['train.py', SEGMENTER, '--cfg-options', 'model.decode_head.num_classes=150'],
            r'model\.decode_head\.num_classes=150: expected 5, the classes of train_dataloader\.dataset \(',
        ),
        (['test.py', SEGMENTER, 'nowhere.pth'], "checkpoint 'nowhere.pth' does not exist"),
        (['demo.py', '--weights', 'nowhere.pth'], "--weights 'nowhere.pth' does not exist"),
    ],
)
def test_bad_calls_end_in_one_line_before_anything_starts(command, message, tmp_path, env):
    where = [] if command[0] == 'demo.py' else ['--work-dir', tmp_path / 'w']
    output = run(sys.executable, f'tools/{command[0]}', *command[1:], *where, env=env, fails=True)
    lines = [line for line in output.strip().split('\n') if 'to replace item in config' not in line]
    assert len(lines) == 1, output
    assert re.search(message, output), output
    assert not (tmp_path / 'w').exists()


def test_settings_are_read_as_mmengine_reads_them_and_paths_keep_their_blanks():
    parser = argparse.ArgumentParser()
    launch.add_common_options(parser)
    given = ['a=1', 'b=1,2', 'c=[(1, 2), x]', 'd=/a b/c', "e='f g'", 'f=None', 'g=1e-4', 'h=(1,)', 'i=True']
    found = parser.parse_args(['--cfg-options', *given]).cfg_options
    expected = dict(a=1, b=[1, 2], c=[(1, 2), 'x'], d='/a b/c', e='f g', f=None, g=1e-4, h=(1,), i=True)
    assert found == expected


@pytest.mark.parametrize(
    ('steps', 'options'),
    [(1, ()), (8, ()), (4, ('runner_type=FlexibleRunner', 'strategy.type=SingleDeviceStrategy'))],
)
def test_auto_scale_lr_follows_the_batch_size(steps, options, tmp_path, env):
    options = ('train_cfg.max_iters=1', f'optim_wrapper.accumulative_counts={steps}', *options)
    log = train(SEGMENTER, tmp_path, '--auto-scale-lr', '--cfg-options', *options, env=env)
    scaled = 1e-3 * 2 * steps / 16
    assert f' lr: {scaled:.4e}' in log


def demo(tmp_path, *options, env, fails) -> str:
    output = run(
        *(sys.executable, 'tools/demo.py', '--data', tmp_path / 'shapes', '--work-dir', tmp_path / 'work'),
        *options,
        env=env,
        fails=fails,
    )
    picture = cv2.imread(str(tmp_path / 'work/predictions.png'))
    assert picture.shape[0] == 2 * 192
    assert 'tools/train.py configs/coco/' in output
    return output


def test_demo_learns_from_given_weights(tmp_path, env, real_weights):
    options = ('--iters', '30', '--train', '20', '--val', '6', '--weights', real_weights)
    output = demo(tmp_path, *options, env=env, fails=False)
    assert 'loaded    156' in output
    assert '30/30' in output
    aps = re.findall(r'\n  (untrained|trained): box AP ([\d.]+), mask AP ([\d.]+)', output)
    assert [name for name, _, _ in aps] == ['untrained', 'trained']
    assert float(aps[1][2]) > float(aps[0][2])


def test_demo_says_that_weights_are_random_and_that_nothing_was_learned(tmp_path, env):
    """A short one from random weights is no failure: the README has one."""
    output = demo(tmp_path, '--iters', '2', '--train', '4', '--val', '2', env=env, fails=False)
    assert 'RANDOM weights' in output
    assert re.search(
        r'\nmask AP [\d.]+ after training is not above .*: 2 iterations show the steps, 300 teach', output
    )
    check_learned(0.0, 0.1, iters=300)
    with pytest.raises(SystemExit, match=r'error: mask AP 0\.2 after training is not above 0\.3 before'):
        check_learned(0.3, 0.2, iters=300)


# Page, what its example says and what there is, options that make it small.
OWN = [
    (
        'mmdet',
        {"('cat', 'dog')": "('disc', 'star')", 'data/own/': '{shapes}/'},
        (
            'model.neck.in_channels=[64,64,64,64]',
            'train_dataloader.dataset.pipeline.2.scale=(96,96)',
            'test_dataloader.dataset.pipeline.1.scale=(96,96)',
            'val_dataloader.dataset.pipeline.1.scale=(96,96)',
            'train_cfg.max_epochs=1',
            'train_dataloader.dataset.indices=2',
        ),
    ),
    (
        'mmseg',
        {
            'data/own/': '{shapes}/',
            'images/': '',
            'labels/': 'semantic/',
            '.jpg': '.png',
            "'road', 'car', 'tree'": "'none', 'disc', 'box', 'triangle', 'star'",
            '[[128, 64, 128], [0, 0, 142], [107, 142, 35]]': '[[0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9], [9, 9, 9]]',
            'num_classes=3': 'num_classes=5',
        },
        (
            'model.data_preprocessor.size=(64,64)',
            'model.test_cfg.mode=whole',
            'model.decode_head.in_channels=[64,64,64,64]',
            'model.auxiliary_head.in_channels=64',
            'train_dataloader.dataset.pipeline.2.scale=(96,96)',
            'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
            'val_dataloader.dataset.pipeline.1.scale=(96,96)',
            'test_dataloader.dataset.pipeline.1.scale=(96,96)',
            'train_cfg.max_iters=2',
            'train_cfg.val_interval=2',
        ),
    ),
]


@pytest.mark.parametrize(('page', 'names', 'options'), OWN)
def test_own_data_of_a_page_trains(page, names, options, shapes, tmp_path, env):
    text = (ROOT / f'docs/{page}.md').read_text().split('## Your own data')[1]
    code = text.split('```python\n')[1].split('```')[0].replace("'configs/", f"'{ROOT}/configs/")
    for said, real in names.items():
        assert said in code
        code = code.replace(said, real.format(shapes=shapes))
    config = tmp_path / 'own.py'
    config.write_text(code)
    backbone = ('model.backbone.plain=test_vit', 'model.backbone.init_cfg=None')
    workers = [
        f'{part}_dataloader.{key}'
        for part in ('train', 'val', 'test')
        for key in ('num_workers=0', 'persistent_workers=False')
    ]
    log = train(
        *(config, tmp_path / 'work', '--cfg-options', 'optim_wrapper.type=OptimWrapper'),
        *(*backbone, *options, *workers),
        env=env,
    )
    assert ('coco/bbox_mAP: ' if page == 'mmdet' else 'mIoU: ') in log
    assert ('star' if page == 'mmdet' else 'triangle') in log
    assert 'the learning rate rises for' in log
