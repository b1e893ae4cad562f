# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Parts of tools/benchmark.py and tools/study/probe.py."""
