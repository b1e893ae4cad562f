# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Files as each library writes them, loaded without a converter, against that library's own model."""

import re
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import segment_anything.modeling
import timm
import torch
import torchvision
import transformers
from mmseg.models.backbones import MAE, BEiT
from mmseg.models.backbones import VisionTransformer as MMSegViT
from plain_twin import noisy, without_norms
from safetensors.torch import load_file, save_file
from timm.models import beit, eva, vision_transformer, vision_transformer_sam
from timm.models.deit import _create_deit
from tiny_models import register

from mmhpvit import HPViT, LoadReport, load_plain_weights
from mmhpvit.checkpoints.key_mapping import find_encoder
from mmhpvit.checkpoints.reader import read_checkpoint

SIZE = (64, 64)
WIDTH, HEADS, DEPTH, PATCH = 48, 3, 4, 16
# In float64, but that libraries compute rotary angles in float32.
NEAR = dict(rtol=0, atol=1e-6)


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


_vit = vision_transformer._create_vision_transformer
_norm = torch.nn.LayerNorm
_swiglu = dict(mlp_layer=timm.layers.SwiGLUPacked, act_layer=torch.nn.SiLU, mlp_ratio=256 / WIDTH)
for _name, _create, _traits in [
    ('like_vit', _vit, dict()),
    ('like_vit_swiglu', _vit, dict(_swiglu, init_values=1.0)),
    ('like_deit_distilled', _create_deit, dict(distilled=True)),
    ('like_dinov2', _vit, dict(init_values=1.0)),
    ('like_dinov2_reg', _vit, dict(init_values=1.0, reg_tokens=4, no_embed_class=True)),
    ('like_clip', _vit, dict(pre_norm=True, norm_layer=_norm, act_layer='quick_gelu')),
    ('like_openclip', _vit, dict(pre_norm=True, norm_layer=_norm)),
    ('like_siglip', _vit, dict(class_token=False, global_pool='map', act_layer='gelu_tanh')),
    ('like_ijepa', _vit, dict(class_token=False, global_pool='avg')),
    ('like_scaled', _vit, dict(init_values=1.0)),
    ('like_beit', beit._create_beit, dict(use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1)),
    (
        'like_sam',
        vision_transformer_sam._create_vision_transformer,
        dict(
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(1, 3),
            neck_chans=16,
            norm_layer=lambda width, **options: _norm(width, eps=1e-6, **options),
        ),
    ),
    (
        'like_aimv2',
        _vit,
        dict(
            class_token=False,
            global_pool='avg',
            qkv_bias=False,
            proj_bias=False,
            norm_layer=timm.layers.RmsNorm,
            embed_norm_layer=timm.layers.RmsNorm,
            mlp_layer=timm.layers.SwiGLU,
        ),
    ),
    ('like_radio', _vit, dict(init_values=1.0, reg_tokens=7, no_embed_class=True, final_norm=False)),
    ('like_beit3', _vit, dict(scale_attn_norm=True, scale_mlp_norm=True)),
    (
        'like_pe',
        eva._create_eva,
        dict(
            global_pool='map',
            attn_type='rope',
            use_pre_transformer_norm=True,
            use_rot_pos_emb=True,
            ref_feat_shape=(4, 4),
            rope_grid_offset=1.0,
            rope_grid_indexing='xy',
        ),
    ),
    *(
        (
            f'like_dinov3{suffix}',
            eva._create_eva,
            dict(
                use_rot_pos_emb=True,
                use_abs_pos_emb=False,
                rope_type='dinov3',
                rope_temperature=100,
                rope_rotate_half=True,
                num_reg_tokens=4,
                init_values=1.0,
                norm_layer=lambda width, **options: _norm(width, eps=1e-5, **options),
                **traits,
            ),
        )
        for suffix, traits in [
            ('', dict(qkv_bias=False)),
            ('_qkvb', dict(qkv_bias=True)),
            ('_gated', dict(swiglu_mlp=True, swiglu_align_to=8)),
        ]
    ),
]:
    register(_name, _create, _traits)


def load(plain: str, path: Path, **options) -> tuple[HPViT, LoadReport]:
    """The plain ViT itself: stride 16, no pooling; the map is that of the last block."""
    backbone = HPViT(plain, depths=(0, 0, DEPTH, 0), out_indices=(2,)).eval()
    report = load_plain_weights(backbone, path, **options)
    return backbone, report


