# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import argparse
import contextlib
import hashlib
import http.server
import io
import json
import os
import pickle
import re
import struct
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import mmhpvit.checkpoints.load
import mmhpvit.checkpoints.reader
from mmhpvit import HPViT, PlainViTPyramid, load_plain_weights
from mmhpvit.backbones.timm_vit import build_plain_vit
from mmhpvit.checkpoints.load import expected_images
from mmhpvit.checkpoints.reader import read_checkpoint

TINY = 'tiny_patch16'


def timm_model(name=TINY):
    """A plain ViT of timm with weights that no initialisation would give."""
    vit = timm.create_model(name, num_classes=0, global_pool='', dynamic_img_size=True).eval()
    for p in vit.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return vit


def assert_equal_features(backbone, vit, size=(48, 80)):
    """The backbone at stride 16 computes what timm's model computes."""
    x = torch.randn(2, 3, *size)
    last = len(vit.blocks) - 1
    expected = vit.forward_intermediates(x, [last], norm=True, intermediates_only=True)[0]
    torch.testing.assert_close(backbone.eval()(x)[2], expected, rtol=1e-5, atol=1e-5)


# Each makes, out of a timm state dict, a file as the authors of that family publish it.


def as_mae(weights):
    extra = {
        'mask_token': torch.zeros(1, 1, 32),
        'decoder_pos_embed': torch.zeros(1, 17, 32),
        'decoder_embed.weight': torch.zeros(32, 48),
        'decoder_blocks.0.norm1.weight': torch.ones(32),
        'decoder_pred.bias': torch.zeros(768),
    }
    return {'model': weights | extra}, set(extra)


def as_deit(weights):
    extra = {'head.weight': torch.zeros(1000, 48), 'head.bias': torch.zeros(1000)}
    return {'model': weights | extra, 'args': argparse.Namespace(lr=1.0), 'epoch': 299}, set(extra)


def as_dino_backbone(weights):
    return dict(weights), set()


def as_dino_full(weights):
    teacher = {f'backbone.{k}': v for k, v in weights.items()}
    extra = {'head.mlp.0.weight': torch.zeros(8, 48), 'head.last_layer.weight_g': torch.ones(8, 1)}
    student = {f'module.{k}': torch.zeros_like(v) for k, v in teacher.items()}
    content = {'student': student, 'teacher': teacher | extra, 'epoch': 100, 'optimizer': {'state': {}}}
    return content, set(extra)


def as_lightning(weights):
    return {'state_dict': {f'module.{k}': v for k, v in weights.items()}, 'epoch': 3}, set()


FAMILIES = dict(
    mae=as_mae,
    deit=as_deit,
    dino=as_dino_backbone,
    dino_full=as_dino_full,
    data_parallel=as_lightning,
)


@pytest.mark.parametrize('family', FAMILIES)
def test_files_of_each_family_load_whole_and_compute_the_same(family, tmp_path):
    vit = timm_model()
    content, extra = FAMILIES[family](vit.state_dict())
    torch.save(content, tmp_path / 'file.pth')
    backbone = PlainViTPyramid(TINY)
    report = load_plain_weights(backbone, str(tmp_path / 'file.pth'))
    assert_equal_features(backbone, vit)
    assert {name for name, reason in report.dropped if not name.startswith('student.')} == {
        name if family != 'dino_full' else f'teacher.{name}' for name in extra
    }
    assert all(name.startswith('pyramid.') for name in report.new)
    assert report.resized == []
    assert {*report.loaded, *report.new} == set(backbone.state_dict())


@pytest.mark.parametrize('name', ['tiny_layerscale', 'tiny_swiglu', 'tiny_registers'])
def test_dinov2_files(name, tmp_path):
    """Mask token, registers beside a position embedding with the class token, SwiGLU as w12 and w3."""
    vit = timm_model(name)
    weights = {'mask_token': torch.zeros(1, 48)}
    for key, value in vit.state_dict().items():
        weights[
            key.replace('mlp.fc1', 'mlp.w12').replace('mlp.fc2', 'mlp.w3') if 'swiglu' in name else key
        ] = value
    if name == 'tiny_registers':
        weights['register_tokens'] = weights.pop('reg_token')
        place = torch.randn(1, 1, 48)
        weights['pos_embed'] = torch.cat([place, weights['pos_embed']], dim=1)
        weights['cls_token'] = weights['cls_token'] - place
    torch.save(weights, tmp_path / 'dinov2.pth')
    backbone = PlainViTPyramid(name)
    report = load_plain_weights(backbone, str(tmp_path / 'dinov2.pth'))
    assert_equal_features(backbone, vit)
    assert report.dropped == [('mask_token', 'mask token of the pre-training')]
    assert report.resized == []


