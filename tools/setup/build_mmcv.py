# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Build an mmcv wheel for the torch of the running Python, in minutes rather than half an hour.

mmcv publishes sources only. Three things make its own build slow or fail, and are mended here through
a compiler wrapper, without touching its sources:

- it asks for C++17, while the headers of torch >= 2.14 need C++20;
- it inherits ``-g`` and ``-O3`` from Python's build flags (32 MB of debug information);
- each of its 118 files parses the same torch header again: precompile it once.

Run as a script in an environment that has torch, setuptools < 82, wheel, ninja and psutil::

    python tools/setup/build_mmcv.py --version 2.1.0 --out DIR    # --package onedl-mmcv: the community fork's

The wheel's path is the last line printed.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
import time
from pathlib import Path

WRAPPER = '''\
"""Calls {compiler} with C++{standard}, no debug information and a precompiled torch header."""
import fcntl
import os
import subprocess
import sys

args = ['-std=c++{standard}' if a.startswith('-std=c++') else a for a in sys.argv[1:]]
args = [a for a in args if a not in ('-g', '-O3')]
header = {header!r}
source = next((a for a in args if a.endswith('.cpp')), None)
if '-c' in args and source:
    args += ['-g0', '-O2']
    flags, skip = [], 0
    for a in args:
        if skip:
            skip -= 1
        elif a in ('-c', '-o', '-MF', '-MT', '-MQ'):
            skip = 1
        elif a not in ('-MMD', '-MD') and a != source:
            flags.append(a)
    with open(header + '.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(header + '.gch'):
            made = [{compiler!r}, *flags, '-x', 'c++-header', header, '-o', header + '.tmp']
            if subprocess.call(made) == 0:
                os.replace(header + '.tmp', header + '.gch')
    args = ['-include', header, *args]
os.execvp({compiler!r}, [{compiler!r}, *args])
'''


def _write_wrapper(folder: Path, compiler: str, standard: int) -> Path:
    header = folder / 'torch_types.h'
    header.write_text('#include <torch/types.h>\n')
    script = folder / 'compiler.py'
    script.write_text(WRAPPER.format(compiler=compiler, standard=standard, header=str(header)))
    return _executable(folder / Path(compiler).name, script)


def _executable(path: Path, script: Path) -> Path:
    """A command that runs a Python script; a #! line fails where Python's path is long or has a space."""
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(script))} "$@"\n')
    path.chmod(0o755)
    return path


def _write_nvcc_wrapper(folder: Path, nvcc: str, standard: int) -> Path:
    script = folder / 'nvcc.py'
    script.write_text(
        'import os, sys\n'
        f"args = ['-std=c++{standard}' if a.startswith('-std=c++') else a for a in sys.argv[1:]]\n"
        f'os.execv({nvcc!r}, [{nvcc!r}, *args])\n'
    )
    return _executable(folder / 'nvcc', script)


def _jobs() -> int:
    """Compilers to run at once: one a core, as far as memory goes (1.5 GB each)."""
    pages, size = os.sysconf('SC_AVPHYS_PAGES'), os.sysconf('SC_PAGE_SIZE')
    return max(1, min(len(os.sched_getaffinity(0)), int(pages * size / 1.5e9)))


def _check_prerequisites() -> str:
    """Return the path of the C++ compiler; exit with one line that says what to install."""
    compiler = os.environ.get('CXX') or shutil.which('g++') or shutil.which('c++')
    if not compiler or not shutil.which(compiler):
        sys.exit('build_mmcv: no C++ compiler found; install one (Debian, Ubuntu: apt-get install g++)')
    header = Path(sysconfig.get_path('include'), 'Python.h')
    extra = [Path(p, 'Python.h') for p in os.environ.get('CPATH', '').split(':') if p]
    if not any(p.is_file() for p in [header, *extra]):
        version = '.'.join(map(str, sys.version_info[:2]))
        sys.exit(
            f'build_mmcv: {header} is missing, so nothing can be compiled for this Python; '
            f'install its headers (Debian, Ubuntu: apt-get install python{version}-dev)'
        )
    return shutil.which(compiler)


def _progress(build: Path, stop: threading.Event) -> None:
    """Print how many of the object files are there, with the time that is left."""
    total, start = len(list(build.glob('mmcv/ops/csrc/pytorch/**/*.cpp'))), time.time()
    while not stop.wait(15):
        done = len(list(build.glob('build/**/*.o')))
        spent = time.time() - start
        left = f', about {spent * (total - done) / done:.0f} s left' if 0 < done < total else ''
        print(f'      compiled {done}/{total} files in {spent:.0f} s{left}', flush=True)


def build_mmcv(version: str, out: Path, package: str = 'mmcv') -> Path:
    """Download the sources of ``package`` in that version, build a wheel into ``out`` and return its path."""
    compiler = _check_prerequisites()
    import torch

    torch_version = tuple(int(v) for v in torch.__version__.split('.')[:2])
    standard = 20 if torch_version >= (2, 14) else 17
    nvcc = shutil.which(
        'nvcc', path=os.environ.get('CUDA_HOME', '/usr/local/cuda') + '/bin:' + os.environ['PATH']
    )
    with_cuda = torch.cuda.is_available() and nvcc is not None
    if torch.cuda.is_available() and not with_cuda:
        print('      a GPU is there but nvcc is not: mmcv is built without its CUDA operators', flush=True)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='mmcv-build-') as tmp:
        folder = Path(tmp)
        pip = [sys.executable, '-m', 'pip']
        subprocess.run(
            [*pip, 'download', '-q', '--no-deps', '--no-binary', ':all:', '--no-build-isolation']
            + ['-d', tmp, f'{package}=={version}'],
            check=True,
        )
        archive = next(folder.glob('*mmcv-*.tar.gz'))
        with tarfile.open(archive) as tar:
            # Python before 3.10.12 and 3.11.4 has no filters.
            tar.extractall(folder, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
        sources = folder / archive.name.removesuffix('.tar.gz')
        env = {
            **os.environ,
            'MMCV_WITH_OPS': '1',
            'FORCE_CUDA': '1' if with_cuda else '0',
            'MAX_JOBS': os.environ.get('MAX_JOBS') or str(_jobs()),
            'CXX': str(_write_wrapper(folder, compiler, standard)),
        }
        if with_cuda:
            env['PYTORCH_NVCC'] = str(_write_nvcc_wrapper(folder, nvcc, standard))
        else:
            env['CUDA_VISIBLE_DEVICES'] = ''
        stop = threading.Event()
        watcher = threading.Thread(target=_progress, args=(sources, stop), daemon=True)
        watcher.start()
        log = out / f'{package}-{version}-build.log'
        with log.open('w') as file:
            failed = subprocess.call(
                [sys.executable, 'setup.py', 'bdist_wheel', '-d', str(folder / 'wheels')],
                cwd=sources,
                env=env,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        stop.set()
        watcher.join()
        if failed:
            sys.exit(f'build_mmcv: the build of {package} {version} failed; its output is in {log}')
        built = next((folder / 'wheels').glob('*.whl'))
        partial = out / (built.name + '.part')
        shutil.copyfile(built, partial)
        os.replace(partial, out / built.name)
        return out / built.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--version', default='2.1.0', help='the mmcv release to build (default: 2.1.0)')
    parser.add_argument('--package', default='mmcv', help='whose sources; default: %(default)s')
    parser.add_argument('--out', type=Path, required=True, help='folder that the wheel goes to')
    args = parser.parse_args()
    print(build_mmcv(args.version, args.out, args.package))


if __name__ == '__main__':
    main()
