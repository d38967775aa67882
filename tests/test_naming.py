"""Names for concepts: planted directions get their names, shuffled ones none; and the adapter and its two scorers."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import Answer, set_options, tiny_recipe, write_images, write_models
from toy_ensemble import ToyEnsemble, toy_dataset

from viscoin.config import load_recipe
from viscoin.datasets.birds import attribute_names
from viscoin.models.concept2clip import Concept2Clip
from viscoin.models.files import load_model
from viscoin.models.scorers import AttributeScorer, fit_probe, load_clip
from viscoin.naming.adapter import Pairs, build_adapter, ensemble_digest, image_embeddings, train_concept2clip
from viscoin.naming.names import (
    CAPTIONS,
    ConceptName,
    Views,
    caption_lists,
    check_adapter,
    choose_names,
    concept_directions,
    find_captions,
    grade_names,
    name_concepts,
    names_csv,
    null_thresholds,
    read_captions,
)
from viscoin.runs.run import Run, read_metrics
from viscoin.training.runtime import Runtime

SPACE = {"model": "attributes", "names": [], "features": 1}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("viscoin.models.files.ASSETS", tmp_path / "assets")
    return tmp_path


# --- a planted space: twelve captions are axes, concept k is how much of caption k an image shows

K = 12
WORDS = [f"thing {k}" for k in range(K)]


def planted(n: int, seed: int) -> Views:
    random = np.random.default_rng(seed)
    phi = random.random((n, K)).astype(np.float32)
    embeddings = phi + 0.05 * random.standard_normal((n, K)).astype(np.float32)
    return Views(phi, embeddings)


def test_planted_concepts_get_their_names_and_these_prove_true():
    names = choose_names(np.eye(K), WORDS, np.eye(K), planted(400, 0), planted(300, 1))
    assert [name.name for name in names] == WORDS
    for name in names:
        assert name.reason == "" and name.validity > 0.95 and name.validity_correlation > 0.9
        # Captions are e_k - 1/K; their cosines with e_k are sqrt(1 - 1/K), and -1/K over that for the others.
        assert name.score == pytest.approx(np.sqrt(1 - 1 / K))
        assert name.margin == pytest.approx(np.sqrt(1 - 1 / K) + 1 / K / np.sqrt(1 - 1 / K))


def test_directions_that_images_do_not_bear_out_get_no_name():
    shuffled = np.roll(np.eye(K), 1, 0)
    names = choose_names(shuffled, WORDS, np.eye(K), planted(400, 0), planted(300, 1))
    assert {name.name for name in names} == {None}
    assert {name.reason for name in names} == {"the caption does not follow the activation"}
    assert [name.caption for name in names] == WORDS[-1:] + WORDS[:-1]
    assert all(abs(name.validity - 0.5) < 0.12 for name in names)


def test_directions_without_a_cause_get_no_name():
    directions = np.random.default_rng(0).standard_normal((K, K))
    names = choose_names(directions, WORDS, np.eye(K), planted(400, 0), planted(300, 1))
    assert {name.name for name in names} == {None}
    assert any(name.reason.startswith("no clear direction") for name in names)


def test_captions_that_fit_alike_are_not_told_apart():
    twins = np.vstack([np.eye(K), np.eye(K)[:1] + 0.01 * np.eye(K)[1:2]])
    names = choose_names(np.eye(K), [*WORDS, "twin"], twins, planted(400, 0), planted(300, 1))
    assert names[0].name is None and names[0].reason.startswith("two captions fit alike")
    assert {names[0].caption, names[0].second} == {WORDS[0], "twin"}
    assert [name.name for name in names[1:]] == WORDS[1:]


def test_dead_concepts_have_no_name():
    directions = np.eye(K)
    directions[3] = np.nan
    names = choose_names(directions, WORDS, np.eye(K), planted(400, 0), planted(300, 1))
    assert names[3] == ConceptName(3, None, "never active")
    assert sum(name.name is not None for name in names) == K - 1


def test_thresholds_are_what_directions_of_the_images_exceed_by_chance():
    embeddings = np.random.default_rng(1).standard_normal((500, 4)) * [10, 1, 1, 1]
    texts = np.eye(4)
    score, margin = null_thresholds(embeddings, texts)
    draws = np.random.default_rng(2).standard_normal((4000, 4)) * [10, 1, 1, 1]
    ordered = np.sort(draws / np.linalg.norm(draws, axis=1, keepdims=True), 1)
    assert (ordered[:, -1] > score).mean() == pytest.approx(0.2, abs=0.03)
    assert (ordered[:, -1] - ordered[:, -2] > margin).mean() == pytest.approx(0.5, abs=0.05)


# --- directions and probes


def linear_adapter(weight: list[list[float]], ensemble: str = "") -> Concept2Clip:
    adapter = Concept2Clip(len(weight[0]), len(weight), 0, 0.5, SPACE, ensemble).eval()
    adapter.load_state_dict(adapter.state_dict() | {"layers.0.weight": torch.tensor(weight)})
    return adapter


def test_direction_of_a_linear_adapter_is_its_column_times_the_mean_active_activation():
    directions = concept_directions(
        linear_adapter([[1.0, 2.0, 5.0], [0.0, 3.0, 5.0]]), np.float32([[2, 0, 0], [4, 1, 0]])
    )
    assert directions[:2] == pytest.approx(np.array([[3, 0], [2, 3]]), abs=1e-5)
    assert np.isnan(directions[2]).all()


def test_probe_finds_what_a_feature_says_and_weighs_attributes_alike():
    features = torch.randn(600, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 10, 1, 1, 1.0]) + 3
    attributes = torch.stack([features[:, 1] > 3, features[:, 2] > 4.5, torch.ones(600, dtype=torch.bool)], 1)
    read = fit_probe(features, attributes)(features)
    assert read.std(0)[:2].tolist() == pytest.approx([1, 1], abs=1e-3)
    assert read.mean(0).abs().max() < 1e-4 and read[:, 2].abs().max() < 1e-6  # nothing is known of what never varies
    assert torch.corrcoef(torch.stack([read[:, 0], features[:, 1]]))[0, 1] > 0.98


def test_adapter_starts_at_the_mean_and_does_not_blow_up_rare_concepts():
    phi = np.random.default_rng(0).random((50, 3)).astype(np.float32) * [1, 100, 0]
    embeddings = np.random.default_rng(1).random((50, 2)).astype(np.float32)
    adapter = build_adapter(load_recipe("birds").concept2clip, Pairs(phi, embeddings), SPACE | {"features": 1}, "")
    adapter.eval()
    assert torch.allclose(adapter(torch.from_numpy(phi).float()), torch.from_numpy(embeddings.mean(0)))
    assert adapter.scale[1] == pytest.approx(phi[:, 1].std(ddof=1)) and adapter.scale[2] == adapter.scale[1] / 100


# --- the whole way on the toy ensemble


class Quadrants(torch.nn.Module):
    """A scorer whose axes are the brightness of the four quadrants."""

    name = "quadrants"
    captions = ("top left", "top right", "bottom left", "bottom right")

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def image_embeddings(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.nn.functional.normalize(torch.nn.functional.avg_pool2d(images.mean(1), 4).flatten(1), dim=1)

    def text_embeddings(self, captions) -> torch.Tensor:
        return torch.eye(4)[[self.captions.index(caption) for caption in captions]]


def quadrant_images(n: int, split: str, seed: int):
    return toy_dataset(np.random.default_rng(seed).random((n, 4)), [i % 2 for i in range(n)], split)


def test_concepts_of_the_toy_ensemble_are_named_after_their_quadrants(tmp_path):
    ensemble, scorer = ToyEnsemble(), Quadrants()
    adapter = linear_adapter(torch.eye(4).tolist(), ensemble_digest(ensemble))
    (tmp_path / "words.txt").write_text("# places\n" + "\n".join(reversed(Quadrants.captions)) + "\n")
    naming, held_out = quadrant_images(200, "validation", 0), quadrant_images(150, "test", 1)
    names = name_concepts(ensemble, adapter, naming, held_out, str(tmp_path / "words.txt"), scorer=scorer)
    assert [name.name for name in names] == list(Quadrants.captions)
    assert min(name.validity for name in names) > 0.9
    table = names_csv(names).splitlines()
    assert table[0].startswith("concept,name,reason,caption") and table[1].startswith("0,top left,,top left,")


def test_embeddings_are_computed_once_and_found_by_content():
    scorer, images, place = Quadrants(), quadrant_images(30, "test", 5), torch.device("cpu")
    first = image_embeddings(scorer, images, np.arange(30), place)
    calls = scorer.calls
    assert np.array_equal(image_embeddings(scorer, quadrant_images(30, "other", 5), np.arange(30), place), first)
    assert scorer.calls == calls
    other = image_embeddings(scorer, quadrant_images(30, "test", 6), np.arange(30), place)
    assert scorer.calls > calls and not np.array_equal(other, first)


def test_an_adapter_of_another_ensemble_is_refused():
    ensemble = ToyEnsemble()
    with pytest.raises(ValueError, match=r"reads 3 concepts, the ensemble has 4.*train concept2clip"):
        check_adapter(linear_adapter([[1.0] * 3]), ensemble)
    with pytest.raises(ValueError, match=r"another ensemble.*train concept2clip"):
        check_adapter(linear_adapter([[1.0] * 4], "else"), ensemble)
    check_adapter(linear_adapter([[1.0] * 4], ensemble_digest(ensemble)), ensemble)


# --- grades


def name_of(k: int, name: str | None) -> ConceptName:
    return ConceptName(k, name, "" if name else "weak")


def test_grades_by_hand():
    truth = np.array([[1, 1], [1, 0], [1, 1], [1, 0], [0, 1], [0, 0], [0, 1], [0, 0]], bool)
    phi = np.column_stack([truth[:, 0], truth[:, 0], truth[:, 1], np.zeros(8), truth[:, 0]]).astype(float)
    names = [name_of(0, "a"), name_of(1, "b"), name_of(2, "b"), name_of(3, None), name_of(4, None)]
    grades = grade_names(names, phi, truth, ["a", "b"])
    assert (grades.right, grades.wrong, grades.best) == (2, 1, 2)
    assert (grades.abstained, grades.abstained_rightly) == (2, 1)  # concept 3 tells nothing, concept 4 tells a
    assert grades.share_right is not None and grades.share_right.value == pytest.approx(2 / 3)
    assert grades.chance == 0.5 and grades.attributes_named == 2
    json.dumps(grades.to_dict())


def test_grades_without_names_and_with_strange_ones():
    truth, phi = np.array([[True], [False]]), np.array([[1.0], [0.0]])
    grades = grade_names([name_of(0, None)], phi, truth, ["a"])
    assert (grades.share_right, grades.abstained, grades.abstained_rightly) == (None, 1, 0)
    with pytest.raises(ValueError, match="'c' is no attribute"):
        grade_names([name_of(0, "c")], phi, truth, ["a"])


# --- captions


@pytest.mark.parametrize("name", caption_lists())
def test_shipped_lists_can_be_read(name):
    captions = read_captions(CAPTIONS / f"{name}.txt")
    assert len(captions) >= (34 if name == "birds-attributes" else 100)
    assert all(caption == caption.strip() and caption.isascii() for caption in captions)


def test_list_of_the_birds_is_that_of_the_dataset():
    assert caption_lists() == ["bird-species", "birds-attributes", "cub-attributes"]
    assert read_captions(CAPTIONS / "birds-attributes.txt") == attribute_names()


def test_comments_and_spaces_are_no_captions(tmp_path):
    (tmp_path / "c.txt").write_text("# list\n\n  a  red bird  # the first\nblue\n", encoding="utf-8")
    assert read_captions(tmp_path / "c.txt") == ["a red bird", "blue"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "holds no captions"),
        (b"# only this\n\n", "holds no captions"),
        (b"one\n", "holds 1 caption,"),
        (b"one\ntwo\n one # again\n", "line 3 repeats line 1, 'one'"),
        (b"\xff\xfe\n", "cannot be read as UTF-8"),
    ],
)
def test_unusable_caption_files(tmp_path, content, text):
    (tmp_path / "c.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"names .*: ") as caught:
        read_captions(tmp_path / "c.txt")
    assert text in str(caught.value)


def test_auto_means_attributes_and_absent_files_are_named():
    adapter, toy = linear_adapter([[1.0]]), quadrant_images(4, "test", 0)
    with pytest.raises(ValueError, match=r"'toy' has no attributes; .*bird-species"):
        find_captions("auto", adapter, toy)
    with pytest.raises(ValueError, match=r"names nowhere.txt: there is no such file"):
        find_captions("nowhere.txt", adapter, toy)
    assert len(find_captions("cub-attributes", adapter, toy)) > 100
    adapter.space["names"] = ["a", "b"]
    assert find_captions("auto", adapter, toy) == ["a", "b"]


def test_the_scorer_without_text_knows_attributes_only():
    scorer = AttributeScorer(torch.nn.Identity(), ["beak: thin", "eye: red"], torch.nn.Linear(1, 2))  # type: ignore[arg-type]
    assert scorer.text_embeddings(["eye: red"]).tolist() == [[0, 1]]
    with pytest.raises(ValueError, match=r"'a blue bird'.*without a text model.*`names` auto.*concept2clip.model"):
        scorer.text_embeddings(["eye: red", "a blue bird"])


# --- the command line


@pytest.fixture(scope="module")
def models(cache, tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def train(models, *options: object) -> Answer:
    return Answer("train", "concept2clip", "--viscoin-pickle-path", models["viscoin"], *set_options(), *options)


def test_training_writes_a_run_and_says_what_space_it_is(models, here):
    options = ("--epochs", 10, "--batch-size", 16, "--device", "cpu")
    answer = train(models, *options, "--out", here / "run").went_well()
    assert "34 attributes of birds" in answer.err and "no CLIP" in answer.err
    loaded = load_model(here / "run", "concept2clip")
    assert loaded.metadata["origin"] == "embedding space: attribute probe (no CLIP)"
    assert loaded.model.n_concepts == 6 and loaded.model.space["names"] == attribute_names()
    assert loaded.metadata["scores"].keys() >= {"validation.cosine", "validation.probe_auroc"}
    last = read_metrics(here / "run" / "metrics.jsonl")[-1]
    assert last["step"] == 40 and "validation.cosine" in last


def test_an_interrupted_training_goes_on_to_the_same_weights(models, here, monkeypatch):
    options = ("--epochs", 10, "--batch-size", 16, "--device", "cpu")
    train(models, *options, "--out", here / "whole").went_well()
    with monkeypatch.context() as patch:
        patch.setattr("viscoin.naming.adapter.check_finite", fails_at(25))
        train(models, *options, "--out", here / "parts").refused("stopped by the test")
    answer = train(models, *options, "--out", here / "parts", "--resume").went_well()
    assert "going on from step 20" in answer.err
    whole, parts = (Run(here / name).load_checkpoint("last") for name in ("whole", "parts"))
    assert whole is not None and parts is not None and whole["step"] == parts["step"] == 40
    assert all(torch.equal(parts["task"]["model"][key], value) for key, value in whole["task"]["model"].items())
    assert (here / "parts" / "model.safetensors").is_file()


def fails_at(last: int):
    def check(terms, step: int) -> None:
        if step == last:
            raise ValueError("stopped by the test")

    return check


def test_concepts_are_named_by_the_newest_adapter_and_graded(models, here):
    train(models, "--epochs", 2, "--device", "cpu").went_well()
    command = ("concepts", "--viscoin-pickle-path", models["viscoin"], "--device", "cpu", "--pages", 0)
    answer = Answer(*command, "--names", "auto", "--out", here / "c").went_well()
    assert "of 6 concepts have one" in answer.out and "share_right" in answer.out
    rows = (here / "c" / "names.csv").read_text().splitlines()
    assert len(rows) == 7
    grades = json.loads((here / "c" / "names.json").read_text())
    assert grades["right"] + grades["wrong"] + grades["abstained"] == 6
    (here / "empty.txt").write_text("# nothing\n")
    Answer(*command, "--names", here / "empty.txt", "--out", here / "d").refused("empty.txt", "holds no captions")
    assert not (here / "d").exists()


def test_without_an_adapter_concepts_say_how_to_get_one(models):
    answer = Answer("concepts", "--viscoin-pickle-path", models["viscoin"], "--names", "auto", "--device", "cpu")
    answer.refused("no concept2clip model", "train concept2clip --dataset birds")


def test_mistakes_of_training_end_in_one_line(models, here, monkeypatch):
    train(models, "--pretrained", "openai").refused("concept2clip.pretrained", "--clip-model")
    train(models, "--clip-model", "ViT-B-32").refused("concept2clip.model = 'ViT-B-32'", "--pretrained")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    train(models, "--clip-model", "ViT-B-32", "--pretrained", "openai").refused("pip install viscoin[clip]")
    assert not list((here / "runs").glob("*"))
    with pytest.raises(ValueError, match=r"concept2clip.epochs = 0"):
        tiny_recipe(concept2clip__epochs=0)


def test_a_dataset_without_attributes_needs_a_clip_model(models, here):
    names = load_model(models["viscoin"]).class_names
    folder = write_images(here / "folder", {name: 10 for name in names}, 32)
    ensemble = load_model(models["viscoin"]).model
    ensemble.class_names = sorted(names)
    recipe = tiny_recipe(dataset__name=str(folder))
    with pytest.raises(
        ValueError,
        match=r"has no attributes for the text-free scorer; .*`concept2clip.model` ViT-B-32 and `concept2clip.pre",
    ):
        train_concept2clip(recipe, Run.create("concept2clip", recipe, here / "run"), ensemble, Runtime("cpu"))


# --- open_clip: a tiny model with random weights, from files, without any download

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def write_clip(folder: Path) -> tuple[Path, Path]:
    """Configuration and random weights of the tiny model."""
    open_clip = pytest.importorskip("open_clip")
    config, weights = folder / "tiny-clip-of-tests.json", folder / "tiny.pt"
    config.write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(config)
    torch.manual_seed(0)
    torch.save(open_clip.create_model(config.stem).state_dict(), weights)
    return config, weights


def test_any_open_clip_model_can_be_trained_for_and_names_concepts(models, here):
    config, weights = write_clip(here)
    scorer = load_clip(str(config), str(weights))
    images = torch.rand(2, 3, 48, 48) * 2 - 1
    embeddings, texts = scorer.image_embeddings(images), scorer.text_embeddings(["a bird", "a fish", "a bird"])
    assert embeddings.shape == (2, 16) and texts.shape == (3, 16)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(2)) and torch.allclose(texts[0], texts[2])
    assert not torch.allclose(texts[0], texts[1])
    options = ("--clip-model", config, "--pretrained", weights, "--epochs", 2, "--device", "cpu")
    train(models, *options, "--out", here / "run").went_well()
    adapter = load_model(here / "run", "concept2clip")
    assert adapter.metadata["origin"].startswith("embedding space: open_clip tiny-clip-of-tests")
    rebuilt = adapter.model.scorer(None)
    assert torch.equal(rebuilt.image_embeddings(images), embeddings)


def test_mistakes_about_clip_models_end_in_one_line(here):
    config, _ = write_clip(here)
    with pytest.raises(ValueError, match="clip_model ViT-B-99: unknown to open_clip; did you mean ViT-B"):
        load_clip("ViT-B-99", "openai")
    with pytest.raises(ValueError, match=r"pretrained nothing: neither a file nor .* of ViT-B-32; choose openai"):
        load_clip("ViT-B-32", "nothing")
    (here / "broken.pt").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"the weights of .* could not be read .*; fetch them .*`clip_model` attri"):
        load_clip(str(config), str(here / "broken.pt"))
