# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import copy
import re
from pathlib import Path

import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.model import PretrainedInit
from mmengine.registry import MODELS, init_default_scope
from small_configs import config

from mmhpvit import HPViT
from mmhpvit.preflight.errors import ConfigError
from mmhpvit.preflight.weights import (
    check_checkpoint,
    check_files,
    check_plain_weights,
    check_pretrained,
    check_start,
    warn_of_normalisation,
    warn_of_random_weights,
)


def test_files_of_another_vit_are_refused_before_training(real_weights):
    def backbone(plain: str, checkpoint: str) -> dict:
        return dict(type='HPViT', plain=plain, init_cfg=dict(type='PlainViT', checkpoint=checkpoint))

    for plain, checkpoint in (
        ('vit_tiny_patch16_224', real_weights),
        ('vit_small_patch16_224', 'https://nowhere/vit.pth'),
    ):
        check_plain_weights(config(model=dict(backbone=backbone(plain, checkpoint))))
    model = dict(backbone=backbone('vit_small_patch16_224', real_weights))
    # Weights that come from elsewhere, and backbones of others.
    check_plain_weights(config(model=model, load_from='trained.pth'))
    check_plain_weights(config(model=dict(backbone=model['backbone'] | dict(type='ResNet'))))
    with pytest.raises(ConfigError, match=r'init_cfg: .* has width 192 \(the model has 384\)'):
        check_plain_weights(config(model=model))


def test_own_backbones_of_a_user_are_checked_by_what_they_build():
    class Mine(HPViT):
        def __init__(self, **kwargs) -> None:
            super().__init__('vit_tiny_patch16_224', **kwargs)

    mean, std = [127.5] * 3, [127.5] * 3
    cfg = config(model=dict(backbone=dict(type=Mine), data_preprocessor=dict(mean=mean, std=std)))
    warn_of_normalisation(cfg)
    check_plain_weights(cfg)


@pytest.mark.parametrize(
    ('plain', 'mean', 'said'),
    [
        ('vit_tiny_patch16_224', [123.675, 116.28, 103.53], True),
        ('vit_tiny_patch16_224', [127.5] * 3, False),
        # Some weights of this name want these, others those.
        ('vit_base_patch16_224', [123.675, 116.28, 103.53], False),
        ('vit_base_patch16_224', [127.5] * 3, False),
        ('vit_base_patch16_224.mae', [127.5] * 3, True),
    ],
)
def test_wrong_mean_and_deviation_are_said_before_training(plain, mean, said, warned):
    std = [58.395, 57.12, 57.375] if mean[0] < 127 else [127.5] * 3
    model = dict(backbone=dict(type='HPViT', plain=plain), data_preprocessor=dict(mean=mean, std=std))
    # mmengine takes the model's own before that of the config.
    beside = dict(mean=[1.0] * 3, std=[1.0] * 3)
    for cfg in (dict(model=model), dict(model=model, data_preprocessor=beside)):
        warn_of_normalisation(Config(cfg))
        assert len(warned) == said
        assert not said or 'model.data_preprocessor has' in warned.pop()
    warn_of_normalisation(Config(dict(model=dict(backbone=model['backbone']), data_preprocessor=beside)))
    assert 'mean=[1.0, 1.0, 1.0]' in warned.pop()


