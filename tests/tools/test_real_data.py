# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Small versions of the trainings on real images from real weights."""

import json
import os
from pathlib import Path

import pytest
from tool_runs import train

pytestmark = pytest.mark.slow


def scalars(work_dir: Path) -> tuple[list[dict], dict]:
    """The logged training losses and the last validation metrics of a run."""
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in path.read_text().split('\n') if line]
    return [line for line in lines if 'loss' in line], [line for line in lines if 'loss' not in line][-1]


def options(iters: int, images: int) -> tuple[str, ...]:
    return (
        *('--cfg-options', f'train_cfg.max_iters={iters}', f'train_cfg.val_interval={iters}'),
        *(f'param_scheduler.1.end={2 * iters}', 'param_scheduler.0.end=5', 'param_scheduler.1.begin=5'),
        *(f'val_dataloader.dataset.indices={images}', 'default_hooks.logger.interval=5'),
        'log_processor.window_size=5',
    )


@pytest.fixture
def env(shared, tmp_path) -> dict:

    return {**os.environ, 'MMHPVIT_TEST_DATA': str(shared), 'PYTHONWARNINGS': 'ignore'}


def test_nuclei_are_found_within_few_iterations(tmp_path, env):
    train('tools/study/configs/mask-rcnn_hpvit-ti_nuclei.py', tmp_path, *options(60, 12), env=env)
    losses, metrics = scalars(tmp_path)
    assert losses[-1]['loss'] < 0.8 * losses[0]['loss']
    # Regions cut from wrong places leave the mask loss at that of guessing, 0.69.
    assert losses[-1]['loss_mask'] < 0.6
    assert metrics['coco/bbox_mAP_50'] > 0.01


def test_coco_supercategories_train(tmp_path, env):
    train('tools/study/configs/mask-rcnn_hpvit-ti_coco-mini.py', tmp_path, *options(12, 4), env=env)
    losses, _ = scalars(tmp_path)
    assert losses[-1]['loss'] < losses[0]['loss']


@pytest.mark.parametrize('backbone', ['HPViT', 'PlainViTPyramid'])
def test_road_scenes_are_segmented_within_few_iterations(backbone, tmp_path, env):
    config = 'tools/study/configs/upernet_hpvit-ti_camvid.py'
    train(config, tmp_path, *options(24, 4), f'model.backbone.type={backbone}', env=env)
    losses, metrics = scalars(tmp_path)
    assert losses[-1]['loss'] < 0.9 * losses[0]['loss']
    # The most frequent class everywhere gives under 4 % mIoU over 11 classes.
    assert metrics['mIoU'] > 8


def test_missing_data_is_one_line(tmp_path, env):
    weights = tmp_path / 'weights/vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors'
    weights.parent.mkdir()
    weights.touch()
    env['MMHPVIT_TEST_DATA'] = str(tmp_path)
    config = 'tools/study/configs/mask-rcnn_hpvit-ti_nuclei.py'
    output = train(config, tmp_path / 'w', env=env, fails=True)
    assert f'{tmp_path}/data/nuclei/annotations/instances_train.json does not exist' in output