def test_deit3_files(tmp_path):
    """LayerScale as gamma_1 and gamma_2."""
    vit = timm_model('tiny_layerscale')
    weights = {
        k.replace('ls1.gamma', 'gamma_1').replace('ls2.gamma', 'gamma_2'): v
        for k, v in vit.state_dict().items()
    }
    torch.save({'model': weights}, tmp_path / 'deit3.pth')
    backbone = PlainViTPyramid('tiny_layerscale')
    load_plain_weights(backbone, str(tmp_path / 'deit3.pth'))
    assert_equal_features(backbone, vit)


def as_augreg(vit):
    """The arrays of Google's vision_transformer repository."""
    arrays = {}
    state = {k: v.numpy() for k, v in vit.state_dict().items()}
    arrays['embedding/kernel'] = state['patch_embed.proj.weight'].transpose(2, 3, 1, 0)
    arrays['embedding/bias'] = state['patch_embed.proj.bias']
    arrays['cls'] = state['cls_token']
    arrays['Transformer/posembed_input/pos_embedding'] = state['pos_embed']
    arrays['Transformer/encoder_norm/scale'] = state['norm.weight']
    arrays['Transformer/encoder_norm/bias'] = state['norm.bias']
    for i in range(4):
        ours, theirs = f'blocks.{i}', f'Transformer/encoderblock_{i}'
        attention = f'{theirs}/MultiHeadDotProductAttention_1'
        qkv = zip(
            ('query', 'key', 'value'),
            *(state[f'{ours}.attn.qkv.{p}'].reshape(3, 48, -1) for p in ('weight', 'bias')),
            strict=True,
        )
        for name, weight, bias in qkv:
            arrays[f'{attention}/{name}/kernel'] = weight.T.reshape(48, 3, 16)
            arrays[f'{attention}/{name}/bias'] = bias.reshape(3, 16)
        arrays[f'{attention}/out/kernel'] = state[f'{ours}.attn.proj.weight'].T.reshape(3, 16, 48)
        arrays[f'{attention}/out/bias'] = state[f'{ours}.attn.proj.bias']
        for norm, layer in (('norm1', 'LayerNorm_0'), ('norm2', 'LayerNorm_2')):
            arrays[f'{theirs}/{layer}/scale'] = state[f'{ours}.{norm}.weight']
            arrays[f'{theirs}/{layer}/bias'] = state[f'{ours}.{norm}.bias']
        for fc, dense in (('fc1', 'Dense_0'), ('fc2', 'Dense_1')):
            arrays[f'{theirs}/MlpBlock_3/{dense}/kernel'] = state[f'{ours}.mlp.{fc}.weight'].T
            arrays[f'{theirs}/MlpBlock_3/{dense}/bias'] = state[f'{ours}.mlp.{fc}.bias']
    return arrays


def test_original_augreg_files(tmp_path):
    vit = timm_model()
    np.savez(tmp_path / 'augreg.npz', **as_augreg(vit))
    backbone = PlainViTPyramid(TINY)
    load_plain_weights(backbone, str(tmp_path / 'augreg.npz'))
    assert_equal_features(backbone, vit)
    grey = PlainViTPyramid(TINY, in_channels=1)
    report = load_plain_weights(grey, str(tmp_path / 'augreg.npz'))
    summed = vit.patch_embed.proj.weight.sum(1, keepdim=True)
    torch.testing.assert_close(grey.patch_embed.proj.weight, summed)
    assert report.resized == [('patch_embed.proj.weight', (48, 3, 16, 16), (48, 1, 16, 16))]


def test_real_augreg_weights_load_into_every_parameter(real_weights):
    backbone = HPViT('vit_tiny_patch16_224')
    report = load_plain_weights(backbone, real_weights)
    weights, own = load_file(real_weights), backbone.state_dict()
    for name, tensor in weights.items():
        if name in own:
            assert torch.equal(own[name], tensor)
    for i in range(4):
        assert torch.equal(own[f'out_norms.{i}.weight'], weights['norm.weight'])
    assert len(report.loaded) == 148 + 8
    assert report.dropped == [('head.bias', 'classifier head'), ('head.weight', 'classifier head')]
    assert {n.split('.')[0] for n in report.new} == {'pools'}
    table = str(report)
    for word in (
        'mean=[127.5, 127.5, 127.5]',
        'loaded    156',
        'new         6',
        'head.bias, head.weight (classifier head)',
        'blocks.0-11',
    ):
        assert word in table


