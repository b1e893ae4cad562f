# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Find the file of a path, a folder or a URL. A URL is downloaded once into torch hub's cache."""

import hashlib
import os
import re
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import Request, urlopen
from uuid import uuid4

import torch
from mmengine import dist
from tqdm import tqdm

# A hash in a file name, as torch hub has it; digits alone are a date, the end of a UUID is none.
_HASH = re.compile(r'(?<!-[a-f0-9]{4})-(?!\d+\.)([a-f0-9]{8,64})\.')
# What libraries write into the folder of a model.
_IN_A_FOLDER = (
    *('model.safetensors', 'model.safetensors.index.json', 'open_clip_model.safetensors'),
    *('pytorch_model.bin', 'pytorch_model.bin.index.json', 'open_clip_pytorch_model.bin'),
)


def local_file(location: str) -> Path:
    """The file of a path, of a URL (downloaded once), or of a Hugging Face folder (the weights in it).

    Raises:
        FileNotFoundError: No such file.
        OSError: A download failed.
    """
    path = _download(location) if location.startswith(('http://', 'https://')) else Path(location)
    if path.is_dir():
        path = next((path / name for name in _IN_A_FOLDER if (path / name).is_file()), path)
    if not path.is_file():
        raise FileNotFoundError(
            f'checkpoint {location!r} {"is not a file" if path.exists() else "does not exist"} '
            f'(looked from {Path.cwd()}); give the path of a file, '
            'a URL, or leave checkpoint out for the weights that timm has of this model'
        )
    return path


def _download(url: str) -> Path:
    """Download a URL into torch hub's cache, in one process per machine."""
    # Many models share a file name such as model.safetensors, so the name includes a hash of the URL.
    name = f'{hashlib.sha256(url.encode()).hexdigest()[:12]}_{os.path.basename(urlparse(url).path)}'
    path = Path(torch.hub.get_dir(), 'checkpoints', name)
    first = not dist.is_distributed() or int(os.environ.get('LOCAL_RANK', 0)) == 0
    if first and not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _fetch(url, path)
        except (OSError, HTTPException) as error:
            raise OSError(
                f'checkpoint {url!r} could not be downloaded ({error}); download it elsewhere and give '
                'the path of the file'
            ) from error
    dist.barrier()
    return path


def _fetch(url: str, path: Path) -> None:
    """Download under a temporary name, and rename once the size and the hash are right."""
    # torch.hub.download_url_to_file takes a broken connection for the end of the file.
    digest, part = hashlib.sha256(), path.with_name(f'{uuid4().hex}.part')
    request = Request(url, headers={'User-Agent': 'mmhpvit'})
    try:
        with urlopen(request, timeout=60) as answer, open(part, 'wb') as file:
            size = answer.length
            with tqdm(total=size, unit='B', unit_scale=True, desc=path.name) as progress:
                while block := answer.read(1 << 20):
                    file.write(block)
                    digest.update(block)
                    progress.update(len(block))
            if size is not None and file.tell() != size:
                raise OSError(f'the connection broke off after {file.tell()} of {size} bytes')
        known = _HASH.search(os.path.basename(urlparse(url).path))
        if known and not digest.hexdigest().startswith(known[1]):
            found = digest.hexdigest()[: len(known[1])]
            raise OSError(f'its hash is {found}, its name says {known[1]}; a local file is not checked')
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
