# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""What ``train.py`` and ``test.py`` share: options, checks before anything starts, and the CPU paths."""

import argparse
import copy
import gc
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import zipfile
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

# A clone that is not installed works too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner


def stop(message: str) -> None:
    """End the program with one line of error."""
    sys.exit(f'error: {message}')


def add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/CONFIG)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings to override, as key=value, key=a,b or key="[(a,b),(c,d)]"',
    )
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher'
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def read_config(path: str) -> Config:
    """Read a config file; where it needs mmpretrain, see that it is there."""
    leave_out_multimodal()
    try:
        cfg = Config.fromfile(path)
    except ModuleNotFoundError as error:
        if 'mmpretrain' in str(error):
            require_mmpretrain()
        raise
    if cfg.get('default_scope') == 'mmpretrain':
        require_mmpretrain()
    return cfg


def load_config(args: argparse.Namespace) -> Config:
    """Read the config file and apply the options of the command line that every tool has."""
    if not Path(args.config).is_file():
        stop(f'config {args.config!r} does not exist; the ones of this project are in configs/')
    local_rank = os.environ.get('OMPI_COMM_WORLD_LOCAL_RANK', args.local_rank)  # set by mpirun
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    cfg = read_config(args.config)
    cfg.launcher = args.launcher
    for key in args.cfg_options or {}:
        name = key.partition('.')[0]
        close = get_close_matches(name, list(cfg), n=1, cutoff=0.85)
        if name not in cfg and close:
            stop(f'--cfg-options {key}: the config has no {name!r}; did you mean {close[0]!r}?')
    cfg.merge_from_dict(args.cfg_options or {})
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    return cfg


def leave_out_multimodal() -> None:
    """Make mmpretrain importable beside any transformers.

    mmpretrain 1.2.0 imports its multimodal models wherever transformers is installed, and fails with version 5 of it;
    so does mmdet then, which imports mmpretrain where it is there. Nothing here needs those models.
    """
    if importlib.util.find_spec('mmpretrain'):
        name = 'mmpretrain.models.multimodal'
        sys.modules.setdefault(name, ModuleType(name))


def require_mmpretrain() -> None:
    """Stop where mmpretrain cannot be imported."""
    try:
        importlib.import_module('mmpretrain')
    except ImportError as error:
        stop(f"classification needs mmpretrain: pip install 'mmpretrain==1.2.0' ({error})")


# What of a model runs on a GPU only by operators of mmcv that were compiled for it.
_OPERATORS = (
    'RoIAlign',
    'nms',
    'soft_nms',
    'DCN',
    'DCNv2',
    'MSDeformAttnPixelDecoder',
    'MultiScaleDeformableAttention',
)
_WITH_OPERATORS = ('DINO', 'DeformableDETR', 'DDQDETR', 'GroundingDINO')


def check_operators(model: dict) -> None:
    """Stop where a model would run on a GPU by operators that mmcv was compiled without."""
    types = _types(model)
    needed = [kind for kind in (*_OPERATORS, *_WITH_OPERATORS) if kind in types]
    if not needed or not torch.cuda.is_available():
        return
    from mmcv.ops import get_compiling_cuda_version

    if get_compiling_cuda_version() == 'not available':
        stop(
            f'mmcv here was compiled without CUDA, and the model needs its operators on the GPU ({", ".join(needed)}); '
            'run tools/setup_env.py on a machine with a GPU and nvcc, or set CUDA_VISIBLE_DEVICES= for the CPU'
        )