def test_resized_weights_are_reported_with_both_shapes(tmp_path):
    vit = timm_model('tiny_patch14')
    save_file(vit.state_dict(), tmp_path / 'p14.safetensors')
    report = load_plain_weights(HPViT('tiny_patch14'), str(tmp_path / 'p14.safetensors'))
    assert report.resized == [('patch_embed.proj.weight', (48, 3, 14, 14), (48, 3, 16, 16))]
    report = load_plain_weights(
        HPViT('tiny_patch14', patch_kernel='resample'), str(tmp_path / 'p14.safetensors')
    )
    assert report.resized == [('patch_embed.proj.weight', (48, 3, 14, 14), (48, 3, 4, 4))]
    larger = timm.create_model(TINY, img_size=128, num_classes=0)
    save_file(larger.state_dict(), tmp_path / 'larger.safetensors')
    report = load_plain_weights(HPViT(TINY), str(tmp_path / 'larger.safetensors'))
    assert report.resized == [('pos_embed', (1, 65, 48), (1, 17, 48))]
    assert '(1, 65, 48) -> (1, 17, 48)' in str(report)


def test_what_is_not_built_is_dropped_by_name(tmp_path):
    torch.save(timm_model().state_dict(), tmp_path / 'file.pth')
    backbone = HPViT(TINY, out_indices=(0, 1), keep_prefix=False)
    report = load_plain_weights(backbone, str(tmp_path / 'file.pth'))
    reasons = {reason for _, reason in report.dropped}
    assert reasons == {'prefix tokens are left out', 'behind the last output'}
    assert {n.split('.')[1] for n, r in report.dropped if r == 'behind the last output'} == {'2', '3'}


def test_a_final_norm_behind_the_pooling_leaves_output_norms_new(tmp_path):
    weights = timm_model().state_dict()
    for part in ('weight', 'bias'):
        weights[f'fc_norm.{part}'] = weights.pop(f'norm.{part}')
    torch.save(weights, tmp_path / 'file.pth')
    report = load_plain_weights(HPViT(TINY), str(tmp_path / 'file.pth'))
    assert {n.split('.')[0] for n in report.new} == {'pools', 'out_norms'}


def test_timms_own_weights(monkeypatch):
    vit = timm_model()
    asked = []

    def from_hub(*where, weights_only):
        assert weights_only
        asked.extend(where)
        return vit.state_dict()

    monkeypatch.setattr(mmhpvit.checkpoints.reader, 'load_state_dict_from_hf', from_hub)
    build = mmhpvit.checkpoints.load.build_plain_vit

    def with_hub_id(name, **options):
        plain = build(name, **options)
        plain.pretrained_cfg = dict(plain.pretrained_cfg, hf_hub_id='timm/tiny')
        return plain

    monkeypatch.setattr(mmhpvit.checkpoints.load, 'build_plain_vit', with_hub_id)
    backbone = PlainViTPyramid(TINY)
    load_plain_weights(backbone)
    assert asked == ['timm/tiny']
    assert_equal_features(backbone, vit)


def test_timms_weights_that_cannot_be_fetched(monkeypatch):
    def offline(*where, weights_only):
        raise OSError('no network\nand a long explanation')

    monkeypatch.setattr(mmhpvit.checkpoints.reader, 'load_state_dict_from_hf', offline)
    with pytest.raises(OSError, match=r"'vit_tiny_patch16_224'.*no network.*checkpoint=FILE") as error:
        load_plain_weights(HPViT('vit_tiny_patch16_224'))
    assert '\n' not in str(error.value)
    with pytest.raises(ValueError, match="timm has no weights of 'tiny_patch16'"):
        load_plain_weights(HPViT(TINY))


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server whose files are what a test puts into its dict, and torch hub's cache in a folder."""
    files, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content, length = files.get(self.path.split('?')[0], (None, 0))
            self.send_response(200 if content is not None else 404)
            if content is not None:
                self.send_header('Content-Length', str(length or len(content)))
            self.end_headers()
            self.wfile.write(content or b'')

        def log_message(self, *args):
            pass

    web = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    yield files, asked, f'http://127.0.0.1:{web.server_port}'
    web.shutdown()
    web.server_close()


def saved(weights) -> bytes:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()


def cached(folder: Path) -> list[str]:
    return sorted(path.name.partition('_')[2] for path in (folder / 'hub/checkpoints').iterdir())


