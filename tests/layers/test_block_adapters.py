# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Rotary embeddings, relative positions and windows, on small models of each kind."""

import copy
import math
import pickle

import pytest
import timm
import torch
from mmengine.optim import build_optim_wrapper
from plain_twin import last_map, noisy, on_shifted_images, twin, without_norms
from timm.layers import RelPosBias, RelPosMlp
from timm.models import beit
from tiny_models import KINDS, TRAITS, register

from mmhpvit import HPViT, PlainViTPyramid
from mmhpvit.layers.block_adapters import Geometry
from mmhpvit.layers.partition import Layout, partition, sequence_shapes
from mmhpvit.layers.rel_pos_bias import module_bias, stretched_points, table_bias
from mmhpvit.layers.rope import rotary_embedding

EXACT = dict(rtol=0, atol=1e-10)


def build(plain, **options) -> HPViT:
    return noisy(HPViT(plain, **options).double().eval())


@pytest.mark.parametrize('plain', KINDS)
@pytest.mark.parametrize('size', [(64, 64), (48, 96), (128, 80)])
def test_grid_layout_is_the_plain_vit_on_each_shifted_image(plain, size):
    backbone = without_norms(build(plain, depths=(4, 0, 0, 0), out_indices=(0,)))
    vit, x = twin(backbone), torch.randn(2, 3, *size).double()
    if hasattr(vit, 'set_input_size'):
        vit.set_input_size(size)
    (out,) = backbone(x)
    shifts = [(i, j) for i in range(4) for j in range(4)]
    # timm resizes tables of relative positions in float32, and rounds the points that they stand for.
    tables = any('bias_table' in name for name, _ in vit.named_parameters())
    tolerance = dict(rtol=0, atol=1e-5) if tables else EXACT
    for (i, j), expected in on_shifted_images(backbone, vit, x, shifts).items():
        torch.testing.assert_close(out[:, :, i::4, j::4], expected, **tolerance)


@pytest.mark.parametrize('plain', ['tiny_beit', 'tiny_beit_wide', 'tiny_relpos_table', 'tiny_srelpos'])
def test_tables_are_exact_at_the_size_of_pre_training(plain):
    backbone = without_norms(build(plain, depths=(4, 0, 0, 0), out_indices=(0,)))
    vit = twin(backbone)
    x = torch.randn(1, 3, *vit.patch_embed.img_size).double()
    (out,) = backbone(x)
    for (i, j), expected in on_shifted_images(backbone, vit, x, [(0, 0), (3, 1)]).items():
        torch.testing.assert_close(out[:, :, i::4, j::4], expected, **EXACT)


@pytest.mark.parametrize('plain', KINDS)
def test_stride_16_without_pooling_is_the_plain_vit(plain):
    backbone = without_norms(build(plain, depths=(0, 0, 4, 0), out_indices=(2,)))
    x = torch.randn(2, 3, *timm.create_model(plain).patch_embed.img_size).double()
    torch.testing.assert_close(backbone(x)[0], last_map(twin(backbone), x), **EXACT)


