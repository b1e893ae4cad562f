# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).parent
version = re.search(r"__version__ = '(.+)'", (root / 'mmhpvit/__init__.py').read_text())[1]
# torch, mmcv, mmengine, mmdet and mmsegmentation are the user's own and are never pulled in or replaced.
runtime = (root / 'requirements/runtime.txt').read_text().split()


# Of use in a clone alone: the study, the set-up of its environment and what needs either of them.
CLONE_ONLY = ('study', 'setup', 'bench', 'benchmark.py', 'demo.sh', 'run_tests.sh')


class BuildWithConfigs(build_py):
    """Puts configs, tools and the model index into the wheel as mmhpvit/.mim, where mim looks for them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib, 'mmhpvit/.mim')
        for name, others in (('configs', ()), ('tools', CLONE_ONLY)):
            unwanted = shutil.ignore_patterns('__pycache__', '*.pyc', *others)
            shutil.copytree(root / name, folder / name, dirs_exist_ok=True, ignore=unwanted)
        shutil.copy(root / 'model-index.yml', folder)


setup(
    cmdclass={'build_py': BuildWithConfigs},
    name='mmhpvit',
    version=version,
    description='Plain ViT checkpoints as hierarchical backbones for MMDetection and MMSegmentation',
    long_description=(root / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmhpvit*']),
    package_data={'mmhpvit': ['py.typed']},
    python_requires='>=3.10,<3.13',
    install_requires=runtime,
    classifiers=[
        'Development Status :: 4 - Beta',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
)
