# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Small plain ViTs with the traits of the families in use, under timm names of their own."""

import torch
from timm.layers import RmsNorm, SwiGLUPacked
from timm.models import register_model
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
__all__ = []


def _register(name: str, traits: dict) -> None:
    def build(pretrained: bool = False, **kwargs):
        args = dict(img_size=64, patch_size=16, embed_dim=48, depth=4, num_heads=3) | traits | kwargs
        return _create_vision_transformer(name, pretrained=pretrained, **args)

    build.__name__ = name
    build.__module__ = __name__
    register_model(build)


for _name, _traits in TRAITS.items():
    _register(_name, _traits)
