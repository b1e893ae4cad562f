# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Resuming mmengine's checkpoints under torch's safe loading (``weights_only=True``)."""

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load`` rebuild what mmengine itself puts into a training checkpoint.

    torch >= 2.6 loads tensors and plain containers only, unless a class is allowed by name. mmengine's
    message hub keeps its scalars in :class:`mmengine.logging.HistoryBuffer`, which holds numpy arrays.
    """
    try:
        from numpy._core.multiarray import _reconstruct, scalar
    except ImportError:  # numpy < 2
        from numpy.core.multiarray import _reconstruct, scalar
    dtypes = [type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    torch.serialization.add_safe_globals([HistoryBuffer, np.ndarray, np.dtype, _reconstruct, scalar, *dtypes])
    HistoryBuffer.__getstate__ = _data_of_history_buffer


def _data_of_history_buffer(buffer: HistoryBuffer) -> dict:
    """What a buffer holds, without its statistics methods.

    mmengine writes those methods too; pickle names a method by ``getattr``, which safe loading rightly
    refuses. They belong to the class, and ``__setstate__`` puts them back.
    """
    return {key: value for key, value in vars(buffer).items() if key != 'statistics_methods'}
