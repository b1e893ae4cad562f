# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import json
import os
import re
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from bench.counting import LiveMemory, count_flops, count_memory
from bench.models import build
from bench.timing import Limit, Products
from forked import run_script
from torch import nn
from torch._dynamo.testing import CompileCounter

from mmhpvit import HPViT, PlainViTPyramid, TwoScaleViT

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('size', [(64, 64), (128, 96)])
def test_operations_are_those_of_the_closed_formula(size):
    """Two for a multiplication and an addition; biases, norms and activations are not counted."""
    backbone = HPViT('tiny_registers_in_pos', depths=(1, 1, 1, 1))
    width, prefix, batch = 48, backbone.num_prefix_tokens, 2
    counts = count_flops(backbone, size, batch)
    assert prefix == 3
    for stage, sequences in zip((4, 8, 16, 32), (16, 4, 1, 1), strict=True):
        tokens = size[0] // stage * (size[1] // stage)
        rows = batch * (tokens + sequences * prefix)
        length = tokens // sequences + prefix
        expected = {
            'linear': 2 * rows * 12 * width**2,
            'attention': 4 * batch * sequences * length**2 * width,
        }
        if stage == 4:
            expected['embedding'] = 2 * batch * tokens * width * 3 * 16 * 16
        else:
            expected['pooling'] = 2 * batch * tokens * 4 * width**2
        assert counts[f'1/{stage}'] == expected


@pytest.mark.parametrize(
    'spec', ['swin-t', 'plain:tiny_patch16', 'hpvit:tiny_patch16:attention=window', 'mmseg-beit-b']
)
def test_peers_are_counted(spec):
    model = build(spec, (64, 64))
    counts = count_flops(model, (64, 64))
    memory = count_memory(model, (64, 64))
    assert sum(kinds['linear'] for kinds in counts.values()) > 0
    assert Limit(model, torch.randn(1, 3, 64, 64), torch.float32).seconds() > 0
    assert 0 < memory.inference < memory.training
    assert 0 < memory.saved < memory.training
    assert memory.fixed == 16 * sum(p.numel() for p in model.parameters())


def test_unknown_models_are_refused():
    with pytest.raises(
        ValueError, match=r"'resnet' is no model that can be measured; expected one of hpvit:NAME"
    ):
        build('resnet', (64, 64))


def test_live_memory_follows_what_lives():
    with LiveMemory() as memory:
        x = torch.empty(1000)
        y = x.view(10, 100) + 1
        assert memory.now == 8000
        del y
        z = x * 2
        assert (memory.now, memory.peak) == (8000, 8000)
        del x, z
        assert memory.now == 0