def test_urls_go_to_the_cache_once(server, tmp_path):
    files, asked, address = server
    vit = timm_model()
    content = saved(vit.state_dict())
    name = f'model-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    files[f'/mae/{name}'] = files[f'/dino/{name}'] = files['/model-20230401.pth'] = content, 0
    backbone = PlainViTPyramid(TINY)
    for _ in range(2):
        load_plain_weights(backbone, f'{address}/mae/{name}?download=1')
    assert asked == [f'/mae/{name}?download=1']
    assert_equal_features(backbone, vit)
    # Another address with the same file name is another file; eight digits are a date, not a hash.
    load_plain_weights(backbone, f'{address}/dino/{name}')
    load_plain_weights(backbone, f'{address}/model-20230401.pth')
    assert len(asked) == 3
    assert cached(tmp_path) == sorted(['model-20230401.pth', name, name])


@pytest.mark.parametrize(
    ('name', 'length', 'message'),
    [
        ('model-01234567abcd.pth', 0, 'its hash is [0-9a-f]{12}, its name says 01234567abcd'),
        ('model.pth', 10**6, r'broke off after \d+ of 1000000 bytes'),
        ('missing.pth', 0, '404'),
    ],
)
def test_what_is_not_downloaded_whole_is_never_taken_for_a_file(name, length, message, server, tmp_path):
    files, asked, address = server
    if name != 'missing.pth':
        files[f'/{name}'] = saved(timm_model().state_dict()), length
    for _ in range(2):
        with pytest.raises(OSError, match=f'{name}.*{message}.*download it elsewhere') as error:
            load_plain_weights(HPViT(TINY), f'{address}/{name}')
        assert '\n' not in str(error.value)
        assert cached(tmp_path) == []
    assert len(asked) == 2


def test_a_server_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(OSError, match=r"'http://127\.0\.0\.1:9/vit\.pth' could not be downloaded"):
        load_plain_weights(HPViT(TINY), 'http://127.0.0.1:9/vit.pth')


def test_damaged_files_are_refused_whatever_is_damaged(tmp_path):
    path = tmp_path / 'file.pth'
    weights = timm_model().state_dict()
    for zipped in (True, False):
        torch.save(weights, path, _use_new_zipfile_serialization=zipped)
        whole, rng = path.read_bytes(), np.random.default_rng(0)
        for _ in range(60):
            damaged = bytearray(whole)
            for place in rng.integers(0, 3000, 20):
                damaged[place] = rng.integers(256)
            path.write_bytes(damaged)
            # Damage that only changes numbers goes unnoticed; any other is a ValueError, and nothing else.
            with contextlib.suppress(ValueError):
                assert read_checkpoint(str(path))


class Payload:
    def __reduce__(self):
        return os.system, ('touch /tmp/mmhpvit-payload-ran',)


