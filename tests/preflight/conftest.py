# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import pytest


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    """The warnings logged since the list was last cleared."""
    messages: list[str] = []
    monkeypatch.setattr('mmhpvit.preflight.errors.print_log', lambda text, **_: messages.append(text))
    return messages
