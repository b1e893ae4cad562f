# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import json
import shutil

import pytest
from mmengine.config import Config
from small_configs import config

from mmhpvit.preflight import data as data_checks
from mmhpvit.preflight.data import check_data
from mmhpvit.preflight.errors import ConfigError


@pytest.mark.parametrize(
    ('names', 'classes', 'message'),
    [
        (['dog', 'cat', 'cow'], ('dog', 'cow'), None),
        (['dog', 'cat', 'cow'], ('cow', 'dog'), r"expected \('dog', 'cow'\), the order of the categories"),
        (
            ['dog', 'cat', 'cow'],
            ('dog', 'cats'),
            r"has 'cats', but the categories of .* are \['dog', 'cat', 'cow'\]",
        ),
        (['dog'], 'dog', r"expected a tuple of names, for one class \('dog',\)"),
    ],
)
def test_classes_are_those_of_the_file_in_its_order(names, classes, message, tmp_path):
    (tmp_path / 'a.json').write_text(json.dumps(dict(categories=[dict(name=name) for name in names])))
    own = dict(type='CocoDataset', data_root=str(tmp_path), ann_file='a.json', metainfo=dict(classes=classes))
    cfg = Config(dict(train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=own))))
    if message is None:
        check_data(cfg, 'train_dataloader')
        return
    with pytest.raises(ConfigError, match=message):
        check_data(cfg, 'train_dataloader')


def test_classes_in_a_file_and_data_of_other_kinds_pass(tmp_path):
    (tmp_path / 'a.json').write_text(json.dumps(dict(categories=[dict(name='dog'), dict(name='cat')])))
    (tmp_path / 'names.txt').write_text('dog\ncat\n')
    root = dict(data_root=str(tmp_path))
    named = dict(
        type='CocoDataset', ann_file='a.json', metainfo=dict(classes=str(tmp_path / 'names.txt')), **root
    )
    (tmp_path / 'train').mkdir()
    folder = dict(type='CustomDataset', data_prefix='train', **root)
    several = dict(
        type='ConcatDataset', datasets=[named, folder, dict(type='Own', ann_file=['a.json'], **root)]
    )
    check_data(Config(dict(train_dataloader=dict(dataset=several))), 'train_dataloader')


@pytest.mark.parametrize(
    ('dataset', 'missing'),
    [
        (dict(type='ImageNet', split='train'), 'root/train'),
        (dict(type='mmpretrain.ImageNet', split='val'), 'root/val'),
        (dict(type=type('ImageNet', (), {}), split='train'), 'root/train'),
        (dict(type='CUB', split='train'), None),
        (dict(type='CIFAR10', split='train', download=False), None),
        (dict(type='CUB', data_root='elsewhere'), 'elsewhere'),
        (dict(type='CIFAR10', data_root='elsewhere', download=False), 'elsewhere'),
        (dict(type='CIFAR10', data_root='elsewhere'), None),
    ],
)
def test_data_that_is_known_by_its_split_is_looked_for_where_it_is(dataset, missing, tmp_path):
    (tmp_path / 'root').mkdir()
    dataset['data_root'] = str(tmp_path / dataset.get('data_root', 'root'))
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
    if missing is None:
        check_data(cfg, 'train_dataloader')
        return
    with pytest.raises(ConfigError, match=f'{tmp_path / missing}/? does not exist'):
        check_data(cfg, 'train_dataloader')


def test_folder_without_an_image_of_the_suffix_is_said(tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere/a.png').touch()
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/deeper').symlink_to(tmp_path / 'elsewhere')
    own = dict(type='BaseSegDataset', data_root=str(tmp_path), data_prefix=dict(img_path='images'))
    with pytest.raises(ConfigError, match=r"images has no file that ends in '.jpg'"):
        check_data(Config(dict(train_dataloader=dict(dataset=own))), 'train_dataloader')
    check_data(Config(dict(train_dataloader=dict(dataset=own | dict(img_suffix='.png')))), 'train_dataloader')


def test_annotations_that_are_cut_off_are_named(tmp_path, shapes):
    shutil.copytree(shapes, tmp_path / 'data')
    (path,) = (tmp_path / 'data').rglob('*train*.json')
    dataset = dict(type='CocoDataset', ann_file=str(path), metainfo=dict(classes=('star',)))
    for text, message in (
        (path.read_text()[:-90], r'\(.*line 1'),
        (json.dumps(dict(images=[])), "no 'categories'"),
    ):
        path.write_text(text)
        data_checks._categories.cache_clear()
        with pytest.raises(ConfigError, match=f'{path} is not a complete COCO file.*{message}'):
            check_data(config(train_dataloader=dict(dataset=dataset)), 'train_dataloader')


def test_what_is_not_here_is_named_and_other_storage_is_left_to_its_reader(tmp_path):
    own = dict(
        type='CocoDataset', data_root=str(tmp_path), ann_file='a.json', metainfo=dict(classes=('cat',))
    )
    kinds = [own, dict(type='BaseSegDataset', data_root=str(tmp_path), data_prefix=dict(img_path='images'))]
    for kind in kinds:
        stored = kind | dict(backend_args=dict(backend='petrel'))
        loader = dict(train_dataloader=dict(dataset=stored))
        check_data(Config(loader), 'train_dataloader')
        loader['train_dataloader']['dataset'] = kind
        with pytest.raises(
            ConfigError, match=r'does not exist .*--cfg-options train_dataloader\.dataset\.data_root'
        ):
            check_data(Config(loader), 'train_dataloader')
    # There by chance under the same path, and of another kind: only the storage's reader knows.
    (tmp_path / 'a.json').write_text(json.dumps(dict(categories=[dict(name='dog')])))
    (tmp_path / 'images').mkdir()
    for kind in kinds:
        stored = kind | dict(backend_args=dict(backend='petrel'))
        check_data(Config(dict(train_dataloader=dict(dataset=stored))), 'train_dataloader')


def test_annotations_of_other_kinds_and_without_named_classes_pass(tmp_path):
    (tmp_path / 'a.json').write_text(json.dumps(dict(categories=[dict(name='dog')])))
    named = dict(data_root=str(tmp_path), metainfo=dict(classes=('cat',)))
    for own in (
        dict(named, type='OwnDataset', ann_file='a.json'),
        dict(type='CocoDataset', data_root=str(tmp_path), ann_file='a.json'),
        dict(named, type='CocoDataset', ann_file=['a.json']),
        dict(named, type='CocoDataset'),
    ):
        check_data(Config(dict(train_dataloader=dict(dataset=own))), 'train_dataloader')
