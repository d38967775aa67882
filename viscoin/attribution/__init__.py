"""Where in an image a score comes from: activations of concepts, logits of f and of g, all by the same methods."""

from viscoin.attribution.attributing import attribute
from viscoin.attribution.methods import METHODS, Method, register
from viscoin.attribution.result import AttributionResult

__all__ = ["METHODS", "AttributionResult", "Method", "attribute", "register"]
