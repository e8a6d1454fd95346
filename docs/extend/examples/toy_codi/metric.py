"""A metric: how far the brightness of an output is from the ground truth's."""

import numpy as np

from codi_hub.evaluation.metrics import image_metric


@image_metric(
    head="brightness", meaning="difference of the mean brightness from the reference, levels of 255", better="lower"
)
def brightness(image: np.ndarray, reference: np.ndarray) -> float:
    """Compare two images, uint8 (H, W, 3)."""
    return abs(float(image.mean()) - float(reference.mean()))