def assert_tokens(backbone: HPViT, tokens: torch.Tensor, x: torch.Tensor) -> None:
    """The map equals a library's patch tokens (B, L, C)."""
    expected = tokens.transpose(1, 2).unflatten(2, (x.shape[2] // PATCH, x.shape[3] // PATCH))
    torch.testing.assert_close(backbone(x)[0], expected, **NEAR)


def image() -> torch.Tensor:
    return torch.randn(2, 3, *SIZE)


# Hugging Face's transformers: (model, config, its options, timm's model, prefix tokens, final norm inside).
_HF = dict(
    hidden_size=WIDTH,
    num_hidden_layers=DEPTH,
    num_attention_heads=HEADS,
    intermediate_size=4 * WIDTH,
    image_size=64,
    patch_size=PATCH,
    layer_norm_eps=1e-6,
)
_DINOV3 = dict(num_register_tokens=4, layer_norm_eps=1e-5)
HUGGING_FACE = {
    'ViT': ('ViTForImageClassification', 'ViTConfig', {}, 'like_vit', 1),
    'MAE': (
        'ViTMAEForPreTraining',
        'ViTMAEConfig',
        dict(
            mask_ratio=0.0,
            decoder_num_attention_heads=2,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=1,
            decoder_intermediate_size=16,
        ),
        'like_vit',
        1,
    ),
    'DeiT': ('DeiTForImageClassificationWithTeacher', 'DeiTConfig', {}, 'like_deit_distilled', 2),
    'DINOv2': ('Dinov2Model', 'Dinov2Config', {}, 'like_dinov2', 1),
    'DINOv2 giant': ('Dinov2Model', 'Dinov2Config', dict(use_swiglu_ffn=True), 'like_vit_swiglu', 1),
    'DINOv2 registers': ('Dinov2WithRegistersModel', 'Dinov2WithRegistersConfig', {}, 'like_dinov2_reg', 5),
    'DINOv3': ('DINOv3ViTModel', 'DINOv3ViTConfig', _DINOV3, 'like_dinov3_qkvb', 5),
    'DINOv3 gated': (
        'DINOv3ViTModel',
        'DINOv3ViTConfig',
        dict(_DINOV3, use_gated_mlp=True, hidden_act='silu'),
        'like_dinov3_gated',
        5,
    ),
    'BEiT': ('BeitModel', 'BeitConfig', dict(use_relative_position_bias=True), 'like_beit', 1),
    'BEiT pre-training': (
        'BeitForMaskedImageModeling',
        'BeitConfig',
        dict(use_shared_relative_position_bias=True, use_mask_token=True),
        'like_beit',
        1,
    ),
    'CLIP vision': ('CLIPVisionModel', 'CLIPVisionConfig', dict(layer_norm_eps=1e-5), 'like_clip', 1),
    'SigLIP vision': ('SiglipVisionModel', 'SiglipVisionConfig', {}, 'like_siglip', 0),
    'I-JEPA': ('IJepaModel', 'IJepaConfig', {}, 'like_ijepa', 0),
}


def hugging_face_states(model, x: torch.Tensor) -> torch.Tensor:
    """Hidden states behind the last block, before the final norm."""
    blocks = [m for n, m in model.named_modules() if n.endswith(f'.{DEPTH - 1}') and 'decoder' not in n]
    kept = []
    blocks[0].register_forward_hook(lambda module, args, out: kept.append(out))
    model(pixel_values=x)
    return kept[0][0] if isinstance(kept[0], tuple) else kept[0]


@pytest.mark.parametrize('family', HUGGING_FACE)
@pytest.mark.parametrize('as_published', [True, False])
def test_hugging_face(family, as_published, tmp_path):
    """Both as ``save_pretrained`` and the files of the Hub name them, and as the running model does."""
    model_name, config_name, options, plain, prefix = HUGGING_FACE[family]
    config = getattr(transformers, config_name)(**_HF | options)
    config._attn_implementation = 'eager'
    model = noisy(getattr(transformers, model_name)(config).eval())
    path = tmp_path / 'model.safetensors'
    if as_published:
        model.save_pretrained(tmp_path)
    else:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    backbone, report = load(plain, path)
    x = image()
    if family == 'MAE':
        model = model.vit  # its pre-training shuffles the patches
        model.embeddings.random_masking = lambda tokens, noise=None: (tokens, None, None)
    assert_tokens(without_norms(backbone), hugging_face_states(model, x)[:, prefix:], x)
    assert report.naming == 'transformers'
    assert report.resized == []


def test_whole_models_of_two_towers(tmp_path):
    """CLIP and SigLIP with their text towers, as they are published."""
    text = dict(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50
    )
    for name, plain, prefix, eps in [('CLIP', 'like_clip', 1, 1e-5), ('Siglip', 'like_siglip', 0, 1e-6)]:
        vision = _HF | dict(layer_norm_eps=eps)
        config = getattr(transformers, f'{name}Config')(vision_config=vision, text_config=text)
        model = noisy(getattr(transformers, f'{name}Model')(config).eval())
        model.save_pretrained(tmp_path / name)
        backbone, report = load(plain, tmp_path / name / 'model.safetensors')
        x = image()
        states = hugging_face_states(model.vision_model, x)
        assert_tokens(without_norms(backbone), states[:, prefix:], x)
        assert report.prefix == 'vision_model.'
        assert ('logit_scale', 'not of the encoder') in report.dropped


def test_sam_of_hugging_face_and_its_own(tmp_path):
    x = image()
    config = transformers.SamVisionConfig(
        **_HF | dict(global_attn_indexes=[1, 3], window_size=3, output_channels=16, mlp_dim=4 * WIDTH)
    )
    model = noisy(transformers.SamVisionModel(config).eval())
    model.save_pretrained(tmp_path)
    backbone, report = load('like_sam', tmp_path / 'model.safetensors')
    states = hugging_face_states(model, x)
    torch.testing.assert_close(without_norms(backbone)(x)[0], states.permute(0, 3, 1, 2), **NEAR)
    assert report.naming == 'transformers'

    encoder = segment_anything.modeling.ImageEncoderViT(
        img_size=64,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        out_chans=16,
        norm_layer=lambda width: _norm(width, eps=1e-6),
        use_rel_pos=True,
        window_size=3,
        global_attn_indexes=(1, 3),
    )
    encoder = noisy(encoder.eval())
    weights = {f'image_encoder.{k}': v for k, v in encoder.state_dict().items()}
    torch.save(weights | {'prompt_encoder.no_mask_embed.weight': torch.zeros(1, 16)}, tmp_path / 'sam.pth')
    backbone, report = load('like_sam', tmp_path / 'sam.pth')
    encoder.neck = torch.nn.Identity()
    torch.testing.assert_close(without_norms(backbone)(x)[0], encoder(x), **NEAR)
    reasons = {reason for _, reason in report.dropped}
    assert reasons == {
        'not of the encoder',
        'neck behind the body',
        'final norm, and no output norm takes it',
    } - {'final norm, and no output norm takes it'}


@pytest.mark.parametrize('quick_gelu', [True, False])
@pytest.mark.parametrize('wrapped', [True, False])
def test_clip_of_openai_and_openclip(quick_gelu, wrapped, tmp_path):
    """OpenAI's own files have the names of OpenCLIP's towers, and QuickGELU."""
    model = open_clip.CLIP(
        embed_dim=32,
        vision_cfg=dict(
            layers=DEPTH, width=WIDTH, head_width=WIDTH // HEADS, patch_size=PATCH, image_size=64
        ),
        text_cfg=dict(context_length=8, vocab_size=20, width=32, heads=2, layers=1),
        quick_gelu=quick_gelu,
    )
    model = noisy(model.eval())
    weights = {f'module.{k}': v for k, v in model.state_dict().items()} if wrapped else model.state_dict()
    torch.save({'state_dict': weights, 'epoch': 3} if wrapped else weights, tmp_path / 'clip.pt')
    backbone, report = load('like_clip' if quick_gelu else 'like_openclip', tmp_path / 'clip.pt')
    x = image()
    tokens = model.visual.forward_intermediates(x, [DEPTH - 1], normalize_intermediates=True)
    torch.testing.assert_close(backbone(x)[0], tokens['image_intermediates'][0], **NEAR)
    assert report.naming == 'clip'
    assert report.prefix == ('state_dict.module.visual.' if wrapped else 'visual.')
    assert ('visual.proj', 'head of the pre-training') in report.dropped


def test_openclip_with_a_tower_of_timm(tmp_path):
    tower = noisy(timm.create_model('like_siglip', num_classes=0).eval())
    weights = {f'visual.trunk.{k}': v for k, v in tower.state_dict().items()}
    torch.save(weights | {'logit_scale': torch.ones(())}, tmp_path / 'siglip.bin')
    backbone, report = load('like_siglip', tmp_path / 'siglip.bin')
    x = image()
    assert_tokens(backbone, tower.forward_features(x), x)
    assert ('attn_pool.latent', 'pooling of the head') in report.dropped


def test_torchvision(tmp_path):
    model = torchvision.models.VisionTransformer(64, PATCH, DEPTH, HEADS, WIDTH, 4 * WIDTH).eval()
    noisy(model)
    torch.save(model.state_dict(), tmp_path / 'vit.pth')
    backbone, _ = load('like_vit', tmp_path / 'vit.pth')
    x = image()
    tokens = torch.cat([model.class_token.expand(2, -1, -1), model._process_input(x)], dim=1)
    assert_tokens(backbone, model.encoder(tokens)[:, 1:], x)


_MMSEG = dict(
    img_size=64,
    embed_dims=WIDTH,
    num_layers=DEPTH,
    num_heads=HEADS,
    out_indices=-1,
    norm_cfg=dict(type='LN', eps=1e-6),
)


def mmseg_model(kind: str):
    if kind == 'VisionTransformer':
        return MMSegViT(**_MMSEG, final_norm=True), 'like_vit'
    if kind == 'BEiT':
        return BEiT(**_MMSEG, init_values=0.1, qv_bias=True), 'like_beit'
    return MAE(**_MMSEG, init_values=0.1), 'like_scaled'


@pytest.mark.parametrize('kind', ['VisionTransformer', 'BEiT', 'MAE'])
@pytest.mark.parametrize('of_a_segmenter', [True, False])
def test_mmseg(kind, of_a_segmenter, tmp_path):
    model, plain = mmseg_model(kind)
    model.eval()
    for name, p in model.named_parameters():
        # mmseg's MAE has tables that its users leave at zero beside its position embedding.
        if not (kind == 'MAE' and name.endswith('_table')):
            p.data += 0.05 * torch.randn_like(p)
    weights = {f'backbone.{k}': v for k, v in model.state_dict().items()}
    weights['decode_head.conv_seg.weight'] = torch.zeros(2, 4, 1, 1)
    content = {'state_dict': weights, 'meta': {'epoch': 1}} if of_a_segmenter else model.state_dict()
    torch.save(content, tmp_path / 'mmseg.pth')
    backbone, report = load(plain, tmp_path / 'mmseg.pth')
    x = image()
    backbone = backbone if kind == 'VisionTransformer' else without_norms(backbone)
    torch.testing.assert_close(backbone(x)[0], model(x)[0], **NEAR)
    assert report.naming == 'openmmlab'
    assert report.prefix == ('state_dict.backbone.' if of_a_segmenter else '')
    assert report.zero == (['patch_embed.proj.bias'] if kind == 'VisionTransformer' else [])
    tables = [name for name, reason in report.dropped if reason == 'zeros, which add nothing']
    assert len(tables) == (DEPTH if kind == 'MAE' else 0)


def test_a_trained_table_beside_a_position_embedding_is_refused(tmp_path):
    model = noisy(MAE(**_MMSEG, init_values=0.1))
    torch.save(model.state_dict(), tmp_path / 'mae.pth')
    with pytest.raises(
        ValueError, match=r'unexpected 4 weights \(blocks.0-3.attn.relative_position_bias_table\)'
    ):
        load('like_scaled', tmp_path / 'mae.pth')


@pytest.mark.parametrize('kind', ['VisionTransformer', 'BEiTViT', 'ViTSAM'])
def test_mmpretrain(kind, tmp_path):
    """In a process of its own: importing mmpretrain beside mmdet changes what mmdet imports."""
    script = Path(__file__).parents[1] / '_helpers/mmpretrain_models.py'
    subprocess.run([sys.executable, script, kind, tmp_path], check=True, capture_output=True, text=True)
    plain = {'VisionTransformer': 'like_scaled', 'BEiTViT': 'like_beit', 'ViTSAM': 'like_sam'}[kind]
    backbone, report = load(plain, tmp_path / 'model.pth')
    run = load_file(tmp_path / 'run.safetensors')
    backbone = backbone if kind == 'VisionTransformer' else without_norms(backbone)
    torch.testing.assert_close(backbone(run['image'])[0], run['map'], **NEAR)
    assert report.naming == 'openmmlab'


def test_dinov3_of_its_authors(tmp_path):
    """Fused queries, keys and values with a bias whose key part is masked to zero; storage tokens."""
    vit = noisy(timm.create_model('like_dinov3_qkvb', num_classes=0, global_pool='').eval())
    weights = {'mask_token': torch.zeros(1, WIDTH), 'rope_embed.periods': vit.rope.periods}
    for name, tensor in vit.state_dict().items():
        if name.endswith('q_bias'):
            block = name.removesuffix('q_bias')
            parts = [tensor, torch.zeros(WIDTH), vit.state_dict()[f'{block}v_bias']]
            weights[f'{block}qkv.bias'] = torch.cat(parts)
            weights[f'{block}qkv.bias_mask'] = torch.cat(
                [torch.ones(WIDTH), torch.zeros(WIDTH), torch.ones(WIDTH)]
            )
        elif not name.endswith('v_bias'):
            name = name.replace('gamma_1', 'ls1.gamma').replace('gamma_2', 'ls2.gamma')
            weights[name.replace('reg_token', 'storage_tokens')] = tensor
    torch.save(weights, tmp_path / 'dinov3.pth')
    backbone, _ = load('like_dinov3_qkvb', tmp_path / 'dinov3.pth')
    x = image()
    assert_tokens(backbone, vit.forward_features(x)[:, 5:], x)
    # The model without biases takes the file where they are zero, and refuses it where they are not.
    with pytest.raises(ValueError, match=r'is not zero: blocks.0.attn.qkv.bias.*_qkvb'):
        load('like_dinov3', tmp_path / 'dinov3.pth')
    zeros = {k: torch.zeros_like(v) if k.endswith('qkv.bias') else v for k, v in weights.items()}
    torch.save(zeros, tmp_path / 'zeros.pth')
    _, report = load('like_dinov3', tmp_path / 'zeros.pth')
    assert ('blocks.0.attn.qkv.bias', 'zeros, which add nothing') in report.dropped


def test_beit_of_its_authors_shares_one_table_in_pre_training(tmp_path):
    vit = noisy(timm.create_model('like_beit', num_classes=0, global_pool='').eval())
    table = vit.blocks[0].attn.relative_position_bias_table.data
    for block in vit.blocks:
        block.attn.relative_position_bias_table.data = table.clone()
    weights = {k: v for k, v in vit.state_dict().items() if not k.endswith('_table')}
    weights['rel_pos_bias.relative_position_bias_table'] = table
    weights |= {'mask_token': torch.zeros(1, 1, WIDTH), 'lm_head.weight': torch.zeros(8, WIDTH)}
    weights['rel_pos_bias.relative_position_index'] = torch.zeros(17, 17, dtype=torch.long)
    torch.save({'model': weights}, tmp_path / 'beit.pth')
    backbone, report = load('like_beit', tmp_path / 'beit.pth')
    x = image()
    assert_tokens(backbone, vit.forward_features(x)[:, 1:], x)
    assert {name for name, _ in report.dropped} >= {'mask_token', 'lm_head.weight'}


def test_eva_of_its_authors(tmp_path):
    """EVA-02's pre-training: queries, keys and values apart, its norms named after its papers."""
    traits = dict(
        use_rot_pos_emb=True, ref_feat_shape=(4, 4), qkv_fused=False, swiglu_mlp=True, scale_mlp=True
    )
    register('like_eva02', eva._create_eva, traits)
    vit = noisy(timm.create_model('like_eva02', num_classes=0, global_pool='').eval())
    names = {
        'mlp.norm': 'mlp.ffn_ln',
        'mlp.fc1_g': 'mlp.w1',
        'mlp.fc1_x': 'mlp.w2',
        'mlp.fc2': 'mlp.w3',
        'q_proj.bias': 'q_bias',
        'v_proj.bias': 'v_bias',
    }
    weights = {'mask_token': torch.zeros(1, 1, WIDTH), 'lm_head.bias': torch.zeros(8)}
    for name, tensor in vit.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights[name] = tensor
    weights['rope.freqs_cos'] = torch.zeros(16, 16)
    torch.save({'module': weights}, tmp_path / 'eva.pt')
    backbone, _ = load('like_eva02', tmp_path / 'eva.pt')
    x = image()
    assert_tokens(backbone, vit.forward_features(x)[:, 1:], x)


def test_dinov2_of_its_training_keeps_blocks_in_chunks(tmp_path):
    vit = noisy(timm.create_model('like_dinov2', num_classes=0, global_pool='').eval())
    weights = {'mask_token': torch.zeros(1, WIDTH)}
    for name, tensor in vit.state_dict().items():
        weights[name.replace('blocks.', 'blocks.0.')] = tensor
    both = {f'teacher.backbone.{k}': v for k, v in weights.items()}
    both |= {f'student.backbone.{k}': torch.zeros_like(v) for k, v in weights.items()}
    torch.save(
        {'model': both | {'teacher.dino_head.last_layer.weight': torch.zeros(2)}}, tmp_path / 'dinov2.pth'
    )
    backbone, report = load('like_dinov2', tmp_path / 'dinov2.pth')
    x = image()
    assert_tokens(backbone, vit.forward_features(x)[:, 1:], x)
    assert report.prefix == 'model.teacher.backbone.'


def test_vitdet_has_positions_of_a_class_token_that_it_has_not(tmp_path):
    vit = noisy(timm.create_model('like_sam', num_classes=0).eval())
    positions = torch.randn(1, 1 + 2 * 2, WIDTH)
    weights = {f'backbone.net.{k}': v for k, v in vit.state_dict().items() if not k.startswith('neck')}
    weights['backbone.net.pos_embed'] = positions
    weights['backbone.simfp_2.0.weight'] = torch.zeros(2)
    torch.save({'model': weights}, tmp_path / 'vitdet.pkl')
    backbone, report = load('like_sam', tmp_path / 'vitdet.pkl')
    resized = timm.layers.resample_abs_pos_embed(positions[:, 1:], (4, 4), num_prefix_tokens=0)
    torch.testing.assert_close(backbone.pos_embed.flatten(1, 2), resized)
    assert [name for name, *_ in report.resized] == ['pos_embed']


def test_vitdet_of_mmdet(tmp_path):
    """mmdet's project has mmpretrain's names under ``backbone.`` and the axes of detectron2."""
    vit = noisy(timm.create_model('like_sam', num_classes=0).eval())
    names = {
        'blocks': 'layers',
        'patch_embed.proj': 'patch_embed.projection',
        'mlp.fc1': 'ffn.layers.0.0',
        'mlp.fc2': 'ffn.layers.1',
    }
    weights = {
        'backbone.pos_embed': torch.randn(1, 17, WIDTH),
        'neck.lateral_convs.0.conv.weight': torch.ones(1),
    }
    for name, tensor in vit.state_dict().items():
        if name != 'pos_embed' and not name.startswith('neck'):
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            weights[f'backbone.{name}'] = tensor
    torch.save({'state_dict': weights}, tmp_path / 'vitdet.pth')
    backbone, _ = load('like_sam', tmp_path / 'vitdet.pth')
    assert torch.equal(backbone.pos_embed.flatten(1, 2), weights['backbone.pos_embed'][:, 1:])
    vit.pos_embed.data = backbone.pos_embed.data
    x = image()
    expected = vit.forward_intermediates(x, [DEPTH - 1], norm=False, intermediates_only=True)[0]
    torch.testing.assert_close(without_norms(backbone)(x)[0], expected, **NEAR)


def _as_of_aimv2(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    name = name.replace('mlp.fc1_x', 'mlp.fc3').replace('mlp.fc1_g', 'mlp.fc1')
    if name.startswith('patch_embed.'):
        return {name.replace('patch_embed.', 'preprocessor.patchifier.'): tensor}
    if name == 'pos_embed':
        return {'preprocessor.pos_embed': tensor}
    name = name.replace('norm1', 'norm_1').replace('norm2', 'norm_2')
    return {'trunk.' + re.sub(r'^norm\.', 'post_trunk_norm.', name): tensor}


def _as_of_radio(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    start = 'radio_model.model.'
    if name == 'patch_embed.proj.weight':
        return {f'{start}patch_generator.embedder.weight': tensor.flatten(1)}
    if name == 'patch_embed.proj.bias':
        return {'radio_model.input_conditioner.norm_mean': torch.zeros(3, 1, 1)}
    if name == 'pos_embed':
        return {f'{start}patch_generator.pos_embed': tensor}
    if name == 'cls_token':
        return {}
    if name == 'reg_token':
        return {f'{start}patch_generator.cls_token.token': torch.cat([torch.zeros(1, WIDTH), tensor[0]])}
    return {f'{start}{name}': tensor}


def _as_of_beit3(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    embedding = {'cls_token': 'vision_embed.cls_token', 'norm.weight': 'encoder.layer_norm.A.weight'}
    if name == 'pos_embed':
        return {'beit3.encoder.embed_positions.A.weight': torch.cat([torch.zeros(2, WIDTH), tensor[0]])}
    if name.startswith('patch_embed.'):
        return {name.replace('patch_embed.', 'beit3.vision_embed.'): tensor}
    if name.startswith('norm.'):
        return {name.replace('norm.', 'beit3.encoder.norm.A.'): tensor}
    if name in embedding:
        return {f'beit3.{embedding[name]}': tensor}
    found = re.match(r'blocks\.(\d+)\.(\w+)\.(.*)', name)
    start, part, rest = f'beit3.encoder.layers.{found[1]}.', found[2], found[3]
    if part.startswith('norm'):
        part = {'norm1': 'self_attn_layer_norm', 'norm2': 'final_layer_norm'}[part]
        return {f'{start}{part}.A.{rest}': tensor}
    if part == 'mlp':
        return {f'{start}ffn.A.{rest.replace("norm.", "ffn_layernorm.")}': tensor}
    if rest.startswith('qkv.'):
        parts = zip('qkv', tensor.chunk(3), strict=True)
        return {f'{start}self_attn.{x}_proj.A.{rest.removeprefix("qkv.")}': t for x, t in parts}
    names = {'norm.': 'inner_attn_ln.A.', 'proj.': 'out_proj.A.'}
    for ours, theirs in names.items():
        rest = rest.replace(ours, theirs)
    return {f'{start}self_attn.{rest}': tensor}


def _as_of_pe(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    if name == 'cls_token':
        return {'visual.class_embedding': tensor[0, 0], 'visual.proj': torch.zeros(WIDTH, 8)}
    if name == 'pos_embed':
        return {'visual.positional_embedding': tensor[0]}
    swaps = {
        'patch_embed.proj': 'conv1',
        'blocks.': 'transformer.resblocks.',
        'norm_pre': 'ln_pre',
        'norm1': 'ln_1',
        'norm2': 'ln_2',
        'attn.qkv.': 'attn.in_proj_',
        'attn.proj': 'attn.out_proj',
        'mlp.fc1': 'mlp.c_fc',
        'mlp.fc2': 'mlp.c_proj',
    }
    for ours, theirs in swaps.items():
        name = name.replace(ours, theirs)
    return {'visual.' + re.sub(r'^norm\.', 'ln_post.', name): tensor}


@pytest.mark.parametrize(
    ('plain', 'as_published', 'naming'),
    [
        ('like_aimv2', _as_of_aimv2, 'aimv2'),
        ('like_radio', _as_of_radio, 'radio'),
        ('like_beit3', _as_of_beit3, 'beit3'),
        ('like_pe', _as_of_pe, 'clip'),
    ],
)
def test_what_timm_converts(plain, as_published, naming, tmp_path):
    vit = noisy(timm.create_model(plain, num_classes=0, global_pool='').eval())
    if plain == 'like_radio':
        vit.patch_embed.proj.bias.data.zero_()
        vit.cls_token.data.zero_()
    weights = {}
    for name, tensor in vit.state_dict().items():
        weights |= as_published(name, tensor)
    torch.save(weights, tmp_path / 'file.pth')
    backbone, report = load(plain, tmp_path / 'file.pth')
    x = image()
    # RADIO has no final norm.
    backbone = without_norms(backbone) if plain == 'like_radio' else backbone
    assert_tokens(backbone, vit.forward_features(x)[:, backbone.num_prefix_tokens :], x)
    assert report.naming == naming
    assert report.resized == []
    # With patches of twice the side, whatever their names and form.
    encoder = find_encoder(weights, None, 'file.pth')
    kernel = encoder.kernel
    wide = (*kernel.shape[:2], *(2 * side for side in kernel.shape[2:]))
    weights[encoder.prefix + encoder.naming.patch] = torch.zeros(
        wide if kernel.dim() == 4 else (len(kernel), 4 * kernel.shape[1])
    )
    torch.save(weights, tmp_path / 'wide.pth')
    with pytest.raises(ValueError, match=rf'has patch {2 * vit.patch_embed.patch_size[0]} \(the model has'):
        load(plain, tmp_path / 'wide.pth')


def _vit_weights() -> dict[str, torch.Tensor]:
    return noisy(timm.create_model('like_vit', num_classes=0, global_pool='')).state_dict()


@pytest.mark.parametrize(
    'wrap',
    [
        lambda w, other: {'model_ema': w, 'model': other},
        lambda w, other: {'state_dict_ema': w, 'state_dict': other, 'arch': 'vit'},
        lambda w, other: {'ema': {f'module.{k}': v for k, v in w.items()}, 'model': other},
        # DeepSpeed's mp_rank_00_model_states.pt
        lambda w, other: {
            'module': w,
            'ds_config': {'fp16': {'enabled': True}},
            'param_shapes': [],
            'dp_world_size': 8,
        },
        # I-JEPA
        lambda w, other: {
            'encoder': {f'module.{k}': v for k, v in w.items()},
            'predictor': {'x': torch.ones(1)},
        },
        # MoCo v3
        lambda w, other: {
            'state_dict': {f'module.base_encoder.{k}': v for k, v in w.items()}
            | {f'module.momentum_encoder.{k}': v for k, v in other.items()}
        },
        # Lightning, DDP, torch.compile
        lambda w, other: {'state_dict': {f'model.module._orig_mod.{k}': v for k, v in w.items()}},
        # mmengine's EMAHook saves the averages as the state dict
        lambda w, other: {
            'state_dict': {f'backbone.{k}': v for k, v in w.items()},
            'ema_state_dict': {f'module.backbone.{k}': v for k, v in other.items()}
            | {'steps': torch.tensor(4)},
        },
        # Other trainers keep the averages under that name.
        lambda w, other: {'model': other, 'ema_state_dict': w},
        lambda w, other: {
            'state_dict': other,
            'ema_state_dict': {f'module.{k}': v for k, v in w.items()} | {'n_averaged': torch.tensor(4)},
        },
        lambda w, other: {'ema_state_dict': w},
        lambda w, other: {'model': other, 'EMA': w},
        lambda w, other: {'state_dict': other, 'shadow': w},
        # Each block by itself compiled, recomputed and sharded.
        lambda w, other: {
            k.replace('.norm1', '._orig_mod.norm1')
            .replace('.attn', '._checkpoint_wrapped_module.attn')
            .replace('.mlp', '._fsdp_wrapped_module.mlp'): v
            for k, v in w.items()
        },
    ],
    ids=[
        *('deit-ema', 'timm-ema', 'ema', 'deepspeed', 'ijepa', 'mocov3', 'lightning', 'mmengine-ema'),
        *('others-ema', 'torch-ema', 'only-ema', 'upper-ema', 'shadow', 'wrapped-blocks'),
    ],
)
def test_wrappers(wrap, tmp_path):
    weights = _vit_weights()
    torch.save(wrap(weights, {k: torch.zeros_like(v) for k, v in weights.items()}), tmp_path / 'file.pth')
    backbone, report = load('like_vit', tmp_path / 'file.pth')
    own = backbone.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in weights.items() if name in own)
    in_file = read_checkpoint(str(tmp_path / 'file.pth'))
    dropped = {name for name, _ in report.dropped}
    assert all(name in dropped for name in in_file if not name.startswith(report.prefix))


def test_two_weights_of_one_name_are_refused(tmp_path):
    weights = _vit_weights()
    torch.save(weights | {f'_orig_mod.{k}': v for k, v in weights.items()}, tmp_path / 'both.pth')
    with pytest.raises(ValueError, match=r'has _orig_mod\.\S+ and \S+: expected one of them'):
        load('like_vit', tmp_path / 'both.pth')


def test_of_two_encoders_the_file_must_say_which(tmp_path):
    first, second = _vit_weights(), _vit_weights()
    both = {f'left.{k}': v for k, v in first.items()} | {f'right.{k}': v for k, v in second.items()}
    torch.save(both, tmp_path / 'two.pth')
    with pytest.raises(
        ValueError, match=r"2 encoders: left\. as timm names it, right\..*source='left'"
    ) as error:
        load('like_vit', tmp_path / 'two.pth')
    assert '\n' not in str(error.value)
    for source, weights in [('left', first), ('right.', second)]:
        backbone, report = load('like_vit', tmp_path / 'two.pth', source=source)
        assert torch.equal(backbone.pos_embed, weights['pos_embed'])
        assert {reason for _, reason in report.dropped} == {'not of the encoder'}
    with pytest.raises(
        ValueError, match=r"source='middle'.*a naming \(aimv2, .*\) or a prefix; it has left\. as timm"
    ):
        load('like_vit', tmp_path / 'two.pth', source='middle')


def test_a_bare_encoder_beside_another(tmp_path):
    first, second = _vit_weights(), _vit_weights()
    torch.save(first | {f'other.{k}': v for k, v in second.items()}, tmp_path / 'two.pth')
    with pytest.raises(ValueError, match=r"bare as timm names it, other\..*source='bare'"):
        load('like_vit', tmp_path / 'two.pth')
    for source, weights in [('bare', first), ('other', second)]:
        backbone, _ = load('like_vit', tmp_path / 'two.pth', source=source)
        assert torch.equal(backbone.pos_embed, weights['pos_embed'])


def test_names_of_another_kind_of_vit(tmp_path):
    weights = {}
    for name, tensor in timm.create_model('like_pe', num_classes=0).state_dict().items():
        if not name.startswith('attn_pool'):
            weights |= _as_of_pe(name, tensor)
    torch.save(weights, tmp_path / 'clip.pth')
    for plain in ('like_beit', 'like_sam'):
        with pytest.raises(ValueError, match='names of clip, which belong to another kind of ViT'):
            load(plain, tmp_path / 'clip.pth')


def test_folders_of_hugging_face(tmp_path):
    model = noisy(transformers.ViTModel(transformers.ViTConfig(**_HF)))
    model.save_pretrained(tmp_path)
    backbone, _ = load('like_vit', tmp_path)
    assert torch.equal(backbone.cls_token, model.embeddings.cls_token)


def test_source_may_be_given_in_a_config(tmp_path):
    first, second = _vit_weights(), _vit_weights()
    both = {f'left.{k}': v for k, v in first.items()} | {f'right.{k}': v for k, v in second.items()}
    torch.save(both, tmp_path / 'two.pth')
    init_cfg = dict(type='PlainViT', checkpoint=str(tmp_path / 'two.pth'), source='right')
    backbone = HPViT('like_vit', init_cfg=init_cfg)
    backbone.init_weights()
    assert torch.equal(backbone.pos_embed, second['pos_embed'])
