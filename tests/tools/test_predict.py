# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Prediction as users run it, from a checkpoint that training wrote."""

import json
import os
import re
import runpy
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import predict as tool
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from pycocotools import mask as coco_mask
from tool_runs import DETECTOR, ROOT, SEGMENTER, run, train

pytestmark = pytest.mark.slow


@pytest.fixture
def images(shapes, tmp_path):
    """A folder with two images of one stem, one of them larger, and a file that is none."""
    folder = tmp_path / 'images'
    folder.mkdir()
    first = sorted((shapes / 'val').glob('*.png'))[0]
    shutil.copy(first, folder / 'a.png')
    cv2.imwrite(str(folder / 'a.jpg'), cv2.resize(cv2.imread(str(first)), (130, 110)))
    (folder / 'notes.txt').write_text('no image')
    return folder


def predict(images, config, checkpoint, out, *options, env, fails=False):
    command = [sys.executable, 'tools/predict.py', images, '--config', config, '--checkpoint', checkpoint]
    return run(*command, '--out', out, '--device', 'cpu', *options, env=env, fails=fails)


def snippet(page: str, config, checkpoint, image, out) -> str:
    """The lines that a page of the docs has for programs, with real names."""
    code = (ROOT / 'docs' / page).read_text().split('## Predict')[1].split('```python\n')[1].split('```')[0]
    assert len([line for line in code.splitlines() if line]) == 3
    for name, real in (
        ('CONFIG.py', config),
        ('CHECKPOINT.pth', checkpoint),
        ('IMAGE.jpg', image),
        ('DIR', out),
    ):
        assert f"'{name}'" in code
        code = code.replace(f"'{name}'", repr(str(real)))
    return code


@pytest.mark.parametrize(('size', 'scale'), [((100, 180), 5), ((40, 1300), 1)])
def test_objects_are_drawn_where_they_are(size, scale):
    """Small images are enlarged; what scores less is not drawn, and the prediction stays as it was."""
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dict(classes=('a',), palette=[(255, 0, 0)])
    masks = torch.zeros(2, *size, dtype=torch.bool)
    masks[0, 10:30, 40:70] = masks[1, 10:30, 90:99] = True
    boxes = torch.tensor([[40.0, 10, 70, 30], [90, 10, 99, 30]])
    found = InstanceData(
        bboxes=boxes, masks=masks, scores=torch.tensor([0.9, 0.2]), labels=torch.tensor([0, 0])
    )
    picture = tool.draw_objects(
        visualizer, np.zeros((*size, 3), np.uint8), DetDataSample(pred_instances=found), 0.3
    )
    assert picture.shape == (scale * size[0], scale * size[1], 3)
    rows, columns = picture.any(-1).nonzero()
    near = 4  # width of lines
    assert 10 * scale - near <= rows.min() <= 10 * scale
    assert 40 * scale - near <= columns.min() <= 40 * scale
    assert 30 * scale - near <= rows.max() <= 30 * scale + near
    assert picture[20 * scale, 55 * scale].any()
    assert not picture[27 * scale, 94 * scale].any()
    assert torch.equal(found.bboxes, torch.tensor([[40.0, 10, 70, 30], [90, 10, 99, 30]]))
    assert found.masks.shape == (2, *size)


def test_panoptic_maps_are_drawn_as_they_are():
    """They have the image's size."""
    drawn = []

    class Painter:
        def add_datasample(self, name, image, sample, **options):
            drawn.append((image.shape, sample))

        def get_image(self):
            return None

    sample = DetDataSample(pred_panoptic_seg=PixelData(sem_seg=torch.zeros(1, 100, 180)))
    for instances in (False, True):
        if instances:
            sample.pred_instances = InstanceData(scores=torch.zeros(0))
        tool.draw_objects(Painter(), np.zeros((100, 180, 3), np.uint8), sample, 0.3)
    assert [shape for shape, _ in drawn] == [(100, 180, 3)] * 2


def call_with(predictor, images, tmp_path, monkeypatch) -> None:
    """Let the tool's main function predict on a folder by a stand-in for a detector."""
    monkeypatch.setitem(tool.KINDS, 'mmdet', predictor)
    monkeypatch.setattr(tool, 'check_checkpoint', lambda *_: None)
    (tmp_path / 'model.pth').touch()
    command = ['predict', images, '--config', ROOT / DETECTOR, '--checkpoint', tmp_path / 'model.pth']
    monkeypatch.setattr(sys, 'argv', [*map(str, command), '--out', str(tmp_path / 'out')])


