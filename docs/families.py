# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Write the table of plain ViTs into docs/checkpoints.md, from timm's own list.

Each weight that timm lists for its plain ViTs is in exactly one row. With --check, only say whether the table is up to
date.
"""

import argparse
import re
import sys
from fnmatch import fnmatch
from pathlib import Path

import timm
from timm.models import get_arch_pretrained_cfgs

from mmhpvit.checkpoints.inspection import PLAIN_FILES, build_one_block
from mmhpvit.layers.block_adapters import adapter_of

PAGE = Path(__file__).resolve().with_name('checkpoints.md')
START, END = '<!-- families -->\n', '<!-- /families -->'
# Name of the family, patterns of timm names with their tags.
FAMILIES = {
    'MAE, I-JEPA, DINO': ('*.mae', '*.*ijepa*', '*.dino'),
    'DINOv2, TIPSv2': ('*_dinov2.*', '*_tipsv2.*'),
    'DINOv3, LingBot': ('*_dinov3*', '*_lingbot.*'),
    'CLIP (OpenAI, OpenCLIP, DFN, MetaCLIP, ...)': ('vit_*_clip_*', '*_xp_*'),
    'SigLIP, SigLIP 2': ('vit_*_siglip_*',),
    'DeiT, DeiT III': ('deit*',),
    'BEiT, BEiT v2': ('beit_*', 'beitv2_*'),
    'BEiT-3': ('beit3_*',),
    'EVA, EVA-02, EVA-CLIP': ('eva_*', 'eva02_*'),
    'PE (core, lang, spatial)': ('vit_pe_*',),
    'SAM': ('samvit_*',),
    'AIMv2': ('aimv2_*',),
    'C-RADIO': ('vit_*_radio_*',),
    'Sapiens2': ('*_sapiens2*',),
    'RoPE-ViT': ('vit_*_rope_*',),
    'relative positions of timm': ('*relpos*', 'vit_srelpos_*'),
    'AugReg, FlexiViT, InternViT, timm and other supervised': ('vit_*', 'flexivit_*', 'test_vit*'),
}


def family_of(name: str) -> str:
    """The family of a timm name, with its tag."""
    return next(f for f, patterns in FAMILIES.items() if any(fnmatch(name, p) for p in patterns))


def positions(vit) -> str:
    kind = adapter_of(vit).positions
    if kind == 'rotary' and vit.rope is None:
        return 'absolute'
    return kind


def table() -> str:
    """The table in Markdown."""
    rows: dict[str, dict] = {
        f: {'names': set(), 'weights': 0, 'patch': set(), 'how': set()} for f in FAMILIES
    }
    for file in PLAIN_FILES:
        for architecture in timm.list_models(module=file):
            vit = build_one_block(architecture)
            tagged = [n for n in get_arch_pretrained_cfgs(architecture) if '.' in n] or [architecture]
            for name in tagged:
                row = rows[family_of(name)]
                row['names'].add(architecture)
                row['weights'] += '.' in name
                row['patch'].add(vit.patch_embed.patch_size[0])
                row['how'].add(positions(vit))
    lines = ['| family | for instance | models | weights | patch | positions |', '|---|---|---|---|---|---|']
    for family, row in rows.items():
        example = next(p for p in FAMILIES[family])
        patches = ', '.join(map(str, sorted(row['patch'])))
        how = ', '.join(sorted(row['how']))
        lines.append(
            f'| {family} | `{example}` | {len(row["names"])} | {row["weights"]} | {patches} | {how} |'
        )
    return '\n'.join(lines) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--check', action='store_true', help='write nothing, fail if the table is out of date'
    )
    args = parser.parse_args()
    text = PAGE.read_text()
    new = re.sub(f'{START}.*?{END}', lambda _: START + table() + END, text, flags=re.DOTALL)
    if args.check:
        sys.exit(
            f'error: the table in {PAGE.name} is out of date; run docs/families.py' if new != text else 0
        )
    PAGE.write_text(new)


if __name__ == '__main__':
    main()
