# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Resuming mmengine's checkpoints under torch's safe loading (``weights_only=True``)."""

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load`` read the training checkpoints of mmengine.

    torch >= 2.6 loads only tensors, plain containers and classes that are allowed by name. mmengine's message hub
    keeps its scalars in :class:`mmengine.logging.HistoryBuffer`, which holds numpy arrays.
    """
    HistoryBuffer.__getstate__ = _data_of_history_buffer
    version = tuple(int(part) for part in torch.__version__.split('.')[:2])
    if version < (2, 6):  # loads without asking by default
        return
    try:
        from numpy._core.multiarray import _reconstruct, scalar
    except ImportError:  # numpy < 2
        from numpy.core.multiarray import _reconstruct, scalar
    kinds = (np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_)
    # numpy 1 and 2 write the same two functions under different names; allow both.
    functions = [
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for function in (_reconstruct, scalar)
        for core in ('core', '_core')
    ]
    dtypes = [type(np.dtype(kind)) for kind in kinds]
    torch.serialization.add_safe_globals([HistoryBuffer, np.ndarray, np.dtype, *dtypes, *functions])


def _data_of_history_buffer(buffer: HistoryBuffer) -> dict:
    """The attributes of a buffer without its statistics methods.

    mmengine saves those methods too, and pickle stores a method as a call of ``getattr``, which safe loading rightly
    refuses. They belong to the class, and ``__setstate__`` restores them.
    """
    return {key: value for key, value in vars(buffer).items() if key != 'statistics_methods'}
