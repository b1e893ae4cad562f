# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Set up the tested environment in .venv at the root of this repository.

    python3 tools/setup/setup_env.py [--stack community]

The community fork of OpenMMLab has the same import names, so it gets an environment of its own, .venv-community.

Needs Python 3.10 to 3.12 and, where no ready mmcv wheel can be had, a C++ compiler. Uses the standard
library only; safe to run again, which takes no time while nothing has changed. pip's own configuration
and environment variables (PIP_INDEX_URL, PIP_FIND_LINKS, ...) are honoured.
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUPPORTED = ('3.12', '3.11', '3.10')
INPUTS = (
    'requirements',
    'setup.py',
    'pyproject.toml',
    'tools/setup/setup_env.py',
    'tools/setup/build_mmcv.py',
)
# Where it goes; files of versions, of packages and of the tests' own; what builds mmcv's operators.
STACKS = {
    'openmmlab': ('.venv', ('tested.txt',), 'mminstall.txt', 'beside.txt', 'mmcv'),
    'community': (
        '.venv-community',
        ('tested.txt', 'community.txt'),
        'community.txt',
        'beside-community.txt',
        'onedl-mmcv',
    ),
}


def use_stack(name):
    """Set the paths of a stack's environment."""
    global VENV, PYTHON, STAMP, CPU_ONLY, PINS, PACKAGES, BESIDE, MMCV
    folder, PINS, PACKAGES, BESIDE, MMCV = STACKS[name]
    VENV = ROOT / folder
    PYTHON = VENV / 'bin' / 'python'
    STAMP = VENV / 'mmhpvit-setup.txt'
    # There while mmcv has no CUDA operators; the shell scripts then hide GPUs.
    CPU_ONLY = VENV / 'mmhpvit-cpu-only'


use_stack('openmmlab')


def say(text):
    print(f'[setup] {text}', flush=True)


def run(command, what, check=True, beats=True, **kwargs):
    """Run a command, say that it is still going every half minute, and return whether it succeeded."""
    start, stop = time.time(), threading.Event()

    def beat():
        while not stop.wait(30):
            say(f'  ... {what}, {time.time() - start:.0f} s so far')

    if beats:
        threading.Thread(target=beat, daemon=True).start()
    result = subprocess.run([str(c) for c in command], **kwargs)
    stop.set()
    if check and result.returncode:
        sys.exit(f'[setup] error: {what} failed (exit status {result.returncode}); the reason is above')
    return result.returncode == 0


