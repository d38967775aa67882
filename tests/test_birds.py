"""The birds: drawing, truth and interventions."""
import numpy as np

from viscoin.datasets.birds import PARTS, item, render


def test_render_shapes() -> None:
    bird, scene, _ = item("train", 3, 0, 20)
    image, masks = render(bird, scene, 64)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert masks.shape == (len(PARTS), 64, 64) and masks.sum(0).max() == 1
