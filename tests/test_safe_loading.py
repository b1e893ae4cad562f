# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import builtins
import pickle

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
    allowed = torch.serialization.get_safe_globals()
    assert not [f for f in allowed if f in (getattr, setattr, eval, exec, __import__, builtins.open)]
    assert not [f for f in allowed if isinstance(f, tuple)]


class Payload:
    def __reduce__(self):
        return getattr, ('', 'join')


def test_general_functions_are_still_refused(tmp_path):
    torch.save(Payload(), tmp_path / 'file.pth')
    with pytest.raises(pickle.UnpicklingError, match='getattr'):
        torch.load(tmp_path / 'file.pth', weights_only=True)
