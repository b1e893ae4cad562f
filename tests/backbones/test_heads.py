# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Every head that has a config: a training step and a prediction on a small plain ViT, on the CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

ROOT = Path(__file__).resolve().parents[2]
HEADS = sorted(
    str(path.relative_to(ROOT))
    for folder in ('coco', 'ade20k', 'cityscapes')
    for path in (ROOT / 'configs' / folder).glob('*_hpvit-b-mae_*.py')
    if 'lsj-100e' not in path.name
)
IMAGES, SIZE = 2, 64


def shrink(node) -> None:
    """Make a model small: widths of ViT-B become those of the small one, fewer queries, plain BN."""
    if isinstance(node, list):
        for item in node:
            shrink(item)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key in ('in_channels', 'channels') and value == 768:
            node[key] = 48
        elif key == 'in_channels' and isinstance(value, list | tuple) and set(value) == {768}:
            node[key] = [48] * len(value)
        elif key == 'num_queries':
            node[key] = 20
        elif key == 'type' and value == 'SyncBN':
            node[key] = 'BN'
        else:
            shrink(value)


def small_model(path: str) -> torch.nn.Module:
    cfg = Config.fromfile(ROOT / path)
    init_default_scope(cfg.default_scope)
    shrink(cfg.model)
    cfg.model.backbone.update(plain='tiny_patch16', init_cfg=None, drop_path_rate=0.0)
    cfg.model.data_preprocessor.pop('batch_augments', None)
    if 'size' in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = (SIZE, SIZE)
    if cfg.default_scope == 'mmseg':
        cfg.model.test_cfg = ConfigDict(mode='whole')
    model = MODELS.build(cfg.model)
    model.init_weights()  # some heads leave parameters as the memory was
    return model


def detection_sample(objects: int) -> DetDataSample:
    sample = DetDataSample(metainfo=_meta())
    corners = torch.rand(objects, 2) * 30
    boxes = torch.cat([corners, corners + 10 + 20 * torch.rand(objects, 2)], dim=1)
    masks = np.zeros((objects, SIZE, SIZE), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    labels = torch.randint(80, (objects,))
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, masks=BitmapMasks(masks, SIZE, SIZE))
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    return sample


def segmentation_sample() -> SegDataSample:
    sample = SegDataSample(metainfo=_meta())
    sample.gt_sem_seg = PixelData(data=torch.randint(19, (1, SIZE, SIZE)))
    return sample


def _meta() -> dict:
    size = (SIZE, SIZE)
    return dict(
        img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0)
    )


@pytest.mark.parametrize('path', HEADS, ids=[Path(p).stem for p in HEADS])
def test_trains_and_predicts(path):
    model = small_model(path).train()
    segments = path.startswith(('configs/ade20k', 'configs/cityscapes'))
    # One of the images has no objects.
    samples = [segmentation_sample() if segments else detection_sample(objects) for objects in (3, 0)]
    images = [torch.randint(256, (3, SIZE, SIZE), dtype=torch.uint8) for _ in samples]
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)
    losses = model(**data, mode='loss')
    loss, _ = model.parse_losses(losses)
    assert loss.isfinite()
    loss.backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert unused == []
    model.eval()
    with torch.no_grad():
        data = model.data_preprocessor(dict(inputs=images, data_samples=samples), training=False)
        results = model(**data, mode='predict')
    assert len(results) == IMAGES
    if segments:
        assert results[0].pred_sem_seg.data.shape == (1, SIZE, SIZE)
    else:
        assert len(results[0].pred_instances.bboxes) == len(results[0].pred_instances.scores)
