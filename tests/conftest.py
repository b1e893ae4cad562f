# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / name) for name in ('tests/_helpers', 'tools', 'tools/setup')]

import tiny_models  # noqa: E402, F401 (registers small models with timm)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def shared() -> Path:
    """Real weights and data: MMHPVIT_TEST_DATA, or ../shared. In CI their absence is a failure."""
    folder = Path(os.environ.get('MMHPVIT_TEST_DATA', ROOT.parent / 'shared'))
    if not (folder / 'weights').is_dir():
        message = f'{folder} with weights/ and data/ is not there; set MMHPVIT_TEST_DATA'
        pytest.fail(message) if os.environ.get('CI') else pytest.skip(message)
    return folder


@pytest.fixture
def real_weights(shared: Path) -> str:
    return str(shared / 'weights/vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors')


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    """A generated set with boxes, masks and semantic maps: 8 training and 4 validation images of 96x96."""
    from make_shapes import make_shapes

    folder = tmp_path_factory.mktemp('shapes')
    make_shapes(folder, train=8, val=4, size=96)
    return folder


@pytest.fixture
def env(shapes) -> dict:
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(('SLURM_', 'TORCH_FORCE'))},
        'SHAPES': str(shapes),
        'PYTHONPATH': str(ROOT / 'tests/_helpers'),
        'PYTHONWARNINGS': 'ignore',
        'PYTHON': sys.executable,
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '',
    }