def bad_files(folder):
    """Name -> (content writer, words of the error)."""
    weights = timm_model().state_dict()

    def without(name):
        return {k: v for k, v in weights.items() if k != name}

    def truncated(path):
        torch.save(weights, path)
        path.write_bytes(path.read_bytes()[:-2000])

    def truncated_safetensors(path):
        save_file(weights, path)
        path.write_bytes(path.read_bytes()[:-2000])

    def malicious(path):
        torch.save({'model': weights, 'extra': Payload()}, path)

    def raw_malicious(path):
        path.write_bytes(pickle.dumps(Payload(), protocol=2))

    def with_value(value):
        broken = {k: v.clone() for k, v in weights.items()}
        broken['blocks.1.mlp.fc1.weight'][3, 5] = value
        broken['blocks.2.mlp.fc1.weight'][0, 0] = value
        return lambda path: torch.save(broken, path)

    def huge(path):
        torch.save(weights | {'pos_embed': torch.zeros(1).expand(1, 10**9, 48)}, path)

    def huge_safetensors(path):
        header = {'pos_embed': {'dtype': 'F32', 'shape': [1, 10**12, 48], 'data_offsets': [0, 192 * 10**12]}}
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack('<Q', len(text)) + text + bytes(64))

    def bomb(path):
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr('archive/data.pkl', bytes(10**8))

    def objects(path):
        np.savez(path, **{'embedding/kernel': np.array([Payload()], dtype=object)})

    return {
        'nan.pth': (with_value(float('nan')), r'NaN or infinite in 2 weights: blocks.1-2.mlp.fc1.weight'),
        'inf.pth': (with_value(float('-inf')), r'NaN or infinite in 2 weights: blocks.1-2.mlp.fc1.weight'),
        'quantised.pth': (
            lambda path: torch.save({k: v.to(torch.int8) for k, v in weights.items()}, path),
            r'not in floating-point of 16 to 64 bits, such as cls_token in torch.int8; .*before quantisation',
        ),
        'huge.pth': (
            huge,
            r'refused: pos_embed declares \(1, 1000000000, 48\), 192000000000 bytes, and holds 4',
        ),
        'huge.safetensors': (huge_safetensors, 'download it again'),
        'bomb.pth': (bomb, r'refused: its \d+ bytes unpack to 100000000, as no weights do'),
        'bomb.npz': (bomb, r'refused: its \d+ bytes unpack to 100000000, as no weights do'),
        'objects.npz': (objects, r'no \.npz file of a ViT'),
        'truncated.pth': (truncated, 'download it again'),
        'truncated.safetensors': (truncated_safetensors, 'download it again'),
        'empty.pth': (lambda path: path.write_bytes(b''), 'download it again'),
        'page.pth': (
            lambda path: path.write_text('<!DOCTYPE html><html>404</html>'),
            'HTML or XML page.*download it again',
        ),
        'pointer.safetensors': (
            lambda path: path.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:00\n'),
            'it is a pointer of Git LFS',
        ),
        'script.pt': (lambda path: torch.jit.script(torch.nn.ReLU()).save(str(path)), 'TorchScript archive'),
        'float8.safetensors': (
            lambda path: save_file({k: v.to(torch.float8_e4m3fn) for k, v in weights.items()}, path),
            'in torch.float8_e4m3fn; .*before quantisation',
        ),
        'sparse.pth': (
            lambda path: torch.save(weights | {'head.weight': torch.eye(3).to_sparse()}, path),
            'refused: head.weight is torch.sparse_coo on cpu',
        ),
        'twice.pth': (
            lambda path: torch.save(
                weights | {'blocks.1.mlp.lin1.weight': weights['blocks.1.mlp.fc1.weight']}, path
            ),
            'two weights for blocks.1.mlp.fc1.weight',
        ),
        'empty.safetensors': (lambda path: path.write_bytes(b''), 'it is empty'),
        'malicious.pth': (malicious, r'refused: reading it would run [\w.]*system'),
        'old-malicious.pth': (raw_malicious, r'refused: reading it would run [\w.]*system'),
        'list.pth': (lambda path: torch.save([1, 2], path), 'no dict of weights.*found list'),
        'optimizer.pth': (lambda path: torch.save({'optimizer': {}, 'epoch': 3}, path), 'optimizer'),
        'weights.npz': (lambda path: path.write_bytes(b'PK'), r'no \.npz file of a ViT'),
        'missing.pth': (
            lambda path: torch.save(without('blocks.2.attn.qkv.weight'), path),
            r'lacks 1 weights \(blocks.2.attn.qkv.weight\)',
        ),
        'unknown.pth': (
            lambda path: torch.save(weights | {'adapter.weight': torch.ones(2)}, path),
            r'has unexpected 1 weights \(adapter.weight\)',
        ),
        'shape.pth': (
            lambda path: torch.save(weights | {'blocks.1.mlp.fc1.bias': torch.ones(7)}, path),
            r'blocks.1.mlp.fc1.bias \(7,\) for \(192,\)',
        ),
        'resnet.pth': (lambda path: torch.save({'conv1.weight': torch.ones(2)}, path), 'not a plain ViT'),
        'deeper.pth': (
            lambda path: torch.save(weights | {'blocks.5.norm1.weight': torch.ones(48)}, path),
            r'depth 6 \(the model has 4\)',
        ),
        'wider.safetensors': (
            lambda path: save_file(timm.create_model('test_vit', num_classes=0).state_dict(), path),
            r'width 64 \(the model has 48\)',
        ),
    }


