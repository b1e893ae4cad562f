# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Tables of how libraries name the weights of plain ViTs, and finding the encoder in a larger model.

The name of the patch kernel identifies a naming. What precedes it in a file is the prefix of the image encoder:
``backbone.`` in a detector, ``visual.`` in a CLIP, ``module.`` after data-parallel training. Weights without the
prefix are not part of the encoder.
"""

import re
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Naming:
    """One way to name the weights of a plain ViT.

    Attributes:
        name: What it is called in reports and by ``source=``.
        patch: Name of the patch embedding's kernel.
        block: Pattern of a name in the first block.
        rules: Patterns and what they become, in order, to reach timm's names.
        prefix: Prefix with which timm's own conversion recognises the names, and does the rest.
    """

    name: str
    patch: str
    block: str
    rules: tuple[tuple[str, str], ...] = ()
    prefix: str = ''


NAMINGS = (
    # timm, and who took its names: MAE, DeiT, DINO to DINOv3, BEiT, EVA, I-JEPA, MoCo v3, SAM, ViTDet.
    Naming(
        'timm',
        'patch_embed.proj.weight',
        r'blocks\.0\.',
        (
            (r'^blocks\.\d+\.(\d+)\.', r'blocks.\1.'),  # DINOv2's training keeps its blocks in chunks
            (r'\.mlp\.lin([12])\.', r'.mlp.fc\1.'),
        ),
    ),
    Naming('sapiens2', 'patch_embed.projection.weight', r'blocks\.0\.attn\.wq\.'),
    Naming('clip', 'conv1.weight', r'transformer\.resblocks\.0\.', prefix='visual.'),
    Naming('aimv2', 'preprocessor.patchifier.proj.weight', r'trunk\.blocks\.0\.'),
    Naming('radio', 'patch_generator.embedder.weight', r'blocks\.0\.', prefix='radio_model.model.'),
    Naming('beit3', 'beit3.vision_embed.proj.weight', r'beit3\.encoder\.layers\.0\.'),
    # mmpretrain's, mmseg's and (in projects) mmdet's own ViTs.
    Naming(
        'openmmlab',
        'patch_embed.projection.weight',
        r'layers\.0\.(ln|norm)1\.',
        (
            (r'^layers\.', 'blocks.'),
            (r'^patch_embed\.projection\.', 'patch_embed.proj.'),
            (r'^(pre_norm|ln_pre)\.', 'norm_pre.'),
            (r'^ln1\.', 'norm.'),
            (r'^ln2\.', 'fc_norm.'),
            (r'\.ln([12])\.', r'.norm\1.'),
            (r'\.attn\.attn\.in_proj_', '.attn.qkv.'),
            (r'\.attn\.attn\.out_proj\.', '.attn.proj.'),
            (r'\.attn\.gamma1\.weight$', '.ls1.gamma'),
            (r'\.ffn\.gamma2\.weight$', '.ls2.gamma'),
            (r'\.ffn\.layers\.0\.0\.', '.mlp.fc1.'),
            (r'\.ffn\.layers\.1\.', '.mlp.fc2.'),
            (r'\.ffn\.(w12|w3)\.', r'.mlp.\1.'),
        ),
    ),
    *(
        # Hugging Face's transformers, as its files have it and as its models of version 5 have it.
        Naming(
            'transformers',
            patch,
            block,
            (
                (r'^embeddings\.', ''),
                (r'^patch_embed(ding|dings|)(\.projection)?\.', 'patch_embed.proj.'),
                (r'^position_embeddings$|^position_embedding\.weight$', 'pos_embed'),
                (r'^class_embedding$', 'cls_token'),
                (r'^distillation_token$', 'dist_token'),
                (r'^(encoder\.|model\.)?layers?\.', 'blocks.'),
                (r'^(encoder\.relative|shared)_position_bias\.', 'rel_pos_bias.'),
                (r'^pre_layrnorm\.', 'norm_pre.'),
                (r'^(post_layernorm|layernorm)\.', 'norm.'),
                (r'^pooler\.layernorm\.', 'fc_norm.'),
                (r'\.(attention\.attention\.)?relative_position_bias\.', '.attn.'),
                (r'\.attention\.attention\.([qkv])(uery|ey|alue)\.', r'.attn.\1_proj.'),
                (r'\.(attention|self_attn)\.([qkv])_proj\.', r'.attn.\2_proj.'),
                (r'\.(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.', '.attn.proj.'),
                (r'\.(layernorm_before|layer_norm1)\.', '.norm1.'),
                (r'\.(layernorm_after|layer_norm2)\.', '.norm2.'),
                (r'\.layer_scale([12])\.lambda1$', r'.ls\1.gamma'),
                (r'\.lambda_([12])$', r'.gamma_\1'),
                (r'\.intermediate\.dense\.', '.mlp.fc1.'),
                (r'\.output\.dense\.', '.mlp.fc2.'),
                (r'\.mlp\.lin([12])\.', r'.mlp.fc\1.'),
                (r'\.mlp\.weights_in\.', '.mlp.w12.'),
                (r'\.mlp\.weights_out\.', '.mlp.w3.'),
                (r'\.mlp\.down_proj\.', '.mlp.fc2.'),
            ),
        )
        for patch, block in (
            # ViT, DeiT, MAE, BEiT, DINOv2, I-JEPA; DINOv3; CLIP, SigLIP; SAM
            ('embeddings.patch_embeddings.projection.weight', r'(encoder\.layer|layers)\.0\.'),
            ('embeddings.patch_embeddings.weight', r'(model\.)?layer\.0\.'),
            ('embeddings.patch_embedding.weight', r'encoder\.layers\.0\.'),
            ('patch_embed.projection.weight', r'layers\.0\.layer_norm1\.'),
        )
    ),
    Naming(
        'torchvision',
        'conv_proj.weight',
        r'encoder\.layers\.encoder_layer_0\.',
        (
            (r'^class_token$', 'cls_token'),
            (r'^conv_proj\.', 'patch_embed.proj.'),
            (r'^encoder\.pos_embedding$', 'pos_embed'),
            (r'^encoder\.ln\.', 'norm.'),
            (r'^encoder\.layers\.encoder_layer_', 'blocks.'),
            (r'\.ln_([12])\.', r'.norm\1.'),
            (r'\.self_attention\.in_proj_', '.attn.qkv.'),
            (r'\.self_attention\.out_proj\.', '.attn.proj.'),
            (r'\.mlp\.(0|linear_1)\.', '.mlp.fc1.'),
            (r'\.mlp\.(3|linear_2)\.', '.mlp.fc2.'),
        ),
    ),
)


@dataclass(frozen=True)
class Encoder:
    """The image encoder within a file.

    Attributes:
        naming: How the file names its weights.
        prefix: What stands before these names in the file.
        weights: Its weights, by their names without the prefix.
        dropped: The weights outside it, and why they are left out, for the report.
    """

    naming: Naming
    prefix: str
    weights: dict[str, Tensor]
    dropped: tuple[tuple[str, str], ...] = ()

    @property
    def kernel(self) -> Tensor:
        """The patch kernel as the file has it: (C, 3, P, P), or a matrix (C, 3 * P * P)."""
        return self.weights[self.naming.patch]


# Of several encoders in one file, the one that is meant, by a part of its prefix: averages and teachers,
# which are what evaluation uses, before what they learn from; what sees images before what does not.
_PREFERRED = (
    *(
        'model_ema',
        'state_dict_ema',
        'ema_state_dict',
        'ema',
        'ema_model',
        'averaged_model',
        'shadow',
        'teacher',
    ),
    *('base_encoder', 'context_encoder', 'online'),
    *('backbone', 'visual', 'vision_model', 'vision_encoder', 'image_encoder'),
)
# These say little: they decide only where nothing else is an average by its name. I-JEPA's target_encoder, which is
# one, counts as none, since timm and Hugging Face take the encoder beside it.
_GENERIC = ('encoder', 'model', 'state_dict')
_AVERAGE = re.compile(r'(^|_)(ema|swa|average|averaged|shadow|momentum|teacher)(_|$)', re.IGNORECASE)
# mmengine's EMAHook saves the averages as the state dict, and in this place what they are averages of, with its count.
_AVERAGED_BY_MMENGINE = 'ema_state_dict.'
_COUNT_OF_MMENGINE = f'{_AVERAGED_BY_MMENGINE}steps'

# What files of plain ViTs carry beside the body, by timm's names, and why it is left out.
_NOT_OF_THE_BODY = (
    (r'(heads?|head_dist|fc_norm|pre_logits|fc|(cls_|distillation_)?classifier)\.', 'classifier head'),
    (r'(attn_pool|pooler)\.', 'pooling of the head'),
    (r'(proj$|projectors\.|dino_head|ibot_head|lm_head|local_cls_norm)', 'head of the pre-training'),
    (r'decoder', 'decoder of the pre-training'),
    (r'mask_token$', 'mask token of the pre-training'),
    (r'(neck|channel_reduction)\.', 'neck behind the body'),
    (r'(.*\.)?(relative_position_index|k_bias|bias_mask)$', 'computed anew'),
    (r'(.*\.)?rope(_embed|_embeddings)?\.(freqs_cos|freqs_sin|periods|inv_freq)$', 'computed anew'),
)


def why_not_of_the_body(name: str) -> str | None:
    """Why a weight, by timm's name, is not part of the body of a ViT; None if it is."""
    return next((why for pattern, why in _NOT_OF_THE_BODY if re.match(pattern, name)), None)


