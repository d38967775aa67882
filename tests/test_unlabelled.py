"""Images under the classes of a model: folders without classes, with some of them, and with others by a map."""

import json
import shutil
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from tiny_models import Answer, write_images

from viscoin.errors import Refused
from viscoin.inference.classes import read_class_map
from viscoin.inference.loading import load_pictures, load_subject

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def classes(models):
    return load_subject("classifier", models["classifier"]).class_names


@pytest.fixture
def flat(here):
    """Twelve pictures in one folder."""
    write_images(here, {"flat": 12})
    return here / "flat"


def f_of(subject) -> torch.Tensor:
    images, _ = subject.images.batch(np.arange(len(subject.images)))
    with torch.no_grad():
        return subject.model(images).argmax(1)


def test_images_without_classes_count_as_what_f_predicts(models, flat, caplog):
    subject = load_subject("classifier", models["classifier"], str(flat), unlabelled="whole")
    assert len(subject.images) == 12 and subject.images.class_names == subject.class_names
    assert np.array_equal(subject.images.labels, f_of(subject).numpy()) and not subject.images.labelled
    assert "12 images without classes" in caplog.text and "no accuracy" in caplog.text


def test_what_needs_classes_still_refuses(models, flat):
    with pytest.raises(Refused, match="no class folders"):
        load_subject("classifier", models["classifier"], str(flat))
    Answer("test", "classifier", "--checkpoints", models["classifier"], "--dataset", flat).refused("no class folders")
    Answer("attribute", "--classifier", models["classifier"], "--dataset", flat, "--right-and-wrong", 2).refused(
        "no class folders"
    )


def test_pictures_of_it_have_no_true_class(models, flat):
    _, pictures = load_pictures("classifier", models["classifier"], None, str(flat), None, None, 5)
    assert pictures.labels is None and len(pictures.names) == 5
    with ZipFile("flat.zip", "w") as archive:
        for path in sorted(flat.iterdir()):
            archive.write(path, path.name)
    _, zipped = load_pictures("classifier", models["classifier"], None, "flat.zip", None, [0, 11], 5)
    assert zipped.labels is None and len(zipped.images) == 2


def test_folders_that_are_some_of_the_classes_get_their_numbers(models, classes, here, caplog):
    caplog.set_level("INFO")
    write_images(here / "some", {classes[3]: 10, classes[1]: 10})
    subject = load_subject("classifier", models["classifier"], str(here / "some"))
    data = subject.images
    assert data.class_names == classes and set(data.labels.tolist()) == {1, 3}
    assert all(Path(file).parent.name == classes[label] for file, label in zip(data.files, data.labels, strict=True))
    assert f"images of 2 of the {len(classes)} classes" in caplog.text
    found = Answer(
        "test", "classifier", "--checkpoints", models["classifier"], "--dataset", here / "some", "--out", "tested"
    ).went_well()
    accuracy = json.loads(Path("tested/results.json").read_text())
    assert "accuracy" in json.dumps(accuracy) and "accuracy" in found.out


def test_a_map_gives_folders_their_classes(models, classes, here):
    write_images(here / "mapped", {"poodles": 10, "terriers": 10, classes[0]: 10})
    for name, text in {
        "map.json": json.dumps({"poodles": classes[2], "terriers": classes[2]}),
        "map.csv": f"folder,class\npoodles,{classes[2]}\n\nterriers, {classes[2]}\n",
    }.items():
        Path(name).write_text(text)
        data = load_subject("classifier", models["classifier"], str(here / "mapped"), class_map=Path(name)).images
        expected = [0 if Path(file).parent.name == classes[0] else 2 for file in data.files]
        assert data.labels.tolist() == expected and len(set(expected)) == 2


def test_folders_that_are_no_classes_may_be_ignored(models, here):
    write_images(here / "mixed", {"holiday": 3, "garden": 4})
    with pytest.raises(Refused, match="class_map"):
        load_subject("classifier", models["classifier"], str(here / "mixed"), unlabelled="whole")
    subject = load_subject(
        "classifier", models["classifier"], str(here / "mixed"), class_map=Path("none"), unlabelled="whole"
    )
    assert len(subject.images) == 7 and not subject.images.labelled
    with pytest.raises(Refused, match="no accuracy to measure"):
        load_subject("classifier", models["classifier"], str(here / "mixed"), class_map=Path("none"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("poodles,blu\n", "'blu' is no class of the model"),
        ("poodles,a,b\n", "row 1 is no folder and class: 'poodles, a, b'"),
        ('{"poodles": 3}', "does not hold an object of texts"),
        ('{"poodles": ', "no valid JSON"),
        ("", "is empty"),
        ("a,b\na,c\n", "names folder 'a' twice"),
    ],
)
def test_bad_maps_are_refused(models, here, text, reason):
    write_images(here / "mapped", {"poodles": 4, "terriers": 4})
    Path("map.csv").write_text(text)
    Answer(
        "attribute", "--classifier", models["classifier"], "--dataset", here / "mapped", "--class-map", "map.csv"
    ).refused("--class-map", reason)


def test_a_map_that_leaves_folders_out_names_them(models, classes, here):
    write_images(here / "mapped", {"poodles": 4, "terriers": 4})
    Path("map.csv").write_text(f"poodles,{classes[0]}\n")
    Answer(
        "attribute", "--classifier", models["classifier"], "--dataset", here / "mapped", "--class-map", "map.csv"
    ).refused("says nothing of 1 classes (terriers)")
    with pytest.raises(Refused, match="cannot be read"):
        read_class_map(Path("nowhere.csv"))
    with pytest.raises(Refused, match="classes of its own"):
        load_subject("classifier", models["classifier"], "birds", class_map=Path("map.csv"))


def test_a_folder_without_classes_and_images_says_so(models, here):
    (here / "empty").mkdir()
    Answer("attribute", "--classifier", models["classifier"], "--dataset", here / "empty").refused("empty")


@pytest.mark.parametrize(
    "command",
    [
        ("attribute", "--classifier", "classifier", "--method", "gradcam"),
        ("concept-heatmaps", "--checkpoints", "viscoin"),
        ("amplify", "--checkpoints", "viscoin", "--concept-indices", "1"),
        ("concepts", "--checkpoints", "viscoin", "--pages", "1"),
        ("test", "attribution", "--checkpoints", "classifier", "--methods", "gradcam", "--scores", "complexity"),
    ],
    ids=lambda command: command[0],
)
def test_commands_take_images_without_classes(models, flat, command):
    given = [models.get(part, part) for part in command]
    answer = Answer(*given, "--dataset", flat, "--out", "found").went_well()
    texts = [path.read_text() for path in Path("found").rglob("*.json")]
    assert texts and not any('"label": "' in text and command[0] == "attribute" for text in texts)
    assert "accuracy" not in answer.out
    if command[0] == "concepts":
        page = Path("found/index.html").read_text()
        assert "not known" in page and "nan" not in page.lower().replace("dominan", "")
        found = json.loads(Path("found/concepts.json").read_text())
        assert all(row["f_accuracy"] is None for row in found["classes"])
    shutil.rmtree("found")
