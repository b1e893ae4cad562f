# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Write the weights of a plain ViT once by timm's names, without a head, as .safetensors.

For clusters without a network: the file needs no conversion and no library but this one, and can be checked
with tools/inspect_checkpoint.py.
"""

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from safetensors.torch import save

from mmhpvit.backbones.timm_vit import build_plain_vit
from mmhpvit.checkpoints.load import plain_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('file', help="path or URL, or 'timm' for the weights that timm has under the name")
    parser.add_argument('out', type=Path, help='OUT.safetensors')
    parser.add_argument('--plain', required=True, help='timm name of the plain ViT')
    parser.add_argument('--source', help='whose names the file has, or the prefix of its encoder')
    parser.add_argument('--in-channels', type=int, default=3, help='channels of the images (3)')
    args = parser.parse_args()
    logging.getLogger('timm').setLevel(logging.ERROR)
    if args.out.suffix != '.safetensors':
        sys.exit(f'error: {args.out} would not be read as what it is; give a name that ends on .safetensors')
    if args.out.exists():
        sys.exit(f'error: {args.out} exists; delete it first, or give another name')
    try:
        plain = build_plain_vit(args.plain, in_channels=args.in_channels)
        checkpoint = None if args.file == 'timm' else args.file
        weights, _, report = plain_weights(plain, args.plain, checkpoint, args.source)
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')
    part = args.out.with_name(f'{uuid4().hex}.part')
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with open(part, 'wb') as file:  # unlike safetensors' own writing, for all whom the umask lets read
            file.write(
                save({k: v.float().contiguous() for k, v in weights.items()}, dict(plain=report.plain))
            )
        part.replace(args.out)
    except OSError as error:
        sys.exit(f'error: {args.out} cannot be written ({error}); give another place')
    finally:
        part.unlink(missing_ok=True)
    resized = {name for name, *_ in report.resized}
    print(replace(report, loaded=[name for name in weights if name not in resized]))
    print(f'wrote {args.out} ({args.out.stat().st_size / 1e6:.1f} MB)')


if __name__ == '__main__':
    main()
