# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Labels of pixels, out of a folder of label images or out of COCO's instances."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import numpy as np
from pycocotools.coco import COCO

IGNORED = 255


class LabelImages:
    """``images/SPLIT/*.jpg`` with ``annotations/SPLIT/*.png``, and ``classes.json`` with their names.

    Args:
        folder: The data set.
        split: Such as ``'train'``.

    Attributes:
        classes: Names by label.
        paths: Its images.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.classes = json.loads((folder / 'classes.json').read_text())['classes']
        self.paths = sorted((folder / 'images' / split).glob('*.jpg'))
        self.folder = folder / 'annotations' / split

    def label(self, path: Path) -> np.ndarray:
        """The label of each pixel of an image, (H, W); 255 is to be ignored."""
        return cv2.imread(str(self.folder / f'{path.stem}.png'), cv2.IMREAD_UNCHANGED)


class Instances:
    """``annotations/instances_SPLIT.json`` of COCO's format, painted over each other from large to small.

    With several categories each is a class beside the background. One category has two: what lies inside of an
    object, and its rim of one pixel, which is what parts objects that touch. Crowds are ignored.

    Args:
        folder: The data set, with ``images/SPLIT``.
        split: Such as ``'train'``.
        suffix: What follows SPLIT in the name of the annotations, such as ``'_super'``.
    """

    def __init__(self, folder: Path, split: str, suffix: str = '') -> None:
        with redirect_stdout(io.StringIO()):
            self.coco = COCO(str(folder / 'annotations' / f'instances_{split}{suffix}.json'))
        names = [c['name'] for c in self.coco.dataset['categories']]
        self.label_of = {c['id']: i for i, c in enumerate(self.coco.dataset['categories'], 1)}
        self.classes = ['background', *(names if len(names) > 1 else [names[0], 'boundary'])]
        self.images = {folder / 'images' / split / i['file_name']: i for i in self.coco.dataset['images']}
        self.paths = sorted(self.images)

    def label(self, path: Path) -> np.ndarray:
        """The label of each pixel of an image, (H, W); 255 is to be ignored."""
        image = self.images[path]
        label = np.zeros((image['height'], image['width']), np.uint8)
        found = self.coco.loadAnns(self.coco.getAnnIds(image['id']))
        for annotation in sorted(found, key=lambda a: -a['area']):
            mask = self.coco.annToMask(annotation)
            label[mask > 0] = IGNORED if annotation['iscrowd'] else self.label_of[annotation['category_id']]
            if len(self.label_of) == 1 and not annotation['iscrowd']:
                inside = cv2.erode(
                    mask, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0
                )
                label[(mask > 0) & (inside == 0)] = 2
        return label


def open_split(folder: Path, split: str, suffix: str = '') -> LabelImages | Instances:
    """A split of a data set of either kind.

    Raises:
        FileNotFoundError: There is neither, or the split has no images.
    """
    if (folder / 'classes.json').is_file():
        data = LabelImages(folder, split)
    else:
        instances = folder / 'annotations' / f'instances_{split}{suffix}.json'
        if not instances.is_file():
            raise FileNotFoundError(f'neither {folder}/classes.json nor {instances} exists')
        data = Instances(folder, split, suffix)
    if not data.paths:
        raise FileNotFoundError(f'{folder} has no images of the split {split!r}')
    return data
