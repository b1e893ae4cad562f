# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Small plain ViTs with the traits of the families in use, under timm names of their own."""

import torch
from timm.layers import RmsNorm, SwiGLUPacked
from timm.models import beit, eva, register_model, vision_transformer_relpos, vision_transformer_sam
from timm.models.vision_transformer import ParallelScalingBlock, _create_vision_transformer

TRAITS = {
    'tiny_patch16': dict(),
    'tiny_patch8': dict(patch_size=8),
    'tiny_patch14': dict(patch_size=14, img_size=70),
    'tiny_patch32': dict(patch_size=32, img_size=96),
    'tiny_layerscale': dict(init_values=0.1),
    'tiny_registers': dict(reg_tokens=4, init_values=0.1, no_embed_class=True),
    'tiny_registers_in_pos': dict(reg_tokens=2),
    'tiny_pre_norm': dict(pre_norm=True),
    'tiny_swiglu': dict(mlp_layer=SwiGLUPacked, mlp_ratio=4, act_layer=torch.nn.SiLU, init_values=0.1),
    'tiny_qk_norm': dict(qk_norm=True, norm_layer=RmsNorm),
    'tiny_no_class': dict(class_token=False, global_pool='avg'),
    'tiny_no_norm': dict(final_norm=False),
    'tiny_parallel': dict(block_fn=ParallelScalingBlock),
    'tiny_wide_grid': dict(img_size=(48, 96)),
}
# Those whose blocks are told of positions: rotary embeddings, relative positions, windows.
_ROPE = dict(use_rot_pos_emb=True)
KINDS = {
    'tiny_eva': (eva._create_eva, dict(qkv_fused=False, swiglu_mlp=True)),
    'tiny_eva02': (eva._create_eva, dict(_ROPE, ref_feat_shape=(4, 4), swiglu_mlp=True, scale_mlp=True)),
    'tiny_eva_post_norm': (eva._create_eva, dict(use_post_norm=True)),
    'tiny_dinov3': (
        eva._create_eva,
        dict(
            **_ROPE,
            use_abs_pos_emb=False,
            rope_type='dinov3',
            rope_temperature=100.0,
            rope_rotate_half=True,
            num_reg_tokens=4,
            init_values=0.1,
        ),
    ),
    'tiny_pe': (
        eva._create_eva,
        dict(
            **_ROPE,
            attn_type='rope',
            rope_grid_offset=1.0,
            rope_grid_indexing='xy',
            ref_feat_shape=(4, 4),
            use_pre_transformer_norm=True,
        ),
    ),
    'tiny_rope_mixed': (
        eva._create_eva,
        dict(_ROPE, attn_type='rope', rope_type='mixed', rope_grid_indexing='xy', no_embed_class=True),
    ),
    'tiny_beit': (beit._create_beit, dict(use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1)),
    'tiny_beit_wide': (beit._create_beit, dict(img_size=(48, 96), use_rel_pos_bias=True)),
    'tiny_relpos': (vision_transformer_relpos._create_vision_transformer_relpos, dict()),
    'tiny_relpos_swin': (
        vision_transformer_relpos._create_vision_transformer_relpos,
        dict(rel_pos_type='mlp-swin', class_token=True),
    ),
    'tiny_srelpos': (
        vision_transformer_relpos._create_vision_transformer_relpos,
        dict(rel_pos_type='bias', shared_rel_pos=True),
    ),
    'tiny_relpos_table': (
        vision_transformer_relpos._create_vision_transformer_relpos,
        dict(rel_pos_type='bias', class_token=True),
    ),
    'tiny_sam': (
        vision_transformer_sam._create_vision_transformer,
        dict(use_rel_pos=True, window_size=3, global_attn_indexes=(1, 3), neck_chans=32),
    ),
}
__all__ = []


def register(name: str, create, traits: dict) -> None:
    """Give timm a model of four blocks of width 48 on 4 x 4 patches, but for its traits."""

    def build(pretrained: bool = False, **kwargs):
        args = dict(img_size=64, patch_size=16, embed_dim=48, depth=4, num_heads=3) | traits | kwargs
        return create(name, pretrained=pretrained, **args)

    build.__name__ = name
    build.__module__ = __name__
    register_model(build)


for _name, _traits in TRAITS.items():
    register(_name, _create_vision_transformer, _traits)
for _name, (_create, _traits) in KINDS.items():
    register(_name, _create, _traits)
register('micro_patch16', _create_vision_transformer, dict(embed_dim=16, num_heads=2))
register('tiny_deep', _create_vision_transformer, dict(depth=6))
register('tiny_large_grid', _create_vision_transformer, dict(img_size=96))
register('flexivit_tiny', _create_vision_transformer, dict(patch_size=32, img_size=128))
