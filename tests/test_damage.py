"""Damaged files of run folders: each kind of file, each kind of damage, each command that reads it."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from tiny_models import Answer, set_options

from viscoin.config import load_recipe, override_recipe
from viscoin.files import is_whole, sealed
from viscoin.models.files import read_file
from viscoin.runs import run as runs
from viscoin.runs.run import Run, newest_run, read_metrics
from viscoin.runs.tracking import followers

TRAIN = ["train", "classifier", "--device", "cpu", "--precision", "32-true"]


# --- kinds of damage ---------------------------------------------------------------------------------------------


def edited(old: str, new: str) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        assert old.encode() in content
        return content.replace(old.encode(), new.encode())

    return edit


def unsealed(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    """A file as before there were check sums, and then damaged."""

    def damage(content: bytes) -> bytes:
        header = yaml.safe_load(content)
        del header["digest"]
        change(header)
        return yaml.safe_dump(header, sort_keys=False).encode()

    return damage


NOISE = bytes(range(256)) * 4
REFERENCES = b"a0: &a0 1\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 10)) for i in range(1, 10)
)
RECIPES: dict[str, Callable[[bytes], bytes]] = {
    "half": lambda content: content[: len(content) // 2],
    "half at a line": lambda content: b"".join(content.splitlines(True)[:60]),
    "in its first line": lambda content: content[:20],
    "without its end": lambda content: content[:-40],
    "empty": lambda content: b"",
    "binary": lambda content: NOISE,
    "zeros": lambda content: bytes(len(content)),
    "latin-1": lambda content: content + "# né\n".encode("latin-1"),
    "a lost line": lambda content: b"".join(line for line in content.splitlines(True) if b"epochs: 1" not in line),
    "another value": edited("epochs: 1\n", "epochs: 9\n"),
    "a list": lambda content: b"- 1\n- 2\n",
    "a text": lambda content: b"just text\n",
    "a date": lambda content: b"2024-99-99\n",
    "deep": lambda content: b"[" * 100_000,
    "references": lambda content: content.partition(b"\n")[2] + REFERENCES,  # 10^9 values
    "another program's": lambda content: b"recipe: pancakes\nkind: [sweet]\n",
    "unsealed, a lost key": unsealed(lambda header: header["recipe"]["classifier"].pop("epochs")),
    "unsealed, a lost section": unsealed(lambda header: header["recipe"].pop("gan")),
    "unsealed, no kind": unsealed(lambda header: header.pop("kind")),
    "unsealed, a bare date": unsealed(lambda header: header.update(created=20)),
}  # fmt: skip
FOUND = ("unsealed, a lost key", "unsealed, a lost section")  # what finds a run needs neither
METRICS: dict[str, Callable[[bytes], bytes]] = {
    "half": lambda content: content[: len(content) // 2],
    "a cut line amid": lambda content: content.replace(b'"train.loss"', b'"train.\n', 1),
    "nan": edited('"train.accuracy"', '"odd": NaN, "odder": Infinity, "train.accuracy"'),
    "texts": edited('"train.accuracy"', '"note": "fine", "train.accuracy"'),
    "nested": edited('"train.accuracy"', '"terms": {"a": [1, {"b": 2}]}, "train.accuracy"'),
    "null steps": lambda content: content.replace(b'"step": 4', b'"step": null', 1),
    "odd steps": lambda content: content + b'{"step": 1e999, "a": 1}\n{"step": -3, "a": 1}\n{"step": "x"}\n',
    "no steps": lambda content: b'{"train.loss": 1.0}\n' + content,
    "huge numbers": lambda content: content + b'{"step": 9, "a": 1' + b"0" * 400 + b"}\n",
    "too long for a number": lambda content: content + b'{"step": 1' + b"0" * 5000 + b"}\n",
    "deep": lambda content: content + b'{"step": 5, "a": ' + b"[" * 100_000 + b"\n",
    "binary": lambda content: NOISE + b"\n" + content,
    "latin-1": lambda content: content + '{"step": 4, "né": 2.0}\n'.encode("latin-1"),
    "other lines": lambda content: b"[1]\n3\nnull\n\"text\"\n" + content,
}  # fmt: skip
OTHERS = (b"", b"{", b"[]", b"3", b"null", b'"text"', NOISE, b"[" * 100_000, b'{"tensorboard": 3}', b'{"other": {}}',
          b'{"tensorboard": {"steps": [1]}}')  # fmt: skip


# --- the runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished run in runs/good."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.chdir(folder)
        Answer(*TRAIN, *set_options(), "--out", "runs/good").went_well()
        yield folder


@pytest.fixture(autouse=True)
def here(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to damage."""
    shutil.copytree(whole / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("viscoin.models.files.ASSETS", tmp_path / "assets")
    return tmp_path


def damage(path: str, how: Callable[[bytes], bytes]) -> bytes:
    before = Path(path).read_bytes()
    Path(path).write_bytes(how(before))
    assert Path(path).read_bytes() != before
    return Path(path).read_bytes()


# --- recipe.yaml -------------------------------------------------------------------------------------------------


def test_a_recipe_as_written_is_whole() -> None:
    header = Run(Path("runs/good")).header
    assert header["digest"] and Run(Path("runs/good")).recipe.classifier.epochs == 1
    text = Path("runs/good/recipe.yaml").read_text()
    Path("runs/good/recipe.yaml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert Run(Path("runs/good")).header == header  # what editors and copies between systems do


@pytest.mark.parametrize("text", ["a: 1\n", "a: 1\nb: 2", "created: x\na: 1\n"])
def test_every_lost_or_changed_character_shows(text: str) -> None:
    seal = sealed(text)
    assert is_whole(seal)
    assert not any(is_whole(seal[:end]) for end in range(6, len(seal.rstrip())))
    assert not is_whole(seal.replace("a: 1", "a: 2"))


@pytest.mark.parametrize("case", RECIPES)
def test_resume_refuses_a_damaged_recipe_and_changes_nothing(case: str) -> None:
    content = damage("runs/good/recipe.yaml", RECIPES[case])
    metrics = Path("runs/good/metrics.jsonl").read_bytes()
    for options in (["--resume"], [], ["--allow-changes"]):
        answer = Answer(*TRAIN, *options, *(set_options() if not options else []), "--out", "runs/good")
        answer.refused("runs/good/recipe.yaml", "is damaged")
    assert Path("runs/good/recipe.yaml").read_bytes() == content
    assert Path("runs/good/metrics.jsonl").read_bytes() == metrics


@pytest.mark.parametrize("case", [case for case in RECIPES if case not in FOUND])
def test_a_damaged_neighbour_is_passed_over_with_a_warning(
    case: str, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree("runs/good", "runs/newer")
    damage("runs/newer/recipe.yaml", RECIPES[case])
    found = newest_run("classifier", "birds", finished=True)
    assert found is not None and found.path == Path("runs/good")
    assert newest_run("classifier", "birds") is not None
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and "runs/newer/recipe.yaml is damaged" in warnings[0] and "passed over" in warnings[0]
    assert case != "latin-1" or "no UTF-8" in warnings[0]
    assert Answer("logs").went_well().out == "runs/good/figures/training.png\n"


@pytest.mark.parametrize("case", ["half", "latin-1"])
def test_commands_that_look_for_the_newest_run(case: str, whole: Path) -> None:
    shutil.copytree("runs/good", "runs/newer")
    damage("runs/newer/recipe.yaml", RECIPES[case])
    for words in (
        ["test", "classifier", "--device", "cpu", "--limit", "8"],
        [*TRAIN, "--resume"],
    ):
        answer = Answer(*words)
        assert answer.code == 0, answer.err
        assert "runs/newer" not in answer.out


def test_a_damaged_recipe_of_a_run_is_no_recipe() -> None:
    damage("runs/good/recipe.yaml", RECIPES["half at a line"])
    Answer(*TRAIN, "--recipe", "runs/good/recipe.yaml").refused("runs/good/recipe.yaml", "is damaged")
    Path("part.yaml").write_text("classifier: {epochs: 3}\n")
    assert load_recipe("part.yaml").classifier.epochs == 3


def test_a_changed_recipe_says_how_to_use_it() -> None:
    damage("runs/good/recipe.yaml", RECIPES["another value"])
    Answer(*TRAIN, "--resume", "--out", "runs/good").refused("delete its first line")
    lines = Path("runs/good/recipe.yaml").read_text().splitlines(True)
    Path("runs/good/recipe.yaml").write_text("".join(lines[1:]))
    assert Run(Path("runs/good")).recipe.classifier.epochs == 9


def test_checkpoints_without_their_recipe_are_not_taken_over() -> None:
    Path("runs/good/recipe.yaml").unlink()
    Answer(*TRAIN, *set_options(), "--out", "runs/good").refused("runs/good", "recipe.yaml is gone")


def test_what_is_no_file_at_all() -> None:
    shutil.copytree("runs/good", "runs/newer")
    Path("runs/newer/recipe.yaml").unlink()
    Path("runs/newer/recipe.yaml").mkdir()
    Path("runs/pipe").mkdir()
    os.mkfifo("runs/pipe/recipe.yaml")
    Path("runs/third").write_text("a file")
    assert Answer("logs").went_well().out == "runs/good/figures/training.png\n"


# --- metrics.jsonl -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", METRICS)
def test_damaged_metrics(case: str) -> None:
    """They are plotted and resumed as far as they are whole, with a word on the rest."""
    before = read_metrics(Path("runs/good/metrics.jsonl"))
    damage("runs/good/metrics.jsonl", METRICS[case])
    answer = Answer("logs", "--logs-path", "runs/good", "--csv", "a.csv")
    assert answer.code == 0 or (case == "half" and answer.code == 2), answer.err
    answer = Answer(*TRAIN, "--resume", "--out", "runs/good").went_well()
    assert "going on" in answer.err or "are done" in answer.err
    lines = read_metrics(Path("runs/good/metrics.jsonl"))
    kept = [line for line in before if line in lines]
    assert kept or case in ("half", "nan", "a cut line amid", "null steps")
    for line in Path("runs/good/metrics.jsonl").read_text(encoding="utf-8").splitlines():
        assert all(isinstance(value, int | float) for value in json.loads(line).values())


@pytest.mark.parametrize(
    ("content", "kept", "told"),
    [
        (b'{"step": 1, "a": 2}\n{"step": 2, "a', [{"step": 1, "a": 2}], False),  # a process that was killed
        (b'{"step": 1, "a": 2}\n{"step": 2, "a\n{"step": 3}\n', [{"step": 1, "a": 2}, {"step": 3}], True),
        (b'{"step": 1, "a": "x", "b": 1}\n', [{"step": 1, "b": 1}], True),
        (b'{"step": 2.0, "a": 36028797018963969}\n', [{"step": 2, "a": 36028797018963969}], False),
        (b"", [], False),
    ],
)
def test_what_is_left_out_is_told(content: bytes, kept: list, told: bool, caplog: pytest.LogCaptureFixture) -> None:
    Path("m.jsonl").write_bytes(content)
    assert read_metrics(Path("m.jsonl")) == kept
    assert ("m.jsonl is damaged" in caplog.text) == told


# --- the others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", OTHERS, ids=range(len(OTHERS)))
def test_damaged_state_of_trackers(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    Path("runs/good/tracking.json").write_bytes(content)
    followers(Path("runs/good"))
    assert "tracking.json is damaged" in caplog.text or content == OTHERS[-1]
    Answer(*TRAIN, "--resume", "--out", "runs/good").went_well()
    Answer(*TRAIN, "--resume", "--out", "runs/good", "--track", "tensorboard").went_well()
    assert followers(Path("runs/good")) == ["tensorboard"]


@pytest.mark.parametrize("content", OTHERS, ids=range(len(OTHERS)))
def test_damaged_name_of_the_owner(content: bytes) -> None:
    Path("owner").write_bytes(content)
    assert runs._owner(Path("owner")) == "another process"


@pytest.mark.parametrize("content", [b"", b"torn", NOISE, b"PK\x03\x04"], ids=range(4))
def test_damaged_checkpoints_give_a_reason(content: bytes) -> None:
    for path in Path("runs/good/checkpoints").glob("*.pt"):
        path.write_bytes(content)
    answer = Answer(*TRAIN, "--resume", "--out", "runs/good")
    reason = "" if content.startswith(b"PK") else f"it starts with {content[:4].hex(' ')}" if content else "it is empty"
    answer.refused("no checkpoint in", f"last.pt is damaged ({reason}", "start a new run")
    assert "()" not in answer.err


@pytest.mark.parametrize("how", [Path.unlink, lambda path: path.write_bytes(b"torn")], ids=["gone", "damaged"])
def test_finished_run_without_its_best_checkpoint(how: Callable[[Path], object]) -> None:
    """The same command does not call the last weights the best ones."""
    how(Path("runs/good/checkpoints/best.pt"))
    answer = Answer(*TRAIN, "--resume", "--out", "runs/good")
    if answer.code:
        answer.refused("best.pt is damaged (", "remove it to do without")
        Path("runs/good/checkpoints/best.pt").unlink()
        answer = Answer(*TRAIN, "--resume", "--out", "runs/good")
    assert "best.pt is gone" in answer.went_well().err
    assert "selection" not in read_file(Path("runs/good/model.safetensors"))[1]


@pytest.mark.parametrize("name", ["metrics.jsonl", ".owner.json", "recipe.yaml", "checkpoints/last.pt"])
@pytest.mark.parametrize(("make", "said"), [(os.mkfifo, "a named pipe"), (os.mkdir, "a folder")])
def test_what_is_no_file_in_a_run(name: str, make: Callable[[Path], None], said: str) -> None:
    path = Path("runs/good", name)
    path.unlink(missing_ok=True)
    make(path)
    Answer(*TRAIN, *set_options(), "--out", "runs/good").refused(f"runs/good/{name}: {said}, not a file")


def test_finished_run_without_checkpoints_is_left_alone() -> None:
    for path in Path("runs/good/checkpoints").glob("*.pt"):
        path.unlink()
    before = {path: path.read_bytes() for path in Path("runs/good").glob("*.*") if path.name != "log.txt"}
    for options in (["--resume"], set_options()):
        Answer(*TRAIN, *options, "--out", "runs/good").refused("--out runs/good", "no checkpoint to go on from")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", ["study.db", "trials/0000/metrics.jsonl", "trials/0000/recipe.yaml"])
@pytest.mark.parametrize("content", [b"", NOISE], ids=["empty", "binary"])
def test_damaged_sweep(name: str, content: bytes) -> None:
    """A study that cannot be read or lost its trials is refused; damaged runs of ended trials stop nothing."""
    Path("space.yaml").write_text("classifier.learning_rate: [0.001, 0.01]\n")
    words = ["sweep", "classifier", "--space", "space.yaml", "--device", "cpu", "--out", "study", *set_options()]
    Answer(*words, "--trials", "1").went_well()
    Path("study", name).write_bytes(content)
    answer = Answer(*words, "--trials", "2", "--track", "tensorboard")
    if name == "study.db":
        answer.refused("study.db", "cannot be read" if content else "is gone or does not know of it")
    else:
        assert answer.code == 0, answer.err


def test_overridden_recipe_of_a_run_keeps_its_seal() -> None:
    run = Run(Path("runs/good"))
    run.annotate(note="x")
    assert run.header["note"] == "x" and override_recipe(run.recipe, {"seed": 3}).seed == 3
