# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Reading a checkpoint of a plain ViT as a flat dict of tensors, without executing anything in it."""

import argparse
import hashlib
import os
import pickle
import re
import tempfile
import zipfile
from contextlib import AbstractContextManager, nullcontext
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from mmengine import dist
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

# Where training scripts keep the weights: first those that evaluation uses, averages and DINO's teacher.
# I-JEPA's encoder is the one that sees images; DeepSpeed has its weights under module.
_WRAPPERS = (
    *('model_ema', 'state_dict_ema', 'ema', 'teacher'),
    *('model', 'state_dict', 'encoder', 'module'),
)
# No weights compress as well as this; what does is there to fill the memory.
_MOST_COMPRESSED = 100
# A hash in a file name, as torch hub has it; eight digits alone are a date.
_HASH = re.compile(r'-(?!\d{8}\.)([a-f0-9]{8,64})\.')


def read_checkpoint(location: str) -> dict[str, Tensor]:
    """Read the weights of a file or URL.

    Args:
        location: Path or http(s) address of a ``.safetensors`` file or of a file that ``torch.save``
            wrote. A URL is kept in torch hub's cache; where its name carries a hash, that is checked.

    Returns:
        Names and CPU tensors, out of ``{'model': ...}``, ``{'state_dict': ...}``, ``{'teacher': ...}`` and
        the like, an exponential average before the weights that it averages, or a bare dict.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is cut off, is no checkpoint, holds no tensors, declares more than it
            holds, or wants to run code when it is read; the message says which.
        OSError: A download that failed.
    """
    path = local_file(location)
    content = _load_safetensors(path) if path.suffix == '.safetensors' else _load_pickle(path)
    weights = _unwrap(content, location)
    _check_sizes(weights, location)
    return weights


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


def refuse_zip_bomb(path: Path) -> None:
    """Refuse a zip archive that would unpack to far more than it is, before it is unpacked.

    Raises:
        ValueError: A member that is compressed as no weights can be.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.file_size > _MOST_COMPRESSED * max(member.compress_size, 1024):
                raise ValueError(
                    f'checkpoint {str(path)!r} was refused: {member.filename} takes {member.compress_size} '
                    f'bytes in it and {member.file_size} unpacked, which no weights do'
                )


def _load_pickle(path: Path) -> object:
    refuse_zip_bomb(path)
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
        inner = next((k for k in _WRAPPERS if isinstance(content.get(k), dict) and content[k]), None)
        if inner is None:
            weights = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
            if weights:
                return weights
            break
        content = content[inner]
    keys = list(content)[:8] if isinstance(content, dict) else type(content).__name__
    raise ValueError(
        f'checkpoint {location!r} holds no dict of weights: expected names with tensors, bare or under '
        f'one of {", ".join(_WRAPPERS)}; found {keys}'
    )


def _check_sizes(weights: dict[str, Tensor], location: str) -> None:
    for name, tensor in weights.items():
        declared = tensor.numel() * tensor.element_size()
        if declared > tensor.untyped_storage().nbytes():
            raise ValueError(
                f'checkpoint {location!r} was refused: {name} declares {tuple(tensor.shape)}, '
                f'{declared} bytes, and holds {tensor.untyped_storage().nbytes()}'
            )


def _download(url: str) -> Path:
    """Fetch a URL into torch hub's cache, one process a machine."""
    # Many models share a file name such as model.safetensors, so the address is part of the name here.
    name = f'{hashlib.sha256(url.encode()).hexdigest()[:12]}_{os.path.basename(urlparse(url).path)}'
    path = Path(torch.hub.get_dir(), 'checkpoints', name)
    if int(os.environ.get('LOCAL_RANK', 0)) == 0 and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _fetch(url, path)
        except (OSError, HTTPException) as error:
            raise OSError(
                f'checkpoint {url!r} could not be downloaded ({error}); download it elsewhere and give '
                'the path of the file'
            ) from error
    dist.barrier()
    return path


def _fetch(url: str, path: Path) -> None:
    """Fetch a URL under a temporary name, and give it its own once it is whole and has its hash."""
    # torch.hub.download_url_to_file takes a connection that breaks off for the end of the file.
    digest, part = hashlib.sha256(), None
    request = Request(url, headers={'User-Agent': 'mmhpvit'})
    try:
        with (
            urlopen(request, timeout=60) as answer,
            tempfile.NamedTemporaryFile(dir=path.parent, suffix='.part', delete=False) as part,
        ):
            size = answer.length
            with tqdm(total=size, unit='B', unit_scale=True, desc=path.name) as progress:
                while block := answer.read(1 << 20):
                    part.write(block)
                    digest.update(block)
                    progress.update(len(block))
            if size is not None and part.tell() != size:
                raise OSError(f'the connection broke off after {part.tell()} of {size} bytes')
        known = _HASH.search(os.path.basename(urlparse(url).path))
        if known and not digest.hexdigest().startswith(known[1]):
            raise OSError(f'its hash is {digest.hexdigest()[: len(known[1])]}, its name says {known[1]}')
        os.replace(part.name, path)
    finally:
        if part is not None:
            Path(part.name).unlink(missing_ok=True)
