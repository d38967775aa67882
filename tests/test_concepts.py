"""The report of concepts: numbers known by hand, files that say the same, and pages whose links all lead somewhere."""

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from tiny_models import Answer, tiny_recipe, write_models
from toy_ensemble import SIZE, ToyEnsemble, toy_dataset

from viscoin.analysis import concepts, gallery
from viscoin.analysis.concept_files import concept_rows, concepts_json, correlated, csv_files, summary
from viscoin.analysis.quality import Quality, measure_quality
from viscoin.cli.output import echo
from viscoin.datasets import ImageDataset
from viscoin.datasets.originals import original
from viscoin.datasets.reading import read_square
from viscoin.inference.batches import TooFewImages
from viscoin.reports.concept_pages import FIGURES, _Report, write_concept_report

# Four images of class 0 ("left"), then two of class 1; concept 3 never fires, and concept 1 fires with concept 0.
AMOUNTS = np.array([[1, 0.5, 0, 0], [0.8, 0.4, 0, 0], [0.6, 0.3, 0, 0], [0.4, 0.2, 0, 0], [0, 0, 1, 0], [0, 0, 0.6, 0]])
LABELS = [0, 0, 0, 0, 1, 1]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(concepts, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "concepts"


def toy(class_names: tuple[str, str] = ("left", "right")) -> ImageDataset:
    dataset = toy_dataset(AMOUNTS, LABELS)
    dataset.class_names = list(class_names)
    return dataset


def toy_table() -> concepts.ConceptTable:
    return concepts.collect_concepts(ToyEnsemble(), toy(), batch_size=4)


# --- numbers --------------------------------------------------------------------------------------------------------


def test_importance_and_order_by_hand():
    table = toy_table()
    # contributions 4 phi_0 and 1 phi_1 with phi_1 = phi_0 / 2: relevance 1 and 1/8 for class 0; 1 for class 1
    assert table.importance == pytest.approx([1, 0.125, 1, 0], abs=0.01)
    assert table.order.tolist() == [0, 2, 1]  # 0 is more active than 2; 3 is dead
    assert table.entropy[:3] == pytest.approx([0, 0, 0], abs=1e-6)
    assert table.weight.tolist() == [[4, 1, 0, 0], [0, 0, 4, 0]]


def test_co_activation_is_the_phi_coefficient_of_concepts_that_are_on_or_off():
    activations = np.array([[1, 1, 0, 0, 1, 2], [1, 1, 0, 0, 1, 2], [1, 0, 1, 0, 0, 2], [0, 0, 1, 0, 1, 2.0]])
    classes = np.eye(2)[[0, 0, 1, 1]]
    table = concepts.ConceptTable(
        activations, classes, classes, np.array([0, 0, 1, 1]), activations, np.arange(4), np.zeros((2, 6))
    )
    r = table.co_activation
    # n11 = 2, n10 = 1, n01 = 0, n00 = 1 -> (2 * 1 - 1 * 0) / sqrt(3 * 1 * 2 * 2)
    assert r[0, 1] == r[1, 0] == pytest.approx(2 / np.sqrt(12))
    assert r[1, 2] == pytest.approx(-1)
    assert np.diag(r)[:3] == pytest.approx([1, 1, 1])
    assert np.isnan(r[3]).all() and np.isnan(r[5]).all()  # dead, and alike everywhere
    assert correlated(table, 1) == [(0, pytest.approx(2 / np.sqrt(12))), (4, pytest.approx(1 / np.sqrt(3)))]


def test_clusters_stand_side_by_side():
    r = np.array([[1, -0.5, 0.9, 0], [-0.5, 1, -0.5, 0.8], [0.9, -0.5, 1, 0], [0, 0.8, 0, 1]])
    places = np.argsort(concepts.cluster_order(r))
    assert abs(places[0] - places[2]) == 1 and abs(places[1] - places[3]) == 1
    assert concepts.cluster_order(np.full((5, 5), np.nan)).shape == (5,)
    assert [concepts.cluster_order(np.eye(n)).tolist() for n in (0, 1, 2)] == [[], [0], [0, 1]]


def test_concept_maps_are_those_of_the_whole_encoding(tmp_path):
    import torch

    from viscoin.models.files import load_model

    model = load_model(write_models(tmp_path)["viscoin"], "viscoin").model
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    code, (logits, maps) = model.encode(images), model.concept_maps(images)
    assert torch.equal(maps, code.concept_maps) and torch.equal(logits, code.logits)


def test_too_few_images():
    with pytest.raises(TooFewImages, match="co-activation of concepts needs at least 2 images, got 1; raise the limit"):
        concepts.collect_concepts(ToyEnsemble(), toy(), limit=1)


# --- pictures -------------------------------------------------------------------------------------------------------


def test_views_show_the_strongest_images_where_they_fire():
    views = gallery.view_concepts(ToyEnsemble(), toy(), toy_table(), [2, 0], examples=3, batch_size=2)
    assert list(views) == [2, 0]
    assert [example.row for example in views[0].examples] == [0, 1, 2]
    assert [example.row for example in views[2].examples] == [4, 5]  # no third image activates it
    assert views[0].examples[1].activation == pytest.approx(0.8, abs=0.01)
    half = SIZE // 2
    for concept, (left, top) in ((0, (0, 0)), (2, (0, half))):
        x, y, side = views[concept].examples[0].crop
        assert side == 3 and left <= x <= left + half - side and top <= y <= top + half - side
    assert views[2].predicted == 1
    assert views[2].strip[:, -1, 0, 0].tolist() == [
        0,
        128,
        255,
        255,
        255,
    ]  # concept 2, lower left
    with pytest.raises(ValueError, match="concepts 3 are active in no image"):
        gallery.view_concepts(ToyEnsemble(), toy(), toy_table(), [0, 3])


# --- files ----------------------------------------------------------------------------------------------------------


def test_rows_carry_names_where_they_exist():
    rows = concept_rows(toy_table(), ["left", "right"], {2: "beak"})
    assert [row["name"] for row in rows] == ["concept 0", "concept 1", "beak", "concept 3"]
    assert [row["class"] for row in rows] == ["left", "left", "right", None]
    assert rows[3]["entropy"] is None and rows[3]["votes_for"] is None
    assert concepts.concept_name(2, {2: "beak"}) == "beak (2)"


def test_csv_files_read_back_to_the_same_numbers():
    table, dataset = toy_table(), toy(('a, "b"\nc', "right"))
    found = {name: list(csv.reader(text.splitlines(keepends=True))) for name, text in csv_files(table, dataset)}
    activations = found["activations.csv"]
    assert activations[0] == ["image", "class", "f", "g", "0", "1", "2", "3"]
    assert activations[5][:4] == ["4", "right", "right", "right"]
    assert np.array([row[4:] for row in activations[1:]], float) == pytest.approx(table.activations, rel=1e-5)
    assert found["votes.csv"][1] == ['a, "b"\nc', "4", "1", "0", "0"]
    relevance = np.array([row[1:] for row in found["class-concept-importance.csv"][1:]], float)
    assert relevance == pytest.approx(table.class_concept_importance, rel=1e-5)
    assert found["co-activation.csv"][4][1:] == [""] * 4  # the dead concept
    assert float(found["co-activation.csv"][1][2]) == pytest.approx(1, abs=0.01)
    by_name = [dict(zip(found["concepts.csv"][0], row)) for row in found["concepts.csv"][1:]]
    assert [float(row["importance"]) for row in by_name] == pytest.approx(table.importance.tolist())
    assert by_name[3]["entropy"] == ""


def test_json_lists_votes_images_and_classes():
    found = concepts_json(toy_table(), toy())
    assert found["summary"] == summary(toy_table()) and found["summary"]["never_active"] == 1
    first = found["concepts"][0]
    assert first["votes"] == {"left": 4, "right": 0}
    assert [image["index"] for image in first["images"]] == [0, 1, 2, 3]
    assert found["classes"][1] == {"class": "right", "images": 2, "predicted": 2, "f_accuracy": 1, "g_accuracy": 1}


# --- pages ----------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """References, anchors and text of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.unnamed: list[str] = []
        self.words = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.references += [values[key] for key in ("href", "src") if key in values]
        self.ids += [values["id"]] if "id" in values else []
        if (tag == "img" and not values.get("alt")) or (tag == "svg" and not values.get("aria-label")):
            self.unnamed.append(self.get_starttag_text())

    def handle_data(self, data):
        self.words += data


def write_toy_report(out: Path, class_names: tuple[str, str] = ("left", "right"), paged: int = 2) -> list[Path]:
    table, dataset = toy_table(), toy(class_names)
    out.mkdir()
    for name in FIGURES:
        Image.new("RGB", (4, 4)).save(out / f"{name}.png")
    views = gallery.view_concepts(ToyEnsemble(), dataset, table, table.order[:paged]) if paged else {}
    info, quality = {"model": "m", "split": "test", "date": "d"}, measure_quality(ToyEnsemble(), dataset, table)
    index = write_concept_report(out, table, dataset, views, info, quality, {0: "<i>"})
    return [index, *sorted((out / "pages").glob("*.html"))]


@pytest.mark.parametrize("paged", [0, 2])
def test_all_links_lead_somewhere_and_nothing_comes_from_outside(tmp_path, paged):
    pages = write_toy_report(tmp_path / "report", paged=paged)
    assert [page.name for page in pages[1:]] == [
        "class-0.html", "class-1.html", *["concept-0.html", "concept-2.html"][:paged],
    ]  # fmt: skip
    for path in pages:
        page = Page(path)
        assert not page.unnamed
        for reference in page.references:
            assert not re.match(r"[a-z]+:|//|/", reference), reference
            file, _, anchor = reference.partition("#")
            target = path.parent / unquote(file) if file else path
            assert target.is_file(), f"{path.name} -> {reference}"
            if anchor:
                assert anchor in Page(target).ids
    if paged:
        assert "concept-2.html" in Page(pages[3]).references  # next
        assert "concept-0.html" in Page(pages[4]).references  # previous
        with Image.open(tmp_path / "report" / "pages" / "amplified" / "0.jpg") as strip:
            assert strip.size == (7 * SIZE, SIZE)  # the image, five factors, the change
    words = " ".join(Page(pages[0]).words.split())
    assert "1 more is never active concept 3" in words
    assert "1 more fire with one of these (correlation above 0.9)" in words  # concept 1 with concept 0
    assert not re.search(r"https?:|@import|url\(", "".join(path.read_text() for path in tmp_path.rglob("*.css")))


def test_names_are_escaped(tmp_path):
    name = '<b>&"'
    for path in write_toy_report(tmp_path / "report", class_names=(name, "right")):
        page = Page(path)
        assert "b" not in page.tags and "i" not in page.tags
        if path.name in ("index.html", "class-0.html"):
            assert name in page.words


def good_quality(**changes: Any) -> Quality:
    good = Quality(500, 0.95, 0.93, 0.97, [], 200, 0.2, 0.95)
    return replace(good, **changes)


def test_a_good_ensemble_gets_no_warning():
    assert good_quality().warnings == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"f_accuracy": 0.66}, "f is right on only 0.66"),
        ({"never_right": [("cat", 4)]}, "f recognises no image of cat (0 of 4)"),
        ({"agreement": 0.81}, "g says the same as f on only 0.81"),
        ({"kept": 0.3}, "f says the same of only 0.30 of the reconstructions"),
        ({"n": 24}, "Only 24 images"),
    ],
)
def test_a_poor_ensemble_is_said_to_be_poor(changes: dict[str, Any], said: str):
    (warning,) = good_quality(**changes).warnings
    assert said in warning


