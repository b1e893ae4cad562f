# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Backbones made from plain ViTs."""
