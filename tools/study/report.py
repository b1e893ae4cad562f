# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Tables and plot of the study's results, written into a page between its markers."""

import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from bench.counting import total_flops
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.registry import MODELS

import study.backbones  # noqa: F401 -- registers a backbone
from study.bootstrap import Difference, compare
from study.finetune import BACKBONES, CUSTOM_KEYS, backbone_of, check_row

DATA = {'camvid': 'CamVid', 'nuclei': 'nuclei', 'coco_mini': 'COCO-mini', 'caltech101': 'Caltech-101'}
# What is reported of a training: its name among the metrics, on the page, and what makes it percent.
METRIC = {
    'camvid': ('mIoU', 'mIoU', 1),
    'nuclei': ('coco/segm_mAP', 'mask AP', 100),
    'coco_mini': ('coco/person_precision', 'mask AP of persons', 100),
    'caltech101': ('accuracy/top1', 'top-1', 1),
}
# Only results of one column are to be compared. A row of tools/study/run.py has no budget of its own.
SOURCES = {'cpu': 'short, CPU, original images', 'short': 'short, H200, JPEG', 'long': 'long, H200, JPEG'}
PANELS = [('camvid', 'long'), ('camvid', 'short'), ('nuclei', 'short'), ('nuclei', 'cpu')]
COLORS = {'hpvit': 'tab:blue', 'light': 'tab:blue', 'two-scale': 'tab:green', 'plain': 'tab:orange'}
# What is told apart by the images of CamVid, beside each backbone from the plain ViT: the two and the budget.
PAIRS = [
    ('hpvit-2280-spacing2-avg', other, 'long')
    for other in ('hpvit-2280-spacing2-pick', 'hpvit-spacing2-fast-pools', 'two-scale')
] + [('hpvit-spacing2', 'hpvit-2280-spacing2-avg', 'short')]
# Task, source, plain ViT, TwoScaleViT and HPViT as they answer the question.
ANSWER = [
    ('camvid', 'long', 'plain-after', 'two-scale', 'hpvit-2280-spacing2-avg'),
    ('nuclei', 'short', 'plain-after', 'two-scale', 'hpvit-spacing2'),
    ('caltech101', 'short', 'plain', 'two-scale', 'hpvit'),
    ('coco_mini', 'cpu', 'plain-after', 'two-scale', 'hpvit-spacing2-fast-pools'),
]
# Task, source, plain ViT and HPViT with the old and the new rates of its poolings.
POOL_RATES = [
    ('caltech101', 'short', 'plain', 'hpvit-fast-pools', 'hpvit'),
    ('camvid', 'short', 'plain-after', 'hpvit-spacing2-fast-pools', 'hpvit-spacing2'),
]


@dataclass
class Results:
    """What the study has found.

    Attributes:
        frozen: Rows of linear heads.
        trained: Rows of trainings on any machine, by task, backbone and source, in the order of the study.
        images: Intersections and unions of each test image of CamVid, (images, 2, classes), by source and training.
    """

    frozen: list[dict]
    trained: dict[tuple[str, str, str], list[dict]]
    images: dict[str, np.ndarray] = field(default_factory=dict)

    def of(self, task: str, backbone: str, source: str) -> list[float]:
        """The task's metric of each seed, in percent; empty where it was not run."""
        name, _, scale = METRIC[task]
        return [scale * row['metrics'][name] for row in self.trained.get((task, backbone, source), [])]

    def difference(self, backbone: str, other: str, source: str, block: int = 1) -> Difference | None:
        """A backbone's mIoU on CamVid less another's; None where the images of one were not kept."""
        ours, others = (
            [
                areas
                for run, areas in sorted(self.images.items())
                if run.startswith(f'{source}/camvid/{name}/')
            ]
            for name in (backbone, other)
        )
        return compare(ours, others, block=block) if ours and others else None


def read_results(folder: Path) -> Results:
    """Read the results in a folder; a file that is not there has none."""
    rows = [row | dict(metrics=row['curve'][-1], fold='test') for row in rows_of(folder / 'long.jsonl')]
    images = folder / 'long-images.json.gz'
    areas = json.loads(gzip.decompress(images.read_bytes())) if images.exists() else {}
    return Results(
        rows_of(folder / 'frozen.jsonl'),
        by_training(rows_of(folder / 'finetune.jsonl') + rows),
        {run: np.array(found) for run, found in areas.items()},
    )


