# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Names of weights as modules give them."""

# What torch.compile, activation checkpointing and sharding put between the names of modules.
_WRAPPERS = ('_orig_mod', '_checkpoint_wrapped_module', '_fsdp_wrapped_module')


def without_wrappers(name: str) -> str:
    """The name of a weight where no module is wrapped: ``blocks.0.norm1.bias`` of ``blocks.0._orig_mod.norm1.bias``."""
    return '.'.join(part for part in name.split('.') if part not in _WRAPPERS)
