"""An ensemble that starts from the pursuit: what is held stays, Omega starts well, directions learn to draw."""

import os
from pathlib import Path

import pytest
import torch
from test_training import RECIPE, make_parts, metrics, train
from torch import Tensor, nn

from viscoin.config import Recipe, override_recipe
from viscoin.datasets import load_dataset
from viscoin.models.directions import ConceptDirections
from viscoin.models.ensemble import VisCoIN
from viscoin.models.files import load_model
from viscoin.models.whitening import PooledComponents, Whitening
from viscoin.training import starting
from viscoin.training.directions import random_edits, readback_terms
from viscoin.training.loop import Interrupted
from viscoin.training.viscoin import build_ensemble
from viscoin.training.viscoin_task import ViscoinTask

OURS = {
    "viscoin.initialisation": "pursuit",
    "viscoin.pursuit_dimensions": 2,
    "viscoin.n_concepts": 4,
    "viscoin.hold_concepts": 1.0,
    "viscoin.support": "components",
    "viscoin.support_width": 7,
    "viscoin.translator_activation": "linear",
    "viscoin.translator_inputs": "whitened",
    "viscoin.translator_rank": 11,
    "viscoin.translator_start": "closed_form",
    "viscoin.schedule": "cosine",
    "viscoin.directions": 0.5,
}


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(os, "fsync", lambda file: None)
        patch.setattr(starting, "DRAWN", 64)
        patch.setattr(starting, "STEPS", 50)
        yield


def recipe(**changes: object) -> Recipe:
    return override_recipe(RECIPE, OURS | {key.replace("__", "."): value for key, value in changes.items()})


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "viscoin"
    train("viscoin", folder, recipe())
    return folder


def concepts_at_the_start() -> VisCoIN:
    f, g = make_parts()
    wanted = recipe()
    torch.manual_seed(5)
    train_set = load_dataset("birds", "train", wanted.dataset)
    ensemble = build_ensemble(wanted.viscoin, f, g, train_set.class_names)
    starting.start_from_pursuit(ensemble, train_set, wanted.viscoin)
    return ensemble.eval()


def images_of(split: str = "validation") -> Tensor:
    return load_dataset("birds", split, recipe().dataset).batch(range(8))[0]


def test_concepts_and_g_that_are_held_for_good_stay_as_they_started(finished):
    trained, started = load_model(finished).model.eval(), concepts_at_the_start()
    images = images_of()
    with torch.no_grad():
        for ensemble in (trained, started):
            maps = ensemble.concept_maps(images)[1]
            assert maps.abs().max() > 0
        torch.testing.assert_close(trained.concept_maps(images)[1], started.concept_maps(images)[1])
        torch.testing.assert_close(trained(images), started(images))


def test_what_a_start_found_is_written_beside_the_run(finished):
    import json

    found = json.loads((finished / "pursuit.json").read_text())
    assert found["dimensions"] == 2 and found["over"] == "images" and len(found["values"]) == 2
    assert 0 < found["stability"]["seed"] <= 1 and found["stability"]["halves"] is None


def test_a_stopped_run_goes_on_as_if_it_had_not_been(finished, tmp_path, monkeypatch):
    original = ViscoinTask.step

    def stopping(self, images, labels, step):
        if step == 6:
            os.kill(os.getpid(), 15)
        return original(self, images, labels, step)

    monkeypatch.setattr(ViscoinTask, "step", stopping)
    with pytest.raises(Interrupted):
        train("viscoin", tmp_path / "run", recipe())
    monkeypatch.setattr(ViscoinTask, "step", original)
    train("viscoin", tmp_path / "run", recipe())
    assert metrics(tmp_path / "run") == metrics(finished)
    one, other = (load_model(folder).model.state_dict() for folder in (tmp_path / "run", finished))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_concepts_held_for_a_share_of_the_steps_are_free_afterwards(tmp_path):
    def concepts_after(steps: int, folder: str) -> Tensor:
        wanted = recipe(
            viscoin__hold_concepts=0.5, viscoin__directions=0, viscoin__steps=steps, viscoin__support="learned",
            viscoin__evaluate_every=100,
        )  # fmt: skip
        ensemble = load_model(train("viscoin", tmp_path / folder, wanted)).model.eval()
        with torch.no_grad():
            return ensemble.concept_maps(images_of())[1]

    with torch.no_grad():
        started = concepts_at_the_start().concept_maps(images_of())[1]
    assert not torch.allclose(concepts_after(8, "long"), started, atol=1e-5)
    wanted = {"viscoin.hold_concepts": 1.0, "viscoin.directions": 0, "viscoin.support": "learned"}
    held = load_model(train("viscoin", tmp_path / "held", override_recipe(recipe(), wanted))).model.eval()
    with torch.no_grad():
        torch.testing.assert_close(held.concept_maps(images_of())[1], started)


def test_an_edit_that_changes_nothing_draws_what_omega_draws(finished):
    ensemble = load_model(finished).model.eval()
    assert ensemble.generator.directions.vectors.abs().max() > 0
    with torch.no_grad():
        code = ensemble.encode(images_of())
        plain = ensemble.decode(code.concept_maps, code.support)
        torch.testing.assert_close(ensemble.edit(code, code.concept_maps), plain)
        doubled, omega = 2 * code.concept_maps, ensemble.decode(2 * code.concept_maps, code.support)
        assert not torch.allclose(ensemble.edit(code, doubled), omega)


