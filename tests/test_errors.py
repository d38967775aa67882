"""Errors of the library: plain sentences in Python, options on the command line."""

import ast
import errno
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import Answer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from viscoin.cli import app
from viscoin.cli.app import ALIASES
from viscoin.config import Recipe
from viscoin.datasets.listing import NoLabels
from viscoin.errors import Refused, reason_of, renamed
from viscoin.runs.run import flatten

PACKAGE = Path(__file__).parents[1] / "viscoin"
# A job is given a command line, and its errors speak of the options in there.
OF_COMMAND_LINES = (PACKAGE / "cli", PACKAGE / "slurm")
LIBRARY = [path for path in sorted(PACKAGE.rglob("*.py")) if not {*OF_COMMAND_LINES} & {*path.parents}]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
OF_OTHER_PROGRAMS = {"--nodes", "--ntasks-per-node"}  # srun


# --- the error


def test_sentence_for_python():
    error = Refused("batch_size", 30, "does not divide by 4 `devices`", "choose a multiple of 4")
    assert str(error) == "batch_size 30: does not divide by 4 `devices`; choose a multiple of 4"
    assert isinstance(error, ValueError)
    assert (error.parameter, error.value) == ("batch_size", 30)
    assert (error.reason, error.remedy) == ("does not divide by 4 `devices`", "choose a multiple of 4")


@pytest.mark.parametrize(
    ("parameter", "value", "remedy", "text"),
    [
        ("seed", None, "", "seed: wrong"),
        ("seed", 0, "", "seed 0: wrong"),
        ("compile", False, "", "compile False: wrong"),
        (None, None, "", "wrong"),
        (None, None, "stop", "wrong; stop"),
        (None, "a.png", "", "a.png: wrong"),
        ("gan.kimg", 0.5, "stop", "gan.kimg 0.5: wrong; stop"),
        ("out", Path("a b/c"), "", "out a b/c: wrong"),
        ("device", "cuda:1", "", "device cuda:1: wrong"),
        ("shares", "80:10:10", "", "shares 80:10:10: wrong"),
        ("names", "a bird", "", "names 'a bird': wrong"),
        ("names", "", "", "names '': wrong"),
    ],
)
def test_parameter_and_value(parameter, value, remedy, text):
    assert str(Refused(parameter, value, "wrong", remedy)) == text


def test_names_are_those_of_the_caller():
    error = Refused("gan.p", 2, "above 1, as `gan.p` and `other` say", "run `wandb login`, or set `x_y`")
    told = error.sentence({"gan.p": "--p", "x_y": "--x-y", "login": "--login"}.get)
    assert told == "--p 2: above 1, as --p and `other` say; run `wandb login`, or set --x-y"
    assert renamed("`a` b `a`", lambda name: name.upper()) == "A b A"


@pytest.mark.parametrize("kind", [Refused, NoLabels])
def test_errors_cross_processes(kind):
    error = kind("out", Path("runs/a"), "exists", "pass `force`")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error) == "out runs/a: exists; pass `force`"
    assert (again.parameter, again.value, again.reason, again.remedy) == error.args


# --- the library


def spoken(tree: ast.AST) -> Iterator[ast.AST]:
    """What reaches people: raised exceptions, errors that functions make, and calls of loggers."""
    for node in ast.walk(tree):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Raise) or re.search(r"^(logger|warnings)\.|^warn_once$|Error$|^Refused$", called):
            yield node


def strings(node: ast.AST) -> list[str]:
    return [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def options_of(tree: ast.AST) -> set[str]:
    return {option for node in spoken(tree) for text in strings(node) for option in OPTION.findall(text)}


def test_the_search_finds_options():
    found = "raise ValueError(f'--out {out}: no'), logger.info('see --dry-run'), warn_once('a --limit')"
    tree = ast.parse("\n".join(found.split(", ")))
    assert options_of(tree) == {"--out", "--dry-run", "--limit"}
    assert options_of(ast.parse("run(['srun', '--label'])\nraise ValueError('a--b, -- c')")) == set()


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_library_names_no_options(path):
    assert options_of(ast.parse(path.read_text())) - OF_OTHER_PROGRAMS == set()


def parameters_of(tree: ast.AST) -> set[str]:
    """First arguments of `Refused` that are literals."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Refused"]
    names = [call.args[0].value for call in calls if call.args and isinstance(call.args[0], ast.Constant)]
    return {name for name in names if name is not None}


def commands(group: TyperGroup) -> Iterator[TyperCommand]:
    for command in group.commands.values():
        if isinstance(command, TyperGroup):
            yield from commands(command)
        else:
            yield command


OF_PENALTIES = {"penalty", "region", "concept", "label", "predicted"}  # words of a penalty, in recipes and `control`
OF_THE_SERVICE = {"step"}  # fields of requests, which no command has


def known_names() -> set[str]:
    top = get_command(app)
    assert isinstance(top, TyperGroup)
    options = {parameter.name for command in commands(top) for parameter in command.params}
    return options | set(flatten(Recipe().model_dump())) | set(ALIASES) | OF_PENALTIES | OF_THE_SERVICE


def test_refused_parameters_are_known_to_callers():
    named = {name for path in LIBRARY for name in parameters_of(ast.parse(path.read_text()))}
    assert {"out", "devices", "gan.freeze_d"} <= named
    assert named - known_names() == set()


def test_aliases_are_needed_and_lead_to_options():
    top = get_command(app)
    assert isinstance(top, TyperGroup)
    options = {parameter.name for command in commands(top) for parameter in command.params}
    assert {name for names in ALIASES.values() for name in names} <= options
    texts = "".join(path.read_text() for path in LIBRARY)
    assert [name for name in ALIASES if f'"{name}"' not in texts and f"`{name}`" not in texts] == []


# --- the command line


def test_command_line_names_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Answer("train", "gan", "--batch-size", 3, "--devices", 2, "--device", "cpu").refused(
        "--batch-size 3: does not divide by 2 devices (--devices, --num-nodes)"
    )
    Answer("train", "gan", "--augment", "fixed").refused("set --p from 0 to 1")
    Answer("train", "concept2clip", "--pretrained", "openai").refused("set --clip-model as well")
    Answer("test", "viscoin", "--device", "cuda:99").refused("--device cuda:99: ")
    Answer("test", "viscoin", "--dataset", "mnist").refused("train viscoin --dataset mnist")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AssertionError(), "AssertionError"),
        (AssertionError(" \n"), "AssertionError"),
        (MemoryError(), "MemoryError"),
        (OSError(), "OSError"),
        (OSError("Image file is truncated"), "Image file is truncated"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "Permission denied"),
        (ValueError("two\n  lines"), "two lines"),
    ],
)
def test_no_reason_is_empty(error, said):
    assert reason_of(error) == said