@pytest.mark.parametrize('name', list(bad_files(None)))
def test_bad_files_are_refused_in_one_line_and_load_nothing(name, tmp_path, monkeypatch):
    write, message = bad_files(tmp_path)[name]
    write(tmp_path / name)
    backbone = HPViT(TINY)
    monkeypatch.setattr(mmhpvit.checkpoints.reader, '_ALLOWANCE', 10**7)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        load_plain_weights(backbone, str(tmp_path / name))
    assert name in str(error.value)
    assert '\n' not in str(error.value)
    assert not os.path.exists('/tmp/mmhpvit-payload-ran')
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize('part', ['key.weight', 'value.weight', 'value.bias', 'query.bias'])
def test_parts_of_the_attention_that_are_missing_are_errors(part, tmp_path):
    weights = {}
    for name, tensor in timm_model().state_dict().items():
        if '.qkv.' in name:
            block, _, kind = name.partition('.attn.qkv.')
            parts = zip(('query', 'key', 'value'), tensor.chunk(3), strict=True)
            weights |= {f'{block}.attention.attention.{x}.{kind}': t.clone() for x, t in parts}
        else:
            name = name.replace('attn.proj', 'attention.output.dense').replace('norm1', 'layernorm_before')
            name = name.replace('norm2', 'layernorm_after').replace(
                'patch_embed.proj', 'embeddings.patch_embeddings.projection'
            )
            weights[re.sub('^(cls_token|pos_embed)$', r'embeddings.\1', name)] = tensor
    weights = {re.sub(r'^blocks', 'encoder.layer', name): tensor for name, tensor in weights.items()}
    torch.save(weights, tmp_path / 'whole.pth')
    load_plain_weights(HPViT(TINY), tmp_path / 'whole.pth')
    torch.save(
        {k: v for k, v in weights.items() if k != f'encoder.layer.2.attention.attention.{part}'},
        tmp_path / 'x.pth',
    )
    with pytest.raises(ValueError, match=rf'lacks 1 weights \(blocks.2.attn.qkv.{part.partition(".")[2]}\)'):
        load_plain_weights(HPViT(TINY), tmp_path / 'x.pth')


@pytest.mark.parametrize(
    ('plain', 'message'),
    [
        ('tiny_layerscale', r'lacks 8 weights .*ls1.gamma'),
        ('tiny_registers', r'\.npz'),
        ('tiny_deep', r'depth 4, the model has 6'),
    ],
)
def test_original_augreg_files_of_another_vit_are_refused(plain, message, tmp_path):
    np.savez(tmp_path / 'augreg.npz', **as_augreg(timm_model()))
    with pytest.raises(ValueError, match=message):
        load_plain_weights(HPViT(plain), tmp_path / 'augreg.npz')


def test_original_augreg_files_that_are_resized_say_so(tmp_path):
    np.savez(tmp_path / 'augreg.npz', **as_augreg(timm_model()))
    report = load_plain_weights(HPViT('tiny_large_grid'), tmp_path / 'augreg.npz')
    assert report.resized == [('pos_embed', (1, 17, 48), (1, 37, 48))]


def test_kernels_of_another_patch_are_refused(tmp_path):
    """Resized, they would see the image at another scale than they were trained at."""
    np.savez(tmp_path / 'augreg.npz', **as_augreg(timm_model()))
    save_file(timm_model().state_dict(), tmp_path / 'file.safetensors')
    for name in ('augreg.npz', 'file.safetensors'):
        for plain, patch in (('tiny_patch32', 32), ('tiny_patch8', 8)):
            with pytest.raises(ValueError, match=rf'has patch 16 \(the model has {patch}\): it is not of'):
                load_plain_weights(HPViT(plain), tmp_path / name)
    # Authors themselves go from 14 to 16, as for EVA-02's detectors; FlexiViTs are trained with kernels of all sizes.
    for plain in ('tiny_patch14', 'flexivit_tiny'):
        report = load_plain_weights(HPViT(plain), tmp_path / 'file.safetensors')
        assert 'patch_embed.proj.weight' in [name for name, *_ in report.resized] or plain == 'tiny_patch14'


def test_empty_path_is_no_wish_for_timms_weights():
    """As a variable that is not set leaves it."""
    with pytest.raises(ValueError, match=r"checkpoint='' is empty \(a variable that is not set\?\)"):
        HPViT(TINY, init_cfg=dict(type='PlainViT', checkpoint='')).init_weights()


@pytest.mark.parametrize(
    ('first', 'second', 'taken'),
    [
        ('model.', 'ema_model.', 'second'),
        ('state_dict.model.', 'state_dict.averaged_model.module.', 'second'),
        ('encoder.module.', 'target_encoder.module.', 'first'),  # I-JEPA, of which timm takes this one
        ('model.base_encoder.', 'model.momentum_encoder.', 'first'),
        ('encoder.', 'momentum_encoder.', None),
        ('model.', 'model_momentum.', None),
        ('model.', 'swa_model.', None),
    ],
)
def test_averages_are_taken_or_asked_about(first, second, taken, tmp_path):
    own, other = (timm.create_model(TINY, num_classes=0).state_dict() for _ in range(2))
    other = {name: tensor + 1 for name, tensor in other.items()}
    both = {first + k: v for k, v in own.items()} | {second + k: v for k, v in other.items()}
    torch.save(both, tmp_path / 'two.pth')
    backbone = HPViT(TINY)
    if taken is None:
        with pytest.raises(ValueError, match=r'has 2 encoders: .*say which by source='):
            load_plain_weights(backbone, tmp_path / 'two.pth')
        load_plain_weights(backbone, tmp_path / 'two.pth', second.removesuffix('.'))
    else:
        load_plain_weights(backbone, tmp_path / 'two.pth')
    expected = own if taken == 'first' else other
    assert torch.equal(backbone.cls_token, expected['cls_token'])