# What PEFT adds to the weights of a model: LoRA and its kin beside the layers that they change, which it renames.
_ADAPTER = re.compile(r'(^|\.)(base_layer|modules_to_save|(lora|vera|hada|lokr|ia3|oft|boft)_\w+)(\.|$)')


def find_encoder(raw: dict[str, Tensor], source: str | None, location: str) -> Encoder:
    """Find the image encoder in a file by the names of its weights.

    Args:
        raw: Names and tensors of the file.
        source: Name of a naming, or prefix of the wanted encoder (``'bare'`` for no prefix).
            None detects both from the names.
        location: The file, for errors.

    Raises:
        ValueError: No known naming matches, or several encoders match and nothing decides between them; or the encoder
            has adapters of PEFT.
    """
    names = list(raw)
    found = [
        (naming, name.removesuffix(naming.patch))
        for naming in NAMINGS
        for name in names
        if name == naming.patch or name.endswith('.' + naming.patch)
    ]
    found = [(naming, prefix) for naming, prefix in found if _has_blocks(naming, prefix, names)]
    prefixes = [prefix for _, prefix in found]
    if source is not None:
        known = {naming.name for naming in NAMINGS}
        meant = [f for f in found if source in (f[0].name, f[1], f[1].removesuffix('.') or 'bare')]
        if not meant:
            kind = 'a naming' if source in known else f'a naming ({", ".join(sorted(known))}) or a prefix'
            raise ValueError(
                f'source={source!r}: {location!r} has no encoder under such {kind}; it has '
                f'{_listing(found) or "no plain ViT"}'
            )
        found = meant
    if not found:
        _refuse_adapters(names, location)
        raise ValueError(
            f'checkpoint {location!r} is not a plain ViT that can be told by its names; its first are '
            f'{names[:5]}; give the file of a ViT, or rename its weights as timm has them'
        )
    if _COUNT_OF_MMENGINE in names:
        found = [f for f in found if not f[1].startswith(_AVERAGED_BY_MMENGINE)] or found
    for word in _PREFERRED:
        found = [f for f in found if word in f[1].lower().split('.')] or found
    if not any(_AVERAGE.search(part) for _, prefix in found for part in prefix.split('.')):
        for word in _GENERIC:
            found = [f for f in found if word in f[1].split('.')] or found
    if len(found) > 1:
        raise ValueError(
            f'checkpoint {location!r} has {len(found)} encoders: {_listing(found)}; '
            f'say which by source=, for instance source={found[0][1].removesuffix(".") or "bare"!r}'
        )
    naming, prefix = found[0]
    within = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
    own = [name for name in names if name.startswith(prefix) and not (within and name.startswith(within))]
    _refuse_adapters(own, location)
    outside = raw.keys() - set(own)
    return Encoder(
        naming,
        prefix,
        {name.removeprefix(prefix): raw[name] for name in own},
        tuple((name, 'not of the encoder') for name in names if name in outside),
    )


