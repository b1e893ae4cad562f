# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""docs/channels.md: files of other than 3 channels, read by mmcv, trained on and predicted by the tools."""

import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from mmcv.transforms import LoadImageFromFile
from tool_runs import DETECTOR, ROOT, SEGMENTER, run, train

SEGMENTERS, DETECTORS = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/channels.md').read_text(), re.DOTALL)
ONE_STEP = 'train_cfg.max_iters=1', 'train_cfg.val_interval=1'


@pytest.fixture
def images(shapes, tmp_path, env):
    """A function that writes the generated set with images of a number of channels into a folder of its own."""
    folder = tmp_path / 'data'

    def write(channels: int, dtype: type = np.uint8, suffix: str = '.png') -> Path:
        for file in filter(Path.is_file, shapes.rglob('*')):
            target = folder / file.relative_to(shapes)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
            if file.parent in (shapes / 'train', shapes / 'val'):
                target.unlink()
                image = cv2.imread(str(file)).astype(np.float32)
                image = np.dstack([image, image.mean(-1)])[..., np.arange(channels) % 4]
                save(target.with_suffix(suffix), (image * (np.iinfo(dtype).max / 255)).astype(dtype))
        env['SHAPES'] = str(folder)
        return folder

    return write


def save(path: Path, image: np.ndarray) -> None:
    if path.suffix == '.png':
        cv2.imwrite(str(path), image)
    else:
        tifffile.imwrite(path, image, photometric='minisblack', planarconfig='contig')


def own(folder: Path, base: str, text: str, more: str = '') -> Path:
    """A config of the page, with one of the tests in the place of OWN.py."""
    path = folder / 'own.py'
    path.write_text(text.replace('OWN.py', str(ROOT / base)) + more)
    return path


@pytest.mark.parametrize(
    ('channels', 'dtype'), [(1, np.uint8), (1, np.uint16), (4, np.uint8), (4, np.uint16)]
)
def test_png_files_are_read_as_they_were_written(channels, dtype, tmp_path):
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (20, 30, channels)).astype(dtype)
    save(tmp_path / 'a.png', image)
    load = LoadImageFromFile(color_type='unchanged', to_float32=True)
    read = load(dict(img_path=str(tmp_path / 'a.png')))['img']
    assert read.dtype == np.float32
    assert np.array_equal(read.reshape(image.shape), image)


FOUR_OF_16_BITS = """
model['data_preprocessor'] |= dict(mean=[31784.0, 29884.0, 26607.0, 28270.0], std=[15008.0, 14680.0, 14745.0, 15420.0])
"""
GREY = """
load |= dict(color_type='grayscale', to_float32=False)
model = dict(backbone=dict(in_channels=1), data_preprocessor=dict(mean=[127.5], std=[127.5], bgr_to_rgb=False))
"""
SIX = """
load |= dict(imdecode_backend='tifffile')
train_dataloader['dataset'] |= dict(img_suffix='.tif')
val_dataloader['dataset'] |= dict(img_suffix='.tif')
model = dict(backbone=dict(in_channels=6), data_preprocessor=dict(mean=[3e4] * 6, std=[2e4] * 6, bgr_to_rgb=False))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ('channels', 'dtype', 'suffix', 'more'),
    [
        (4, np.uint8, '.png', ''),
        (4, np.uint16, '.png', FOUR_OF_16_BITS),
        (1, np.uint8, '.png', GREY),
        (6, np.uint16, '.tif', SIX),
    ],
)
def test_segmenter_of_the_page_trains_and_predicts(channels, dtype, suffix, more, images, tmp_path, env):
    folder, config = images(channels, dtype, suffix), own(tmp_path, SEGMENTER, SEGMENTERS, more)
    output = train(config, tmp_path / 'run', '--cfg-options', *ONE_STEP, env=env)
    assert re.search(r'Iter\(train\) \[1/1\].* loss: \d', output)
    checkpoint = tmp_path / 'run/iter_1.pth'
    state = torch.load(checkpoint, weights_only=False)['state_dict']
    assert state['backbone.patch_embed.proj.weight'].shape[1] == channels
    if more:
        return
    command = [folder / 'val', '--config', config, '--checkpoint', checkpoint, '--out', tmp_path / 'out']
    run(sys.executable, 'tools/predict.py', *command, '--device', 'cpu', env=env)
    entries = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert len(entries) == 4
    assert not [entry for entry in entries if 'error' in entry]


@pytest.mark.slow
def test_detector_of_the_page_trains_and_predicts(images, tmp_path, env):
    folder, config = images(4), own(tmp_path, DETECTOR, DETECTORS)
    train(config, tmp_path / 'run', '--cfg-options', *ONE_STEP, env=env)
    command = ['--config', config, '--checkpoint', tmp_path / 'run/iter_1.pth', '--out', tmp_path / 'out']
    run(sys.executable, 'tools/predict.py', folder / 'val', *command, '--device', 'cpu', env=env)
    entries = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert len(entries) == 4
    assert not [entry for entry in entries if 'error' in entry]


@pytest.mark.slow
def test_other_numbers_of_values_stop_before_training(tmp_path, env):
    config = own(tmp_path, SEGMENTER, "_base_ = 'OWN.py'\nmodel = dict(backbone=dict(in_channels=4))\n")
    output = train(config, tmp_path / 'run', env=env, fails=True)
    assert 'mean has 3 values and model.backbone.in_channels is 4' in output
    assert 'Traceback' not in output


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['.pt2', '.onnx'])
def test_export_takes_the_channels_of_the_backbone(suffix, tmp_path, env):
    config = own(tmp_path, SEGMENTER, SEGMENTERS)
    output = run(sys.executable, 'tools/export.py', config, tmp_path / f'out{suffix}', env=env)
    assert 'at three sizes' in output
    if suffix == '.pt2':
        (logits,) = torch.export.load(tmp_path / 'out.pt2').module()(torch.randn(1, 4, 64, 96))
        assert logits.shape == (1, 5, 64, 96)


@pytest.mark.slow
def test_benchmark_takes_the_channels_of_the_backbone(env):
    spec = 'hpvit:test_vit:in_channels=4'
    command = 'tools/benchmark.py', spec, 'hpvit:test_vit', '--sizes', '64x64', '--rounds', '1'
    output = run(sys.executable, *command, env=env | {'PYTHONPATH': f'{env["PYTHONPATH"]}:{ROOT}'})
    assert 'left out' not in output
    assert spec in output


@pytest.mark.slow
def test_only_rgb_is_visualised(tmp_path, env, shapes):
    config = own(tmp_path, SEGMENTER, SEGMENTERS)
    image = next((shapes / 'val').iterdir())
    command = 'tools/visualize.py', image, '--config', config, '--out', tmp_path / 'out'
    output = run(sys.executable, *command, env=env, fails=True)
    assert 'has in_channels=4; only backbones of RGB images are drawn' in output