def test_quality_by_hand():
    """The toy's f is right on all images; its G draws them again but for rounding."""
    quality = measure_quality(ToyEnsemble(), toy(), toy_table(), batch_size=2)
    assert (quality.n, quality.f_accuracy, quality.g_accuracy, quality.agreement) == (6, 1, 1, 1)
    assert quality.reconstruction_l1 < 0.02 and quality.kept == 1
    dataset = toy()
    dataset.labels[4:] = 0  # f, which says 1, is now wrong on these
    wrong = measure_quality(ToyEnsemble(), dataset, concepts.collect_concepts(ToyEnsemble(), dataset))
    assert wrong.f_accuracy == pytest.approx(4 / 6)
    dataset.labels[:] = [0, 0, 0, 0, 0, 1]
    assert measure_quality(ToyEnsemble(), dataset, toy_table()).never_right == []


def test_the_head_of_the_report_says_what_the_ensemble_is_worth(tmp_path):
    page = Page(write_toy_report(tmp_path / "report")[0])
    words = " ".join(page.words.split())
    assert "accuracy of f100.0 % n 6" in words and "g says the same as f100.0 % n 6" in words
    assert words.index("Only 6 images were looked at") < words.index("Concepts that fire together")


def test_copies_of_an_image_are_shown_once():
    dataset = toy_dataset(np.concatenate([AMOUNTS[:1], AMOUNTS]), [0, *LABELS])
    table = concepts.collect_concepts(ToyEnsemble(), dataset, batch_size=4)
    views = gallery.view_concepts(ToyEnsemble(), dataset, table, [0], examples=3)
    assert [example.row for example in views[0].examples] == [0, 2, 3]