def pip(*args, what, check=True):
    env = {**os.environ, 'PIP_DISABLE_PIP_VERSION_CHECK': '1', 'PIP_ROOT_USER_ACTION': 'ignore'}
    output = {} if check else {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
    return run([PYTHON, '-m', 'pip', 'install', '-q', *args], what, check, env=env, **output)


def version_of(python):
    """The version 'major.minor' of an interpreter, or None where it does not run."""
    code = 'import sys; print("%d.%d" % sys.version_info[:2])'
    try:
        out = subprocess.run([python, '-c', code], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() or None


def find_python():
    """A supported interpreter: the running one, or one on the path."""
    names = [sys.executable, 'python3', *(f'python{v}' for v in SUPPORTED)]
    for python in filter(None, (shutil.which(name) for name in names)):
        if version_of(python) in SUPPORTED:
            return python
    sys.exit(f'[setup] error: no Python {", ".join(SUPPORTED)} on the path; install one of them')


def has_module(python, module):
    return subprocess.run([python, '-c', f'import {module}'], capture_output=True).returncode == 0


def has_headers(python):
    """Whether programs can be compiled against this Python (its Python.h is there, or on CPATH)."""
    code = 'import sysconfig; print(sysconfig.get_path("include"))'
    out = subprocess.run([python, '-c', code], capture_output=True, text=True)
    folders = [out.stdout.strip(), *os.environ.get('CPATH', '').split(':')]
    return any(os.path.isfile(os.path.join(folder, 'Python.h')) for folder in folders if folder)


def need(missing, python):
    """Install Debian packages, or say which ones to install.

    Debian and Ubuntu split the modules and headers that every other Python has into packages.
    """
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which('apt-get'):
        sys.exit(
            f'[setup] error: {python} needs {", ".join(missing)}: sudo apt-get install {" ".join(missing)}'
        )
    say(f'installing {", ".join(missing)} with apt-get')
    run(['apt-get', 'update', '-qq'], 'apt-get update')
    quiet = {**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'}
    command = ['apt-get', 'install', '-y', '-qq', '--no-install-recommends', *missing]
    run(command, 'apt-get install', env=quiet, stdout=subprocess.DEVNULL)


def create_environment(python):
    if has_module(python, 'ensurepip'):
        run([python, '-m', 'venv', '--clear', VENV], 'creating the environment')
    elif has_module(python, 'venv') and has_module(python, 'pip'):
        run([python, '-m', 'venv', '--clear', '--without-pip', VENV], 'creating the environment')
        run([python, '-m', 'pip', '--python', PYTHON, 'install', '-q', 'pip'], 'installing pip')
    else:
        need([f'python{version_of(python)}-venv'], python)
        run([python, '-m', 'venv', '--clear', VENV], 'creating the environment')


def fingerprint(python):
    """Changes whenever the environment would come out differently."""
    digest = hashlib.sha256(f'{version_of(python)} {ROOT}'.encode())
    for name in INPUTS:
        path = ROOT / name
        for file in sorted(path.glob('*.txt')) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def tested(package):
    """The version of a package in the stack's files of versions."""
    lines = [line for name in PINS for line in (ROOT / 'requirements' / name).read_text().split('\n')]
    return next(line.split('==')[1].strip() for line in lines if line.startswith(f'{package}=='))


def ask(code):
    """What a line of Python prints in the environment."""
    out = subprocess.run(
        [str(PYTHON), '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True
    )
    return out.stdout.strip()


def why_not_cuda():
    """Why mmcv's CUDA operators cannot be built here, which takes a GPU and NVIDIA's compiler; None where they can."""
    cuda_home = os.environ.get('CUDA_HOME', '/usr/local/cuda')
    if ask('import torch; print(torch.cuda.is_available())') != 'True':
        return 'no GPU is here that this torch can use; to train detectors on one, run this again where it is'
    if not shutil.which('nvcc', path=f'{cuda_home}/bin:{os.environ["PATH"]}'):
        return 'a GPU is here but not nvcc; to train detectors on it, install the CUDA toolkit and run this again'
    return None


def is_ready(wanted):
    """Whether nothing has changed, and no GPU is here for which the environment is not made."""
    if not (STAMP.is_file() and STAMP.read_text() == wanted and PYTHON.exists()):
        return False
    return not (CPU_ONLY.exists() and shutil.which('nvidia-smi') and why_not_cuda() is None)


def wheel_folder(device):
    """Where a built mmcv wheel is kept: it fits one torch minor version, Python and kind of device."""
    minor = '.'.join(ask('import torch; print(torch.__version__)').split('.')[:2])
    python = version_of(str(PYTHON)).replace('.', '')
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache', 'mmhpvit', 'wheels')
    return cache / f'{MMCV}{tested(MMCV)}-torch{minor}-{device}-cp{python}-{platform.machine()}'


def mmcv_works(device):
    boxes = f'torch.rand(2, 4).to({device!r})'
    code = f'import torch; from mmcv.ops import nms; b = {boxes}; nms(b, b.sum(1), 0.5)'
    return subprocess.run([str(PYTHON), '-c', code], capture_output=True).returncode == 0


def install_if_it_works(device, *wheel):
    args = ['--no-deps', '--force-reinstall', *wheel]
    return pip(*args, what='installing a ready mmcv wheel', check=False) and mmcv_works(device)


def install_mmcv(python):
    reason = why_not_cuda()
    if reason:
        say(f"mmcv's operators are for the CPU: {reason}")
    device = 'cpu' if reason else 'cuda'
    CPU_ONLY.unlink(missing_ok=True)
    if device == 'cpu':
        CPU_ONLY.touch()
    version, folder = tested(MMCV), wheel_folder(device)
    if mmcv_works(device):
        say('mmcv is there and its operators run')
        return
    cached = sorted(folder.glob('*.whl'))
    if cached and install_if_it_works(device, cached[0]):
        say(f'mmcv: took the wheel built earlier, {cached[0]}')
        return
    if install_if_it_works(device, '--only-binary', MMCV, f'{MMCV}=={version}'):
        say('mmcv: took a ready wheel from your package index')
        return
    compiler = shutil.which(os.environ.get('CXX', 'g++')) or shutil.which('c++')
    missing = [] if compiler else ['g++']
    need(missing + ([] if has_headers(python) else [f'python{version_of(python)}-dev']), python)
    say('mmcv: no ready wheel fits, compiling its operators (2 to 10 minutes, once a machine)')
    build = [PYTHON, '-W', 'ignore', ROOT / 'tools/setup/build_mmcv.py', '--package', MMCV]
    build += ['--version', version, '--out', folder]
    run(build, 'compiling mmcv', beats=False, env={**os.environ, 'PIP_DISABLE_PIP_VERSION_CHECK': '1'})
    wheel = next(folder.glob('*.whl'))
    pip('--no-deps', '--force-reinstall', wheel, what='installing mmcv')
    if not mmcv_works(device):
        sys.exit(
            f'[setup] error: mmcv was built ({wheel}) but its operators do not run; delete it and try again'
        )


def name_packages():
    """Name the packages that mmengine and mim look for.

    The community fork's distributions are called otherwise than OpenMMLab's (onedl-mmsegmentation), while its mmengine
    0.10.12 asks for mmsegmentation where a config says ``mmseg::``, and mim for mmdet.
    """
    for package, module in (('mmsegmentation', 'mmseg'), ('mmdet', 'mmdet')):
        code = f'import importlib.metadata as m; m.version({package!r})'
        if subprocess.run([PYTHON, '-c', code], capture_output=True).returncode == 0:
            continue
        say(f'adding an entry {package} for {module}')
        version = ask(f'import {module}; print({module}.__version__)')
        packages = Path(ask(f'import {module}, pathlib; print(pathlib.Path({module}.__file__).parents[1])'))
        folder = packages / f'{package}-{version}.dist-info'
        folder.mkdir(exist_ok=True)
        text = f'Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n'
        (folder / 'METADATA').write_text(text)
        (folder / 'top_level.txt').write_text(f'{module}\n')


def use_headless_opencv():
    """Without the system's graphics libraries the standard OpenCV cannot be imported; its twin can."""
    if has_module(str(PYTHON), 'cv2'):
        return
    say("this machine has no graphics libraries: taking OpenCV's headless build")
    run([PYTHON, '-m', 'pip', 'uninstall', '-q', '-y', 'opencv-python'], 'removing opencv-python')
    pip('--no-deps', '--force-reinstall', 'opencv-python-headless', what='installing opencv-python-headless')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--stack', choices=STACKS, default='openmmlab', help='default: %(default)s')
    use_stack(parser.parse_args().stack)
    start = time.time()
    python = find_python()
    wanted = fingerprint(python)
    if is_ready(wanted):
        say(f'environment is ready: {VENV}')
        return
    STAMP.unlink(missing_ok=True)  # what fails from here on is not ready
    say(f'setting up {VENV} with Python {version_of(python)} ({python})')
    if version_of(str(PYTHON)) != version_of(python) or not has_module(str(PYTHON), 'pip'):
        create_environment(python)
    pins = [arg for name in PINS for arg in ('-c', ROOT / 'requirements' / name)]
    say(f'installing torch {tested("torch")} (with the CUDA libraries of your index: up to 3 GB)')
    pip('-U', 'pip', 'setuptools', 'wheel', 'ninja', 'psutil', *pins, what='installing build tools')
    pip('torch', 'torchvision', *pins, what='installing torch')
    say('installing mmengine, mmdet, mmsegmentation, timm and the test tools')
    files = [('-r', ROOT / f'requirements/{name}.txt') for name in ('runtime', 'tests')]
    others = [
        line.split('#')[0].strip()
        for line in (ROOT / 'requirements' / PACKAGES).read_text().split('\n')
        if line.split('#')[0].strip() and not line.startswith(MMCV)
    ]
    pip(*(arg for pair in files for arg in pair), *others, *pins, what='installing packages')
    beside = ['--no-deps', '--upgrade', '--target', VENV / 'beside']
    pip(*beside, '-r', ROOT / 'requirements' / BESIDE, what="installing the tests' own packages")
    use_headless_opencv()
    install_mmcv(python)
    name_packages()
    pip('-qq', '--no-deps', '--no-build-isolation', '-e', ROOT, what='installing mmhpvit')
    code = 'import mmcv.ops, mmdet, mmseg, mmhpvit; print(mmhpvit.__version__)'
    run([PYTHON, '-W', 'ignore', '-c', code], 'importing mmhpvit', stdout=subprocess.DEVNULL)
    STAMP.write_text(wanted)
    say(f'environment is ready: {VENV} ({time.time() - start:.0f} s)')


if __name__ == '__main__':
    main()
