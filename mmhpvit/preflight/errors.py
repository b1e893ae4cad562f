# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""One line of error or of warning."""

import os
import sys

# As torchrun, srun and mpirun tell the number of a process.
RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')


def stop(message: str) -> None:
    """End the program with one line of error."""
    sys.exit(f'error: {message}')


def warn(message: str) -> None:
    """Say one line of warning, once however many processes there are."""
    if int(next((os.environ[name] for name in RANKS if name in os.environ), 0)) == 0:
        print(f'WARNING: {message}', flush=True)
