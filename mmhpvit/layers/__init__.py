# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The parts of a backbone: embedding, pooling, positions, attention sequences, running of blocks."""
