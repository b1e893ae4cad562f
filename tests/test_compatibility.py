# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Checkpoints and configs of version 0.6 still work. Its config is in each checkpoint, as mmengine writes it."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, STRATEGIES, WEIGHT_INITIALIZERS
from mmengine.runner import Runner, load_checkpoint
from safetensors.torch import load_file
from tool_runs import ROOT

import mmhpvit

FIXTURES = ROOT / 'tests/fixtures/v0.6'
NAMES = sorted(path.stem for path in FIXTURES.glob('*.pth'))
PUBLIC = {
    *('HPViT', 'Inspection', 'LayerIdDecayConstructor', 'LoadReport', 'PlainViTInit', 'PlainViTPyramid'),
    *('ShardedStrategy', 'SkipTrainedData', 'TwoScaleViT', 'inspect_checkpoint', 'load_plain_weights'),
}
REGISTERED = {
    MODELS: ('HPViT', 'TwoScaleViT', 'PlainViTPyramid', 'LN2d'),
    WEIGHT_INITIALIZERS: ('PlainViT',),
    OPTIM_WRAPPER_CONSTRUCTORS: ('LayerIdDecayConstructor',),
    HOOKS: ('SkipTrainedData',),
    STRATEGIES: ('ShardedStrategy',),
}


def test_public_names_stay():
    assert set(mmhpvit.__all__) >= PUBLIC
    for registry, names in REGISTERED.items():
        assert all(registry.get(name) for name in names)


def runner_of(name: str, shapes: Path, work_dir: Path) -> Runner:
    """A runner for one step with the config of version 0.6, on the generated images."""
    text = torch.load(FIXTURES / f'{name}.pth', weights_only=True)['meta']['cfg']
    cfg = Config.fromstring(text.replace('data/shapes', str(shapes)), '.py')
    cfg.work_dir = str(work_dir)
    cfg.train_cfg.max_iters = 1
    cfg.visualizer.vis_backends = []
    return Runner.from_cfg(cfg)


@pytest.mark.parametrize('name', NAMES)
def test_a_checkpoint_of_0_6_loads_and_gives_the_same_maps(name, shapes, tmp_path):
    model = runner_of(name, shapes, tmp_path).model
    load_checkpoint(model, str(FIXTURES / f'{name}.pth'), map_location='cpu', strict=True)
    expected = load_file(FIXTURES / f'{name}.safetensors')
    with torch.no_grad():
        maps = model.backbone.eval()(expected.pop('image'))
    for i, found in enumerate(maps):
        torch.testing.assert_close(found, expected[f'map{i}'], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', NAMES)
def test_a_config_of_0_6_trains_a_step(name, shapes, tmp_path):
    runner = runner_of(name, shapes, tmp_path)
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.train()
    after = runner.model.state_dict()
    assert before.keys() == after.keys()
    assert all(value.isfinite().all() for value in after.values())
    assert not torch.equal(
        before['backbone.blocks.0.attn.qkv.weight'], after['backbone.blocks.0.attn.qkv.weight']
    )
