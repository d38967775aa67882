"""Do concepts know what the images were made from? Attributes, places and causes, where a dataset has the truth."""

from viscoin.testing.baselines import untrained
from viscoin.testing.truth.attributes import AttributeResult, AttributeScore, attribute_scores, test_attributes
from viscoin.testing.truth.result import Example, FunctionTruth, TruthResult, test_truth

__all__ = [
    "AttributeResult",
    "AttributeScore",
    "Example",
    "FunctionTruth",
    "TruthResult",
    "attribute_scores",
    "test_attributes",
    "test_truth",
    "untrained",
]
