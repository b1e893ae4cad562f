# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Training: layer-wise learning-rate decay, resuming, sharding."""