def test_images_that_fail_keep_no_other_from_being_predicted(images, tmp_path, monkeypatch):
    """One that is cut off, one whose name OpenCV cannot take, one on which the model fails."""
    whole = (images / 'a.jpg').read_bytes()
    (images / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
    (images / os.fsdecode(b'gr\xfcn.jpg')).write_bytes(whole)

    def predictor(args, cfg):
        def one(path, image):
            if path.name == 'a.jpg':
                raise IndexError('index 1 is out of bounds')
            return dict(scores=[0.5]), np.zeros((8, 8, 3), np.uint8)

        return one

    call_with(predictor, images, tmp_path, monkeypatch)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(
            SystemExit, match=r'3 of 4 images could not be read or predicted, the first .*a\.jpg'
        ):
            tool.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    errors = [entry.get('error') for entry in json.loads((tmp_path / 'out/predictions.json').read_text())]
    expected = [
        'IndexError: index 1 is out of bounds',
        None,
        'OpenCV does not read it',
        'its name is no UTF-8',
    ]
    assert errors == expected


def test_panoptic_maps_are_written_in_cocos_colours(images, tmp_path, monkeypatch):
    class Inferencer:
        model = SimpleNamespace(dataset_meta=dict(classes=('a', 'b')))
        visualizer = SimpleNamespace(add_datasample=lambda *_, **__: None, get_image=lambda: None)

        def __init__(self, cfg, *_, **__):
            assert cfg.test_dataloader.dataset.pipeline == []

        def __call__(self, path, **_):
            return dict(predictions=[DetDataSample()])

        def pred2dict(self, sample):
            found = np.zeros((96, 96, 3), np.uint8)
            found[0, 0] = 1, 2, 3
            return dict(panoptic_seg=found)

    monkeypatch.setattr('mmdet.apis.DetInferencer', Inferencer)
    inner = dict(type='ConcatDataset', datasets=[dict(type='CocoPanopticDataset', pipeline=[])])
    args = SimpleNamespace(out=tmp_path, checkpoint='', device='cpu', score_thr=0.3)
    predict_one = tool.detector(args, Config(dict(test_dataloader=dict(dataset=inner))))
    found, _ = predict_one(images / 'a.png', tool.read_image(images / 'a.png'))
    assert json.loads(json.dumps(found)) == dict(map='maps/a.png.png', classes=[])
    assert cv2.imread(str(tmp_path / found['map']))[0, 0].tolist() == [3, 2, 1]  # OpenCV has blue first


def test_names_are_the_configs_where_a_checkpoint_has_none():
    def names(**dataset):
        return tool.names_in(ConfigDict(dataset), 'mmseg')

    found = names(type='BaseSegDataset', metainfo=dict(classes=('a', 'b', 'c')))
    assert found['classes'] == ['a', 'b', 'c']
    assert np.shape(found['palette']) == (3, 3)
    own = dict(classes=('a',), palette=[[1, 2, 3]])
    assert names(type='BaseSegDataset', metainfo=own)['palette'] == own['palette']
    assert len(names(type='ADE20KDataset')['classes']) == len(names(type='ADE20KDataset')['palette']) == 150
    with pytest.raises(SystemExit, match='neither the checkpoint nor the config has names of classes'):
        names(type='BaseSegDataset')


def test_a_picture_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    image = np.zeros((4, 4), np.uint8)
    assert tool.write_image(image, Path('a.jpg'), tmp_path, 'maps') == 'maps/a.jpg.png'
    monkeypatch.setattr(cv2, 'imwrite', lambda *_: False)
    with pytest.raises(OSError, match='cannot be written'):
        tool.write_image(image, Path('b.jpg'), tmp_path, 'maps')


def test_what_was_predicted_stays_when_the_job_is_ended(images, tmp_path, monkeypatch):
    """Slurm's time limit ends a job by SIGTERM, of which `finally` knows nothing by itself."""

    def predictor(args, cfg):
        def one(path, image):
            if path.name == 'a.png':
                os.kill(os.getpid(), signal.SIGTERM)
            return dict(scores=[0.5]), np.zeros((8, 8, 3), np.uint8)

        return one

    call_with(predictor, images, tmp_path, monkeypatch)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match='143'):
            tool.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    first, last = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert first['scores'] == [0.5]
    assert 'scores' not in last


