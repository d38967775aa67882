"""Pursuit: attributes that we put into a last layer are found again, and Psi computes them exactly."""

import logging

import numpy as np
import pytest
import torch

from viscoin.errors import Refused
from viscoin.models.concept_extractor import ConceptExtractor
from viscoin.models.pursuit import dimensions, distinct, pursue, relevant_basis, two_valued

C, D, N = 400, 24, 3000


def world(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A last layer (C, D) whose classes have 5 binary attributes, mixed by a rotation; features (N, D); the codes."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2, (C, 5)) * 2.0 - 1
    mixing = np.linalg.qr(rng.normal(size=(D, D)))[0]
    weight = codes @ (np.array([3, 2.5, 2, 1.8, 1.5])[:, None] * mixing[:5]) + 0.05 * rng.normal(size=(C, D))
    features = rng.normal(size=(N, D)) + 7
    return weight, features, codes


def test_attributes_of_the_classes_are_found_without_labels():
    weight, features, codes = world()
    found = pursue(weight, features, 5)
    assert found.over == "classes" and found.basis.shape == (D, 5)
    classes, basis = relevant_basis(weight, features, 5)
    scores = classes @ found.directions
    match = np.abs(np.corrcoef(scores.T, codes.T)[:5, 5:])
    assert (match.max(0) > 0.97).all() and (match.max(1) > 0.97).all()
    assert found.values.max() < 1.4  # two groups; a Gaussian has 3
    along = (features - found.mean) @ found.basis
    assert along.std(0) == pytest.approx(np.ones(5), rel=0.05) and np.allclose(basis, found.basis)


def test_dimensions_are_those_before_the_largest_drop():
    assert dimensions(np.array([9, 8, 7.5, 7, 6.5, 6, 1, 0.9, 0.8])) == 6


def test_opposite_and_equal_directions_are_one():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 200))
    assert distinct(np.stack([one, -one, other, one + 0.01 * other], 1), np.array([2.0, 1.0, 3.0, 4.0])) == [1, 2]


def test_starts_are_those_of_the_seed():
    points = np.random.default_rng(0).normal(size=(300, 4))
    first, again, other = (two_valued(points, 20, seed)[0] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_few_classes_are_searched_over_images(caplog):
    weight, features, _ = world()
    with caplog.at_level(logging.WARNING):
        assert pursue(weight[:6], features, 1, d=4).over == "images"
    assert "6 classes are too few for 4 dimensions; searched over 3000 images" in caplog.text


def test_classes_that_are_all_alike_are_refused():
    with pytest.raises(Refused, match="treats all classes alike"):
        pursue(np.ones((5, D)), np.random.default_rng(0).normal(size=(50, D)), 1)


def test_more_concepts_than_directions_are_refused_with_their_number():
    weight, features, _ = world()
    with pytest.raises(Refused, match=r"finds \d+ directions, two concepts each; choose at most \d+"):
        pursue(weight, features, 5000, d=5)


def test_psi_computes_the_directions_exactly():
    torch.manual_seed(0)
    shapes = [(4, 16, 16), (6, 8, 8), (10, 4, 4)]
    extractor = ConceptExtractor(shapes, 6, 5, support_width=20)
    maps = [torch.randn(3, *shape) for shape in shapes]
    basis, offset, directions = torch.randn(10, 4), torch.randn(4), torch.randn(4, 3)
    before = extractor(maps)[1]
    extractor.start_from_directions(basis, offset, directions, lift=50)
    concept_maps, support, _ = extractor(maps)
    scores = torch.einsum("bchw,cd->bdhw", maps[2], basis) + offset[:, None, None]
    signed = torch.einsum("bdhw,dk->bkhw", scores, torch.cat([directions, -directions], 1))
    expected = torch.nn.functional.adaptive_avg_pool2d(signed.relu(), 3)
    torch.testing.assert_close(concept_maps, expected, atol=1e-4, rtol=1e-4)
    assert support.shape == before.shape == (3, 20)
    with pytest.raises(Refused, match="searches 7 dimensions; choose 7 or more"):
        extractor.start_from_directions(torch.randn(10, 7), torch.zeros(7), torch.randn(7, 3), 1.0)