@pytest.mark.parametrize('plain', KINDS)
def test_any_size_any_depths_any_layout(plain):
    for depths in [(1, 1, 1, 1), (0, 2, 0, 2)]:
        for attention in ('grid', 'window', 'window_grid', ('global', 'window', 'global', 'grid')):
            if plain == 'tiny_sam' and attention != 'grid':
                continue
            spacing = 2 if attention == 'grid' else 1
            options = dict(attention=attention, window_size=3, grid_spacing=spacing)
            backbone = build(plain, depths=depths, **options)
            for size in [(1, 1), (33, 61), (64, 96)]:
                outs = backbone(torch.randn(2, 3, *size).double())
                assert [o.shape[-2:] for o in outs] == [
                    (-(-size[0] // s), -(-size[1] // s)) for s in (4, 8, 16, 32)
                ]
                assert all(o.isfinite().all() for o in outs)


@pytest.mark.parametrize('plain', KINDS)
def test_every_parameter_learns_also_with_recomputation_and_drop_path(plain):
    backbone = build(plain, depths=(1, 1, 1, 1), drop_path_rate=0.3)
    names = {name for name, _ in backbone.named_parameters()}
    ids = {name: backbone.get_layer_depth(name)[0] for name in names}
    assert {i for name, i in ids.items() if name.startswith(('rope.', 'shared_rel_pos.'))} <= {0}
    x, results = torch.randn(2, 3, 48, 80).double(), []
    for with_cp in (False, True):
        torch.manual_seed(1)
        backbone.with_cp = with_cp
        backbone.zero_grad()
        outs = backbone.train()(x)
        sum(o.square().sum() for o in outs).backward()
        results.append([*outs, *(p.grad for p in backbone.parameters())])
    assert {n for n, p in backbone.named_parameters() if p.grad is not None} == names
    for plainly, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plainly, **EXACT)


@pytest.mark.parametrize('plain', KINDS)
def test_learned_positions_do_not_decay(plain):
    optim_wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.3),
        constructor='LayerIdDecayConstructor',
        paramwise_cfg=dict(decay_rate=0.5),
    )
    groups = build_optim_wrapper(HPViT(plain), optim_wrapper).optimizer.param_groups
    decays = {name: group['weight_decay'] for group in groups for name in group['param_names']}
    learned = [n for n in decays if n.endswith(('_table', 'rel_pos_h', 'rel_pos_w', 'freqs', 'pos_embed'))]
    assert all(decays[name] == 0 for name in learned)
    assert decays['blocks.0.mlp.fc2.weight'] == 0.3


@pytest.mark.parametrize('plain', KINDS)
def test_images_of_a_batch_do_not_mix(plain):
    backbone = build(plain, depths=(1, 1, 1, 1))
    x = torch.randn(3, 3, 40, 56).double()
    for together, alone in zip(backbone(x), zip(*(backbone(i[None]) for i in x), strict=True), strict=True):
        torch.testing.assert_close(together, torch.cat(alone), **EXACT)


@pytest.mark.parametrize('plain', KINDS)
def test_without_prefix_tokens_copied_and_pickled(plain):
    backbone = build(plain, keep_prefix=False)
    assert backbone.num_prefix_tokens == 0
    x = torch.randn(1, 3, 64, 64).double()
    outs = backbone(x)
    for twin_of_it in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        for a, b in zip(outs, twin_of_it(x), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize('plain', KINDS)
def test_training_after_prediction_and_copying_after_training(plain):
    backbone = build(plain, with_cp=True)
    x = torch.randn(1, 3, 40, 56).double()
    with torch.inference_mode():
        predicted = backbone(x)
    sum(out.sum() for out in backbone.train()(x)).backward()
    assert all(p.grad is not None for p in backbone.parameters())
    for again, before in zip(copy.deepcopy(backbone).eval()(x), predicted, strict=True):
        torch.testing.assert_close(again, before, **EXACT)


def test_shared_relative_positions_are_computed_once(monkeypatch):
    """As in timm, so that all blocks have the same of them dropped in training."""
    register('tiny_srelpos_mlp', KINDS['tiny_relpos'][0], dict(shared_rel_pos=True))
    backbone = HPViT('tiny_srelpos_mlp', depths=(0, 0, 4, 0), out_indices=(2,)).train()
    calls = []
    backbone.shared_rel_pos.mlp.register_forward_hook(lambda *_: calls.append(1))
    backbone(torch.randn(1, 3, 64, 64))[0].sum().backward()
    assert len(calls) == 1
    assert all(p.grad is not None for p in backbone.shared_rel_pos.parameters())


@pytest.mark.parametrize('plain', KINDS)
def test_half_precision_stays_near(plain):
    backbone = build(plain).float()
    x = torch.randn(1, 3, 64, 64)
    exact = backbone(x)
    with torch.autocast('cpu', torch.bfloat16):
        half = backbone(x)
    for a, b in zip(exact, half, strict=True):
        torch.testing.assert_close(b.float(), a, rtol=0.05, atol=0.1)


@pytest.mark.parametrize('plain', KINDS)
def test_frozen_and_as_the_baseline(plain):
    backbone = HPViT(plain, frozen_stages=4)
    assert {n for n, p in backbone.named_parameters() if p.requires_grad} == set()
    outs = PlainViTPyramid(plain)(torch.randn(1, 3, 64, 64))
    assert [o.shape[-1] for o in outs] == [16, 8, 4, 2]


@pytest.mark.parametrize('window', [None, 1, 3, 10])
@pytest.mark.parametrize('size', [(1, 1), (4, 6), (7, 5), (2, 9)])
@pytest.mark.parametrize('dilation', [1, 2, 3, 10])
def test_shapes_of_sequences(window, size, dilation):
    layout = Layout(window, dilation)
    places = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing='ij'), dim=-1)[None]
    groups = partition(places, layout)
    shapes = sequence_shapes(size, layout)
    assert len(groups) == len(shapes)
    for group, (rows, columns) in zip(groups, shapes, strict=True):
        for sequence in group[0].unflatten(1, (rows, columns)):
            assert (sequence.diff(dim=0) == torch.tensor([dilation, 0])).all()
            assert (sequence.diff(dim=1) == torch.tensor([0, dilation])).all()


