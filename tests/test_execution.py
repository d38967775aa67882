"""Tested networks in bfloat16, or compiled: what changes, and what must not."""

import json
import shutil
from copy import deepcopy

import numpy as np
import pytest
import torch
from tiny_models import Answer, close, tiny_recipe, write_models

from viscoin.analysis.concepts import collect_concepts
from viscoin.datasets import load_dataset
from viscoin.inference import execution
from viscoin.inference.batches import evaluation
from viscoin.models.files import load_model
from viscoin.testing import ensemble
from viscoin.testing.baselines import concept_functions
from viscoin.testing.image_features import ClassifierFeatures, network_digest


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("models")
        write_models(folder)
        yield folder


@pytest.fixture
def model(place):
    """A fresh ensemble."""
    return load_model(place / "viscoin.safetensors", "viscoin").model


@pytest.fixture(scope="module")
def birds(place):
    return load_dataset("birds", "test", tiny_recipe().dataset)


def test_float32_changes_nothing(model):
    before = model.classifier.features
    execution.prepare(model)
    assert model.classifier.features == before


def test_bfloat16_is_near_and_what_it_gives_is_float32(model, birds):
    plain = deepcopy(model)
    execution.prepare(model, "bf16-mixed")
    images = birds.batch(np.arange(8))[0]
    with evaluation(model, "cpu"), evaluation(plain, "cpu"):
        found, expected = model.encode(images), plain.encode(images)
        for mine, true in zip((found.logits, *found.maps), (expected.logits, *expected.maps), strict=True):
            assert mine.dtype == torch.float32
            assert not torch.equal(mine, true)
            assert (mine - true).abs().max() < 0.05 * true.abs().max()
        drawn, true = (part.decode(expected.concept_maps, expected.support) for part in (model, plain))
        assert drawn.dtype == torch.float32 and not torch.equal(drawn, true)
        assert (drawn - true).abs().mean() < 0.05 * true.abs().mean()
        with execution.exact():
            assert torch.equal(model.encode(images).maps[-1], expected.maps[-1])
            assert torch.equal(model.decode(expected.concept_maps, expected.support), true)


def test_scores_in_bfloat16_are_those_of_float32_within_noise(model, birds):
    exact = ensemble.test_ensemble(model, birds, batch_size=16).to_dict()
    execution.prepare(model, "bf16-mixed")
    mixed = ensemble.test_ensemble(model, birds, batch_size=16).to_dict()
    for key in ("l1", "mse"):
        assert mixed["reconstruction"][key] == pytest.approx(exact["reconstruction"][key], rel=0.02)
    assert mixed["reconstruction"] != exact["reconstruction"]


def test_concepts_are_kept_apart_by_precision(model, birds):
    """What float32 has found is not taken for what bfloat16 finds, nor the other way round."""
    plain = collect_concepts(model, birds, batch_size=16).activations
    execution.prepare(model, "bf16-mixed")
    mixed = collect_concepts(model, birds, batch_size=16).activations
    assert 0 < np.abs(mixed - plain).max() < 0.1 * plain.max()
    with execution.exact():
        assert np.array_equal(collect_concepts(model, birds, batch_size=16).activations, plain)


def test_features_are_kept_apart_by_precision(model):
    network = ClassifierFeatures(model.classifier)
    before = network_digest(network)
    execution.prepare(model, "bf16-mixed")
    assert network_digest(network) != before
    with execution.exact():
        assert network_digest(network) == before


def test_baselines_of_a_prepared_ensemble_are_its_own(model, birds):
    """Copies of parts of a prepared model must not compute with the original's weights."""
    execution.prepare(model, "bf16-mixed")
    functions = concept_functions(model, birds, np.arange(8), batch_size=8)
    found = functions(birds.batch(np.arange(4))[0])
    assert not np.allclose(found["concepts"], found["untrained"])


def test_networks_are_translated_where_no_gradient_is_needed(model, birds, monkeypatch):
    called = []

    def translate(function, **options):
        return lambda *arguments, **options: called.append(function.__name__) or function(*arguments, **options)

    monkeypatch.setattr(execution.torch, "compile", translate)
    execution.prepare(model, compiled=True)
    images = birds.batch(np.arange(2))[0]
    model.encode(images.requires_grad_())
    assert not called
    with torch.inference_mode():
        code = model.encode(images.detach())
        model.decode(code.concept_maps, code.support)
    assert called == ["features", "forward"]


compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")


@pytest.mark.slow
@compiler
def test_compiled_networks_draw_the_same_noise():
    """Processes that share samples pass over the noise of the others' batches as eager networks draw it."""

    def noisy(x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn(len(x), 3)

    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(execution._prepared(noisy, mixed=False, compiled=compiled)(torch.zeros(4, 3)))
    assert torch.equal(*found)


@pytest.mark.long
@compiler
def test_a_compiled_classifier_gives_the_same_numbers(place, tmp_path):
    common = [
        "test",
        "classifier",
        "--checkpoints",
        place / "classifier.safetensors",
        "--device",
        "cpu",
        "--batch-size",
    ]
    found = []
    for extra in ([], ["--compile"]):
        Answer(*common, 20, "--out", tmp_path / "results", *extra).went_well()
        found.append(json.loads((tmp_path / "results" / "results.json").read_text()))
    assert close(*found)


def test_float16_is_refused(place, tmp_path):
    for precision in ("16-mixed", "64"):
        Answer(
            "test", "gan", "--checkpoints", place / "gan.safetensors", "--device", "cpu", "--precision", precision
        ).refused("--precision", precision, "bf16-mixed")
