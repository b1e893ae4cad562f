# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""usage: mmpretrain_models.py KIND FOLDER. Writes a small ViT of mmpretrain, an image and the map it gives.

mmpretrain 1.2.0 lies beside the environment, since mmdet imports it where it is there and then needs
versions of other packages that nobody has any more. Its multimodal models, which need those, are left out.
"""

import sys
from pathlib import Path
from types import ModuleType

import torch
from plain_twin import noisy
from safetensors.torch import save_file

kind, folder = sys.argv[1], Path(sys.argv[2])
sys.path.append(str(Path(sys.executable).parents[1] / 'beside'))
for left_out in ('mmpretrain.models.multimodal', 'mmpretrain.apis'):
    sys.modules[left_out] = ModuleType(left_out)

from mmpretrain.models import backbones  # noqa: E402

arch = dict(embed_dims=48, num_layers=4, num_heads=3, feedforward_channels=192, global_attn_indexes=[1, 3])
options = dict(img_size=64, patch_size=16)
if kind == 'ViTSAM':
    options |= dict(window_size=3, out_channels=0)
else:
    options |= dict(layer_scale_init_value=0.1, out_type='featmap', final_norm=kind == 'VisionTransformer')
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
model = noisy(getattr(backbones, kind)(arch, **options))
model.eval()
image = torch.randn(2, 3, 64, 64)
with torch.no_grad():
    (out,) = model(image)
torch.save({'state_dict': {f'backbone.{k}': v for k, v in model.state_dict().items()}}, folder / 'model.pth')
save_file({'image': image, 'map': out.contiguous()}, folder / 'run.safetensors')
