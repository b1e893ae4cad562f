# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Configs of the few parts that a check looks at."""

from mmengine.config import Config

CATS_AND_DOGS = dict(dataset=dict(type='CocoDataset', metainfo=dict(classes=('cat', 'dog'))))


def config(**options) -> Config:
    return Config(
        dict(default_scope='mmdet', model=dict(type='MaskRCNN'), train_dataloader=CATS_AND_DOGS) | options
    )