def test_checkpoints_of_stock_backbones_are_checked_too(tmp_path):
    """Swin cannot be built without memory."""
    cfg = Config.fromfile(Path(mmseg.__file__).parent / '.mim/configs/_base_/models/upernet_swin.py')
    cfg.default_scope = 'mmseg'
    cfg.merge_from_dict({'model.backbone.embed_dims': 24, 'model.backbone.depths': [1, 1, 1, 1]})
    cfg.model.decode_head.update(in_channels=[24, 48, 96, 192], channels=8, norm_cfg=dict(type='BN'))
    cfg.model.auxiliary_head.update(in_channels=96, channels=8, norm_cfg=dict(type='BN'))
    init_default_scope('mmseg')
    state = MODELS.build(cfg.model).state_dict()
    torch.save(dict(state_dict=state), tmp_path / 'own.pth')
    check_checkpoint(cfg, str(tmp_path / 'own.pth'))
    check_checkpoint(cfg, 'https://nowhere/other.pth')
    name = 'decode_head.conv_seg.bias'
    for other, message in (
        ({key: value for key, value in state.items() if key != name}, '1 weights missing'),
        (state | {name: torch.zeros(3)}, '1 weights of another shape'),
        (state | {'backbone.own': torch.zeros(3)}, '1 weights unexpected'),
        ({'blocks.0.weight': torch.zeros(3)}, 'no name begins with backbone'),
    ):
        torch.save(dict(state_dict=other), tmp_path / 'other.pth')
        with pytest.raises(ConfigError, match=message):
            check_checkpoint(cfg, str(tmp_path / 'other.pth'))


def tiny_segmenter(**backbone) -> Config:
    backbone = dict(type='HPViT', plain='vit_tiny_patch16_224') | backbone
    heads = dict(num_classes=2, in_channels=[192] * 4, in_index=[0, 1, 2, 3], channels=8)
    model = dict(type='EncoderDecoder', backbone=backbone, decode_head=dict(type='UPerHead', **heads))
    init_default_scope('mmseg')
    return Config(dict(model=model, default_scope='mmseg'))


def test_a_model_that_is_wrapped_or_has_less_takes_the_same_checkpoint(tmp_path, warned):
    cfg = tiny_segmenter()
    path = str(tmp_path / 'own.pth')
    state = MODELS.build(cfg.model).state_dict()
    torch.save(dict(state_dict=state, meta=dict(cfg=cfg.pretty_text)), path)
    cfg.model = dict(type='SegTTAModel', module=cfg.model)
    check_checkpoint(cfg, path)
    assert not warned
    cfg.model.module.backbone.grid_spacing = 2
    check_checkpoint(cfg, path)
    assert 'grid_spacing=1 (here 2)' in warned.pop()
    more = {f'auxiliary_head.{key}': value for key, value in state.items() if key.startswith('decode')}
    torch.save(dict(state_dict=state | more), path)
    check_checkpoint(tiny_segmenter(), path)
    assert re.fullmatch(r'.* has more than .* weights unexpected .*; they are left out', warned.pop())


def test_checkpoints_to_start_from_are_looked_into_before_training(tmp_path):
    cfg = tiny_segmenter()
    state = MODELS.build(cfg.model).state_dict()
    heads = {key: torch.zeros(3) for key in state if key.startswith('decode')}
    plain = {key.partition('.')[2]: value for key, value in state.items() if key.startswith('backbone')}
    full = dict(state_dict=state, meta=dict(iter=3))
    path = tmp_path / 'start.pth'
    for content, resume, message in (
        (full, True, None),
        (full, False, None),
        (state, False, None),
        ({f'module.{key}': value for key, value in state.items()}, False, None),
        (state | heads, False, None),
        (dict(model=plain), False, 'holds nothing of model.backbone; weights of a plain ViT go into'),
        (plain, False, 'holds nothing of model.backbone'),
        (state, True, 'no checkpoint of a training to resume'),
        (
            full | dict(state_dict=state | {'backbone.pos_embed': torch.zeros(3)}),
            True,
            '1 weights missing or of an',
        ),
        (torch.zeros(3), False, 'holds a Tensor: expected a dict'),
    ):
        torch.save(content, path)
        start = Config(dict(cfg, load_from=str(path), resume=resume))
        if message is None:
            check_start(start)
            continue
        with pytest.raises(ConfigError, match=message) as stopped:
            check_start(start)
        assert '\n' not in str(stopped.value)
    # Backbones of others are left to mmengine.
    torch.save(plain, path)
    check_start(Config(dict(model=dict(backbone=dict(type='ResNet')), load_from=str(path))))
    torch.save(full, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r'cannot be read as a checkpoint .*may be cut off'):
        check_start(start)
    check_start(Config(dict(cfg, load_from=str(tmp_path))))
    check_start(Config(dict(cfg, load_from='https://nowhere/a.pth')))
    check_start(cfg)


