# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
import torch.nn.functional as F
from mmcv.ops import roi_align
from mmdet.models.necks import FPN
from mmengine.registry import MODELS
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from timm.layers import resample_abs_pos_embed
from tiny_models import KINDS, TRAITS
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

import mmhpvit.layers.block_runner
from mmhpvit import HPViT, PlainViTPyramid, TwoScaleViT
from mmhpvit.backbones.stages import PRESETS, preset_depths
from mmhpvit.layers.patch_embed import power_of_two_patch, resize_kernel

TINY = 'tiny_patch16'  # 4 blocks, width 48
EXACT = dict(rtol=0, atol=1e-10)


def build(plain=TINY, **options) -> HPViT:
    return HPViT(plain, **options).double().eval()


def twin(backbone: HPViT) -> torch.nn.Module:
    """timm's own model of the same name with the backbone's weights."""
    vit = timm.create_model(backbone.plain, num_classes=0, global_pool='', dynamic_img_size=True)
    vit = vit.double().eval()
    own, last = backbone.state_dict(), backbone.out_indices[-1]
    if isinstance(vit.norm, torch.nn.Identity):
        vit.norm = torch.nn.LayerNorm(vit.embed_dim, eps=1e-6).double()
    renamed = {}
    for name in vit.state_dict():
        renamed[name] = own[f'out_norms.{last}.{name[5:]}' if name.startswith('norm.') else name]
    if renamed['patch_embed.proj.weight'].shape != vit.patch_embed.proj.weight.shape:
        kernel = renamed['patch_embed.proj.weight'].shape[-1]
        grid = vit.patch_embed.grid_size
        vit.patch_embed.set_input_size(patch_size=(kernel, kernel))
        vit.patch_embed.grid_size = grid
    vit.load_state_dict(renamed)
    return vit


def noisy(backbone: HPViT) -> HPViT:
    """Move every parameter away from its symmetric start, so that an error cannot hide."""
    for p in backbone.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return backbone


