# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""What is checked before anything is built: a file for each part of a config."""
