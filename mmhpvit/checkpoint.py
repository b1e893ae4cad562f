# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Reading a checkpoint of a plain ViT as a flat dict of tensors, without executing anything in it."""

import argparse
import hashlib
import os
import pickle
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine import dist
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# Where training scripts keep the weights. DINO's teacher is the network that it evaluates and releases;
# I-JEPA's encoder is the one that sees images.
_WRAPPERS = ('model', 'state_dict', 'teacher', 'encoder', 'module')
# A hash in a file name, as torch hub has it; eight digits alone are a date.
_HASH = re.compile(r'-(?!\d{8}\.)([a-f0-9]{8,64})\.')


def read_checkpoint(location: str) -> dict[str, Tensor]:
    """Read the weights of a file or URL.

    Args:
        location: Path or http(s) address of a ``.safetensors`` file or of a file that ``torch.save``
            wrote. A URL is kept in torch hub's cache; where its name carries a hash, that is checked.

    Returns:
        Names and CPU tensors, out of ``{'model': ...}``, ``{'state_dict': ...}``, ``{'teacher': ...}`` or
        a bare dict, without the prefix ``module.`` of data-parallel training.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is cut off, is no checkpoint, holds no tensors, or wants to run code when
            it is read; the message says which.
        OSError: A download that failed.
    """
    path = local_file(location)
    content = _load_safetensors(path) if path.suffix == '.safetensors' else _load_pickle(path)
    return _strip_module(_unwrap(content, location))


def local_file(location: str) -> Path:
    """The file of a path or URL, downloaded where it must be.

    Raises:
        FileNotFoundError: No such file.
        OSError: A download that failed.
    """
    path = _download(location) if location.startswith(('http://', 'https://')) else Path(location)
    if not path.is_file():
        raise FileNotFoundError(
            f'checkpoint {location!r} {"is not a file" if path.exists() else "does not exist"} '
            f'(looked from {Path.cwd()}); give the path of a file, '
            'a URL, or leave checkpoint out for the weights that timm has of this model'
        )
    return path


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f'checkpoint {str(path)!r} is no whole safetensors file ({error}){_AGAIN}'
        ) from error


def _load_pickle(path: Path) -> object:
    try:
        with _namespaces_allowed():
            return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r'(?:GLOBAL|global:?) ([\w.]+)', str(error))
        if 'nsupported' in str(error) and wanted:
            raise ValueError(
                f'checkpoint {str(path)!r} was refused: reading it would run {wanted[1]}, and a checkpoint '
                'must hold tensors only; if you trust it, load it yourself in plain torch and save '
                'its state_dict, then give that file'
            ) from error
        raise ValueError(f'checkpoint {str(path)!r} is no PyTorch file{_AGAIN}') from error
    except Exception as error:  # damaged bytes fail anywhere in the reader, with any exception
        reason = str(error).split('\n')[0][:120] or type(error).__name__
        raise ValueError(f'checkpoint {str(path)!r} cannot be read ({reason}){_AGAIN}') from error


def _namespaces_allowed() -> AbstractContextManager:
    """Namespaces are how DINO, DeiT and MAE keep their command line in a file; they are data."""
    if hasattr(torch.serialization, 'safe_globals'):
        return torch.serialization.safe_globals([argparse.Namespace])
    return nullcontext()


_AGAIN = '; it may be cut off or not a checkpoint at all: download it again and compare its size'


def _unwrap(content: object, location: str) -> dict[str, Tensor]:
    while isinstance(content, dict):
        if content and all(isinstance(v, Tensor) for v in content.values()):
            return content
        inner = next((k for k in _WRAPPERS if isinstance(content.get(k), dict)), None)
        if inner is None:
            break
        content = content[inner]
    keys = list(content)[:8] if isinstance(content, dict) else type(content).__name__
    raise ValueError(
        f'checkpoint {location!r} holds no dict of weights: expected names with tensors, bare or under '
        f'one of {", ".join(_WRAPPERS)}; found {keys}'
    )


def _strip_module(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    while weights and all(name.startswith('module.') for name in weights):
        weights = {name.removeprefix('module.'): tensor for name, tensor in weights.items()}
    return weights


def _download(url: str) -> Path:
    """Fetch a URL into torch hub's cache, one process a machine, under a temporary name until it is whole."""
    # Many models share a file name such as model.safetensors, so the address is part of the name here.
    name = f'{hashlib.sha256(url.encode()).hexdigest()[:12]}_{os.path.basename(urlparse(url).path)}'
    path = Path(torch.hub.get_dir(), 'checkpoints', name)
    if int(os.environ.get('LOCAL_RANK', 0)) == 0 and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        known = _HASH.search(path.name)
        try:
            torch.hub.download_url_to_file(url, str(path), known[1] if known else None)
        except (OSError, RuntimeError) as error:
            raise OSError(
                f'checkpoint {url!r} could not be downloaded ({error}); download it elsewhere and give '
                'the path of the file'
            ) from error
    dist.barrier()
    return path
