# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Checks of a config before the first iteration, one file for each part of it."""
