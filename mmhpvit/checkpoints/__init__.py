# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""From a checkpoint file to the weights of a backbone."""