def _types(node: object) -> set[str]:
    """Names of all types in a config, of mmdet's without its prefix."""
    if isinstance(node, list | tuple):
        return set().union(*map(_types, node))
    if not isinstance(node, dict):
        return set()
    kind = node.get('type')
    own = {kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', '')}
    return own.union(*map(_types, node.values()))


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config asks for, on the devices that are there."""
    check_operators(cfg.model)
    if not torch.cuda.is_available() and cfg.launcher != 'none':
        _use_gloo(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def latest_checkpoint(work_dir: str) -> str | None:
    """The checkpoint to go on from: the one that mmengine calls the last, or else the newest whole one; None at first.

    A death while ``last_checkpoint`` is written leaves it empty, and one between the removal of an old checkpoint and
    the next leaves it with the name of what is gone.
    """
    name = Path(work_dir, 'last_checkpoint')
    last = name.read_text().strip() if name.is_file() else ''
    # The table of a zip archive is at its end, so one that was cut off is none. Some strategies write folders.
    if last and ('://' in last or os.path.isdir(last) or zipfile.is_zipfile(last)):
        return last
    found = [
        (int(m[1]), path) for path in Path(work_dir).glob('*.pth') if (m := _CHECKPOINT.match(path.name))
    ]
    for _, path in sorted(found, reverse=True):
        if zipfile.is_zipfile(path):
            said = f'names {last!r}, which is no whole file' if last else 'is empty or not there'
            print(f'{name} {said}; goes on from {path}', flush=True)
            return str(path)
    if name.exists():
        stop(
            f'{work_dir} has no whole checkpoint to go on from; {name} says {last!r}, delete it to begin anew'
        )
    if found:
        print(f'{found[0][1]} was cut off, and nothing was saved before it; begins anew', flush=True)
    return None


_CHECKPOINT = re.compile(r'(?:iter|epoch)_(\d+)\.pth$')


def leave_processes() -> None:
    """Wait for the other processes and take leave of them; to be called when the runner is let go.

    The first process writes the last checkpoint while the others are done, and torchrun ends it if one of those fails.
    gloo's threads may still hold tensors whose release needs the interpreter, and abort the process if that is gone;
    they end with the process group, which ends when nothing refers to it.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    torch.distributed.barrier()
    gc.collect()
    torch.distributed.destroy_process_group()


def check_amp(cfg: Config) -> None:
    """Stop where mixed precision is asked for on a machine without a GPU."""
    kind = cfg.optim_wrapper.get('type')
    if kind == 'AmpOptimWrapper' and not torch.cuda.is_available():
        stop(
            "the config trains with optim_wrapper.type='AmpOptimWrapper', which needs a GPU, and none is "
            'here; for float32 on the CPU add: --cfg-options optim_wrapper.type=OptimWrapper'
        )


def own_backbone(name: object) -> type | None:
    """The backbone of this package that a config has by this name, or as this class; None where it is none."""
    import mmhpvit

    kind = getattr(mmhpvit, name, None) if isinstance(name, str) else name
    return kind if isinstance(kind, type) and issubclass(kind, mmhpvit.HPViT) else None


def check_backbone(cfg: Config) -> None:
    """Stop where a backbone of this package cannot be built as configured; its weights take no memory here."""
    options = copy.deepcopy(cfg.model.get('backbone') or {})
    kind = own_backbone(options.pop('type', None))
    if kind is None:
        return
    options.pop('init_cfg', None)
    try:
        with torch.device('meta'):
            kind(**options)
    except TypeError as error:
        known = list(inspect.signature(kind).parameters)
        unknown = [name for name in options if name not in known]
        if not unknown:
            stop(f'model.backbone: {error}')
        close = get_close_matches(unknown[0], known, n=1)
        hint = f'did you mean {close[0]!r}' if close else f'it has {", ".join(known)}'
        stop(
            f'model.backbone: {kind.__name__} has no option {unknown[0]!r}; {hint}? Options of the backbone before it '
            'go by backbone=dict(_delete_=True, ...)'
        )
    except ValueError as error:
        stop(f'model.backbone: {error}')


def warn_of_normalisation(cfg: Config) -> None:
    """Say where images are normalised otherwise than for any of the weights that timm has of the plain ViT."""
    from mmhpvit.plain import build_plain_vit
    from mmhpvit.weights import expected_images

    backbone = cfg.model.get('backbone') or {}
    # As mmengine has it: the model's own first.
    given = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    own = [*(given.get('mean') or ()), *(given.get('std') or ())]
    if own_backbone(backbone.get('type')) is None or len(own) != 6:
        return
    plain = backbone.plain
    known = expected_images(build_plain_vit(plain, device='meta'), plain)
    fits = [max(abs(a - b) for a, b in zip(own, (*mean, *std), strict=True)) < 1 for mean, std in known]
    if known and not any(fits) and int(os.environ.get('RANK', 0)) == 0:
        wanted = ' or '.join(f'mean={list(mean)}, std={list(std)}' for mean, std in known)
        print(
            f'WARNING: model.data_preprocessor has mean={list(given.mean)}, std={list(given.std)}; weights of {plain} '
            f'were trained with {wanted}, and lose much of what they know without; set model.data_preprocessor',
            flush=True,
        )


def check_checkpoint(cfg: Config, path: str) -> None:
    """Stop where a checkpoint is not of the config's model; mmengine would go on with random weights in its place.

    The model is built without memory for its weights where it can be. URLs are left to mmengine.
    """
    # Before torch 2.6 a checkpoint of mmengine is not read as data.
    if '://' in path or tuple(map(int, torch.__version__.split('.')[:2])) < (2, 6):
        return
    import mmhpvit  # noqa: F401 (what its checkpoints hold may be read)

    state = torch.load(path, map_location='cpu', weights_only=True)
    state = state.get('state_dict', state)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') and not model.get('data_preprocessor'):
        model.data_preprocessor = cfg.data_preprocessor
    try:
        with torch.device('meta'):
            own = MODELS.build(model).state_dict()
    except (RuntimeError, NotImplementedError):  # Swin and others read values while they are built
        own = MODELS.build(model).state_dict()
    found = {re.sub(r'^module\.', '', key): value for key, value in state.items()}
    missing = [key for key in own if key not in found]
    wrong = [key for key in own if key in found and found[key].shape != own[key].shape]
    unknown = [key for key in found if key not in own]
    if missing and not any(key.startswith('backbone.') for key in found):
        stop(
            f'{path} holds no detector, segmenter or classifier: no name begins with backbone.; weights of a plain ViT '
            'go into model.backbone.init_cfg.checkpoint'
        )
    if missing or wrong or unknown:
        lists = dict(missing=missing, unknown=unknown) | {'of another shape': wrong}
        text = ', '.join(
            f'{len(keys)} weights {what} ({keys[0]}, ...)' for what, keys in lists.items() if keys
        )
        stop(
            f'{path} is not of this config, which has {text}; training writes its config beside its checkpoints'
        )


def check_weights(cfg: Config) -> None:
    """Stop where a checkpoint to resume from or to start from is not there."""
    if cfg.get('load_from') == '':
        stop('load_from is empty (a variable that is not set?); give a checkpoint, or leave it out')
    if cfg.get('load_from') and missing_paths([cfg.load_from], cfg):
        stop(f'checkpoint {cfg.load_from!r} does not exist (to resume or to load from)')
    init_cfg = cfg.model.get('backbone', {}).get('init_cfg') or []
    for one in [init_cfg] if isinstance(init_cfg, dict) else init_cfg:
        path = one.get('checkpoint') if one.get('type') == 'PlainViT' else None
        if path == '':
            stop(
                'model.backbone.init_cfg.checkpoint is empty (a variable that is not set?); give a file or URL, or '
                'None for the weights that timm has'
            )
        if path and missing_paths([path], cfg):
            stop(
                f'checkpoint {path!r} does not exist (model.backbone.init_cfg.checkpoint, looked from '
                f'{Path.cwd()}); give a file or URL, or None for the weights that timm has'
            )


def missing_paths(paths: list[str], node: ConfigDict) -> list[str]:
    """The paths that are local and not there; storage of another kind is left to its own reader."""
    if node.get('backend_args'):
        return []
    return [path for path in paths if '://' not in path and not os.path.exists(path)]


def _use_gloo(cfg: Config) -> None:
    """Make several processes work without a GPU.

    mmengine's own start-up always selects a CUDA device; it leaves a process group alone that is there.
    """
    if cfg.launcher == 'mpi':
        stop('--launcher mpi needs GPUs; without one use --launcher pytorch (tools/dist_train.sh)')
    if cfg.launcher == 'slurm':
        _read_slurm_environment()
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        if name not in os.environ:
            stop(f'--launcher {cfg.launcher}: {name} is not set; start with tools/dist_train.sh or torchrun')
    torch.distributed.init_process_group('gloo')
    cfg.env_cfg.dist_cfg = dict(backend='gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    if _replace_sync_bn(cfg.model) and torch.distributed.get_rank() == 0:
        print('No GPU: SyncBN becomes BN, so each process normalises over its own images.', flush=True)


def _read_slurm_environment() -> None:
    if 'SLURM_PROCID' not in os.environ:
        stop('--launcher slurm: SLURM_PROCID is not set; start with tools/slurm_train.sh or srun')
    os.environ['RANK'] = os.environ['SLURM_PROCID']
    os.environ['WORLD_SIZE'] = os.environ['SLURM_NTASKS']
    os.environ['LOCAL_RANK'] = os.environ.get('SLURM_LOCALID', '0')
    os.environ.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' not in os.environ:
        nodes = subprocess.run(
            ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']],
            capture_output=True,
            text=True,
            check=True,
        )
        os.environ['MASTER_ADDR'] = nodes.stdout.split()[0]


def _replace_sync_bn(node: object) -> bool:
    """Replace SyncBN by BN everywhere in a config; whether there was any."""
    found = False
    if isinstance(node, dict):
        if node.get('type') == 'SyncBN':
            node['type'], found = 'BN', True
        return any([_replace_sync_bn(v) for v in node.values()]) or found
    if isinstance(node, list | tuple):
        return any([_replace_sync_bn(v) for v in node])
    return False
