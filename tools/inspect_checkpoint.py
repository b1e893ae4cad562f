# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Tell what a checkpoint holds, which plain ViTs of timm it fits, and what would become of its weights.

Exit status 0 if it would load, 1 if not.
"""

import argparse
import logging
import sys
from pathlib import Path

from tqdm import tqdm

from mmhpvit.checkpoints.inspection import inspect_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('file', help='path or URL')
    parser.add_argument('--plain', help='timm name to load it into; without it, all that fit are looked for')
    parser.add_argument('--source', help='whose names the file has, or the prefix of its encoder')
    args = parser.parse_args()
    logging.getLogger('timm').setLevel(logging.ERROR)

    def progress(names):
        return tqdm(names, desc='comparing with the ViTs of timm', disable=not sys.stderr.isatty())

    try:
        found = inspect_checkpoint(args.file, args.plain, args.source, progress)
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')
    size = Path(args.file).stat().st_size / 1e6 if Path(args.file).exists() else None
    print(f'{args.file}' + (f' ({size:.1f} MB)' if size else ''))
    print(found)
    if found.report is None:
        sys.exit('error: it fits no plain ViT of timm')
    print(found.report)


if __name__ == '__main__':
    main()
