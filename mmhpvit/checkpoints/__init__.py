# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Load a checkpoint of a plain ViT into a backbone; :mod:`.load` lists the steps."""