def test_closed_form_start_of_a_linear_and_of_the_published_omega():
    """Where f and Psi see the style itself, Omega begins by drawing it: here that is what they are made to see."""
    styles = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    rows = styles @ torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    weight, bias = starting._ridge(1e3 * rows, starting._before_activation(styles))
    again = nn.functional.leaky_relu(1e3 * rows @ weight.T + bias, 0.2) * 2**0.5
    assert (again - styles).square().mean() < 0.35 * styles.square().mean()
    weight, bias = starting._ridge(rows, styles)
    missed = (rows @ weight.T + bias - styles).square().mean()
    assert missed < 0.3 * styles.square().mean()


# --- whitening -------------------------------------------------------------------------------------------------------


def test_whitened_numbers_are_uncorrelated_and_of_unit_variance():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5000, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 3
    whitening = Whitening(6, 4, floor=0.0)
    kept = whitening.fit(rows)
    out = whitening(rows)
    torch.testing.assert_close(out.T @ out / len(out), torch.eye(4), atol=1e-3, rtol=0)
    values = torch.linalg.eigvalsh(torch.cov(rows.T)).flip(0)
    assert kept == pytest.approx(float(values[:4].sum() / values.sum()), rel=1e-3)
    with pytest.raises(ValueError, match="7 components of 6 numbers"):
        Whitening(6, 7, floor=0.0)


def test_no_map_rules_the_components_by_its_size():
    generator = torch.Generator().manual_seed(0)
    maps = [1e3 * torch.randn(300, 2, 6, 6, generator=generator), torch.randn(300, 2, 3, 3, generator=generator)]
    components = PooledComponents([(2, 6, 6), (2, 3, 3)], 3, 36)
    pooled = [nn.functional.adaptive_avg_pool2d(part, 3).flatten(1) for part in maps]
    components.fit(pooled)
    share = components.whitening.components.square().sum(1)
    assert share[:18].sum() == pytest.approx(float(share[18:].sum()), rel=0.2)
    torch.testing.assert_close(components(maps), components.of_pooled(pooled))


# --- directions ------------------------------------------------------------------------------------------------------


def some_directions() -> ConceptDirections:
    torch.manual_seed(0)
    directions = ConceptDirections(4, range(2, 4), 3)
    maps = torch.zeros(200, 4, 3, 3)
    maps[:, :, 1, 1] = torch.rand(200, 4)
    maps[100:, 2:] = 0
    directions.measure(maps)
    return directions


def test_what_is_usual_for_concepts():
    directions = some_directions()
    assert directions.strong[0] == pytest.approx(0.9, abs=0.05) and directions.scale[0] == pytest.approx(0.97, abs=0.03)
    torch.testing.assert_close(directions.templates.amax((1, 2)), directions.strong)
    assert directions.templates[0, 1, 1] == directions.strong[0] and directions.templates[0, 0, 0] == 0
    torch.testing.assert_close(directions.correlation.diagonal(), torch.ones(4), atol=0.01, rtol=0)
    assert directions.correlation[0, 1] < 0.2


def test_a_direction_moves_the_styles_of_concepts_by_units_of_their_scale():
    directions = some_directions()
    nn.init.normal_(directions.vectors)
    ws, change = torch.zeros(1, 5, 3), torch.zeros(1, 4)
    change[0, 1] = 2 * directions.scale[1]
    moved = directions(ws, change)
    torch.testing.assert_close(moved[0, 2:4], 2 * directions.vectors[1])
    assert not moved[0, [0, 1, 4]].any()


def test_edits_ask_for_what_they_do_to_the_maps():
    directions = some_directions()
    maps = torch.rand(64, 4, 3, 3)
    phi = maps.amax((2, 3))
    torch.manual_seed(1)
    edits = random_edits(phi, directions, [2, 3, 0, 1])
    again = edits.apply(maps, directions.templates).amax((2, 3))
    asked = torch.minimum(again, 1.3 * directions.scale)
    torch.testing.assert_close(torch.where(edits.chosen, asked, 0), torch.where(edits.chosen, edits.target, 0))
    quiet = ~edits.chosen & (edits.factor == 1)
    torch.testing.assert_close(again[quiet], phi[quiet])
    assert edits.chosen.any(1).all() and not (edits.chosen & edits.free).any()


def test_readback_terms_of_an_image_that_shows_what_was_asked():
    directions = some_directions()
    phi = torch.rand(8, 4)
    edits = random_edits(phi, directions, [None] * 4)
    images = torch.rand(8, 3, 4, 4)
    right = readback_terms(torch.where(edits.chosen, edits.target, phi), phi, edits, directions, images, images)
    assert all(float(value) == pytest.approx(0) for value in right.values())
    wrong = readback_terms(phi, phi, edits, directions, images, images + 1)
    assert wrong["chosen"] > 0.05 and wrong["others"] == 0 and wrong["image"] == pytest.approx(0.5)
    assert readback_terms(phi + 1, phi, edits, directions, images, images)["others"] > 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"viscoin.initialisation": "channels"}, "hold_concepts = 1 holds the concepts of the pursuit"),
        ({"viscoin.hold_concepts": 0.5}, "directions = 0.5 needs concepts that no longer change"),
        ({"viscoin.generator_rate": 2, "viscoin.directions": 1}, "generator_rate = 2 lets G train until"),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    with pytest.raises(ValueError, match=message):
        override_recipe(recipe(), changes)
