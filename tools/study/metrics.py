# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""mmseg's mIoU with what it is made of for each image, so that images can be drawn anew (bootstrap)."""

import json
from pathlib import Path

from mmengine.registry import METRICS
from mmseg.evaluation import IoUMetric


@METRICS.register_module()
class PerImageIoU(IoUMetric):
    """mmseg's ``IoUMetric``, which also writes intersections and unions in pixels.

    Args:
        file: JSON file to write: a list of images, each ``[intersections, unions]`` by class.
        kwargs: Those of ``IoUMetric``.
    """

    def __init__(self, file: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.file = Path(file)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """mmseg's metrics of all images."""
        images = [[[int(n) for n in areas] for areas in image[:2]] for image in results]
        self.file.write_text(json.dumps(images))
        return super().compute_metrics(results)