def rows_of(path: Path) -> list[dict]:
    """The lines of a file of results."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def by_training(rows: list[dict]) -> dict[tuple[str, str, str], list[dict]]:
    """Results that are reported, by task, backbone and source, in the order of the study and of the seeds.

    Raises:
        ValueError: A row of other options or another budget than the study has now, of another rate or device than the
            other seeds, or there twice.
    """
    groups = {(task, name, source): [] for task in DATA for name in BACKBONES for source in SOURCES}
    for row in sorted((row for row in rows if row['fold'] == 'test'), key=lambda row: row['seed']):
        group = groups.get((row['task'], row['backbone'], row.get('budget', 'cpu')))
        if group is None or row['seed'] in [other['seed'] for other in group]:
            raise ValueError(f'{row["run"]} is none of the study or there twice; take it out')
        check_row(row)
        for key in ('rate', 'device'):
            if any(row.get(key) != other.get(key) for other in group):
                raise ValueError(
                    f'{row["run"]} has another {key} than the other seeds; take it out and run it again'
                )
        group.append(row)
    return {key: found for key, found in groups.items() if found}


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f'{mean(values):.1f}' + (f' ± {stdev(values):.1f}' if len(values) > 1 else '')


def signed(values: Sequence[float]) -> str:
    """Mean and standard deviation of differences."""
    return f'{"+" if mean(values) >= 0 else ""}{spread(list(values))}'


def markdown(titles: list[str], rows: list[list[str]]) -> str:
    """A table; without rows its titles alone."""
    lines = [titles, ['---'] * len(titles), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def verdict_table(results: Results) -> str:
    """Differences on CamVid whose test images were kept, by :func:`study.bootstrap.compare`."""
    wanted = [(n, 'plain-after', s) for s in ('long', 'short') for n in BACKBONES if n != 'plain-after']
    rows = []
    for name, other, source in wanted + PAIRS:
        if found := results.difference(name, other, source):
            rows.append([f'`{name}`', f'`{other}`', source, *_told(found), found.verdict])
    return markdown(['backbone', 'against', 'budget', 'difference', '95 % interval', 'verdict'], rows)


def answer_table(results: Results) -> str:
    """The plain ViT, TwoScaleViT and HPViT on each data set."""
    titles = ['data', 'plain ViT', '`TwoScaleViT`', '`HPViT`', '`HPViT` less plain ViT', '95 % interval']
    return markdown(titles, [_three(results, *row, than=0) for row in ANSWER])


def rate_table(results: Results) -> str:
    """HPViT with the old and the new learning rates of its poolings."""
    titles = ['data', 'plain ViT', 'old rates', 'new rates', 'new less old', '95 % interval']
    return markdown(titles, [_three(results, *row, than=1) for row in POOL_RATES])


def _three(results: Results, task: str, source: str, *names: str, than: int) -> list[str]:
    """Three backbones on one data set, and the last of them less another, seed by seed."""
    values = [results.of(task, name, source) for name in names]
    title = f'{DATA[task]}, {METRIC[task][1]} ({SOURCES[source]})'
    cells = [title, *(spread(found) if found else '' for found in values), '', '']
    if values[-1] and values[than]:
        cells[4] = signed(_paired(values[-1], values[than]))
    if task == 'camvid' and (found := results.difference(names[-1], names[than], source)):
        cells[5] = _told(found)[1]
    return cells


def _told(found: Difference) -> list[str]:
    return [signed(found.seeds), f'{found.low:+.1f} to {found.high:+.1f}']


def trained_table(results: Results) -> str:
    """A table for each task: a backbone's cost, the rates of its poolings, the metric over the seeds by source."""
    tables = []
    for task, title in DATA.items():
        trained = {(name, source) for of, name, source in results.trained if of == task}
        sources = [source for source in SOURCES if any(source == run[1] for run in trained)]
        rows = []
        for name in BACKBONES:
            if not any(name == run[0] for run in trained):
                continue
            cells = [results.of(task, name, source) for source in sources]
            rows.append([f'`{name}`', f'{relative_flops(name):.1f}', pool_rates(name)])
            rows[-1] += [spread(values) if values else '' for values in cells]
        if rows:
            titles = [f'{title}, {METRIC[task][1]}', 'FLOPs', 'pool rates', *(SOURCES[s] for s in sources)]
            tables.append(markdown(titles, rows))
    return '\n\n'.join(tables)


def pool_rates(backbone: str) -> str:
    """Whether a backbone's poolings learned at the old or the new rates; empty without poolings that learn."""
    options = BACKBONES[backbone]
    if options['type'] != 'HPViT' or options.get('pooling') == 'avg':
        return ''
    return 'old' if backbone in CUSTOM_KEYS else 'new'


@cache
def flops_of(backbone: str) -> int:
    """FLOPs of a backbone with its pyramid at 320x320."""
    # Without values: several times as fast, and the same count.
    with torch.device('meta'):
        return total_flops(MODELS.build(backbone_of('nuclei', backbone)).eval(), (320, 320))


def relative_flops(backbone: str) -> float:
    """FLOPs of a backbone relative to those of the plain ViT."""
    return flops_of(backbone) / flops_of('plain')


