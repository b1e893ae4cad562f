# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Whether the data that a config names is there and fits."""

import json
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.fileio import list_dir_or_file

from .errors import stop

# As torchrun, srun and mpirun tell it.
LOCAL_RANKS = ('SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK', 'LOCAL_RANK')
# mmpretrain's data sets that have a folder of the split's name, and those that fetch what is not there.
SPLIT_IS_FOLDER = ('ImageNet', 'ImageNet21k')
DOWNLOADED = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')


def check_data(cfg: Config, *loaders: str) -> None:
    """Stop where a local annotation file or folder is not there or does not fit, before anything is built."""
    missing, options, found = [], [], []
    for loader in filter(cfg.get, loaders):
        for key, dataset in inner_datasets(cfg[loader].get('dataset', {}), f'{loader}.dataset'):
            root = dataset.get('data_root') or ''
            prefix = dataset.get('data_prefix') or {}
            prefixes = prefix.values() if isinstance(prefix, dict) else [prefix]
            paths = [dataset.get('ann_file'), *prefixes]
            paths = [os.path.join(root, path) for path in paths if isinstance(path, str) and path]
            paths = paths or _paths_of_split(dataset)
            missing += [(f'{key}', path) for path in missing_paths(paths, dataset)]
            options.append(f'{key}.data_root=FOLDER')
            found.append((key, dataset))
        key = loader.replace('dataloader', 'evaluator')
        evaluators = cfg.get(key) or []
        for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
            path = evaluator.get('ann_file')
            if isinstance(path, str):
                missing += [(f'{key}.ann_file', path) for path in missing_paths([path], evaluator)]
                options.append(f'{key}.ann_file=FILE')
    if missing:
        key, path = missing[0]
        stop(
            f'{path} does not exist ({key}, looked from {Path.cwd()}); link the data there, or say where '
            f'it is: --cfg-options {" ".join(options)}'
        )
    if first_of_the_machine():
        for key, dataset in found:
            _check_classes(key, dataset)
            _check_suffix(key, dataset)


def _paths_of_split(dataset: ConfigDict) -> list[str]:
    """What is to be there of a data set that names neither files nor folders: it knows them by its split."""
    kind, root = dataset.get('type'), dataset.get('data_root')
    kind = kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', None)
    if not root or (kind in DOWNLOADED and dataset.get('download', True)):
        return []
    return [os.path.join(root, (dataset.get('split') or '') if kind in SPLIT_IS_FOLDER else '')]


def missing_paths(paths: list[str], node: ConfigDict) -> list[str]:
    """The paths that are local and not there; storage of another kind is left to its own reader."""
    if node.get('backend_args'):
        return []
    return [path for path in paths if '://' not in path and not os.path.exists(path)]


def first_of_the_machine() -> bool:
    """Whether this process looks into files: one a machine, so that each says what is wrong there."""
    return int(next((os.environ[n] for n in LOCAL_RANKS if n in os.environ), 0)) == 0


def train_datasets(cfg: Config) -> list[tuple[str, ConfigDict]]:
    """The data sets that are trained on, and where the config has them."""
    loader = cfg.get('train_dataloader') or {}
    return list(inner_datasets(loader.get('dataset') or {}, 'train_dataloader.dataset'))


def named_classes(dataset: ConfigDict) -> list[str] | None:
    """The names in ``metainfo.classes``, which may be those of a file's lines; None where there are none."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    if isinstance(classes, str):
        return Path(classes).read_text().splitlines() if os.path.isfile(classes) else None
    return list(classes) if classes else None


def _check_classes(key: str, dataset: ConfigDict) -> None:
    """Stop where the config's classes are not those of a file in COCO's format, in its order.

    mmdet gives labels in the order of the file's categories, whatever the order of ``metainfo.classes``.
    """
    classes = (dataset.get('metainfo') or {}).get('classes')
    file = dataset.get('ann_file')
    if (
        dataset.type != 'CocoDataset'
        or not classes
        or not isinstance(file, str)
        or dataset.get('backend_args')
    ):
        return
    path = os.path.join(dataset.get('data_root') or '', file)
    if not os.path.isfile(path):
        return
    given, classes = classes, named_classes(dataset)
    if classes is None:
        stop(f'{key}.metainfo.classes={given!r}: expected a tuple of names, for one class ({given!r},)')
    names = _categories(path, key)
    unknown = [name for name in classes if name not in names]
    if unknown:
        stop(f'{key}.metainfo.classes has {unknown[0]!r}, but the categories of {path} are {names}')
    ordered = [name for name in names if name in classes]
    if ordered != list(classes):
        stop(
            f'{key}.metainfo.classes={tuple(classes)}: expected {tuple(ordered)}, the order of the categories of '
            f'{path}, in which mmdet gives labels'
        )


def _check_suffix(key: str, dataset: ConfigDict) -> None:
    """Stop where a folder of mmseg's has no image of the suffix that it looks for."""
    suffix = dataset.get('img_suffix') or ('.jpg' if dataset.type == 'BaseSegDataset' else None)
    prefix = dataset.get('data_prefix')
    folder = prefix.get('img_path') if isinstance(prefix, dict) else None
    if not suffix or not folder or dataset.get('ann_file') or dataset.get('backend_args'):
        return
    folder = os.path.join(dataset.get('data_root') or '', folder)
    if os.path.isdir(folder):
        images = list_dir_or_file(
            folder, list_dir=False, suffix=suffix, recursive=True
        )  # as mmseg looks for them
        if next(iter(images), None) is None:
            stop(f'{folder} has no file that ends in {suffix!r} ({key}.img_suffix)')


@lru_cache
def _categories(path: str, key: str) -> list[str]:
    """Names of the categories of a file in COCO's format, in its order."""
    try:
        return [category['name'] for category in json.loads(Path(path).read_text())['categories']]
    except (ValueError, KeyError, TypeError) as error:
        what = f'no {error}' if isinstance(error, KeyError) else error
        stop(f"{path} is no whole file in COCO's format ({what}; {key}.ann_file); it may be cut off")


def inner_datasets(dataset: ConfigDict, key: str) -> Iterator[tuple[str, ConfigDict]]:
    """The datasets inside wrappers such as RepeatDataset and ConcatDataset, with their config keys."""
    if 'dataset' in dataset:
        yield from inner_datasets(dataset['dataset'], f'{key}.dataset')
    elif 'datasets' in dataset:
        for i, inner in enumerate(dataset['datasets']):
            yield from inner_datasets(inner, f'{key}.datasets.{i}')
    else:
        yield key, dataset
