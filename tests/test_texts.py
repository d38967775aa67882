"""Text and tables as editors and Excel write them: byte order marks, UTF-16, semicolons, tabs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from viscoin.config import DatasetConfig, load_recipe, read_yaml
from viscoin.datasets import load_dataset
from viscoin.datasets.folder import folder_tree
from viscoin.datasets.prepare import prepare_dataset
from viscoin.datasets.splitting import own_split, read_split, split_dataset
from viscoin.datasets.zip import open_zip
from viscoin.errors import Refused
from viscoin.legacy.importing import _lines
from viscoin.naming.names import read_captions, read_names
from viscoin.texts import NotText, decode, read_table

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def save(path: str, text: str, encoding: str = "utf-8-sig", end: str = "\r\n") -> Path:
    Path(path).write_bytes(text.replace("\n", end).encode(encoding))
    return Path(path)


@pytest.mark.parametrize("encoding", [*ENCODINGS, "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_ends_of_lines(encoding, end):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    assert decode((mark + f"blå{end}rød").encode(encoding)) == "blå\nrød"


def test_what_is_no_text_says_where():
    with pytest.raises(NotText, match=r"^line 2 is not UTF-8; save it as UTF-8$"):
        decode("ab\nrød".encode("cp1252"))
    with pytest.raises(NotText, match="UTF-16 without a byte order mark"):
        decode("ab".encode("utf-16-le"))
    with pytest.raises(NotText, match="UTF-16; save"):
        decode("ab".encode("utf-16") + b"\0")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_names_of_concepts(here, encoding, separator):
    text = f"concept{separator}name{separator}score\n1{separator}red beak{separator}0,5\n\n2{separator}\n"
    assert read_names(save("names.csv", text.replace("0,5", "1"), encoding)) == {1: "red beak"}
    quoted = f'Name {separator}Concept\n"a{separator}b"{separator}7\n'
    assert read_names(save("names.csv", quoted, encoding)) == {7: f"a{separator}b"}
    assert read_names(save("names.csv", f"sep={separator}\n{text}", encoding)) == {1: "red beak"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected the columns concept, name; its first line holds nothing"),
        ("number,name\n1,a\n", "its first line holds number, name; give names.csv"),
        ("concept,name\nx,a\n", "line 2: 'x' is no number of a concept"),
        ("concept,name\n1,a\n1,b\n", "line 3: concept 1 has a name already"),
        ("concept,name\n1,a\n8,b\n", "line 3: there is no concept 8, the ensemble has 8"),
        ('concept,name\n1,"a\n2,b\n', "is no row of a table"),
    ],
)
def test_tables_that_cannot_be_meant(here, text, reason):
    with pytest.raises(Refused) as refused:
        read_names(save("names.csv", text), 8)
    assert reason in str(refused.value) and str(refused.value).startswith("concept_names names.csv: ")
    with pytest.raises(Refused, match=r"cannot be read \(No such file"):
        read_table(Path("absent.csv"), ("a",), "source")


@pytest.fixture
def data(here):
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        Path("data", name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(f"data/{name}/{i}.png")
    return "data"


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("separator", [";", "\t"])
def test_splits_from_excel(data, encoding, separator):
    config = DatasetConfig(name="data", resolution=16)
    split_dataset(config, Path("out"))
    text = Path("out/split.csv").read_text().replace(",", separator)
    read = read_split(save("mine.csv", text, encoding), own_split("data", config))
    assert sorted(map(repr, read.rows)) == sorted(map(repr, own_split("data", config).rows))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_labels_recipes_captions_and_class_names(data, encoding):
    labels = [[f"{name}/{i}.png", int(name == "dog")] for name in ("cat", "dog") for i in range(4)]
    index = json.dumps({"labels": labels, "class_names": ["kočka", "pes"]}, ensure_ascii=False)
    prepare_dataset("data", Path("out"), 16, labels=str(save("labels.json", index, encoding)))
    assert folder_tree(Path("out")).index.class_names == ["kočka", "pes"]
    prepare_dataset("out", Path("out.zip"), 16)
    with open_zip(Path("out.zip")) as tree:
        assert tree.index.class_names == ["kočka", "pes"]
    save("data/dataset.json", index, encoding)
    assert load_dataset("data", "train", DatasetConfig(name="data", resolution=16)).class_names == ["kočka", "pes"]
    recipe = save("mine.yaml", "dataset:\n  name: kočky\n  resolution: 16\n", encoding)
    assert load_recipe(str(recipe)).dataset.name == "kočky"
    assert read_captions(save("captions.txt", "kočka\n\npes # a dog\n", encoding)) == ["kočka", "pes"]
    assert _lines(save("classes.txt", "kočka\n\npes\n", encoding)) == ["kočka", "pes"]


def test_other_encodings_are_refused_with_the_line(here):
    old = save("old.txt", "a\nrød\n", "cp1252")
    with pytest.raises(ValueError, match="line 2 is not UTF-8; save it as UTF-8"):
        read_yaml(old, "the file")
    for read in (read_captions, _lines, read_names):
        with pytest.raises(Refused, match=r"old\.txt: cannot be read as UTF-8 or UTF-16 text: line 2 is not UTF-8"):
            read(old)