def test_other_options_than_a_checkpoint_was_trained_with_are_said(tmp_path, warned):
    """Those that its weights fit all the same."""
    backbone = dict(type='TwoScaleViT', plain='vit_tiny_patch16_224', with_cp=True)
    heads = dict(num_classes=2, in_channels=[192] * 4, in_index=[0, 1, 2, 3], channels=8)
    model = dict(type='EncoderDecoder', backbone=backbone, decode_head=dict(type='UPerHead', **heads))
    trained = Config(dict(model=model, default_scope='mmseg', others={'a.b': [1, -2]}))
    init_default_scope('mmseg')
    path = str(tmp_path / 'own.pth')
    lazy = trained.pretty_text.replace("'TwoScaleViT'", "'mmhpvit.backbones.two_scale_vit.TwoScaleViT'")
    assert lazy != trained.pretty_text
    unread = trained.pretty_text.replace("'TwoScaleViT'", 'Own')
    for text in (trained.pretty_text, lazy, unread, 'model = (', 'others = 1', None):
        meta = dict(cfg=text) if text else {}
        torch.save(dict(state_dict=MODELS.build(trained.model).state_dict(), meta=meta), path)
        for changes, said in (
            (dict(), ''),
            (dict(with_cp=False, frozen_stages=1), ''),
            (dict(grid_spacing=1, fine_depths=None, plain='vit_tiny_patch16_224.augreg_in21k'), ''),
            (dict(fine_depths=0), 'fine_depths=None (here 0)'),
            (
                dict(fine_depths=(0, 1), grid_spacing=2),
                'fine_depths=None (here [0, 1]), grid_spacing=1 (here 2)',
            ),
        ):
            cfg = copy.deepcopy(trained)
            cfg.model.backbone.update(changes)
            check_checkpoint(cfg, path)
            expected = said if text in (trained.pretty_text, lazy) else ''
            if text in (unread, 'model = ('):
                expected = 'is not known'
            assert len(warned) == bool(expected)
            assert not expected or expected in warned.pop()


def test_weights_that_are_not_there_are_missed_before_training(tmp_path):
    there = tmp_path / 'there.pth'
    there.touch()
    missing = str(tmp_path / 'missing.pth')
    for path in (str(there), 'https://nowhere/vit.pth', None):
        init_cfg = dict(type='PlainViT', checkpoint=path)
        check_files(config(load_from=path, model=dict(backbone=dict(init_cfg=init_cfg))))
    for init_cfg in (None, dict(type='Pretrained', checkpoint=missing), missing):
        check_files(config(model=dict(backbone=dict(init_cfg=init_cfg))))
    for path, message in (('', 'load_from is empty'), (missing, 'missing.pth.* does not exist .load_from')):
        with pytest.raises(ConfigError, match=message):
            check_files(config(load_from=path))
    for path, message in (('', 'init_cfg.checkpoint is empty'), (missing, 'does not exist .model.backbone')):
        for init_cfg in (dict(type='PlainViT', checkpoint=path), [dict(type='PlainViT', checkpoint=path)]):
            with pytest.raises(ConfigError, match=message):
                check_files(config(model=dict(backbone=dict(init_cfg=init_cfg))))


def pretrained(path: object, **options) -> Config:
    return tiny_segmenter(init_cfg=dict(type='Pretrained', checkpoint=str(path), **options))