def test_images_of_names_of_older_versions_of_timm():
    """They stand for one set of weights, and so does a name that timm chooses the weights of."""
    older = build_plain_vit('vit_base_patch16_224_in21k', device='meta')
    assert expected_images(older, 'vit_base_patch16_224_in21k') == {
        ((127.5,) * 3, (127.5,) * 3): ['augreg_in21k']
    }
    name = 'vit_base_patch16_224'
    plain = build_plain_vit(name, device='meta')
    assert len(expected_images(plain, name)) > 1
    assert list(expected_images(plain, name, of_timm=True)) == [((127.5,) * 3, (127.5,) * 3)]


def test_loading_builds_no_second_vit_in_memory(tmp_path, monkeypatch):
    save_file(timm_model().state_dict(), tmp_path / 'file.safetensors')
    backbone, built = HPViT(TINY), []
    build = mmhpvit.checkpoints.load.build_plain_vit
    monkeypatch.setattr(
        mmhpvit.checkpoints.load, 'build_plain_vit', lambda *a, **k: built.append(build(*a, **k)) or built[-1]
    )
    load_plain_weights(backbone, tmp_path / 'file.safetensors')
    assert [all(p.is_meta for p in vit.parameters()) for vit in built] == [True]


def test_half_precision_is_cast_and_reported(tmp_path):
    weights = timm_model().state_dict()
    mixed = {k: v.bfloat16() if k.startswith('blocks.') else v.half() for k, v in weights.items()}
    torch.save(mixed, tmp_path / 'half.pth')
    backbone = HPViT(TINY)
    report = load_plain_weights(backbone, str(tmp_path / 'half.pth'))
    assert sorted(report.cast) == [(6, 'float16'), (48, 'bfloat16')]
    assert {t.dtype for t in backbone.state_dict().values()} == {torch.float32}
    assert torch.equal(backbone.cls_token, mixed['cls_token'].float())
    assert 'cast       48  from bfloat16' in str(report)


def test_checkpoints_in_several_files(tmp_path):
    vit = timm_model()
    weights = vit.state_dict()
    names, index = list(weights), {'metadata': {}, 'weight_map': {}}
    for i, own in enumerate((names[:20], names[20:])):
        file = f'model-0000{i + 1}-of-00002.safetensors'
        save_file({name: weights[name] for name in own}, tmp_path / file)
        index['weight_map'] |= dict.fromkeys(own, file)
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
    backbone = PlainViTPyramid(TINY)
    load_plain_weights(backbone, tmp_path / 'model.safetensors.index.json')
    assert_equal_features(backbone, vit)
    with pytest.raises(
        ValueError, match=r'is one of 2 files; give their index, model.safetensors.index.json'
    ):
        load_plain_weights(backbone, tmp_path / 'model-00001-of-00002.safetensors')
    for content, message in [
        ('{}', 'is no index of files'),
        ('<html>', 'is no index of files'),
        ('{"weight_map": {"a": "../b.safetensors"}}', r"lists \['../b.safetensors'\]"),
    ]:
        (tmp_path / 'model.safetensors.index.json').write_text(content)
        with pytest.raises(ValueError, match=message):
            load_plain_weights(backbone, tmp_path / 'model.safetensors.index.json')


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match=r"'nowhere\.pth' does not exist"):
        load_plain_weights(HPViT(TINY), Path('nowhere.pth'))
    with pytest.raises(FileNotFoundError, match='is not a file'):
        load_plain_weights(HPViT(TINY), os.getcwd())


def test_initialiser_loads_last_and_logs_the_report(tmp_path, monkeypatch):
    vit = timm_model()
    torch.save(vit.state_dict(), tmp_path / 'file.pth')
    init_cfg = [
        dict(type='Constant', layer=['Linear', 'LayerNorm'], val=0.3),
        dict(type='PlainViT', checkpoint=str(tmp_path / 'file.pth')),
    ]
    backbone = PlainViTPyramid(TINY, init_cfg=init_cfg)
    logged = []
    monkeypatch.setattr(mmhpvit.checkpoints.load, 'print_log', lambda text, logger: logged.append(text))
    backbone.init_weights()
    assert_equal_features(backbone, vit)
    assert f'Weights of {TINY} from {tmp_path / "file.pth"}' in logged[0]


