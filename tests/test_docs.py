# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""README and pages: links, commands, code, and the tables and pictures that scripts make."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope

import mmhpvit
from mmhpvit.preflight.schedule import check_rates

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()
PAGES = [
    *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')),
    *sorted(ROOT.glob('docs/*.md')),
]
CODE = re.compile(r'^```.*?^```|`[^`\n]*`', re.DOTALL | re.MULTILINE)
LINK = re.compile(r'\]\(([^)\s]+)\)')


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf'```{language}\n(.*?)```', text, re.DOTALL)


def module_of(path: Path):
    """A script as a module, whatever else has its name."""
    spec = importlib.util.spec_from_file_location(f'script_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    titles = re.findall(
        r'^#+ (.+)$', re.sub(r'^```.*?^```', '', text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


def broken_links(page: Path) -> list[str]:
    """The relative links of a page whose file or heading is not there."""
    broken = []
    for link in LINK.findall(CODE.sub('', page.read_text())):
        if link.startswith(('http://', 'https://')):
            continue
        name, _, anchor = link.partition('#')
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    return broken


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_and_scripts_exist(page):
    assert broken_links(page) == []
    if page.name != 'CHANGELOG.md':  # which names what was, too
        scripts = re.findall(r'\b(?:tools|docs|tests)/[\w/]+\.(?:sh|py)', page.read_text())
        assert [name for name in scripts if not (ROOT / name).exists()] == []


def test_broken_links_are_found(tmp_path):
    (tmp_path / 'b.md').write_text('# A title, of `b`\n')
    page = tmp_path / 'a.md'
    page.write_text(
        '# A\n[a](#a) [b](b.md#a-title-of-b) `[c](c.md)` [d](d.md) [e](b.md#e) [f](#f) [g](https://g)'
    )
    assert broken_links(page) == ['d.md', 'b.md#e', '#f']


def test_readme_leads_to_every_page_and_each_picture_is_shown():
    links = {
        (page.parent / link.split('#')[0]).resolve()
        for page in PAGES
        for link in LINK.findall(page.read_text())
    }
    from_readme = {(ROOT / link.split('#')[0]).resolve() for link in LINK.findall(README)}
    assert [page for page in PAGES if page.parent == ROOT / 'docs' and page not in from_readme] == []
    pictures = [path for path in (ROOT / 'docs').iterdir() if path.suffix in ('.png', '.jpg', '.svg')]
    assert [path for path in pictures if path not in links] == []


COMMANDS = [
    (page.name, shlex.split(line, comments=True)[1:])
    for page in PAGES
    for block in blocks(page.read_text(), 'bash')
    for line in block.splitlines()
    if line.startswith('python tools/')
]


@pytest.mark.parametrize(('page', 'command'), COMMANDS, ids=lambda value: ' '.join(value)[:60])
def test_options_of_commands_exist(page, command, monkeypatch):
    """That the tools do what they are for is tested with small models in tests/tools."""
    script, *options = command
    used = {option for option in options if option.startswith('--')}
    text = (ROOT / script).read_text() + (ROOT / 'tools/launch.py').read_text()
    assert used <= set(re.findall(r"'(--[\w-]+)'", text))


def test_readme_example_gives_the_shapes_it_says(monkeypatch, capsys):
    """With random weights: no test downloads."""
    code = blocks(README, 'python')[0]
    (said,) = re.findall(r'^# (\[.+\])$', code, re.MULTILINE)
    load = create_autospec(mmhpvit.load_plain_weights, return_value='report')
    monkeypatch.setattr(mmhpvit, 'load_plain_weights', load)
    exec(code, {})
    assert capsys.readouterr().out == f'report\n{said}\n'
    load.assert_called_once()


STOCK = [
    ('mmdet', 'mask-rcnn_r50_fpn', 'datasets/coco_instance', 'schedules/schedule_1x'),
    ('mmdet', 'faster-rcnn_r50_fpn', 'datasets/coco_detection', 'schedules/schedule_2x'),
    ('mmseg', 'upernet_r50', 'datasets/ade20k', 'schedules/schedule_160k'),
    ('mmseg', 'upernet_swin', 'datasets/cityscapes', 'schedules/schedule_80k'),
]


@pytest.mark.parametrize(('scope', 'model', 'dataset', 'schedule'), STOCK)
def test_config_snippets_train_in_stock_configs(scope, model, dataset, schedule, tmp_path):
    _, detection, segmentation = blocks(README, 'python')
    if scope == 'mmseg':
        lines = detection.split('\n')
        assert lines[3].startswith('model = ')
        detection = '\n'.join([*lines[:3], segmentation, *lines[4:]])
    bases = [
        f'{scope}::_base_/{base}.py' for base in (f'models/{model}', dataset, schedule, 'default_runtime')
    ]
    config = tmp_path / 'own.py'
    config.write_text(f'_base_ = {bases}\n{detection}')
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert type(model.backbone).__name__ == 'HPViT'
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.get(cfg.optim_wrapper.constructor)(
        dict(cfg.optim_wrapper, type='OptimWrapper'), cfg.optim_wrapper.paramwise_cfg
    )
    epochs = cfg.train_cfg.get('max_epochs', 1)
    loop = SimpleNamespace(max_iters=160000, max_epochs=epochs, dataloader=range(160000 // epochs))
    check_rates(cfg, cfg.optim_wrapper.optimizer.lr, loop)
    names = [n for group in constructor.param_groups(model) for n in group['param_names']]
    assert sorted(names) == sorted(n for n, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize('page', ['mmdet', 'mmseg'])
def test_config_of_a_page_builds(page, tmp_path):
    config = tmp_path / 'own.py'
    config.write_text(blocks((ROOT / f'docs/{page}.md').read_text(), 'python')[0])
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert type(model.backbone).__name__ == 'HPViT'
    assert cfg.optim_wrapper.constructor == 'LayerIdDecayConstructor'


def test_command_that_lists_models_runs():
    (code,) = re.findall(
        r'^python -c "(import timm[^"]+)"', (ROOT / 'docs/checkpoints.md').read_text(), re.MULTILINE
    )
    output = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert 'vit_base_patch16_224.mae' in output


@pytest.mark.slow
def test_table_of_families_is_that_of_timm(tmp_path):
    command = [sys.executable, '-W', 'ignore', 'docs/families.py', '--check']
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    # In a copy whose table lacks a row, the same check fails.
    shutil.copytree(ROOT / 'docs', tmp_path / 'docs')
    page = tmp_path / 'docs/checkpoints.md'
    text = page.read_text()
    row = next(line for line in text.split('\n') if line.startswith('| SAM |'))
    page.write_text(text.replace(f'{row}\n', ''))
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 1
    assert 'out of date' in checked.stderr


def test_readme_names_every_family():
    families = module_of(ROOT / 'docs/families.py').FAMILIES
    names = {name for family in families for name in re.findall(r'[A-Z][\w-]*(?: [v\d]+| III)?', family)}
    listed = README.split('<details>')[1].split('</details>')[0]
    assert [name for name in sorted(names) if name not in listed] == []


def test_documents_have_no_placeholders():
    for page in PAGES:
        assert not re.search(r'^[A-Z]{4,}$|@@', page.read_text(), re.MULTILINE), page


def test_drawing_of_the_architecture_is_what_its_script_draws():
    assert module_of(ROOT / 'docs/architecture.py').draw() == (ROOT / 'docs/architecture.svg').read_text()


def test_tables_of_performance_leave_out_what_follows_from_the_rest():
    narrow = module_of(ROOT / 'docs/performance.py').narrow
    table = '| model | M params | s (range) | x limit |\n| --- | --- | --- | --- |\n| a | 92.9 | 5.3 (5 to 6) |  |'
    printed = f'machine\n\n{table}\n\nfit'
    assert narrow(printed) == 'machine\n\n| model | s (range) |\n| --- | --- |\n| a | 5.3 (5 to 6) |\n\nfit'
    page = (ROOT / 'docs/performance.md').read_text()
    assert narrow(page.split('<!-- run -->')[1].strip()) in page


def test_page_of_gpus_has_the_measured_numbers():
    found = json.loads((ROOT / 'tools/study/results/gpu-look.json').read_text())
    page = (ROOT / 'docs/gpus.md').read_text()
    assert f'All {len(found["checks"])} checks' in page
    rows = {(row['model'], row['train']): row for row in found['speed']}
    names = {
        'plain': '`PlainViTPyramid`',
        'two-scale': '`TwoScaleViT`',
        'hpvit light': "`HPViT`, `depths='light'`",
        'hpvit spacing 2': '`HPViT`, `grid_spacing=2`',
        'hpvit': '`HPViT`',
        'swin_base_patch4_window7_224': 'Swin-B (timm)',
        'hiera_base_224': 'Hiera-B (timm)',
        'convnext_base': 'ConvNeXt-B (timm)',
    }
    for model, name in names.items():
        predict, train = rows[model, False], rows[model, True]
        cells = [predict['gflop_image'], predict['images_per_s'], train['images_per_s']]
        memory = [predict['peak_gb'], train['peak_gb']]
        numbers = [*(f'{n + 1e-6:.0f}' for n in cells), *(f'{n + 1e-6:.1f}' for n in memory)]
        assert f'| {name} | {" | ".join(numbers)} |' in page
