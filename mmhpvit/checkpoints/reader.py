# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Read a checkpoint as a flat dict of tensors, without executing anything in it."""

import argparse
import json
import pickle
import re
import zipfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import load_state_dict_from_hf
from torch import Tensor, nn

from .download import local_file
from .state_dict import without_wrappers

# An archive that unpacks to more than 10 times its size plus a gigabyte is meant to fill the memory.
_MOST_COMPRESSED, _ALLOWANCE = 10, 10**9


def read_checkpoint(location: str) -> dict[str, Tensor]:
    """Read the weights of a file or URL.

    Args:
        location: Path or http(s) address of a ``.safetensors`` file or of a file that ``torch.save``
            wrote, or path of the ``.index.json`` of a checkpoint in several such files. A URL is kept in
            torch hub's cache; where its name carries a hash, that is checked.

    Returns:
        Names and CPU tensors. Nested dicts are flattened: ``{'model': {'pos_embed': ...}}`` gives ``model.pos_embed``.
        Names of wrappers (compiled, checkpointed or sharded modules) are removed.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is truncated, not a checkpoint, without tensors, declares more than it holds, or would
            run code when read; the message says which.
        OSError: A download failed.
    """
    path = local_file(location)
    try:
        return _read_any(path, location)
    except DamagedError:
        if location.startswith(('http://', 'https://')):
            path.unlink(missing_ok=True)  # or the next attempt would find it again
        raise


def read_meta(location: str) -> dict:
    """What mmengine wrote beside the weights of a file that :func:`read_checkpoint` reads; empty for other files."""
    path = local_file(location)
    if not zipfile.is_zipfile(path):
        return {}
    with _namespaces_allowed():
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    meta = content.get('meta') if isinstance(content, dict) else None
    return meta if isinstance(meta, dict) else {}


def read_timm_weights(plain: nn.Module, name: str) -> dict[str, Tensor]:
    """Download the weights that timm has for a model, from Hugging Face or from a URL.

    Args:
        plain: timm's model; only its ``pretrained_cfg`` is read.
        name: Its timm name, for errors.

    Raises:
        ValueError: timm has no weights for this name.
        OSError: The download failed.
    """
    cfg = plain.pretrained_cfg
    where = [cfg[key] for key in ('hf_hub_id', 'hf_hub_filename') if cfg.get(key)]
    if not cfg.get('hf_hub_id'):
        if not cfg.get('url'):
            raise ValueError(f'timm has no weights of {name!r}; give checkpoint=FILE, or a name with a tag')
        return read_checkpoint(cfg['url'])
    try:
        return load_state_dict_from_hf(*where, weights_only=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).split('\n')[0][:160]
        raise OSError(
            f"timm's weights of {name!r} could not be fetched ({reason}); fetch them elsewhere and give "
            'the file: model.backbone.init_cfg.checkpoint=FILE'
        ) from error


class DamagedError(ValueError):
    """The file is not a whole checkpoint."""


def _read_any(path: Path, location: str) -> dict[str, Tensor]:
    if path.name.endswith('.index.json'):
        return {k: v for part in _parts(path) for k, v in _read(part, str(part)).items()}
    if (part := _PART.search(path.name)) and int(part[1]) > 1:
        raise ValueError(
            f'checkpoint {location!r} is one of {int(part[1])} files; give their index, '
            f'{_PART.sub("", path.name)}{path.suffix}.index.json'
        )
    return _read(path, location)


def _read(path: Path, location: str) -> dict[str, Tensor]:
    content = _load_safetensors(path) if path.suffix == '.safetensors' else _load_pickle(path)
    weights = _unwrap(content, location)
    _check_sizes(weights, location)
    return weights


# As Hugging Face's libraries name the files of one checkpoint.
_PART = re.compile(r'-\d{5}-of-(\d{5})\.\w+$')


def _parts(index: Path) -> list[Path]:
    """The files of a sharded Hugging Face checkpoint."""
    try:
        names = sorted(set(json.loads(index.read_text())['weight_map'].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'checkpoint {str(index)!r} is no index of files with weights ({error})') from error
    foreign = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if foreign or not names:
        raise ValueError(
            f'checkpoint {str(index)!r} lists {foreign or "no files"}; expected names of files beside it'
        )
    return [local_file(str(index.with_name(name))) for name in names]


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, MemoryError) as error:
        raise DamagedError(
            f'checkpoint {str(path)!r} is no whole safetensors file ({_kind_of(path) or error}){_AGAIN}'
        ) from error


