"""Birds: rendered pictures with a known truth (classes, attributes, part masks) and interventions on it."""

from viscoin.datasets.birds.renderer import render
from viscoin.datasets.birds.scene import (
    MISSING_SHARE,
    Blob,
    Scene,
    delete_background_objects,
    delete_part,
    image_attributes,
    item,
    sample_scene,
    shown_attributes,
)
from viscoin.datasets.birds.variants import (
    ATTRIBUTE_GROUPS,
    GROUP_PART,
    MAX_CLASSES,
    PARTS,
    Bird,
    attribute_names,
    attributes,
    class_names,
    class_table,
    swap_variant,
)

__all__ = [
    "ATTRIBUTE_GROUPS",
    "GROUP_PART",
    "MAX_CLASSES",
    "MISSING_SHARE",
    "PARTS",
    "Bird",
    "Blob",
    "Scene",
    "attribute_names",
    "attributes",
    "class_names",
    "class_table",
    "delete_background_objects",
    "delete_part",
    "image_attributes",
    "item",
    "render",
    "sample_scene",
    "shown_attributes",
    "swap_variant",
]