def test_coordinates_are_in_patches_from_the_centre_of_the_first():
    geometry = Geometry((4, 8), 0.25, Layout(), 0)
    assert geometry.extent == (1, 2)
    (places,) = geometry.coordinates('cpu')
    assert places.shape == (1, 32, 2)
    assert places[0, 0].tolist() == [-0.375, -0.375]
    assert places[0, 9].tolist() == [-0.125, -0.125]
    assert places[0].mean(dim=0).tolist() == [0, 0.5]
    assert Geometry((2, 2), 2.0, Layout(), 0).coordinates('cpu')[0][0, 3].tolist() == [2.5, 2.5]
    assert Geometry((8, 8), 0.25, Layout(None, 4), 0).spacing == 1


@pytest.mark.parametrize('plain', ['tiny_eva02', 'tiny_dinov3', 'tiny_pe', 'tiny_rope_mixed'])
@pytest.mark.parametrize('grid', [(4, 4), (3, 5)])
def test_rotary_embedding_is_timms_to_the_bit(plain, grid):
    rope = timm.create_model(plain, dynamic_img_size=True).rope
    (places,) = Geometry(grid, 1.0, Layout(), 0).coordinates('cpu')
    expected = rope.get_embed(grid)
    for block in range(4):
        ours = rotary_embedding(rope, places, grid, block)
        of_block = expected[block] if plain == 'tiny_rope_mixed' else expected[None]
        assert torch.equal(ours[0], of_block)


def test_table_between_its_points():
    """A bias that grows linearly with the offset is known at every offset."""
    window, shape, spacing = (4, 3), (5, 2), 0.25
    offsets = torch.stack(
        torch.meshgrid(*(torch.arange(1 - w, w) for w in window), indexing='ij'), -1
    ).double()
    table = torch.cat([(offsets * torch.tensor([3.0, 10.0])).sum(-1).reshape(-1, 1), torch.zeros(3, 1)])
    bias = table_bias(table, window, shape, spacing, window, prefix=0)
    places = [(y, x) for y in range(5) for x in range(2)]
    expected = [[0.25 * (3 * (a - c) + 10 * (b - d)) for c, d in places] for a, b in places]
    torch.testing.assert_close(bias[0], torch.tensor(expected).double(), **EXACT)


