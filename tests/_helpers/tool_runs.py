# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The tools as processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import mmdet
import mmseg
from forked import run_script

ROOT = Path(__file__).resolve().parents[2]
DETECTOR, SEGMENTER = 'tests/configs/tiny_detector.py', 'tests/configs/tiny_segmenter.py'
SHARED = (DETECTOR, SEGMENTER)
STOCK = {
    DETECTOR: Path(mmdet.__file__).parent / '.mim/tools',
    SEGMENTER: Path(mmseg.__file__).parent / '.mim/tools',
}


def run(*command, env, fails=False) -> str:
    command = [str(part) for part in command]
    if command[0] == sys.executable and command[1].endswith('.py'):
        result = run_script(command, ROOT, os.environ if env is None else env, timeout=1500)
    else:
        result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1500)
    output = result.stdout + result.stderr
    assert fails is None or (result.returncode != 0) == fails, output[-4000:]
    return output


def train(config, work_dir, *options, env, fails=False) -> str:
    return run(
        sys.executable, 'tools/train.py', config, '--work-dir', work_dir, *options, env=env, fails=fails
    )
