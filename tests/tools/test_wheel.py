# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""What of tools/ an installed wheel has."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from tool_runs import ROOT


@pytest.fixture(scope='module')
def site(tmp_path_factory) -> Path:
    """The files of the wheel, by the command that puts them there."""
    folder = tmp_path_factory.mktemp('site')
    command = [sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', folder]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports, without their packages."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition('.')[0] for name in names}


def test_wheel_has_neither_study_nor_set_up_nor_tests(site):
    assert {path.name for path in site.iterdir()} == {'mmhpvit'}
    tools = site / 'mmhpvit/.mim/tools'
    assert {'train.py', 'test.py', 'predict.py', 'visualize.py'} <= {path.name for path in tools.iterdir()}
    assert not [path for path in tools.iterdir() if path.is_dir()]
    assert {path.name for path in (site / 'mmhpvit/.mim').iterdir()} == {
        'configs',
        'tools',
        'model-index.yml',
    }


def test_tools_of_the_wheel_miss_nothing_that_was_left_out(site):
    tools = site / 'mmhpvit/.mim/tools'
    of_clone = {path.stem for path in (ROOT / 'tools').rglob('*') if path.suffix == '.py' or path.is_dir()}
    missing = of_clone - {path.stem for path in tools.glob('*.py')}
    assert missing >= {'study', 'bench', 'setup', 'setup_env'}
    for path in tools.glob('*.py'):
        assert not imported(path) & missing, path.name
    for path in tools.glob('*.sh'):
        assert not [name for name in ('setup/', 'study/', 'bench') if f'tools/{name}' in path.read_text()], (
            path
        )