@pytest.mark.parametrize('plain', TRAITS)
@pytest.mark.parametrize('size', [(32, 32), (64, 96), (37, 70)])
def test_grid_layout_is_the_plain_vit_on_each_shifted_image(plain, size):
    backbone = noisy(build(plain, depths=(4, 0, 0, 0), out_indices=(0,)))
    vit, x = twin(backbone), torch.randn(2, 3, *size).double()
    patch = backbone.patch_embed.kernel
    h, w = -(-size[0] // 4), -(-size[1] // 4)
    step = patch // 4
    prefix = backbone.prefix_in_pos_embed
    pos = resample_abs_pos_embed(
        vit.pos_embed[:, prefix:], (h, w), old_size=vit.patch_embed.grid_size, num_prefix_tokens=0
    ).reshape(1, h, w, -1)
    (out,) = backbone(x)
    canvas = F.pad(x, (patch // 2 - 2, 2 * patch, patch // 2 - 2, 2 * patch))
    for i, j in itertools.product(range(min(step, h)), range(min(step, w))):
        rows, columns = -(-(h - i) // step), -(-(w - j) // step)
        shifted = canvas[:, :, 4 * i : 4 * i + patch * rows, 4 * j : 4 * j + patch * columns]
        vit.pos_embed.data = torch.cat(
            [backbone.pos_embed[:, :prefix], pos[:, i::step, j::step].flatten(1, 2)], dim=1
        )
        vit.patch_embed.grid_size = (rows, columns)
        expected = vit.forward_intermediates(shifted, [3], norm=True, intermediates_only=True)[0]
        torch.testing.assert_close(out[:, :, i::step, j::step], expected, **EXACT)


@pytest.mark.parametrize(
    'plain', [p for p in TRAITS if p not in ('tiny_patch8', 'tiny_patch32', 'tiny_patch14')]
)
def test_stride_16_without_pooling_is_the_plain_vit(plain):
    backbone = noisy(build(plain, depths=(0, 0, 4, 0), attention='global', out_indices=(2,)))
    x = torch.randn(2, 3, 48, 80).double()
    expected = twin(backbone).forward_intermediates(x, [3], norm=True, intermediates_only=True)[0]
    torch.testing.assert_close(backbone(x)[0], expected, **EXACT)


@pytest.mark.parametrize(
    'attention', ['grid', 'global', 'window', 'window_grid', ('grid', 'window', 'global', 'global')]
)
@pytest.mark.parametrize('depths', [(1, 1, 1, 1), (2, 0, 2, 0), (0, 1, 3, 0), (0, 0, 0, 4), (4, 0, 0, 0)])
def test_output_sizes(attention, depths):
    backbone = build(depths=depths, attention=attention, window_size=3)
    for h, w in [(1, 1), (32, 64), (33, 61), (5, 90)]:
        outs = backbone(torch.randn(1, 3, h, w).double())
        assert [o.shape for o in outs] == [(1, 48, -(-h // s), -(-w // s)) for s in (4, 8, 16, 32)]
        assert all(o.isfinite().all() for o in outs)


@pytest.mark.parametrize('plain', ['tiny_patch8', 'tiny_patch14', 'tiny_patch32'])
@pytest.mark.parametrize('patch_kernel', ['keep', 'resample'])
def test_other_patch_sizes(plain, patch_kernel):
    for depths in [(1, 1, 1, 1), (0, 2, 2, 0), (0, 0, 4, 0)]:
        outs = build(plain, depths=depths, patch_kernel=patch_kernel)(torch.randn(1, 3, 40, 56).double())
        assert [o.shape[-2:] for o in outs] == [(10, 14), (5, 7), (3, 4), (2, 2)]


def test_patch_sizes_become_powers_of_two():
    assert [power_of_two_patch(p, 4) for p in (8, 14, 16, 32)] == [8, 16, 16, 32]
    assert power_of_two_patch(8, 16) == 16


def test_resized_kernel_answers_a_resized_patch_as_the_kernel_answers_the_patch():
    kernel, patch = torch.randn(5, 3, 16, 16).double(), torch.randn(1, 3, 8, 8).double()
    larger = F.interpolate(patch, size=(16, 16), mode='bicubic', antialias=True)
    resized = resize_kernel(F.interpolate(torch.randn(5, 3, 8, 8).double(), size=(16, 16), mode='bicubic'), 8)
    assert resized.shape == (5, 3, 8, 8)
    # Enlarging loses nothing, so the pseudo-inverse resize of a smaller kernel is exact on it.
    small = torch.randn(5, 3, 8, 8).double()
    answer = (resize_kernel(small, 16) * larger).sum((1, 2, 3))
    torch.testing.assert_close(answer, (small * patch).sum((1, 2, 3)), rtol=1e-4, atol=1e-4)
    assert resize_kernel(kernel, 16) is kernel


def test_grid_of_twice_the_spacing_is_the_plain_vit_on_every_second_patch():
    """With positions at rest, four plain ViTs at spacing 2 are one with every second row and column of patches."""
    options = dict(depths=(0, 0, 4, 0), out_indices=(2,))
    backbone = noisy(build(**options, grid_spacing=2))
    backbone.pos_embed.data.zero_()
    dense = build(**options, attention='global')
    dense.load_state_dict(backbone.state_dict())
    x = torch.randn(1, 3, 64, 128).double()
    (found,) = backbone(x)
    for y, x0 in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        patches = x.unflatten(2, (4, 16)).unflatten(4, (8, 16))[:, :, y::2, :, x0::2]
        (expected,) = dense(patches.flatten(4, 5).flatten(2, 3))
        torch.testing.assert_close(found[:, :, y::2, x0::2], expected, **EXACT)


def test_grid_spacing_becomes_the_dilation_of_each_stride():
    def dilations(**options) -> list[int]:
        return [stage.layout.dilation for stage in HPViT(TINY, depths=(1, 1, 1, 1), **options).stages]

    assert dilations() == [4, 2, 1, 1]
    assert dilations(grid_spacing=2) == [8, 4, 2, 1]
    assert dilations(grid_spacing=(2, 2, 1, 3)) == [8, 4, 1, 1]
    assert dilations(grid_spacing=4, attention='window_grid') == [16, 8, 4, 2]
    assert dilations(grid_spacing=2, attention='window') == [1, 1, 1, 1]


def test_each_token_attends_to_what_its_layout_says():
    layouts = {
        'grid': lambda a, b: all(i % 4 == j % 4 for i, j in zip(a, b, strict=True)),
        'window': lambda a, b: all(i // 3 == j // 3 for i, j in zip(a, b, strict=True)),
        # 17 and 14 tokens are 5 and 4 steps of the grid: windows of 3 and 2 of them.
        'window_grid': lambda a, b: all(
            i % 4 == j % 4 and i // side == j // side for i, j, side in zip(a, b, (12, 8), strict=True)
        ),
        'global': lambda a, b: True,
    }
    for attention, together in layouts.items():
        backbone = noisy(
            build(
                depths=(4, 0, 0, 0), attention=attention, window_size=3, keep_prefix=False, out_indices=(0,)
            )
        )
        tokens = torch.randn(1, 17, 14, 48).double().requires_grad_()
        out, _ = backbone.run_stage(backbone.stages[0], tokens, None)
        for y, x in [(0, 0), (4, 5), (16, 9)]:
            (grad,) = torch.autograd.grad(out[0, y, x].square().sum(), tokens, retain_graph=True)
            reached = grad[0].abs().sum(-1) > 0
            expected = [[together((y, x), (i, j)) for j in range(14)] for i in range(17)]
            assert reached.tolist() == expected, (attention, y, x)


@pytest.mark.parametrize('size', [(48, 80), (64, 64), (200, 40)])
def test_positions_by_deterministic_algorithms_are_the_same(size):
    """torch's gradient of bicubic interpolation has no deterministic form on GPUs, and refuses to run then."""
    backbone = build()
    x = torch.randn(1, 3, *size).double()
    found = []
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            maps = backbone(x)
            backbone.zero_grad()
            sum(level.square().sum() for level in maps).backward()
        finally:
            torch.use_deterministic_algorithms(False)
        names = [type(f).__name__ for f in _functions_of(maps[0].grad_fn)]
        assert any('Bicubic2DAa' in name for name in names) != deterministic
        found.append([*(level.detach() for level in maps), backbone.pos_embed.grad])
    for other, expected in zip(*found, strict=True):
        torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-5)


def _functions_of(function) -> set:
    """The functions of a graph of gradients."""
    found, new = set(), {function}
    while new:
        found |= new
        new = {f for one in new for f, _ in one.next_functions if f is not None} - found
    return found


def test_built_for_inference_and_used_without():
    with torch.inference_mode():
        backbone = build().eval()
        expected = backbone(torch.ones(1, 3, 48, 80).double())
    with torch.no_grad():
        found = backbone(torch.ones(1, 3, 48, 80).double())
    for level, other in zip(found, expected, strict=True):
        assert torch.equal(level, other)


@torch.no_grad()
def test_weights_put_in_for_a_call_are_those_that_count():
    """torch.func's ways of running many models: memory is used again, and tensors may have none."""
    backbone = build().eval()
    x = torch.randn(1, 3, 48, 80).double()
    weights = {name: param.detach() for name, param in backbone.named_parameters()}

    def scaled(scale: float) -> torch.Tensor:
        return torch.func.functional_call(backbone, {k: v * scale for k, v in weights.items()}, (x,))[0]

    found = [scaled(scale) for scale in range(1, 6)]
    for scale, map4 in enumerate(found, 1):
        other = build().eval()
        other.load_state_dict({k: v * scale for k, v in backbone.state_dict().items()})
        torch.testing.assert_close(map4, other(x)[0], rtol=0, atol=0)
    stacked = {k: torch.stack([v * scale for scale in range(1, 6)]) for k, v in weights.items()}
    together = torch.func.vmap(lambda w: torch.func.functional_call(backbone, w, (x,))[0])(stacked)
    torch.testing.assert_close(together, torch.stack(found), rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_can_be_traced(monkeypatch):
    backbone = build().eval()
    x = torch.randn(1, 3, 48, 80).double()
    with monkeypatch.context() as patch:
        # What is cut up for the cache of a CPU would stay so on a GPU.
        patch.setattr(mmhpvit.layers.block_runner, '_CACHED_TOKENS', 1)
        traced = torch.jit.trace(backbone, torch.randn_like(x))
    attentions = str(traced.inlined_graph).count('aten::scaled_dot_product_attention')
    assert attentions == len(backbone.blocks)
    for found, expected in zip(traced(x), backbone(x), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('attention', ['grid', 'window', 'global'])
def test_no_images_give_maps_of_none(attention):
    maps = build(attention=attention)(torch.randn(0, 3, 50, 80).double())
    assert [tuple(m.shape) for m in maps] == [(0, 48, -(-50 // s), -(-80 // s)) for s in (4, 8, 16, 32)]


@torch.no_grad()
@pytest.mark.parametrize('plain', [TINY, *KINDS])
def test_threads_do_not_meet(plain):
    backbone = noisy(build(plain)).eval()
    images = [torch.randn(1, 3, *size).double() for size in ((48, 80), (64, 32), (32, 32))]
    expected = [backbone(x) for x in images]

    def run(i: int) -> None:
        with torch.no_grad():
            for _ in range(10):
                for found, right in zip(backbone(images[i]), expected[i], strict=True):
                    torch.testing.assert_close(found, right, rtol=0, atol=1e-12)

    with ThreadPoolExecutor(len(images)) as pool:
        for done in [pool.submit(run, i) for i in range(len(images))]:
            done.result()


@pytest.mark.parametrize('plain', [TINY, 'tiny_registers', *KINDS])
@pytest.mark.parametrize('tokens', [1, 40, 100])
def test_few_sequences_at_a_time_are_the_same(plain, tokens, monkeypatch):
    backbone = noisy(build(plain))
    x = torch.randn(2, 3, 72, 100).double()
    monkeypatch.setattr(mmhpvit.layers.block_runner, '_CACHED_TOKENS', 10**9)
    together = backbone(x)
    monkeypatch.setattr(mmhpvit.layers.block_runner, '_CACHED_TOKENS', tokens)
    for few, all_at_once in zip(backbone(x), together, strict=True):
        torch.testing.assert_close(few, all_at_once, **EXACT)


@pytest.mark.parametrize('depths', [(1, 1, 2, 0), (0, 2, 2, 0), (2, 0, 2, 0)])
def test_picking_goes_on_as_the_plain_vit_of_a_shifted_image(depths):
    options = dict(out_indices=(2,), keep_prefix=False)
    backbone = noisy(build(depths=depths, pooling='pick', **options))
    backbone.pos_embed.data.zero_()
    for pool in backbone.pools:
        pool.reset_parameters()
    plain = build(depths=(0, 0, 4, 0), attention='global', **options)
    weights = {k: v for k, v in backbone.state_dict().items() if not k.startswith('pools.')}
    plain.load_state_dict(weights)
    x = torch.randn(2, 3, 64, 96).double()
    stride = backbone.stages[0].stride
    first = stride * sum(2**n * pool.corner for n, pool in enumerate(backbone.pools))
    canvas = F.pad(x, (8 - stride // 2, 16) * 2)
    (expected,) = plain(canvas[:, :, first : first + 64, first : first + 96])
    torch.testing.assert_close(backbone(x)[0], expected, **EXACT)


def test_conv_and_average_pooling_start_equal():
    conv, avg = build(depths=(1, 1, 1, 1)), build(depths=(1, 1, 1, 1), pooling='avg')
    assert avg.load_state_dict(conv.state_dict(), strict=False).missing_keys == []
    x = torch.randn(1, 3, 52, 41).double()
    for a, b in zip(conv(x), avg(x), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_recomputing_changes_neither_outputs_nor_gradients():
    x, results = torch.randn(2, 3, 40, 40).double(), []
    for with_cp in (False, True):
        torch.manual_seed(1)
        backbone = build(depths=(1, 1, 1, 1), with_cp=with_cp, drop_path_rate=0.5).train()
        torch.manual_seed(2)
        outs = backbone(x)
        sum(o.square().sum() for o in outs).backward()
        results.append([*outs, *(p.grad for p in backbone.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


WRAPPERS = {
    'mmengine': lambda backbone: turn_on_activation_checkpointing(
        backbone, ['blocks.0', 'blocks.1', 'blocks.3']
    ),
    'torch': lambda backbone: apply_activation_checkpointing(
        backbone, check_fn=lambda module: module in set(backbone.blocks)
    ),
}


@pytest.mark.parametrize('wrap', WRAPPERS)
@pytest.mark.parametrize('kind', [HPViT, TwoScaleViT, PlainViTPyramid])
@pytest.mark.parametrize(
    ('plain', 'frozen'), [*((plain, -1) for plain in (TINY, *KINDS)), (TINY, 0), (TINY, 2)]
)
def test_blocks_recomputed_by_others_have_right_gradients(kind, plain, frozen, wrap):
    """Two steps are run before the first gradient, and a block at two scales: what it is told must be its own."""
    images, results = [torch.randn(2, 3, *size).double() for size in ((40, 40), (32, 72))], []
    torch.manual_seed(1)
    backbone = kind(plain, drop_path_rate=0.5, frozen_stages=frozen).double().train()
    trained = [p for p in backbone.parameters() if p.requires_grad]
    for wrapped in (False, True):
        if wrapped:
            WRAPPERS[wrap](backbone)
        backbone.zero_grad()
        torch.manual_seed(2)
        losses = [sum(o.square().sum() for o in backbone(x)) for x in images]
        for loss in losses:
            loss.backward()
        results.append([*losses, *(p.grad for p in trained)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_images_of_a_batch_do_not_see_each_other():
    backbone, x = noisy(build(depths=(1, 1, 1, 1))), torch.randn(3, 3, 45, 33).double()
    for whole, one in zip(backbone(x), backbone(x[1:2]), strict=True):
        torch.testing.assert_close(whole[1:2], one, **EXACT)


@pytest.mark.parametrize(
    'options',
    [
        dict(depths=(1, 1, 1, 1)),
        dict(depths=(1, 1, 2, 0), pooling='avg'),
        dict(depths=(0, 2, 2, 0), out_indices=(3, 0)),
        dict(depths=(1, 1, 1, 1), out_indices=(2, 1)),
        dict(depths=(0, 1, 2, 1), out_indices=(0,)),
        dict(depths=(1, 1, 1, 1), keep_prefix=False),
    ],
)
@pytest.mark.parametrize('plain', [TINY, 'tiny_registers', 'tiny_no_class', 'tiny_pre_norm'])
def test_every_parameter_is_used(plain, options):
    backbone = noisy(build(plain, **options)).train()
    sum(o.square().sum() for o in backbone(torch.randn(2, 3, 40, 56).double())).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


def test_out_indices_choose_levels_in_order_and_prune_what_lies_behind():
    whole = noisy(build(depths=(1, 1, 1, 1)))
    part = build(depths=(1, 1, 1, 1), out_indices=(1, 0))
    assert len(part.blocks) == 2
    assert len(part.pools) == 1
    part.load_state_dict(whole.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64).double()
    outs, expected = part(x), whole(x)
    assert torch.equal(outs[0], expected[1])
    assert torch.equal(outs[1], expected[0])


def test_prefix_tokens_can_be_left_out():
    backbone = build('tiny_registers_in_pos', keep_prefix=False)
    assert not [n for n, _ in backbone.named_parameters() if 'token' in n]
    assert len(backbone(torch.randn(1, 3, 32, 32).double())) == 4


def test_leading_stages_without_blocks_start_at_a_larger_stride():
    backbone = build(depths=(0, 2, 2, 0))
    assert backbone.patch_embed.stride == 8
    outs = backbone(torch.randn(1, 3, 64, 64).double())
    up = F.interpolate(outs[1], scale_factor=2, mode='bilinear')
    backbone.out_norms['0'].load_state_dict(backbone.out_norms['1'].state_dict())
    torch.testing.assert_close(outs[0], up, **EXACT)


@pytest.mark.parametrize('frozen_stages', range(-1, 5))
def test_frozen_stages(frozen_stages):
    backbone = HPViT(TINY, depths=(1, 1, 1, 1), frozen_stages=frozen_stages, drop_path_rate=0.5)
    assert backbone.train() is backbone
    trained = {n for n, p in backbone.named_parameters() if p.requires_grad}
    embedding = {'pos_embed', 'cls_token', 'patch_embed.proj.weight', 'patch_embed.proj.bias'}
    assert (embedding <= trained) == (frozen_stages < 0)
    assert bool(embedding & trained) == (frozen_stages < 0)
    for i in range(4):
        frozen = i < frozen_stages
        assert any(n.startswith(f'blocks.{i}.') for n in trained) != frozen
        assert any(n.startswith(f'out_norms.{i}.') for n in trained) != frozen
        assert backbone.blocks[i].training != frozen
    outs = backbone(torch.randn(2, 3, 32, 32))
    if frozen_stages < 4:
        sum(o.sum() for o in outs).backward()
    else:
        assert trained == set()


def test_freezing_all_stages_freezes_the_norms_of_upsampled_levels_too():
    backbone = HPViT(TINY, depths=(0, 2, 2, 0), frozen_stages=4)
    assert not [n for n, p in backbone.named_parameters() if p.requires_grad]


def test_drop_path_grows_linearly_over_the_blocks():
    backbone = HPViT(TINY, depths=(1, 1, 1, 1), drop_path_rate=0.3)
    rates = [getattr(b.drop_path1, 'drop_prob', 0.0) for b in backbone.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_presets():
    found = {name: [preset_depths(name, n) for n in (12, 24, 32, 4)] for name in PRESETS}
    assert found == {
        'light': [(0, 3, 9, 0), (0, 6, 18, 0), (0, 8, 24, 0), (0, 1, 3, 0)],
        'standard': [(2, 2, 6, 2), (4, 4, 12, 4), (5, 5, 17, 5), (1, 1, 1, 1)],
        'dense': [(3, 3, 3, 3), (6, 6, 6, 6), (8, 8, 8, 8), (1, 1, 1, 1)],
    }
    assert HPViT(TINY).depths == (1, 1, 1, 1)
    assert HPViT(TINY, depths='light').depths == (0, 1, 3, 0)


def test_layer_depths_cover_every_parameter():
    backbone = HPViT('tiny_registers', depths=(1, 1, 1, 1))
    ids = {name: backbone.get_layer_depth(name)[0] for name, _ in backbone.named_parameters()}
    assert {n for n, i in ids.items() if i == 0} == {
        *('patch_embed.proj.weight', 'patch_embed.proj.bias', 'pos_embed', 'cls_token', 'reg_token')
    }
    for block in range(4):
        names = {f'blocks.{block}.{n}' for n, _ in backbone.blocks[block].named_parameters()}
        # A pooling learns no faster than the block that it follows.
        names |= {n for n in ids if n.startswith(f'pools.{block}.')}
        assert {n for n, i in ids.items() if i == block + 1} == names
    assert {n.split('.')[0] for n, i in ids.items() if i == 5} == {'out_norms'}
    assert backbone.get_layer_depth('model.pos_embed', 'model.') == (0, 6)
    assert backbone.get_layer_depth('model.head.weight', 'model.backbone.') == (5, 6)


@pytest.mark.parametrize(
    'name', ['head.weight', 'blocks.4.attn.qkv.weight', 'blocks', 'cls_tokens', 'reg_token']
)
def test_unknown_parameter_names_have_no_layer_depth(name):
    with pytest.raises(ValueError, match=name):
        HPViT(TINY).get_layer_depth(f'backbone.{name}', 'backbone.')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(depths=(1, 1, 1, 2)), r'sum to 5, but tiny_patch16 has 4 blocks'),
        (dict(depths=(2, 2)), r'expected 4 numbers of blocks'),
        (dict(depths='heavy'), r"depths='heavy': expected one of light, standard, dense"),
        (dict(depths=(-1, 1, 2, 2)), r'none negative'),
        (dict(attention='spiral'), r"'spiral'.*global, window, grid"),
        (dict(attention=('grid', 'grid')), r'expected one str for all stages, or 4 of them'),
        (dict(window_size=0), r'window_size=0: expected positive'),
        (dict(grid_spacing=(2, 2, 0, 1)), r'grid_spacing=\(2, 2, 0, 1\): expected positive'),
        (dict(grid_spacing=1.5), r'grid_spacing=1\.5: expected one int for all stages'),
        (dict(pooling='max'), r"'max'.*conv, pick, avg"),
        (dict(patch_kernel='crop'), r"'crop'.*keep, resample"),
        (dict(out_indices=(0, 4)), r'\(0, 4\)'),
        (dict(out_indices=()), r'out_indices=\(\)'),
        (dict(out_indices=(1, 1)), r'\(1, 1\)'),
        (dict(frozen_stages=5), r'frozen_stages=5'),
        (dict(frozen_stages='all'), r"frozen_stages='all'"),
        (dict(depths=4), r'depths=4: expected one of light, standard, dense, or 4 numbers'),
        (dict(out_indices=3), r'out_indices=3: expected different levels out of'),
        (dict(attention=None), r'attention=None: expected one str for all stages'),
        (dict(out_indices=(True, 2)), r'\(True, 2\): expected different levels'),
        (dict(out_indices=(0.0, 1)), r'\(0\.0, 1\): expected different levels'),
        (dict(out_indices=[[0]]), r'expected different levels'),
        (dict(frozen_stages=True), r'frozen_stages=True'),
        (dict(init_cfg='vit.pth'), r"init_cfg='vit.pth': expected dict\(type='PlainViT', checkpoint=FILE\)"),
        (dict(init_cfg=[dict(type='PlainViT'), 'vit.pth']), r'init_cfg=.*expected dict\(type='),
        (dict(init_cfg=dict(checkpoint='vit.pth')), r'init_cfg=.*expected dict\(type='),
        (dict(window_size=True), r'window_size=True'),
        (dict(depths=(1, 1, 1, True)), r'expected 4 numbers of blocks'),
        (dict(keep_prefix='False'), r"keep_prefix='False': expected True or False"),
        (dict(with_cp=1), r'with_cp=1: expected True or False'),
        (dict(compile_blocks='no'), r"compile_blocks='no'"),
        (dict(drop_path_rate='0.1'), r"drop_path_rate='0\.1': expected a probability"),
        (dict(drop_path_rate=None), r'drop_path_rate=None'),
        (dict(depths=(0, 0, 4, 0), out_indices=(2,), pooling='max'), r"pooling='max': expected one of conv"),
        (dict(attention=('grid', 'gird', 'grid', 'grid'), out_indices=(0,)), r"attention='gird'"),
        (dict(drop_path_rate=1.5), r'drop_path_rate=1\.5'),
        (dict(in_channels=0), r'in_channels=0: expected a positive integer'),
        (dict(in_channels=True), r'in_channels=True: expected a positive integer'),
        (dict(in_channels='RGB'), r"in_channels='RGB': expected a positive integer"),
        (dict(plain=None), r'plain=None'),
        (dict(plain='tiny_patch61'), r'tiny_patch16'),
    ],
)
def test_bad_options_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        HPViT(**dict(plain=TINY) | options)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('shape', [(3, 32, 32), (1, 4, 32, 32), (1, 1, 32, 32), (1, 3, 2, 32, 32)])
def test_bad_inputs_are_refused(shape):
    with pytest.raises(ValueError, match=r'expected \(B, 3, H, W\)') as error:
        HPViT(TINY)(torch.randn(shape))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_both_libraries_build_it_by_name(scope):
    if scope == 'mmdet':
        from mmdet.registry import MODELS as SCOPED
    else:
        from mmseg.registry import MODELS as SCOPED
    assert SCOPED.get('HPViT') is MODELS.get('HPViT') is HPViT
    assert isinstance(SCOPED.build(dict(type='HPViT', plain=TINY)), HPViT)


@pytest.mark.parametrize('norm_cfg', [None, dict(type='LN2d')])
@pytest.mark.parametrize('backbone', [HPViT, PlainViTPyramid])
def test_regions_are_cut_from_the_right_places(backbone, norm_cfg):
    """mmcv's RoIAlign takes any memory for NCHW, so nothing channels-last may reach it through the neck."""
    neck = FPN(in_channels=[48] * 4, out_channels=8, num_outs=4, norm_cfg=norm_cfg)
    rois = torch.tensor([[0, 1, 1, 9, 9.0], [1, 2, 3, 10, 8]])
    for size in [(64, 64), (65, 47)]:
        outs = backbone(TINY)(torch.randn(2, 3, *size))
        assert all(o.is_contiguous() for o in outs)
        for feature in [*outs, *neck(outs)]:
            regions = roi_align(feature, rois, 3, 0.25, 0, 'avg', True)
            expected = roi_align(
                feature.clone(memory_format=torch.contiguous_format), rois, 3, 0.25, 0, 'avg', True
            )
            assert torch.equal(regions, expected)


@pytest.mark.parametrize('plain', [TINY, 'tiny_no_class'])
def test_autocast_keeps_the_tokens_that_pass_through_in_float32(plain):
    images, maps = torch.randn(1, 3, 64, 64), {}
    for pooling in ('conv', 'avg'):
        torch.manual_seed(0)
        backbone = HPViT(plain, pooling=pooling).eval()
        with torch.autocast('cpu', dtype=torch.bfloat16):
            maps[pooling] = backbone(images)
    for conv, avg in zip(maps['conv'], maps['avg'], strict=True):
        assert conv.dtype == avg.dtype == torch.float32
        assert torch.equal(conv, avg)


def test_stochastic_depth_drops_whole_images():
    backbone = HPViT(TINY, depths=(4, 0, 0, 0), out_indices=(0,), drop_path_rate=0.6, keep_prefix=False)
    last = backbone.blocks[-1]
    seen = []
    last.drop_path2.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    backbone.train()(torch.randn(8, 3, 32, 32))
    branch, out = seen[0]
    assert branch.shape[0] == 8 * 16
    ratio = (out / branch).unflatten(0, (8, 16)).flatten(1)
    assert {round(r, 3) for r in ratio.mean(1).tolist()} == {0.0, 2.5}
    assert ratio.std(1).max() < 1e-5
    assert torch.equal(last.drop_path2.eval()(branch), branch)


def test_stochastic_depth_is_one_draw_for_groups_of_all_shapes():
    backbone = HPViT(TINY, depths=(4, 0, 0, 0), out_indices=(0,), drop_path_rate=0.6, with_cp=True)
    seen = []
    backbone.blocks[-1].drop_path2.register_forward_hook(lambda module, args, out: seen.append(module.kept))
    backbone.train()(torch.randn(8, 3, 40, 56))
    assert len(seen) >= 4
    assert all(torch.equal(kept, seen[0]) for kept in seen)
