# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import subprocess
import sys
from pathlib import Path

import build_mmcv
import pytest
import setup_env


def test_this_python_is_found_and_others_are_not(monkeypatch):
    version = '.'.join(map(str, sys.version_info[:2]))
    assert setup_env.version_of(sys.executable) == version
    assert setup_env.version_of('/nowhere/python') is None
    assert setup_env.find_python()
    monkeypatch.setattr(setup_env, 'SUPPORTED', ('2.7',))
    with pytest.raises(SystemExit, match=r'no Python 2\.7 on the path'):
        setup_env.find_python()


def test_headers_are_looked_for_on_cpath_too(monkeypatch, tmp_path):
    monkeypatch.setattr(
        setup_env.subprocess, 'run', lambda *a, **k: subprocess.CompletedProcess(a, 0, '/nowhere\n')
    )
    monkeypatch.delenv('CPATH', raising=False)
    assert not setup_env.has_headers('python3')
    (tmp_path / 'Python.h').touch()
    monkeypatch.setenv('CPATH', str(tmp_path))
    assert setup_env.has_headers('python3')


def test_without_root_the_packages_to_install_are_named(monkeypatch):
    monkeypatch.setattr(setup_env.os, 'geteuid', lambda: 1000)
    setup_env.need([], 'python3')
    with pytest.raises(SystemExit, match=r'sudo apt-get install python3\.11-dev g\+\+'):
        setup_env.need(['python3.11-dev', 'g++'], 'python3')


def test_versions_come_from_the_tested_list():
    lines = (setup_env.ROOT / 'requirements/tested.txt').read_text()
    for package in ('torch', 'mmcv', 'timm'):
        assert f'{package}=={setup_env.tested(package)}\n' in lines


def test_fingerprint_follows_the_inputs(monkeypatch, tmp_path):
    before = setup_env.fingerprint(sys.executable)
    assert before == setup_env.fingerprint(sys.executable)
    monkeypatch.setattr(setup_env, 'INPUTS', ('setup.py',))
    assert setup_env.fingerprint(sys.executable) != before


@pytest.mark.parametrize(
    ('cpu_only', 'smi', 'cuda', 'ready'),
    [
        (True, True, True, False),
        (True, True, False, True),
        (True, False, True, True),
        (False, True, True, True),
    ],
)
def test_environment_for_the_cpu_is_not_ready_for_a_gpu(cpu_only, smi, cuda, ready, monkeypatch, tmp_path):
    """As when it was set up on a login node."""
    monkeypatch.setattr(setup_env, 'STAMP', tmp_path / 'stamp')
    monkeypatch.setattr(setup_env, 'PYTHON', Path(sys.executable))
    monkeypatch.setattr(setup_env, 'CPU_ONLY', tmp_path / 'cpu-only')
    monkeypatch.setattr(setup_env, 'why_not_cuda', lambda: None if cuda else 'no nvcc')
    monkeypatch.setattr(setup_env.shutil, 'which', lambda name: f'/bin/{name}' if smi else None)
    assert not setup_env.is_ready('as wanted')
    (tmp_path / 'stamp').write_text('as wanted')
    if cpu_only:
        (tmp_path / 'cpu-only').touch()
    assert setup_env.is_ready('as wanted') == ready
    assert not setup_env.is_ready('as wanted now')


def test_compiler_wrapper_rewrites_flags_and_keeps_output(tmp_path):
    """A real compilation through the wrapper, with a stand-in for torch's header."""
    compiler = build_mmcv._check_prerequisites()
    (tmp_path / 'torch').mkdir()
    (tmp_path / 'torch/types.h').write_text('#define FROM_TORCH 42\n')
    (tmp_path / 'a.cpp').write_text('static_assert(__cplusplus > 201703L);\nint f() { return FROM_TORCH; }\n')
    wrapper = build_mmcv._write_wrapper(tmp_path, compiler, 20)
    flags = [
        '-std=c++17',
        '-g',
        '-O3',
        f'-I{tmp_path}',
        '-c',
        str(tmp_path / 'a.cpp'),
        '-o',
        str(tmp_path / 'a.o'),
    ]
    subprocess.run([str(wrapper), *flags], check=True)
    assert (tmp_path / 'a.o').stat().st_size > 0
    assert Path(f'{tmp_path}/torch_types.h.gch').exists()


def test_number_of_jobs_is_sensible():
    assert 1 <= build_mmcv._jobs() <= 1024