def test_pictures_are_cut_from_the_files_and_carry_their_names(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "cats" / "tom.png"
    path.parent.mkdir()
    Image.fromarray(rng.integers(0, 255, (120, 200, 3), dtype=np.uint8)).save(path)
    pixels = np.stack([read_square(path, 8), np.zeros((8, 8, 3), np.uint8)])
    dataset = ImageDataset("cats", "test", pixels, [0, 0], ["cat"], [str(path), str(path)])
    assert np.array_equal(original(dataset, 0, 64), read_square(path, 64))
    assert np.array_equal(original(dataset, 0, 1000), read_square(path, 120))  # all that the file has
    assert np.array_equal(original(dataset, 1, 64), pixels[1])  # another picture than that of the file
    path.unlink()
    assert np.array_equal(original(dataset, 0, 64), pixels[0])
    table, files = toy_table(), toy()
    files.files = [f"photos/cats/{i}.png" for i in range(6)]
    assert concepts_json(table, files)["concepts"][0]["images"][1]["file"] == "photos/cats/1.png"
    activations = dict(csv_files(table, files))["activations.csv"].splitlines()
    assert activations[0].startswith("image,file,class") and activations[2].startswith("1,photos/cats/1.png,left")
    views = gallery.view_concepts(ToyEnsemble(), files, table, [0])
    report = _Report(table, files, views, None)
    assert [example["file"] for example in report.examples(0)][:2] == ["cats/0.png", "cats/1.png"]


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))["viscoin"]


