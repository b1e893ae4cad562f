# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""What the wheel holds and needs, and what continuous integration runs."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing is left behind here."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    unwanted = shutil.ignore_patterns('.venv*', '.git', 'work_dirs', 'data', '__pycache__', 'build')
    shutil.copytree(ROOT, source, ignore=unwanted)
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation']
    subprocess.run([*command, '-w', folder, source], check=True)
    (wheel,) = folder.glob('mmhpvit-*.whl')
    return wheel


@pytest.mark.slow
def test_wheel_carries_configs_and_tools(wheel):
    """As mmhpvit/.mim, where mim looks; every recipe is in the model index, and no result is claimed."""
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {str(path.relative_to(ROOT)) for path in (ROOT / 'configs').glob('**/*.py')}
    assert {f'mmhpvit/.mim/{name}' for name in (*configs, 'tools/train.py', 'model-index.yml')} <= names
    assert 'mmhpvit/py.typed' in names
    assert not [name for name in names if name.startswith('tests')]
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    models = [m for path in index for m in yaml.safe_load((ROOT / path).read_text())['Models']]
    recipes = {c for c in configs if not c.startswith(('configs/_base_', 'configs/demo'))}
    assert sorted(m['Config'] for m in models) == sorted(recipes)
    assert not [m for m in models if 'Results' in m]


@pytest.mark.slow
def test_mim_trains_a_config_of_the_installed_wheel(wheel, shapes, shared, tmp_path):
    """mmdet's own tool, started by mim, elsewhere than in the repository."""
    zipfile.ZipFile(wheel).extractall(tmp_path / 'site')
    # Without mmpretrain, which lies there too: where it is, mmdet imports it and wants no transformers 5.
    for path in Path(sys.prefix, 'beside').iterdir():
        if not path.name.startswith('mmpretrain'):
            (tmp_path / 'site' / path.name).symlink_to(path)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/shapes').symlink_to(shapes)
    config = tmp_path / 'site/mmhpvit/.mim/configs/demo/mask-rcnn_hpvit-ti_fpn_shapes.py'
    weights = shared / 'weights/vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors'
    few = ('train_cfg.max_iters=2', 'train_cfg.val_interval=9', 'default_hooks.checkpoint.interval=2')
    mim = [sys.executable, '-c', 'from mim.cli import cli; cli()']
    command = [*mim, 'train', 'mmdet', config, '--gpus', '0', '--work-dir', 'work']
    command += ['--cfg-options', *few, f'model.backbone.init_cfg.checkpoint={weights}']
    env = os.environ | dict(
        PYTHONPATH=str(tmp_path / 'site'), PYTHONWARNINGS='ignore', CUDA_VISIBLE_DEVICES=''
    )
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'work/iter_2.pth').is_file()
    show = [sys.executable, '-c', 'import mmhpvit; print(mmhpvit.__file__)']
    found = subprocess.run(show, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
    assert found.startswith(f'{tmp_path}/site/mmhpvit')


@pytest.mark.slow
def test_installing_pulls_in_nothing_that_replaces_the_users_stack():
    """The wheel asks for timm alone, and pip would add nothing else to this environment."""
    command = [sys.executable, '-m', 'pip', 'install', '--dry-run', '--no-build-isolation', '--no-input', '.']
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    would = re.findall(r'Would install (.+)', output)
    assert all(re.fullmatch(r'mmhpvit-[\d.]+', name) for line in would for name in line.split()), would
    names = {re.split(r'[<>=]', line)[0] for line in (ROOT / 'requirements/runtime.txt').read_text().split()}
    assert names == {'timm'}


def test_ci_and_commit_hooks_run_the_same_checks():
    commands = (ROOT / '.ci/run').read_text().splitlines()
    assert 'bash tools/run_tests.sh' in commands
    checks = [command for command in commands if command.startswith('.venv/bin/')]
    (local,) = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos']
    assert [hook['entry'] for hook in local['hooks']] == checks
    assert [check.split()[0] for check in checks] == [
        f'.venv/bin/{name}' for name in ('ruff', 'ruff', 'codespell', 'mypy')
    ]
    workflow = yaml.safe_load((ROOT / '.github/workflows/ci.yml').read_text())
    assert '.ci/run' in [step.get('run') for step in workflow['jobs']['ci']['steps']]
