# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""A hook that writes each iteration's loss, averaged over the processes, to ``losses.json``."""

import json
from pathlib import Path

from mmengine import dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class MeanLossHook(Hook):
    def before_train(self, runner):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = outputs['loss'].detach().clone()
        dist.all_reduce(loss, op='mean')
        self.losses.append(float(loss))

    @dist.master_only
    def after_train(self, runner):
        Path(runner.work_dir, 'losses.json').write_text(json.dumps(self.losses))
