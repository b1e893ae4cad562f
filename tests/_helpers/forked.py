# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Python scripts as processes of their own that need not import torch and its like again.

A server process imports the libraries below once, and is forked for each script. None of OpenMMLab and nothing of ours
is among them, so registries and our own imports are as in a fresh process.
"""

import atexit
import multiprocessing
import os
import random
import runpy
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import torch

LIBRARIES = [
    'torch',
    'torch._dynamo',
    'torchvision',
    'timm',
    'cv2',
    'matplotlib.pyplot',
    'pycocotools.mask',
    'scipy',
]
LIBRARIES += ['transformers']  # which mmdet imports where it is there


@cache
def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(LIBRARIES)
    return context


def run_script(command: list[str], cwd: Path, env: dict, timeout: float) -> subprocess.CompletedProcess:
    """Run ``[python, script, argument, ...]``, and return its exit status and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [os.path.join(folder, name) for name in ('stdout', 'stderr')]
        process = _context().Process(target=_script, args=(command[1:], str(cwd), dict(env), outputs))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(command, timeout)
        printed = [Path(path).read_text() if os.path.exists(path) else '' for path in outputs]
        return subprocess.CompletedProcess(command, process.exitcode, *printed)


def _script(argv: list[str], cwd: str, env: dict, outputs: list[str]) -> None:
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if env.get('PYTHONWARNINGS') == 'ignore':
        warnings.simplefilter('ignore')
    installed = [path for path in sys.path if 'site-packages' in path or path.startswith(sys.base_prefix)]
    paths = [path for path in env.get('PYTHONPATH', '').split(os.pathsep) if path]
    sys.path[:] = [os.path.dirname(os.path.abspath(argv[0])), *paths, *installed]
    sys.argv[:] = argv
    # As in a process that was not forked: chance of its own, threads as many as it is told, children by fork.
    np.random.seed()
    random.seed()
    torch.seed()
    torch.set_num_threads(int(env.get('OMP_NUM_THREADS', torch.get_num_threads())))
    multiprocessing.set_start_method('fork', force=True)
    multiprocessing.current_process().name = 'MainProcess'
    try:
        runpy.run_path(argv[0], run_name='__main__')
    finally:
        atexit._run_exitfuncs()
