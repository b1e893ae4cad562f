# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Whether the data of a config exists and has the labels that the config names."""

import json
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.fileio import list_dir_or_file

from .errors import ConfigError, first_on_machine

# Data sets of mmpretrain with one folder per split, and those that download what is missing.
SPLIT_IS_FOLDER = ('ImageNet', 'ImageNet21k')
DOWNLOADED = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')


def check_data(cfg: Config, *loaders: str) -> None:
    """Check that local data exists and that its labels are those of the config.

    Args:
        cfg: The config.
        loaders: Which of its dataloaders, such as ``'train_dataloader'``; their evaluators are checked as well.

    Raises:
        ConfigError: A missing file or folder; classes that are not those of the annotations, in their order; a folder
            without an image of the expected suffix. Only the first process of a machine looks into files.
    """
    datasets = [found for loader in loaders for found in datasets_of(cfg, loader)]
    places = [(key, f'{key}.data_root=FOLDER', dataset, _paths(dataset)) for key, dataset in datasets]
    for key in (f'{loader.replace("dataloader", "evaluator")}' for loader in loaders):
        for evaluator in as_list(cfg.get(key)):
            if isinstance(evaluator.get('ann_file'), str):
                file = f'{key}.ann_file'
                places.append((file, f'{file}=FILE', evaluator, [evaluator['ann_file']]))
    missing = [(key, path) for key, _, node, paths in places for path in missing_paths(paths, node)]
    if missing:
        key, path = missing[0]
        raise ConfigError(
            f'{path} does not exist ({key}, looked from {Path.cwd()}); link the data there, or say where '
            f'it is: --cfg-options {" ".join(option for _, option, *_ in places)}'
        )
    if first_on_machine():
        for key, dataset in datasets:
            _check_classes(key, dataset)
            _check_suffix(key, dataset)


def as_list(node: object) -> list:
    """A part of a config that may be one dict or a list of them, or missing."""
    return [node] if isinstance(node, dict) else list(node or [])


def type_name(node: dict) -> str:
    """The ``type`` of a part of a config without its library; configs in pure Python have the class itself."""
    kind = node.get('type')
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', '')


def datasets_of(cfg: Config, loader: str) -> list[tuple[str, ConfigDict]]:
    """The data sets of a dataloader, with their config keys."""
    return list(inner_datasets((cfg.get(loader) or {}).get('dataset') or {}, f'{loader}.dataset'))


def inner_datasets(dataset: ConfigDict, key: str) -> Iterator[tuple[str, ConfigDict]]:
    """The data sets inside wrappers such as RepeatDataset and ConcatDataset, with their config keys."""
    if 'dataset' in dataset:
        yield from inner_datasets(dataset['dataset'], f'{key}.dataset')
    elif 'datasets' in dataset:
        for i, inner in enumerate(dataset['datasets']):
            yield from inner_datasets(inner, f'{key}.datasets.{i}')
    else:
        yield key, dataset


def missing_paths(paths: list[str], node: ConfigDict) -> list[str]:
    """The local paths that do not exist; URLs and other storage (``backend_args``) are not looked at."""
    if node.get('backend_args'):
        return []
    return [path for path in paths if '://' not in path and not os.path.exists(path)]


def named_classes(dataset: ConfigDict) -> list[str] | None:
    """The names in ``metainfo.classes``, a list or a file with one a line; None if there are none."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    if isinstance(classes, str):
        return Path(classes).read_text().splitlines() if os.path.isfile(classes) else None
    return list(classes) if classes else None


def _paths(dataset: ConfigDict) -> list[str]:
    root, prefix, kind = dataset.get('data_root') or '', dataset.get('data_prefix') or {}, type_name(dataset)
    prefixes = prefix.values() if isinstance(prefix, dict) else [prefix]
    names = [name for name in (dataset.get('ann_file'), *prefixes) if isinstance(name, str) and name]
    if not names and root and not (kind in DOWNLOADED and dataset.get('download', True)):
        names = [(dataset.get('split') or '') if kind in SPLIT_IS_FOLDER else '']
    return [os.path.join(root, name) for name in names]


def _check_classes(key: str, dataset: ConfigDict) -> None:
    """Compare ``metainfo.classes`` with the categories of a COCO file.

    mmdet numbers labels in the order of the file's categories, whatever the order of ``metainfo.classes``.
    """
    given, file = (dataset.get('metainfo') or {}).get('classes'), dataset.get('ann_file')
    if type_name(dataset) != 'CocoDataset' or not given or not isinstance(file, str):
        return
    path = os.path.join(dataset.get('data_root') or '', file)
    if dataset.get('backend_args') or not os.path.isfile(path):
        return
    classes = named_classes(dataset)
    if classes is None:
        raise ConfigError(
            f'{key}.metainfo.classes={given!r}: expected a tuple of names, for one class ({given!r},)'
        )
    names = _categories(path, key)
    if unknown := [name for name in classes if name not in names]:
        raise ConfigError(
            f'{key}.metainfo.classes has {unknown[0]!r}, but the categories of {path} are {names}'
        )
    ordered = [name for name in names if name in classes]
    if ordered != classes:
        raise ConfigError(
            f'{key}.metainfo.classes={tuple(classes)}: expected {tuple(ordered)}, the order of the categories of '
            f'{path}, in which mmdet numbers the labels'
        )


@lru_cache
def _categories(path: str, key: str) -> list[str]:
    try:
        return [category['name'] for category in json.loads(Path(path).read_text())['categories']]
    except (ValueError, KeyError, TypeError) as error:
        what = f'no {error}' if isinstance(error, KeyError) else error
        raise ConfigError(
            f'{path} is not a complete COCO file ({what}; {key}.ann_file); it may be cut off'
        ) from error


def _check_suffix(key: str, dataset: ConfigDict) -> None:
    """Look for an image of the suffix in a folder; without one mmseg fails and names neither."""
    suffix = dataset.get('img_suffix') or ('.jpg' if type_name(dataset) == 'BaseSegDataset' else None)
    prefix = dataset.get('data_prefix')
    folder = prefix.get('img_path') if isinstance(prefix, dict) else None
    if not suffix or not folder or dataset.get('ann_file') or dataset.get('backend_args'):
        return
    folder = os.path.join(dataset.get('data_root') or '', folder)
    # As mmseg lists them, links to folders included.
    if os.path.isdir(folder) and not any(list_dir_or_file(folder, False, True, suffix, recursive=True)):
        raise ConfigError(f'{folder} has no file that ends in {suffix!r} ({key}.img_suffix)')
