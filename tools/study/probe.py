# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""What a choice of depths or attention costs in accuracy, in minutes: a linear layer on frozen features.

    python tools/study/probe.py DATA WEIGHTS hpvit:vit_tiny_patch16_224 plain:vit_tiny_patch16_224 --size 768x1024

DATA is a data set of one of two kinds. Either images/SPLIT (.jpg), annotations/SPLIT of the same names (.png, 255
is ignored) and classes.json with the names as "classes"; or images/SPLIT and annotations/instances_SPLIT.json of
COCO's format, whose instances are painted over each other (one category: its inside and its boundary are two
classes). The splits are --splits.

A backbone is hpvit:NAME or two-scale:NAME with options as :name=value, or plain:NAME, which is timm's own model with
levels after each quarter of its blocks. A plain one takes its levels after=(3,6,9,12) blocks and may enlarge the image
before by upsample=2.

Each level of the pyramid is normalised by its out norm, read between its tokens, and one linear layer on all of them
is trained per seed, on another four fifths of the training images. Rows that are in --out already are not run again.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

import cv2
import numpy as np
import timm
import torch
import torch.nn.functional as F
from mmseg.evaluation import IoUMetric
from torch import Tensor, nn
from tqdm import tqdm

# A clone that is not installed works too.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.counting import total_flops
from bench.frozen import frozen
from bench.labels import IGNORED, Instances, LabelImages, open_split
from bench.models import parse_spec

import mmhpvit


@dataclass(frozen=True)
class Protocol:
    """What is probed and how; a result belongs to a backbone and one of these.

    Attributes:
        data: Folder of the data set.
        splits: For training the heads and for testing.
        suffix: Which annotations of COCO's format: what follows the split in their name.
        size: Height and width of landscape images; upright ones are turned.
        train: Most training images.
        test: Most test images.
        seeds: How many heads are trained.
        pixels: Random labelled pixels of each training image.
        steps: Of the training of a head.
        batch: Pixels a step.
    """

    data: Path
    splits: tuple[str, str] = ('train', 'test')
    suffix: str = ''
    size: tuple[int, int] = (352, 480)
    train: int = 90
    test: int = 60
    seeds: int = 3
    pixels: int = 4000
    steps: int = 1500
    batch: int = 2048

    def key(self, backbone: str, weights: str) -> dict:
        """What tells a result from others."""
        size = 'x'.join(map(str, self.size))
        own = asdict(self) | dict(data=self.data.name, size=size, splits=list(self.splits))
        return dict(backbone=backbone, weights=Path(weights).name, **own)


class Images:
    """Images at one size, upright ones turned; normalised for a plain ViT as timm says, labels at their own size."""

    def __init__(self, data: LabelImages | Instances, count: int, size: tuple[int, int], name: str) -> None:
        self.data = data
        # Frames of a film that follow each other say the same.
        chosen = np.linspace(0, len(data.paths) - 1, min(count, len(data.paths))).round().astype(int)
        self.paths = [data.paths[i] for i in chosen]
        self.size = size
        config = timm.get_pretrained_cfg(name)
        self.mean, self.std = (255 * torch.tensor(v).reshape(1, 3, 1, 1) for v in (config.mean, config.std))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path = self.paths[index]
        image = cv2.imread(str(path))
        upright = image.shape[0] > image.shape[1]
        height, width = sorted(self.size, reverse=upright)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        image = torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).permute(2, 0, 1)[None].float()
        label = self.data.label(path)
        return (image - self.mean) / self.std, torch.from_numpy(label).long()


def features_at(levels: list[Tensor], places: Tensor) -> Tensor:
    """All levels of one image read at places (n, 2) in [-1, 1], bilinearly: (n, channels of all levels)."""
    grid = places[None, None]
    options = dict(mode='bilinear', padding_mode='border', align_corners=False)
    return torch.cat([F.grid_sample(level, grid, **options)[0, :, 0].T for level in levels], dim=1)


@torch.no_grad()
def sample(model: nn.Module, images: Images, pixels: int, progress) -> tuple[Tensor, Tensor]:
    """Features (images, pixels, C) in half precision and labels (images, pixels) of random labelled pixels."""
    generator = torch.Generator().manual_seed(0)
    features, labels = [], []
    for image, label in progress(images):
        ys, xs = torch.nonzero(label != IGNORED, as_tuple=True)
        chosen = torch.randint(len(ys), (pixels,), generator=generator)
        ys, xs = ys[chosen], xs[chosen]
        h, w = label.shape
        places = torch.stack([(2 * xs + 1) / w - 1, (2 * ys + 1) / h - 1], dim=1)
        features.append(features_at(model(image), places).half())
        labels.append(label[ys, xs])
    return torch.stack(features), torch.stack(labels)