def refuse_zip_bomb(path: Path) -> None:
    """Refuse a zip archive that would unpack to far more than it is, before it is unpacked.

    Raises:
        ValueError: Such an archive.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    size = path.stat().st_size
    if unpacked > _MOST_COMPRESSED * size + _ALLOWANCE:
        raise ValueError(
            f'checkpoint {str(path)!r} was refused: its {size} bytes unpack to {unpacked}, as no weights do'
        )


def _load_pickle(path: Path) -> object:
    refuse_zip_bomb(path)
    try:
        with _namespaces_allowed():
            return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r'(?:GLOBAL|global:?) (?!GLOBAL)([\w.]+)', str(error))
        if 'nsupported' in str(error) and wanted:
            raise ValueError(
                f'checkpoint {str(path)!r} was refused: reading it would run {wanted[1]}, and a checkpoint '
                'must hold tensors only; if you trust it, load it yourself in plain torch and save '
                'its state_dict, then give that file'
            ) from error
        kind = _kind_of(path) or 'foreign bytes'
        raise DamagedError(f'checkpoint {str(path)!r} is no PyTorch file ({kind}){_AGAIN}') from error
    except Exception as error:  # damaged bytes fail anywhere in the reader, with any exception
        if 'TorchScript' in str(error):
            raise ValueError(
                f'checkpoint {str(path)!r} is a TorchScript archive, as OpenAI publishes CLIP, which holds code; '
                'save torch.jit.load(FILE).state_dict() and give that, or take the same weights from elsewhere'
            ) from error
        reason = _kind_of(path) or f'{type(error).__name__} {error}'.split('\n')[0][:120].strip()
        raise DamagedError(f'checkpoint {str(path)!r} cannot be read ({reason}){_AGAIN}') from error


def _namespaces_allowed() -> AbstractContextManager:
    """Allow argparse.Namespace, in which DINO, DeiT and MAE store their command line: it is data."""
    if hasattr(torch.serialization, 'safe_globals'):
        return torch.serialization.safe_globals([argparse.Namespace])
    return nullcontext()


def _kind_of(path: Path) -> str | None:
    """What a file that is not a checkpoint is, if its first bytes show it."""
    with path.open('rb') as file:
        start = file.read(64)
    kinds = {
        b'<': 'it is an HTML or XML page',
        b'version https://git-lfs': 'it is a pointer of Git LFS, not the file itself',
        b'{': 'it is a JSON file',
    }
    if not start:
        return 'it is empty'
    return next((kind for first, kind in kinds.items() if start.lstrip().startswith(first)), None)


_AGAIN = '; it may be cut off or not a checkpoint at all: download it again and compare its size'


def _unwrap(content: object, location: str) -> dict[str, Tensor]:
    weights = _flattened(content) if isinstance(content, dict) else {}
    if weights:
        return _unwrapped(weights, location)
    keys = list(content)[:8] if isinstance(content, dict) else type(content).__name__
    raise ValueError(
        f'checkpoint {location!r} holds no dict of weights: expected names with tensors, bare or under a '
        f'key such as model, state_dict or teacher; found {keys}'
    )


def _unwrapped(weights: dict[str, Tensor], location: str) -> dict[str, Tensor]:
    """The weights without wrappers in their names. Refuses two weights of one name."""
    found = {without_wrappers(name): tensor for name, tensor in weights.items()}
    if len(found) < len(weights):
        name = next(name for name in weights if without_wrappers(name) != name)
        raise ValueError(
            f'checkpoint {location!r} has {name} and {without_wrappers(name)}: expected one of them; save the '
            'state_dict that is meant alone'
        )
    return found


def _flattened(content: dict, prefix: str = '') -> dict[str, Tensor]:
    weights = {}
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, Tensor):
            weights[prefix + key] = value
        elif isinstance(value, dict):
            weights |= _flattened(value, f'{prefix}{key}.')
    return weights


def _check_sizes(weights: dict[str, Tensor], location: str) -> None:
    for name, tensor in weights.items():
        if tensor.layout != torch.strided or tensor.device.type != 'cpu':
            raise ValueError(
                f'checkpoint {location!r} was refused: {name} is {tensor.layout} on {tensor.device}; '
                'expected plain tensors'
            )
        declared = tensor.numel() * tensor.element_size()
        if declared > tensor.untyped_storage().nbytes():
            raise ValueError(
                f'checkpoint {location!r} was refused: {name} declares {tuple(tensor.shape)}, '
                f'{declared} bytes, and holds {tensor.untyped_storage().nbytes()}'
            )