def test_pretrained_is_for_backbones_that_were_trained(tmp_path):
    """mmengine would load a part of a plain ViT, or nothing, and only log it."""
    state = MODELS.build(tiny_segmenter().model).state_dict()
    own = {key.partition('.')[2]: value for key, value in state.items() if key.startswith('backbone')}
    plain = {key: value for key, value in own.items() if not key.startswith(('pools', 'out_norms'))}
    path = tmp_path / 'file.pth'
    use = rf"finds no HPViT in .*; weights of a plain ViT take init_cfg=dict\(type='PlainViT', checkpoint='{path}'\)"
    trained = dict(prefix='backbone.')
    for content, options, message in (
        (dict(state_dict=state), trained, None),
        (dict(state_dict=state), dict(prefix='backbone'), None),
        (state, trained, None),
        (own, {}, None),
        # Of other options, which mmengine logs.
        ({key: value for key, value in own.items() if 'pools' not in key}, {}, None),
        (dict(state_dict=state), {}, r"loads nothing of .*file\.pth, .*: add prefix='backbone\.'"),
        (plain, {}, use),
        (plain, trained, use),
        (dict(model=plain), {}, use),
        (dict(model=plain, args=Path('vit')), {}, r"cannot be read as a checkpoint .*type='PlainViT'"),
        ({key: torch.zeros(3) for key in own}, {}, use),
    ):
        torch.save(content, path)
        if message is None:
            check_pretrained(pretrained(path, **options))
            continue
        with pytest.raises(ConfigError, match=message) as stopped:
            check_pretrained(pretrained(path, **options))
        assert '\n' not in str(stopped.value)
    (tmp_path / 'vit.safetensors').touch()
    for other in (tmp_path / 'vit.safetensors', tmp_path):
        with pytest.raises(ConfigError, match=r"type='PlainViT', checkpoint="):
            check_pretrained(pretrained(other))
    lazy = tiny_segmenter(init_cfg=[dict(type=PretrainedInit, checkpoint=str(path))])
    with pytest.raises(ConfigError, match=use):
        check_pretrained(lazy)
    check_pretrained(pretrained('https://nowhere/vit.pth'))
    with pytest.raises(ConfigError, match=r'does not exist \(model\.backbone\.init_cfg'):
        check_files(pretrained(tmp_path / 'missing.pth'))
    other = dict(type='ResNet', init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'))
    check_pretrained(Config(dict(model=dict(backbone=other))))


def test_random_weights_are_said_before_training(warned):
    random = dict(type='TruncNormal', layer='Linear', std=0.02)
    plain = dict(type='PlainViT')
    for init_cfg, more, said in (
        (None, {}, True),
        (random, {}, True),
        ([random], {}, True),
        (plain, {}, False),
        ([random, plain], {}, False),
        (dict(type='Pretrained', checkpoint='a.pth', prefix='backbone.'), {}, False),
        (dict(type='Own'), {}, False),
        (None, dict(load_from='a.pth'), False),
        (None, dict(resume=True), False),
        (None, dict(model=dict(init_cfg=dict(type='Pretrained', checkpoint='a.pth'))), False),
    ):
        cfg = tiny_segmenter(init_cfg=init_cfg)
        cfg.merge_from_dict(more)
        warn_of_random_weights(cfg)
        assert len(warned) == said
        assert not said or 'vit_tiny_patch16_224 starts from random weights' in warned.pop()
    warn_of_random_weights(Config(dict(model=dict(backbone=dict(type='ResNet')))))
    assert not warned


def test_names_of_timm_on_hugging_face_are_the_same_model(tmp_path, warned):
    path = str(tmp_path / 'own.pth')
    trained = tiny_segmenter(plain='timm/vit_tiny_patch16_224')
    meta = dict(cfg=trained.pretty_text)
    torch.save(dict(state_dict=MODELS.build(trained.model).state_dict(), meta=meta), path)
    check_checkpoint(tiny_segmenter(), path)
    assert not warned
    trained.model.data_preprocessor = dict(mean=[1.0] * 3, std=[1.0] * 3)
    warn_of_normalisation(trained)
    assert 'weights of vit_tiny_patch16_224 were trained with' in warned.pop()