def frozen_table(rows: list[dict]) -> str:
    """One row a backbone, by cost; in brackets the difference to the plain ViT's four maps, head by head.

    Raises:
        ValueError: Two rows of one backbone on one data set, such as at two sizes.
    """
    found: dict[str, dict[str, dict]] = {}
    for row in rows:
        one = found.setdefault(row['backbone'], {})
        if row['data'] in one:
            raise ValueError(f'{row["backbone"]} has two results on {row["data"]}; keep one in frozen.jsonl')
        one[row['data']] = row
    plain = next(one for name, one in found.items() if name.startswith('plain:') and name.count(':') == 1)

    def cost(one: dict[str, dict]) -> float:
        data = next(data for data in plain if data in one)
        return one[data]['flops'] / plain[data]['flops']

    data = list(DATA)[:3]
    lines = []
    for name, one in sorted(found.items(), key=lambda item: cost(item[1])):
        kind, _, *options = name.split(':')
        cells = [f'`{" ".join([kind, *options])}`', f'{cost(one):.1f}']
        for row, base in ((one.get(key), plain.get(key)) for key in data):
            cells.append(spread(row['miou']) if row else '')
            if row and base and one is not plain:
                cells[-1] = f'{mean(row["miou"]):.1f} ({signed(_paired(row["miou"], base["miou"]))})'
        lines.append(cells)
    return markdown(['backbone', 'FLOPs', *(DATA[key] for key in data)], lines)


def _paired(values: list[float], others: list[float]) -> list[float]:
    """Differences seed by seed: both of a seed were trained on the same images in the same order."""
    return [value - other for value, other in zip(values, others, strict=True)]


def draw(results: Results, out: Path) -> None:
    """Draw accuracy over cost, a panel for each of ``PANELS``; bars are standard deviations over seeds."""
    figure = Figure(figsize=(13, 9), layout='constrained')
    for axis, (task, source) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        axis.set_title(f'{DATA[task]}: {SOURCES[source]}')
        points = [(name, results.of(task, name, source)) for name in BACKBONES]
        _panel(axis, [(relative_flops(name), values, name) for name, values in points if values])
        axis.set(xlabel='FLOPs, relative to the plain ViT', ylabel=METRIC[task][1])
    figure.suptitle(
        'Fine-tuned ViT-Ti, 2,000 iterations (long) or 200 (short)\n'
        'hollow: poolings at the old rates; bars: standard deviation of three seeds'
    )
    figure.savefig(out, dpi=90)


def _panel(axis: Axes, points: list[tuple[float, list[float], str]]) -> None:
    """Points with their names in a column on the right, in the order of their heights."""
    if not points:
        axis.text(0.5, 0.5, 'not run', ha='center', transform=axis.transAxes)
        return
    points = sorted(points, key=lambda point: mean(point[1]))
    right = max(x for x, *_ in points)
    for x, values, name in points:
        color = next(COLORS[kind] for kind in COLORS if name.startswith(kind))
        face = 'white' if name in CUSTOM_KEYS else color
        bar = stdev(values) if len(values) > 1 else 0
        axis.errorbar(x, mean(values), bar, fmt='o', color=color, mfc=face, elinewidth=0.8, zorder=3)
    axis.set(xlim=(0.6, 0.6 + (right - 0.6) / 0.6), xticks=range(1, round(right) + 1))
    low, high = axis.get_ylim()
    # Heights of the names, at least a line of text apart, around those of the points.
    heights = [mean(values) for _, values, _ in points]
    gap = 0.055 * (high - low)
    for _ in range(200):
        for i, (lower, upper) in enumerate(pairwise(heights)):
            if upper - lower < gap:
                middle = (lower + upper) / 2
                heights[i : i + 2] = [middle - gap / 2, middle + gap / 2]
    for (x, values, name), height in zip(points, heights, strict=True):
        color = next(COLORS[kind] for kind in COLORS if name.startswith(kind))
        axis.plot([x, 1.06 * right], [mean(values), height], color='lightgrey', linewidth=0.7, zorder=1)
        axis.text(1.07 * right, height, name, color=color, va='center')
    axis.set_ylim(min(low, heights[0] - gap), max(high, heights[-1] + gap))


def write_page(page: Path, results: Results) -> None:
    """Put the tables between the markers of a page, and the plot beside it.

    Raises:
        ValueError: A marker is not in the page.
    """
    text = page.read_text()
    tables = dict(answer=answer_table(results), verdicts=verdict_table(results), rates=rate_table(results))
    tables |= dict(trained=trained_table(results), frozen=frozen_table(results.frozen))
    for marker, table in tables.items():
        text, count = re.subn(
            rf'(<!-- {marker} -->\n).*?(<!-- /{marker} -->)',
            lambda m, t=table: f'{m[1]}{t}\n{m[2]}',
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f'{page} has no place <!-- {marker} --> ... <!-- /{marker} -->')
    page.write_text(text)
    draw(results, page.with_name('study.png'))
