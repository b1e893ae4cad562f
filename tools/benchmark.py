# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Measure FLOPs, time and memory of backbones side by side.

    python tools/benchmark.py hpvit:vit_base_patch16_224 plain:vit_base_patch16_224 swin-b --sizes 512x512

A model is hpvit:NAME, plain:NAME or two-scale:NAME with the timm name of a plain ViT and options as :name=value,
timm:NAME, a config, swin-t, swin-b, mmseg-mae-b or mmseg-beit-b.

Models take turns, round by round. Compare ratios within one run: seconds depend on the machine and the day. "Limit" is
the time that the matrix products and attentions of the forward pass take alone, at the speed of
torch.nn.functional.linear and scaled_dot_product_attention on the same shapes. Memory is measured on a GPU; on a CPU
it is counted from the live tensors.
"""

import argparse
import json
import logging
import math
import platform
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import linear_regression

import torch
from bench.counting import channels_of, count_flops, count_memory
from bench.models import build
from bench.plot import draw
from bench.timing import Limit, forward, measure, step
from tqdm import tqdm

SIZES = ('224x224', '512x512', '512x1024', '1024x1024', '800x1333')
DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16}


def machine(device: str) -> str:
    """What the numbers were measured on."""
    if device == 'cuda':
        name = torch.cuda.get_device_name()
    else:
        info = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
        names = [line.split(':')[1].strip() for line in info.split('\n') if line.startswith('model name')]
        name = f'{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads'
    return f'{name}; torch {torch.__version__}, Python {platform.python_version()}'


def measured_memory(run, device: str) -> int | None:
    """Most that a call allocates on a GPU; None elsewhere."""
    if device != 'cuda':
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def measure_size(args: argparse.Namespace, size: tuple[int, int]) -> list[dict]:
    """One row for each model at one image size."""
    device, dtype = args.device, DTYPES[args.dtype]
    precision = nullcontext if args.dtype == 'fp32' else partial(torch.autocast, device, dtype)
    rows, runs, limits = [], {}, {}
    for spec in args.models:
        try:
            model = build(spec, size)
            model.train(args.train)
            flops = count_flops(model, size, args.batch)
        except (ValueError, AssertionError, RuntimeError) as error:
            # Some peers cannot take any size.
            reason = str(error).splitlines()[0][:100]
            print(f'{spec} at {size[0]}x{size[1]}: left out, {reason}', file=sys.stderr)
            continue
        row = dict(model=spec, height=size[0], width=size[1], batch=args.batch)
        row['parameters'] = sum(p.numel() for p in model.parameters())
        row |= dict(flops=flops, total_flops=sum(sum(kinds.values()) for kinds in flops.values()))
        row |= vars(count_memory(model, size, args.batch, None if args.dtype == 'fp32' else dtype))
        rows.append(row)
        if args.count_only:
            continue
        model.to(device)
        x = torch.randn(args.batch, channels_of(model), *size, device=device)
        if not args.train:
            limits[spec] = Limit(model, x, dtype)
        run = torch.compile(model, dynamic=False) if args.compile else model
        runs[spec] = partial(step if args.train else forward, run, x, precision)
        row['measured_memory'] = measured_memory(runs[spec], device)

    def progress(rounds):
        return tqdm(rounds, desc=f'{size[0]}x{size[1]}', disable=not sys.stderr.isatty())

    for spec, times in measure(runs, limits, device, args.rounds, progress).items():
        row = next(row for row in rows if row['model'] == spec)
        row |= dict(seconds=times.median, fastest=min(times.seconds), slowest=max(times.seconds))
        row |= dict(limit=times.ratio) if spec in limits else {}
    return rows


def table(rows: list[dict], train: bool) -> str:
    """The rows in Markdown; ratios to the first model of each size."""
    head = ['model', 'size', 'M params', 'GFLOP']
    head += ['s (range)', 'x first', 's / TFLOP', 'images/s', 'x limit'] if 'seconds' in rows[0] else []
    head += ['GB training', 'GB saved'] if train else ['GB inference']
    lines = [head, ['---'] * len(head)]
    for row in rows:
        first = next(r for r in rows if (r['height'], r['width']) == (row['height'], row['width']))
        cells = [row['model'], f'{row["height"]}x{row["width"]}', f'{row["parameters"] / 1e6:.1f}']
        cells.append(f'{row["total_flops"] / 1e9:.1f}')
        if 'seconds' in row:
            cells.append(f'{row["seconds"]:.3f} ({row["fastest"]:.3f} to {row["slowest"]:.3f})')
            cells.append(f'{row["seconds"] / first["seconds"]:.2f}')
            work = row['total_flops'] * (3 if train else 1)
            cells.append(f'{row["seconds"] / work * 1e12:.2f}')
            cells.append(f'{row["batch"] / row["seconds"]:.2f}')
            cells.append(f'{row["limit"]:.2f}' if 'limit' in row else '')
        kinds = ('training', 'saved') if train else ('inference',)
        cells += [f'{(row.get("measured_memory") or row[kind]) / 1e9:.2f}' for kind in kinds]
        lines.append(cells)
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def exponents(rows: list[dict]) -> str:
    """How time (without times, operations) grows with image area: a line per model with three sizes or more."""
    what = 'seconds' if 'seconds' in rows[0] else 'total_flops'
    lines = []
    for model in dict.fromkeys(row['model'] for row in rows):
        own = [row for row in rows if row['model'] == model]
        areas = [row['height'] * row['width'] for row in own]
        if len(set(areas)) > 2:
            slope, _ = linear_regression([math.log(a) for a in areas], [math.log(r[what]) for r in own])
            lines.append(f'{model} {slope:.2f}')
    kind = 'Time' if what == 'seconds' else 'Operations'
    grow = f'\n\n{kind} over image area, fitted exponent: {"; ".join(lines)}.'
    return grow if lines else ''


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument('models', nargs='+')
    parser.add_argument('--sizes', nargs='+', default=SIZES, help='HEIGHTxWIDTH; default: %(default)s')
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--train', action='store_true', help='forward and backward instead of forward')
    parser.add_argument('--dtype', choices=DTYPES, default='fp32')
    parser.add_argument('--compile', action='store_true', help='torch.compile the models')
    here = 'cuda' if torch.cuda.is_available() else 'cpu'
    parser.add_argument('--device', choices=('cpu', 'cuda'), default=here)
    parser.add_argument('--count-only', action='store_true', help='operations and memory, no times')
    parser.add_argument('--out', type=Path, help='write OUT.json, OUT.md and the plot OUT.png')
    parser.add_argument('--plot', type=Path, help='write the plot to this PNG file')
    args = parser.parse_args()
    logging.getLogger('timm').setLevel(logging.ERROR)
    torch.manual_seed(0)
    sizes = [tuple(int(side) for side in size.split('x')) for size in args.sizes]
    rows = [row for size in sizes for row in measure_size(args, size)]
    if not rows:
        sys.exit('error: none of the models can be measured at these sizes')
    passes = 'training step' if args.train else 'forward'
    what = f'{passes}, {args.dtype}, {"compiled" if args.compile else "eager"}, batch {args.batch}'
    head = f'{machine(args.device)}; {what}, median of {args.rounds} rounds'
    if args.count_only:
        head = f'Counted, not measured: {passes}, {args.dtype}, batch {args.batch}'
    text = f'{head}\n\n{table(rows, args.train)}{exponents(rows)}\n'
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix('.json').write_text(json.dumps(rows, indent=1))
        args.out.with_suffix('.md').write_text(text)
        args.plot = args.plot or args.out.with_suffix('.png')
    if args.plot:
        draw(rows, 'training' if args.train else 'inference', args.plot)


if __name__ == '__main__':
    main()
