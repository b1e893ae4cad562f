# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Measure every table of docs/performance.md again.

    python docs/performance.py

A block between ``<!-- run -->`` and ``<!-- /run -->`` begins with a command in backquotes. What follows is replaced by
what the command prints, without the columns of ``LEFT_OUT``. This takes most of an hour on two cores; ``--only TEXT``
measures the blocks whose command contains the text.
"""

import argparse
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r'(<!-- run -->\n`python (?P<command>[^`]+)`\n).*?(<!-- /run -->)', re.DOTALL)
# A page has room for six columns; these follow from the others or are the same in every row.
LEFT_OUT = {'M params', 'x first', 's / TFLOP', 'images/s'}


def narrow(output: str) -> str:
    """The output of a command, its table without the columns of ``LEFT_OUT`` and without empty ones."""
    lines = output.split('\n')
    places = [i for i, line in enumerate(lines) if line.startswith('|')]
    columns = zip(*([cell.strip() for cell in lines[i].strip('|').split('|')] for i in places), strict=True)
    kept = [c for c in columns if c[0] not in LEFT_OUT and any(c[2:])]
    for i, row in zip(places, zip(*kept, strict=True), strict=True):
        lines[i] = f'| {" | ".join(row)} |'
    return '\n'.join(lines)


def measure(command: str) -> str:
    """What a command of this repository prints, narrowed."""
    print(f'python {command}', flush=True)
    start = time.time()
    run = [sys.executable, '-W', 'ignore', *shlex.split(command)]
    result = subprocess.run(run, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    print(f'  {time.time() - start:.0f} s', flush=True)
    return narrow(result.stdout.strip())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--page', type=Path, default=ROOT / 'docs/performance.md')
    parser.add_argument('--only', default='', help='take the blocks whose command contains this')
    args = parser.parse_args()
    commands = [m['command'] for m in BLOCK.finditer(args.page.read_text())]
    commands = [command for command in commands if args.only in command]
    if not commands:
        sys.exit(f'error: no block of {args.page} has a command with {args.only!r}')
    for command in commands:
        output = measure(command)
        # Written one by one: what was measured stays when a later command fails.
        text = BLOCK.sub(
            lambda m, c=command, o=output: m[0] if m['command'] != c else f'{m[1]}\n{o}\n{m[3]}',
            args.page.read_text(),
        )
        args.page.write_text(text)


if __name__ == '__main__':
    main()
