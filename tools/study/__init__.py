# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The study: does the hierarchy pay?"""
