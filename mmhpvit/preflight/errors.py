# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""What the checks raise, and how they warn."""

import logging
import os

from mmengine.logging import print_log

# How srun, mpirun and torchrun number the processes of one machine.
LOCAL_RANKS = ('SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK', 'LOCAL_RANK')


class ConfigError(ValueError):
    """A config that cannot do what it says. One line: the value, what was expected, what to type."""


def warn(message: str) -> None:
    """Log a warning in the first process of a machine: to the screen and, once there is a runner, to its log file."""
    if first_on_machine():
        print_log(message, logger='current', level=logging.WARNING)


def first_on_machine() -> bool:
    """Whether this process is the first of its machine, the one that looks into files."""
    return int(next((os.environ[name] for name in LOCAL_RANKS if name in os.environ), 0)) == 0