def train_head(
    features: Tensor, labels: Tensor, classes: int, seed: int, steps: int, batch: int
) -> nn.Linear:
    """A linear layer by AdamW with a cosine schedule; features are standardised, which is folded into it."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randperm(len(features), generator=generator)[: max(1, 4 * len(features) // 5)]
    features, labels = features[kept].flatten(0, 1), labels[kept].flatten()
    part = features[:: max(1, len(features) // 50000)].float()
    centre, spread = part.mean(0), part.std(0) + 1e-6
    head = nn.Linear(features.shape[1], classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(features), (batch,), generator=generator)
        loss = F.cross_entropy(head((features[chosen].float() - centre) / spread), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        head.weight /= spread
        head.bias -= head.weight @ centre
    return head


@torch.no_grad()
def evaluate(model: nn.Module, heads: list[nn.Linear], images: Images, classes: int, progress) -> np.ndarray:
    """IoU of each class in percent, (heads, classes), by mmseg's own count."""
    areas = [[0, 0, 0, 0] for _ in heads]
    for image, label in progress(images):
        levels = model(image)
        widths = [level.shape[1] for level in levels]
        for i, head in enumerate(heads):
            # A linear layer and interpolation may change places: each level is mapped at its own resolution.
            parts = zip(levels, head.weight.split(widths, dim=1), strict=True)
            maps = [F.conv2d(level, weight[:, :, None, None]) for level, weight in parts]
            sizes = dict(size=label.shape, mode='bilinear', align_corners=False)
            scores = sum(F.interpolate(m, **sizes) for m in maps) + head.bias[:, None, None]
            found = IoUMetric.intersect_and_union(scores[0].argmax(0), label, classes, IGNORED)
            areas[i] = [total + one for total, one in zip(areas[i], found, strict=True)]
    return np.stack([100 * IoUMetric.total_area_to_metrics(*a)['IoU'] for a in areas])


def table(rows: list[dict]) -> str:
    """The rows in Markdown, mean and standard deviation over seeds."""
    lines = ['| backbone | size | GFLOP | mIoU |', '| --- | --- | --- | --- |']
    for row in rows:
        spread = f' ± {stdev(row["miou"]):.1f}' if len(row['miou']) > 1 else ''
        lines.append(
            f'| {row["backbone"]} | {row["size"]} | {row["flops"] / 1e9:.1f} | {mean(row["miou"]):.1f}{spread} |'
        )
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('data', type=Path)
    parser.add_argument('weights', help='file of the plain ViT')
    parser.add_argument('backbones', nargs='+')
    parser.add_argument(
        '--size', default='352x480', help='HEIGHTxWIDTH of landscape images; default: %(default)s'
    )
    parser.add_argument('--train', type=int, default=90, help='training images; default: %(default)s')
    parser.add_argument('--test', type=int, default=60, help='test images; default: %(default)s')
    parser.add_argument('--seeds', type=int, default=3, help='heads that are trained; default: %(default)s')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/probe.jsonl'), help='default: %(default)s'
    )
    parser.add_argument('--splits', default='train,test', help='to train and to test; default: %(default)s')
    parser.add_argument(
        '--suffix', default='', help='annotations/instances_SPLIT SUFFIX .json; default: none'
    )
    args = parser.parse_args()
    if not Path(args.weights).is_file():
        sys.exit(f'error: weights {args.weights!r} do not exist')
    height, width = (int(side) for side in args.size.split('x'))
    splits = tuple(args.splits.split(','))
    protocol = Protocol(args.data, splits, args.suffix, (height, width), args.train, args.test, args.seeds)
    try:
        rows = [probed(spec, args.weights, protocol, args.out) for spec in args.backbones]
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'error: {error}')
    print(table(rows))


def probed(spec: str, weights: str, protocol: Protocol, out: Path) -> dict:
    """The result for a backbone out of a file of JSON lines; what is not there yet is measured and added."""
    out.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    key = protocol.key(spec, weights)
    row = next((r for r in done if key.items() <= r.items()), None)
    if row is None:
        start = time.time()
        versions = {package.__name__: package.__version__ for package in (torch, timm, mmhpvit)}
        row = key | run(spec, weights, protocol) | versions
        row['minutes'] = round((time.time() - start) / 60, 2)
        with out.open('a') as file:
            file.write(json.dumps(row) + '\n')
    return row


def run(spec: str, weights: str, protocol: Protocol) -> dict:
    """Probe one backbone: operations of a forward pass, mIoU and IoU of each class for every seed."""

    def progress(images):
        return tqdm(images, desc=spec[-40:], disable=not sys.stderr.isatty())

    torch.manual_seed(0)
    model, name = frozen(spec, weights), parse_spec(spec)[1]
    train, test = (open_split(protocol.data, split, protocol.suffix) for split in protocol.splits)
    classes = len(train.classes)
    images = Images(train, protocol.train, protocol.size, name)
    features, labels = sample(model, images, protocol.pixels, progress)
    how = dict(steps=protocol.steps, batch=protocol.batch)
    heads = [train_head(features, labels, classes, seed, **how) for seed in range(protocol.seeds)]
    iou = evaluate(model, heads, Images(test, protocol.test, protocol.size, name), classes, progress)
    by_class = {name: [round(float(v), 2) for v in iou[:, i]] for i, name in enumerate(train.classes)}
    return dict(
        flops=total_flops(model, protocol.size),
        miou=[float(v) for v in np.nanmean(iou, axis=1)],
        iou=by_class,
    )


if __name__ == '__main__':
    main()
