# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""ImageNet classification through mmpretrain, which lies beside the environment (requirements/beside.txt)."""

import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import pytest
from tool_runs import DETECTOR, ROOT, run, train

pytestmark = pytest.mark.slow
CONFIG = 'tests/configs/tiny_classifier.py'
RECIPES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'configs/imagenet1k').glob('*.py'))


@pytest.fixture
def env(env, shapes, tmp_path) -> dict:
    """Two classes of four pictures each, and mmpretrain on the path."""
    for i, picture in enumerate(sorted((shapes / 'train').glob('*.png'))[:8]):
        folder = tmp_path / 'classes' / f'class{i % 2}'
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, folder)
    paths = os.pathsep.join([env['PYTHONPATH'], f'{sys.prefix}/beside'])
    return {**env, 'PYTHONPATH': paths, 'CLASSES': str(tmp_path / 'classes')}


def test_trains_tests_draws_and_predicts(tmp_path, env):
    log = train(CONFIG, tmp_path / 'work', env=env)
    assert re.search(r'Epoch\(val\) \[2\].*accuracy/top1: ', log)
    checkpoint = tmp_path / 'work/epoch_2.pth'
    command = (sys.executable, 'tools/test.py', CONFIG, checkpoint, '--work-dir', tmp_path / 'test')
    log = run(*command, '--show-dir', tmp_path / 'shown', env=env)
    assert 'accuracy/top1: ' in log
    assert len([p for p in (tmp_path / 'shown').rglob('*') if p.suffix in ('.png', '.jpg')]) == 8
    where = (tmp_path / 'classes/class0', '--config', CONFIG, '--checkpoint', checkpoint)
    run(sys.executable, 'tools/predict.py', *where, '--out', tmp_path / 'out', '--device', 'cpu', env=env)
    found = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert len(found) == 4
    for entry in found:
        assert entry['pred_class'] in ('class0', 'class1')
        assert sum(entry['pred_scores']) == pytest.approx(1, abs=1e-3)
        assert cv2.imread(str(tmp_path / 'out' / entry['picture'])).shape == (96, 96, 3)


def test_recipes_follow_mae(env):
    """Built on the meta device in a process that has mmpretrain: model, optimiser, and the published numbers."""
    code = (
        'import json, sys, torch, launch\n'
        'from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope\n'
        'for path in sys.argv[1:]:\n'
        '    cfg = launch.read_config(path)\n'
        '    init_default_scope(cfg.default_scope)\n'
        '    with torch.device("meta"):\n'
        '        model = MODELS.build(cfg.model)\n'
        '    make = OPTIM_WRAPPER_CONSTRUCTORS.get(cfg.optim_wrapper.constructor)\n'
        '    groups = make(cfg.optim_wrapper, cfg.optim_wrapper.paramwise_cfg).param_groups(model)\n'
        '    schedule = cfg.param_scheduler[1]\n'
        '    print("FOUND", json.dumps(dict(path=path, width=model.backbone.embed_dims,\n'
        '        kind=type(model.backbone).__name__, head=cfg.model.head.in_channels,\n'
        '        rate=cfg.optim_wrapper.optimizer.lr, decay=cfg.optim_wrapper.paramwise_cfg.decay_rate,\n'
        '        epochs=[cfg.train_cfg.max_epochs, schedule.end],\n'
        '        batch=[cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size],\n'
        '        grouped=sum(len(g["params"]) for g in groups) == len(list(model.parameters())))))\n'
    )
    output = run(sys.executable, '-c', code, *RECIPES, env=env | {'PYTHONPATH': f'tools:{env["PYTHONPATH"]}'})
    found = [json.loads(line.partition(' ')[2]) for line in output.splitlines() if line.startswith('FOUND')]
    assert [f['path'] for f in found] == RECIPES
    for recipe in found:
        size = re.search(r'vit-([sbl])-', recipe['path'])[1]
        large = size == 'l'
        assert recipe['width'] == recipe['head'] == {'s': 384, 'b': 768, 'l': 1024}[size]
        assert recipe['kind'] == ('PlainViTPyramid' if 'plain' in recipe['path'] else 'HPViT')
        assert (recipe['rate'], recipe['decay']) == ((4e-3, 0.75) if large else (2e-3, 0.65))
        assert recipe['epochs'] == ([50, 50] if large else [100, 100])
        assert recipe['batch'] == [128, 1024]
        assert recipe['grouped']


def test_missing_images_are_one_line(tmp_path, env):
    output = train(RECIPES[0], tmp_path, env=env, fails=True)
    assert (
        output.strip()
        .splitlines()[-1]
        .startswith('error: data/imagenet/train does not exist (train_dataloader.dataset, looked from')
    )


def test_detectors_train_where_mmpretrain_is(tmp_path, env):
    """mmdet imports it, and that fails with transformers 5 unless it is prepared."""
    train(DETECTOR, tmp_path, '--cfg-options', 'train_cfg.max_iters=1', 'train_cfg.val_interval=9', env=env)
    assert (tmp_path / 'iter_1.pth').exists()


def test_without_mmpretrain_the_error_says_what_to_install(env):
    command = [sys.executable, 'tools/train.py', RECIPES[0]]
    result = subprocess.run(command, cwd=ROOT, env={**env, 'PYTHONPATH': ''}, capture_output=True, text=True)
    assert result.returncode
    assert result.stderr.strip().splitlines()[-1] == (
        "error: classification needs mmpretrain: pip install 'mmpretrain==1.2.0' (No module named 'mmpretrain')"
    )
