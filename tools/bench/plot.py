# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Latency and memory over image area, one line a model."""

from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt


def draw(rows: list[dict], memory: str, path: Path) -> None:
    """Draw a picture of the rows of a benchmark.

    Args:
        rows: As in the JSON file; without ``seconds``, operations take the place of time.
        memory: Which kind of memory, ``'inference'`` or ``'training'``.
        path: The PNG file.
    """
    timed = all('seconds' in row for row in rows)
    left = ('seconds', 'seconds an image', 1) if timed else ('total_flops', 'TFLOP an image', 1e-12)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout='constrained')
    for axis, (key, label, scale) in zip(axes, (left, (memory, f'GB, {memory}', 1e-9)), strict=True):
        for model in dict.fromkeys(row['model'] for row in rows):
            own = sorted((r for r in rows if r['model'] == model), key=lambda r: r['height'] * r['width'])
            areas = [row['height'] * row['width'] / 1e6 for row in own]
            axis.plot(areas, [row[key] * scale / row['batch'] for row in own], marker='o', label=model)
        axis.set(xlabel='image area in megapixels', ylabel=label, xscale='log', yscale='log')
        axis.grid(alpha=0.3, which='both')
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