def test_table_is_the_attention_bias_of_timm():
    attention = beit.Attention(48, num_heads=3, window_size=(3, 4))
    attention.relative_position_bias_table.data.normal_()
    table, bias = attention.relative_position_bias_table, attention._get_rel_pos_bias()[0]
    assert torch.equal(table_bias(table, (3, 4), (3, 4), 1, (3, 4), prefix=1), bias)
    assert torch.equal(table_bias(table, (3, 4), (3, 4), 1, (2.5, 3.25), prefix=0), bias[:, 1:, 1:])
    # A sequence of twice the distance, as at stride 32, meets every second offset.
    every_second = bias[:, 1:, 1:].reshape(3, 3, 4, 3, 4)[:, ::2, ::2, ::2, ::2].reshape(3, 4, 4)
    assert torch.equal(table_bias(table, (3, 4), (2, 2), 2, (3, 4), prefix=0), every_second)


@pytest.mark.parametrize('size', [(6, 8), (2, 3), (7, 4), (20, 33)])
def test_table_for_other_sizes_is_resized_as_timm_does(size):
    attention = beit.Attention(48, num_heads=3, window_size=(4, 4))
    table = attention.relative_position_bias_table.data.normal_().clone()
    attention.set_window_size(size)
    ours = table_bias(table, (4, 4), size, 1, size, prefix=1)
    torch.testing.assert_close(ours, attention._get_rel_pos_bias()[0], rtol=0, atol=1e-5)


def test_stretched_points_end_at_the_edge_and_keep_near_offsets():
    assert stretched_points(4, None).tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert stretched_points(1, 5).tolist() == [0]
    points = stretched_points(14, 32).tolist()
    assert points == [-p for p in points[::-1]]
    assert points[14] == 1
    assert math.isclose(points[-1], 31, rel_tol=1e-4)


@pytest.mark.parametrize('mode', ['cr', 'swin'])
@pytest.mark.parametrize('prefix', [0, 1])
@pytest.mark.parametrize('size', [(4, 4), (6, 3)])
def test_module_bias_is_timms(mode, prefix, size):
    module = RelPosMlp((4, 4), num_heads=3, hidden_dim=16, prefix_tokens=prefix, mode=mode).eval()
    bias = module_bias(module, size, 1, size, prefix)
    module.set_window_size(size)
    torch.testing.assert_close(bias, module.get_bias()[0])
    table = RelPosBias((4, 4), num_heads=3, prefix_tokens=prefix)
    assert torch.equal(module_bias(table, (4, 4), 1, (4, 4), prefix), table.get_bias()[0])


@pytest.mark.parametrize(
    ('options', 'windows'),
    [
        (dict(depths=(1, 1, 1, 1)), [3, 0, 3, 0]),
        (dict(depths=(1, 0, 0, 3)), [3, 0, 2, 0]),
        (dict(depths=(1, 1, 1, 1), grid_spacing=2), [2, 0, 2, 0]),
    ],
)
def test_windows_of_sam_keep_their_size_in_pixels(options, windows):
    backbone, found = HPViT('tiny_sam', **options), []
    for block in backbone.blocks:
        block.register_forward_pre_hook(lambda block, args: found.append(args[2]))
    backbone(torch.randn(1, 3, 64, 64))
    assert found == windows


@pytest.mark.parametrize('plain', ['tiny_patch16', *KINDS])
def test_stochastic_depth_is_copied_and_pickled(plain):
    backbone = HPViT(plain, drop_path_rate=0.5).train()
    x = torch.randn(2, 3, 64, 64)
    backbone(x)
    runs = []
    for twin_of_it in (backbone, copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        torch.manual_seed(3)
        runs.append(twin_of_it.train()(x))
    for levels in zip(*runs, strict=True):
        assert all(torch.equal(level, levels[0]) for level in levels)


@pytest.mark.parametrize('attention', ['window', 'global'])
def test_layouts_that_do_not_fit_sam_are_refused(attention):
    with pytest.raises(
        ValueError, match=rf"attention='{attention}' at stride 4 .*tiny_sam.*attention='grid'"
    ):
        HPViT('tiny_sam', attention=attention)


def test_names_of_small_models_differ():
    assert not set(KINDS) & set(TRAITS)
