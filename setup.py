# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import re
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
version = re.search(r"__version__ = '(.+)'", (root / 'mmhpvit/__init__.py').read_text())[1]
# torch, mmcv, mmengine, mmdet and mmsegmentation are the user's own and are never pulled in or replaced.
runtime = (root / 'requirements/runtime.txt').read_text().split()

setup(
    name='mmhpvit',
    version=version,
    description='Plain ViT checkpoints as hierarchical backbones for MMDetection and MMSegmentation',
    long_description=(root / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmhpvit*']),
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