@pytest.mark.slow
def test_the_command_writes_pages_and_uses_its_cache(tmp_path, model, cache, monkeypatch):
    options = ["concepts", "--viscoin-pickle-path", model, "--split", "validation", "--pages", 2]
    Answer(*options, "--out", tmp_path / "one").went_well()
    found = json.loads((tmp_path / "one" / "concepts.json").read_text())
    assert found["split"] == "validation" and found["summary"]["images"] == 24
    assert len(list((tmp_path / "one" / "pages").glob("concept-*.html"))) == 2
    assert len(list((tmp_path / "one" / "pages").glob("class-*.html"))) == 4
    assert len(list(cache.glob("*.npz"))) == 1
    calls, compute = [], concepts._compute
    monkeypatch.setattr(concepts, "_compute", lambda *args: calls.append(1) or compute(*args))
    Answer(*options, "--out", tmp_path / "two").went_well()
    assert not calls
    Answer(*options, "--force", "--pages", 0, "--out", tmp_path / "three").went_well()
    assert len(calls) == 1
    assert json.loads((tmp_path / "three" / "concepts.json").read_text()) == found


def test_bad_options(tmp_path, model):
    options = ["concepts", "--viscoin-pickle-path", model, "--out", tmp_path / "out"]
    Answer(*options, "--limit", 1).refused("raise the limit", "at least 2 images")
    Answer(*options, "--split", "all").refused("'all'", "validation")
    assert not (tmp_path / "out").exists()


def test_a_dataset_of_other_classes_is_refused_with_both_lists(tmp_path, model):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(tmp_path / "pets" / name / f"{i}.png")
    answer = Answer("concepts", "--viscoin-pickle-path", model, "--dataset", tmp_path / "pets")
    answer.refused("2 classes (cat, dog)", "4 classes (", *tiny_class_names())


def tiny_class_names() -> list[str]:
    from viscoin.datasets import load_dataset

    return load_dataset("birds", "test", tiny_recipe().dataset).class_names


def test_json_stands_alone_on_standard_output(tmp_path, model):
    folder, f = model.parent, model.parent / "classifier.safetensors"
    for command in (
        ["concepts", "--viscoin-pickle-path", model, "--pages", 0],
        ["test", "classifier", "--checkpoints", f],
        ["test", "gan", "--checkpoints", folder / "gan.safetensors", *["--metrics", "fid"], "--classifier", f],
        ["test", "viscoin", "--checkpoints", model, "--measures", "accuracy"],
    ):
        out = tmp_path / "-".join(command[:2] if command[0] == "test" else command[:1])
        answer = Answer(*command, "--json", "--out", out)
        answer.went_well()
        assert json.loads(answer.out) == json.loads((out / "results.json").read_text())
        assert str(out / "results.json") in answer.err


def test_text_of_others_does_not_command_the_terminal(capsys):
    echo("\x1b[31mred \udce9")
    echo(Path("\x1b[2J"), err=True)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("\\x1b[31mred \\xe9\n", "\\x1b[2J\n")