def test_saved_memory_is_what_autograd_keeps():
    """A linear layer keeps its input, an activation its own."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GELU())
    outs = nn.Module()
    outs.forward = lambda x: (model(x),)
    outs.model = model
    memory = count_memory(outs, (32, 32))
    assert memory.saved == 4 * 32 * 32 * (3 + 8)


def test_recomputation_keeps_one_map_a_block():
    plainly, again = (
        HPViT('tiny_patch16', depths=(4, 0, 0, 0), out_indices=(0,), with_cp=cp) for cp in (False, True)
    )
    size = (256, 256)
    assert count_memory(again, size).saved < 0.2 * count_memory(plainly, size).saved


def test_products_are_found_with_their_shapes():
    model = build('hpvit:tiny_patch16:depths=(0,0,4,0):out_indices=(2,)', (64, 64))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), Products() as products:
        model(x)
    assert products.found['linear', 17, 48, 144] == 4
    assert products.found['linear', 16, 768, 48] == 1
    assert products.found['attention', (1, 3, 17, 16), (1, 3, 17, 16), None] == 4
    assert Limit(model, x, torch.float32).seconds() > 0


@pytest.mark.slow
@pytest.mark.parametrize('trains', [True, False])
def test_forward_is_one_graph_that_serves_all_sizes(trains):
    """No value is taken from the device to the host, and another size is no new graph."""
    counter = CompileCounter()
    backbone = HPViT('tiny_patch16').train(trains).requires_grad_(trains)
    compiled = torch.compile(backbone, backend=counter, fullgraph=True, dynamic=True)
    for size in [(96, 128), (128, 160), (192, 96), (320, 256)]:
        x = torch.randn(2, 3, *size)
        for got, expected in zip(compiled(x), backbone(x), strict=True):
            torch.testing.assert_close(got, expected)
        assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'options'), [(PlainViTPyramid, {}), (TwoScaleViT, dict(fine_depths=0))])
def test_compiled_whole_it_trains_at_all_sizes(kind, options):
    backbone = kind('tiny_patch16', **options).train()
    compiled = torch.compile(backbone, backend='aot_eager')
    for size in [(64, 64), (80, 96), (112, 64)]:
        x, results = torch.randn(2, 3, *size), []
        for module in (backbone, compiled):
            backbone.zero_grad()
            sum(out.square().mean() for out in module(x)).backward()
            results.append({name: param.grad.clone() for name, param in backbone.named_parameters()})
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('plain', ['tiny_patch16', 'tiny_dinov3', 'tiny_beit'])
def test_compiled_blocks_compute_the_same(plain):
    """At several sizes, in training with recomputation and stochastic depth; weights keep their names."""
    options = dict(drop_path_rate=0.3, with_cp=True)
    eager, compiled = HPViT(plain, **options), HPViT(plain, compile_blocks=True, **options)
    compiled.load_state_dict(eager.state_dict())
    # Blocks share their code and need more variants of it than torch compiles by default.
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for size in [(64, 96), (37, 50)]:
            x = torch.randn(2, 3, *size)
            results = []
            for backbone in (eager, compiled):
                torch.manual_seed(0)
                outs = backbone.train()(x)
                sum(out.square().mean() for out in outs).backward()
                results.append([*outs, backbone.patch_embed.proj.weight.grad])
            for expected, got in zip(*results, strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert count_flops(compiled, (64, 96)) == count_flops(eager, (64, 96))
    copied = deepcopy(compiled)
    assert [type(m) for m in copied.modules()] == [type(m) for m in eager.modules()]
    # A copy, as a teacher's, runs its own weights.
    copied.requires_grad_(False).blocks[0].norm1.weight.zero_()
    assert not torch.equal(copied.eval()(x)[0], compiled.eval()(x)[0])


def test_blocks_that_do_not_compile_are_refused():
    with pytest.raises(ValueError, match=r'compile_blocks=True: the blocks of tiny_sam'):
        HPViT('tiny_sam', compile_blocks=True)


@pytest.mark.slow
@pytest.mark.parametrize('options', [(), ('--train',), ('--dtype', 'bf16'), ('--count-only',)])
def test_the_tool(options, tmp_path):
    models = ['hpvit:vit_tiny_patch16_224', 'plain:vit_tiny_patch16_224']
    command = [sys.executable, 'tools/benchmark.py', *models, *options]
    command += [
        '--sizes',
        '64x64',
        '64x96',
        '96x96',
        '--rounds',
        '2',
        '--device',
        'cpu',
        '--out',
        str(tmp_path / 'out' / 'b'),
    ]
    result = run_script(command, ROOT, {**os.environ, 'PYTHONWARNINGS': 'ignore'}, timeout=600)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / 'out/b.json').read_text())
    assert len(rows) == 6
    assert all(row['total_flops'] > 1e8 for row in rows)
    assert ('seconds' in rows[0]) == (options != ('--count-only',))
    assert re.search(r'over image area, fitted exponent: hpvit:\S+ [\d.]+; plain:', result.stdout)
    assert (tmp_path / 'out/b.md').read_text() in result.stdout
    assert (tmp_path / 'out/b.png').stat().st_size > 10**4
