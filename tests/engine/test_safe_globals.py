# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import builtins
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub

import mmhpvit  # noqa: F401 (allows mmengine's checkpoints)


def test_message_hub_survives_safe_loading(tmp_path):
    hub = MessageHub.get_instance('safe-loading')
    for i in range(5):
        hub.update_scalar('train/loss', 5.0 - i)
        hub.update_scalar('train/count', i)
    hub.update_info('iter', 5)
    torch.save({'message_hub': hub.state_dict()}, tmp_path / 'file.pth')
    state = torch.load(tmp_path / 'file.pth', weights_only=True)['message_hub']
    loss = state['log_scalars']['train/loss']
    assert isinstance(loss, HistoryBuffer)
    assert (loss.min(), loss.mean(), loss.statistics('current')) == (1.0, 3.0, 1.0)
    restored = MessageHub.get_instance('safe-loading-restored')
    restored.load_state_dict(state)
    assert restored.get_scalar('train/loss').statistics('max') == 5.0
    assert restored.get_info('iter') == 5


def test_no_general_function_is_allowed():
    allowed = [f[0] if isinstance(f, tuple) else f for f in torch.serialization.get_safe_globals()]
    assert not [f for f in allowed if f in (getattr, setattr, eval, exec, __import__, builtins.open)]
    functions = {f.__name__ for f in allowed if not isinstance(f, type) and 'torch' not in f.__module__}
    assert functions == {'_reconstruct', 'scalar'}


@pytest.mark.parametrize('core', [b'core', b'_core'])
def test_arrays_written_under_either_numpy_are_read(core, tmp_path):
    array = np.arange(3.0)
    data = pickle.dumps(array, protocol=2)
    data = re.sub(rb'numpy\._?core\.multiarray', b'numpy.' + core + b'.multiarray', data)
    torch.save(array, tmp_path / 'file.pth')
    with zipfile.ZipFile(tmp_path / 'file.pth') as old, zipfile.ZipFile(tmp_path / 'new.pth', 'w') as new:
        for name in old.namelist():
            new.writestr(name, data if name.endswith('data.pkl') else old.read(name))
    assert (torch.load(tmp_path / 'new.pth', weights_only=True) == array).all()


class Payload:
    def __reduce__(self):
        return getattr, ('', 'join')


def test_general_functions_are_still_refused(tmp_path):
    torch.save(Payload(), tmp_path / 'file.pth')
    with pytest.raises(pickle.UnpicklingError, match='getattr'):
        torch.load(tmp_path / 'file.pth', weights_only=True)