def _refuse_adapters(names: list[str], location: str) -> None:
    """Refuse the weights of PEFT's adapters, which change the model and are not part of a plain ViT."""
    adapters = [name for name in names if _ADAPTER.search(name)]
    if adapters:
        raise ValueError(
            f'checkpoint {location!r} has {len(adapters)} weights of adapters of PEFT, such as {adapters[0]}; give the '
            'merged model, PeftModel.from_pretrained(MODEL, FOLDER).merge_and_unload().save_pretrained(OUT)'
        )


def _has_blocks(naming: Naming, prefix: str, names: list[str]) -> bool:
    block = re.compile(re.escape(prefix) + naming.block)
    return any(block.match(name) for name in names)


def _listing(found: list[tuple[Naming, str]]) -> str:
    return ', '.join(f'{prefix or "bare"} as {naming.name} names it' for naming, prefix in found)


def to_timm_names(weights: dict[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    """Rename the weights of an encoder to the names of timm, or to those that timm's own conversion expects."""
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in naming.rules:
            name = re.sub(pattern, replacement, name)
        _put(renamed, naming.prefix + name, tensor)
    return renamed


def _put(weights: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    if name in weights:
        raise ValueError(f'there are two weights for {name}, under different names; expected one')
    weights[name] = tensor


# Synonyms among timm's ViTs, tried in order; the model decides which is right.
_SYNONYMS = (
    (r'\.ls([12])\.gamma$', r'.gamma_\1'),
    (r'\.gamma_([12])$', r'.ls\1.gamma'),
    (r'^(register|storage)_tokens$', 'reg_token'),
    (r'\.mlp\.w12\.', '.mlp.fc1.'),
    (r'\.mlp\.w3\.', '.mlp.fc2.'),
    (r'\.mlp\.gate_proj\.', '.mlp.fc1_g.'),
    (r'\.mlp\.up_proj\.', '.mlp.fc1_x.'),
    (r'\.mlp\.up_proj\.', '.mlp.fc1.'),
)


def to_names_of(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace names that a model does not have by synonyms that it has."""
    fitted = {}
    for name, tensor in weights.items():
        if name not in expected:
            others = (re.sub(pattern, new, name) for pattern, new in _SYNONYMS)
            name = next((other for other in others if other in expected), name)
        _put(fitted, name, tensor)
    return fitted