def test_a_compiled_backbone_is_loaded_as_it_is(tmp_path):
    vit = timm_model()
    torch.save(vit.state_dict(), tmp_path / 'file.pth')
    backbone = HPViT(TINY)
    load_plain_weights(torch.compile(backbone, backend='eager'), tmp_path / 'file.pth')
    assert torch.equal(backbone.pos_embed, vit.pos_embed)


def test_initialiser_is_for_this_packages_backbones():
    with pytest.raises(TypeError, match='not into a Linear'):
        mmhpvit.PlainViTInit('file.pth')(torch.nn.Linear(2, 2))


@pytest.mark.parametrize('make', [HPViT, PlainViTPyramid])
def test_trained_backbones_are_told_from_plain_vits(make, tmp_path):
    torch.save(
        dict(state_dict={f'backbone.{k}': v for k, v in make(TINY).state_dict().items()}),
        tmp_path / 'own.pth',
    )
    with pytest.raises(
        ValueError, match=r"of a backbone of this package.*type='Pretrained'.*prefix='backbone\.'"
    ):
        load_plain_weights(make(TINY), tmp_path / 'own.pth')


def test_whole_models_are_refused_by_the_name_of_their_class(tmp_path):
    torch.save(timm.create_model(TINY), tmp_path / 'whole.pth')
    with pytest.raises(
        ValueError, match=r'reading it would run timm\.models\.vision_transformer\.VisionTransformer'
    ):
        load_plain_weights(HPViT(TINY), tmp_path / 'whole.pth')


def test_positions_without_the_class_tokens_say_what_to_do(tmp_path):
    torch.save(
        {k: v for k, v in timm.create_model(TINY, class_token=False, global_pool='avg').state_dict().items()}
        | {'cls_token': torch.zeros(1, 1, 48)},
        tmp_path / 'vit.pth',
    )
    with pytest.raises(ValueError, match=r'set plain= to the timm name of the ViT') as error:
        load_plain_weights(HPViT(TINY), tmp_path / 'vit.pth')
    assert '\n' not in str(error.value)


def test_backbones_without_memory_take_no_weights(tmp_path):
    torch.save(timm.create_model(TINY).state_dict(), tmp_path / 'vit.pth')
    with torch.device('meta'):
        backbone = HPViT(TINY)
    with pytest.raises(ValueError, match='this one is on meta'):
        load_plain_weights(backbone, tmp_path / 'vit.pth')


def as_adapter(weights):
    """What PEFT's save_pretrained writes: the adapters alone."""
    prefix = 'base_model.model.encoder.layer.0.attention.attention.query'
    return {f'{prefix}.lora_{x}.weight': torch.zeros(8, 8) for x in 'AB'}


def as_adapted(weights):
    """The state dict of a model that PEFT has wrapped."""
    adapted = {f'base_model.model.{name}': value for name, value in weights.items()}
    layer = 'base_model.model.blocks.0.attn.qkv'
    adapted[f'{layer}.base_layer.weight'] = adapted.pop(f'{layer}.weight')
    return adapted | {f'{layer}.lora_{x}.default.weight': torch.zeros(8, 8) for x in 'AB'}


def as_adapted_patches(weights):
    """The patch embedding, by which an encoder is found, has another name too."""
    return {
        name.replace('patch_embed.proj.', 'patch_embed.proj.base_layer.'): value
        for name, value in as_adapted(weights).items()
    }


@pytest.mark.parametrize('make', [as_adapter, as_adapted, as_adapted_patches])
def test_adapters_are_refused_with_the_line_that_merges_them(make, tmp_path):
    save_file(make(timm_model().state_dict()), tmp_path / 'adapter.safetensors')
    merge = r'weights of adapters of PEFT.*PeftModel\.from_pretrained\(.*\)\.merge_and_unload\(\)'
    with pytest.raises(ValueError, match=merge) as error:
        load_plain_weights(HPViT(TINY), tmp_path / 'adapter.safetensors')
    assert '\n' not in str(error.value)


def test_adapters_outside_the_encoder_are_left_out(tmp_path):
    """Of a language model beside it, for instance."""
    weights = {f'vision_model.{name}': value for name, value in timm_model().state_dict().items()}
    save_file(weights | as_adapter({}), tmp_path / 'both.safetensors')
    report = load_plain_weights(HPViT(TINY), tmp_path / 'both.safetensors')
    assert {name for name, why in report.dropped if why == 'not of the encoder'} == as_adapter({}).keys()
