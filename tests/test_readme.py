# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope

from mmhpvit.preflight.schedule import check_last_rates

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf'```{language}\n(.*?)```', README, re.DOTALL)


def test_links_and_tools_exist():
    links = [link for link in re.findall(r'\]\(([^)]+)\)', README) if not link.startswith('http')]
    tools = re.findall(r'\btools/\w+\.(?:sh|py)', README)
    assert len(links) >= 6
    assert len(tools) >= 8
    assert [name for name in (*links, *tools) if not (ROOT / name).exists()] == []


STOCK = [
    ('mmdet', 'mask-rcnn_r50_fpn', 'datasets/coco_instance', 'schedules/schedule_1x'),
    ('mmdet', 'faster-rcnn_r50_fpn', 'datasets/coco_detection', 'schedules/schedule_2x'),
    ('mmseg', 'upernet_r50', 'datasets/ade20k', 'schedules/schedule_160k'),
    ('mmseg', 'upernet_swin', 'datasets/cityscapes', 'schedules/schedule_80k'),
]


@pytest.mark.parametrize(('scope', 'model', 'dataset', 'schedule'), STOCK)
def test_config_snippets_train_in_stock_configs(scope, model, dataset, schedule, tmp_path):
    detection, segmentation = blocks('python')
    if scope == 'mmseg':
        lines = detection.split('\n')
        assert lines[3].startswith('model = ')
        detection = '\n'.join([*lines[:3], segmentation, *lines[4:]])
    bases = [
        f'{scope}::_base_/{base}.py' for base in (f'models/{model}', dataset, schedule, 'default_runtime')
    ]
    config = tmp_path / 'own.py'
    config.write_text(f'_base_ = {bases}\n{detection}')
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert type(model.backbone).__name__ == 'HPViT'
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.get(cfg.optim_wrapper.constructor)(
        dict(cfg.optim_wrapper, type='OptimWrapper'), cfg.optim_wrapper.paramwise_cfg
    )
    check_last_rates(cfg)
    names = [n for group in constructor.param_groups(model) for n in group['param_names']]
    assert sorted(names) == sorted(n for n, p in model.named_parameters() if p.requires_grad)


def test_model_list_snippet_runs():
    (code,) = re.findall(r'`python -c "(import timm[^"]+)"`', README)
    output = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert 'vit_base_patch16_224.mae' in output


@pytest.mark.slow
def test_table_of_families_is_that_of_timm(tmp_path):
    command = [sys.executable, '-W', 'ignore', 'docs/families.py', '--check']
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    # In a copy whose table lacks a row, the same check fails.
    shutil.copytree(ROOT / 'docs', tmp_path / 'docs')
    row = next(line for line in README.split('\n') if line.startswith('| SAM |'))
    (tmp_path / 'README.md').write_text(README.replace(f'{row}\n', ''))
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 1
    assert 'out of date' in checked.stderr


@pytest.mark.parametrize('page', ['mmdet', 'mmseg'])
def test_config_of_a_page_builds(page, tmp_path):
    code = re.findall(r'```python\n(.*?)```', (ROOT / f'docs/{page}.md').read_text(), re.DOTALL)[0]
    config = tmp_path / 'own.py'
    config.write_text(code)
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert type(model.backbone).__name__ == 'HPViT'
    assert cfg.optim_wrapper.constructor == 'LayerIdDecayConstructor'


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
    command = [
        sys.executable,
        '-c',
        'from mim.cli import cli; cli()',
        'train',
        'mmdet',
        config,
        '--gpus',
        '0',
    ]
    command += ['--work-dir', 'work', '--cfg-options', *few, f'model.backbone.init_cfg.checkpoint={weights}']
    env = os.environ | dict(
        PYTHONPATH=str(tmp_path / 'site'), PYTHONWARNINGS='ignore', CUDA_VISIBLE_DEVICES=''
    )
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'work/iter_2.pth').is_file()
    show = [sys.executable, '-c', 'import mmhpvit; print(mmhpvit.__file__)']
    found = subprocess.run(show, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
    assert found.startswith(f'{tmp_path}/site/mmhpvit')


def test_links_of_the_documents_exist():
    for document in (ROOT / 'docs').glob('*.md'):
        text = document.read_text()
        links = [link for link in re.findall(r'\]\(([^)]+)\)', text) if not link.startswith('http')]
        scripts = re.findall(r'\b(?:tools|docs)/\w+\.(?:sh|py)', text)
        assert [link for link in links if not (document.parent / link).exists()] == []
        assert [name for name in scripts if not (ROOT / name).exists()] == []


def test_documents_have_no_placeholders():
    for document in (ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')):
        assert not re.search(r'^[A-Z]{4,}$', document.read_text(), re.MULTILINE), document


def test_ci_runs_the_test_command():
    assert 'tools/run_tests.sh' in (ROOT / '.ci/run').read_text()


@pytest.mark.slow
def test_installing_pulls_in_nothing_that_replaces_the_users_stack():
    """The wheel asks for timm alone, and pip would add nothing else to this environment."""
    command = [sys.executable, '-m', 'pip', 'install', '--dry-run', '--no-build-isolation', '--no-input', '.']
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    would = re.findall(r'Would install (.+)', output)
    assert all(re.fullmatch(r'mmhpvit-[\d.]+', name) for line in would for name in line.split()), would
    names = {re.split(r'[<>=]', line)[0] for line in (ROOT / 'requirements/runtime.txt').read_text().split()}
    assert names == {'timm'}


def test_picture_is_what_its_script_draws():
    sys.path.insert(0, str(ROOT / 'docs'))
    try:
        import architecture
    finally:
        sys.path.pop(0)
    assert architecture.draw() == (ROOT / 'docs/architecture.svg').read_text()