def test_detection(images, tmp_path, env):
    # Few iterations leave scores below the usual threshold of the head.
    config = tmp_path / 'detector.py'
    config.write_text(
        f"_base_ = '{ROOT / DETECTOR}'\nmodel = dict(test_cfg=dict(rcnn=dict(score_thr=0.0)))\n"
    )
    train(config, tmp_path / 'work', env=env)
    checkpoint, out = tmp_path / 'work/iter_6.pth', tmp_path / 'out'
    predict(images, config, checkpoint, out, '--score-thr', '0.01', env=env)
    first, second = json.loads((out / 'predictions.json').read_text())
    assert [first['image'], second['image']] == [str(images / 'a.jpg'), str(images / 'a.png')]
    for found, size in ((first, (110, 130)), (second, (96, 96))):
        scale = round(900 / max(size))
        assert cv2.imread(str(out / found['picture'])).shape == (scale * size[0], scale * size[1], 3)
        assert len(found['scores']) == len(found['bboxes']) == len(found['masks']) == len(found['classes'])
        assert found['scores']
        assert set(found['classes']) <= {'disc', 'box', 'triangle', 'star'}
        assert all(coco_mask.decode(mask).shape == size for mask in found['masks'])
    code = snippet('mmdet.md', config, checkpoint, images / 'a.png', tmp_path / 'inferred')
    output = run(sys.executable, '-c', f'{code}print("SCORES", found["scores"])', env=env)
    scores = json.loads(re.search(r'SCORES (.*)', output)[1])
    np.testing.assert_allclose(scores, second['scores'], rtol=1e-5)
    assert list((tmp_path / 'inferred/vis').iterdir())
    # A single image is as good as a folder.
    predict(images / 'a.png', config, checkpoint, tmp_path / 'one', env=env)
    (alone,) = json.loads((tmp_path / 'one/predictions.json').read_text())
    np.testing.assert_allclose(alone['scores'], second['scores'], rtol=1e-5)
    np.testing.assert_allclose(alone['bboxes'], second['bboxes'], rtol=1e-4)


def test_segmentation(images, tmp_path, env):
    train(SEGMENTER, tmp_path / 'work', env=env)
    out = tmp_path / 'out'
    predict(images, SEGMENTER, tmp_path / 'work/iter_6.pth', out, env=env)
    for found, size in zip(
        json.loads((out / 'predictions.json').read_text()), ((110, 130), (96, 96)), strict=True
    ):
        assert cv2.imread(str(out / found['picture'])).shape == (*size, 3)
        labels = cv2.imread(str(out / found['map']), cv2.IMREAD_UNCHANGED)
        assert labels.shape == size
        assert set(found['share_of_pixels']) <= {'background', 'disc', 'box', 'triangle', 'star'}
        assert sum(found['share_of_pixels'].values()) == pytest.approx(1, abs=1e-3)
    code = snippet(
        'mmseg.md', SEGMENTER, tmp_path / 'work/iter_6.pth', images / 'a.png', tmp_path / 'inferred'
    )
    output = run(sys.executable, '-c', f'{code}print("SUM", found.shape, int(found.sum()))', env=env)
    assert f'SUM (96, 96) {int(labels.sum())}' in output
    assert list((tmp_path / 'inferred/vis').iterdir())
    log = run(sys.executable, 'tools/test.py', SEGMENTER, tmp_path / 'work/iter_6.pth', '--tta', env=env)
    assert 'SegTTAModel' in log
    assert 'mIoU' in log
    # The weights alone: names are the config's, not those of Cityscapes.
    torch.save(torch.load(tmp_path / 'work/iter_6.pth')['state_dict'], tmp_path / 'bare.pth')
    (images / 'Broken.jpg').write_bytes(b'nothing')
    before = json.loads((out / 'predictions.json').read_text())
    output = predict(images, SEGMENTER, tmp_path / 'bare.pth', out, env=env, fails=True)
    assert '1 of 3 images could not be read' in output
    assert json.loads((out / 'predictions.json').read_text())[1:] == before
    first, *others = json.loads((out / 'predictions.json').read_text())
    assert first == {'image': str(images / 'Broken.jpg'), 'error': 'OpenCV does not read it'}
    assert all('map' in found for found in others)


def test_augmented_images_are_normalised_as_the_model_is(monkeypatch, shapes):
    """mmseg's bases have ImageNet's mean a second time, at the top level of a config."""
    monkeypatch.setenv('SHAPES', str(shapes))
    augment = runpy.run_path(str(ROOT / 'tools/test.py'))['augment']
    cfg = Config.fromfile(ROOT / SEGMENTER)
    assert cfg.data_preprocessor.mean != [1, 2, 3]
    cfg.model.data_preprocessor.update(mean=[1, 2, 3], std=[4, 5, 6])
    augment(cfg)
    init_default_scope('mmseg')
    # What Runner.build_model does.
    runner_given = dict(cfg.model)
    runner_given.setdefault('data_preprocessor', cfg.data_preprocessor)
    preprocessor = MODELS.build(runner_given).module.data_preprocessor
    assert preprocessor.mean.flatten().tolist() == [1, 2, 3]
    assert preprocessor.std.flatten().tolist() == [4, 5, 6]


def test_bad_calls_are_one_line(images, tmp_path, env):
    empty = tmp_path / 'empty'
    empty.mkdir()
    for where, config, checkpoint, message in (
        (tmp_path / 'nowhere', SEGMENTER, 'no.pth', 'expected an image or a folder of images'),
        (empty, SEGMENTER, 'no.pth', 'no image in'),
        (images, 'no.py', 'no.pth', "--config 'no.py' does not exist"),
        (images, SEGMENTER, 'no.pth', "--checkpoint 'no.pth' does not exist"),
    ):
        output = predict(where, config, checkpoint, tmp_path / 'out', env=env, fails=True)
        assert message in output
        assert len(output.strip().splitlines()) == 1
