# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Does the hierarchy pay? The same weights, data, budget and heads; only the backbone differs.

    python tools/study/run.py all SHARED          # the three parts, one after the other
    python tools/study/run.py frozen SHARED
    python tools/study/run.py finetune SHARED [--only camvid/plain ...]
    python tools/study/run.py report SHARED

SHARED has data/camvid, data/coco_mini, data/nuclei, data/caltech101 and weights/. Results are appended to
tools/study/results/, one JSON line each. What is there is not run again. A training that was interrupted resumes
from its checkpoint. --smoke runs a little of each part on a few images.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

# A clone that is not installed works too.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from study.finetune import RUNS, VIT, WEIGHTS, finetuned
from study.probe import Protocol, probed, table
from study.report import read_results, write_page

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / 'tools/study/results', ROOT / 'docs/study.md'

PLAIN, HPVIT, TWO_SCALE = f'plain:{VIT}', f'hpvit:{VIT}', f'two-scale:{VIT}'
# In the order in which they are run: first what answers the question, then one factor at a time.
FROZEN = [
    PLAIN,
    f'{PLAIN}:after=(12,)',
    HPVIT,
    f'{HPVIT}:grid_spacing=2',
    TWO_SCALE,
    f'{TWO_SCALE}:middle_depth=6',
    f'{TWO_SCALE}:fine_depths=(0,0)',
    f'{PLAIN}:upsample=2',
    f'{HPVIT}:depths=(0,3,9,0)',
    f'{HPVIT}:depths=(3,3,3,3)',
    f'{HPVIT}:depths=(2,2,8,0)',
    f'{HPVIT}:attention=window_grid:window_size=16',
    f'{HPVIT}:attention=window',
    f'{HPVIT}:keep_prefix=False',
    f'{HPVIT}:patch_kernel=resample',
    f'{HPVIT}:pooling=pick',
    f'{HPVIT}:attention=global',  # takes longest
]

SMOKE = [PLAIN, TWO_SCALE, f'{HPVIT}:depths=(0,3,9,0):pooling=pick']


def frozen_protocols(shared: Path) -> dict[str, Protocol]:
    """Linear heads on frozen features: three data sets."""
    data = shared / 'data'
    return {
        'camvid': Protocol(data / 'camvid', train=60, test=60),
        'coco_mini': Protocol(data / 'coco_mini', ('train', 'val'), '_super', (352, 480), 90, 60),
        'nuclei': Protocol(data / 'nuclei', ('train', 'val'), '', (256, 256), 60, 40),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('part', choices=['all', 'frozen', 'finetune', 'report'])
    parser.add_argument('shared', type=Path)
    parser.add_argument(
        '--only', nargs='+', default=[], help='trainings, as camvid, camvid/plain or camvid/plain/test-seed0'
    )
    parser.add_argument(
        '--out', type=Path, default=RESULTS, help='folder of the results; default: tools/study/results'
    )
    parser.add_argument(
        '--page', type=Path, help='what report writes into; default: docs/study.md, or study.md in --out'
    )
    parser.add_argument('--smoke', action='store_true', help='a few images and iterations; needs --out')
    args = parser.parse_args()
    args.out = args.out.resolve()
    page = PAGE if args.out == RESULTS else args.out / 'study.md'
    args.page = (args.page or page).resolve()
    if args.smoke and args.out == RESULTS:
        sys.exit('error: --smoke wants an --out of its own')
    if args.page == PAGE and args.out != RESULTS:
        sys.exit('error: results of an --out of its own want a --page of their own')
    if args.only and args.part in ('frozen', 'report'):
        sys.exit(f'error: --only is for trainings, and {args.part} has none')
    weights = args.shared / WEIGHTS
    if not weights.is_file():
        sys.exit(f'error: {weights} does not exist; see --help for what SHARED has')
    if args.part in ('all', 'frozen'):
        frozen(args.shared, str(weights), args.out, args.smoke)
    if args.part in ('all', 'finetune'):
        finetune(args.shared, args.out, tuple(args.only), args.smoke)
    if args.part in ('all', 'report'):
        report(args.out, args.page)


def frozen(shared: Path, weights: str, out: Path, smoke: bool) -> None:
    """Linear heads on frozen features of every backbone."""
    protocols = frozen_protocols(shared)
    if smoke:
        few = dict(size=(64, 96), train=3, test=2, seeds=1, pixels=200, steps=20)
        protocols = {name: replace(protocol, **few) for name, protocol in protocols.items()}
    specs = SMOKE if smoke else FROZEN
    rows = {name: [] for name in protocols}
    with tqdm(total=len(specs) * len(rows), desc='frozen') as bar:
        for spec in specs:
            for name, protocol in protocols.items():
                rows[name].append(probed(spec, weights, protocol, out / 'frozen.jsonl'))
                bar.update()
    for name, found in rows.items():
        print(f'\n{name}\n\n{table(found)}')


def finetune(shared: Path, out: Path, only: tuple[str, ...], smoke: bool) -> None:
    """Trainings with real heads, runners and metrics."""
    runs = [run for run in RUNS if not only or run.is_in(only)]
    if not runs:
        sys.exit(
            f'error: --only {" ".join(only)}: no training has such a name; some are {RUNS[0].name}, {RUNS[-1].name}'
        )
    for run in tqdm(runs, desc='finetune'):
        finetuned(run, shared, out / 'finetune.jsonl', smoke)


def report(out: Path, page: Path) -> None:
    """Tables and plot of all results."""
    results = read_results(out)
    if not any(row['backbone'] == PLAIN for row in results.frozen):
        sys.exit(f'error: {out}/frozen.jsonl has no result of {PLAIN}, which the others are compared with')
    if not page.exists():
        names = 'answer', 'verdicts', 'rates', 'trained', 'frozen'
        page.write_text('\n'.join(f'<!-- {name} -->\n<!-- /{name} -->\n' for name in names))
    write_page(page, results)
    print(page)


if __name__ == '__main__':
    main()
