"""The documentation is true: its commands and Python run, at toy size; options, links and errors are up to date."""

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import typer
import yaml
from PIL import Image
from test_benchmarks import BENCHMARKS
from tiny_models import SETTINGS, Answer, tiny_recipe, write_images, write_models

from benchmarks.timing import program
from viscoin.cli import app
from viscoin.datasets.birds import attribute_names, class_names
from viscoin.errors import Refused
from viscoin.models.files import ASSETS, load_model, save_model
from viscoin.models.judge import Judge
from viscoin.runs.run import Run

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
CLI = typer.main.get_command(app)
OPTION = r"--[a-z][a-z\d-]+"

# Commands that are not run here, each with the reason; that their options exist is tested all the same.
NOT_RUN = {
    "--dataset cub": "a download",
    "--pretrained openai": "a download",
    "--names my-captions.txt": "an adapter to CLIP, whose weights are a download",
    "import-gan ffhq": "a download",
    "import-gan my-network.pkl": "a published network; tests/test_import_gan.py has one",
    "import-classifier efficientnet-lite0": "a download",
    "ffhq256": "a download",
    "--features inception": "a download",
    "--devices 8": "eight GPUs",
    "ops build": "nvcc; tests/test_ops_build.py",
    "control runs/": "a training that runs; tests/test_steering.py",
    "--replay runs/": "tests/test_steered_tasks.py",
    "main.py serve": "it does not end; tests/test_pages.py",
    "scripts/local_slurm.py": "tests/test_slurm.py",
    "submit --gpus 0": "a SLURM; tests/test_slurm.py",
    "scripts/fetch_photographs.py": "a download; tests/test_photographs.py",
    "--dataset runs/photographs": "that download",
    "scripts/library_faults.py": "tests/test_attribution_oracles.py",
    "scripts/ship_models.py": "it replaces the models that come along",
    "scripts/draw_imagenet_concepts.py": "downloads, and minutes of search",
    "scripts/fetch_stamps.py": "it downloads photographs, and the weights of a network",
    "runs/stamps": "it needs what that downloads",
    "--dataset holiday": "a folder of the reader's own",
    "scripts/draw_documents.py": "it replaces the pictures that come along",
}
# Options that make the others small: by the start of a command, in addition to what they say themselves.
PARTS = {
    "train classifier": ("classifier",),
    "train gan": ("gan",),
    "train viscoin": ("viscoin",),
    "train all": ("classifier", "gan", "viscoin"),
    "sweep": ("classifier",),
}
SMALLER: dict[str, list[object]] = {
    "train classifier": ["--epochs", 1, "--set", "classifier.backbone=viscoin_resnet10", "--no-pretrained"],
    "train gan": ["--warm-start", 0.016, "--kimg", 0.032],
    "train viscoin": ["--steps", 4],
    "train concept2clip": ["--epochs", 2],
    "train judge": ["--epochs", 1],
    "sweep": ["--trials", 1],
    "test viscoin": ["--fast"],
    "test gan": ["--samples", 24, "--kid-subset", 20],
    "project": ["--steps", 3],
    "scorecard": ["--scenes", 6],
}
CONCEPTS, IMAGES = 24, 60  # as many as the pages name


@dataclass(frozen=True)
class Command:
    """One command of a page, and the lines that the page shows as its output."""

    page: Path
    text: str
    output: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def reason(self) -> str | None:
        """Why it is not run."""
        return next((reason for part, reason in NOT_RUN.items() if part in self.text), None)


def blocks(page: Path, *languages: str) -> Iterator[str]:
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        if language in languages:
            yield text


def commands(page: Path) -> Iterator[Command]:
    """Lines of code blocks that start with `python` or `make`, in order."""
    for block in blocks(page, "bash", "console", ""):
        starts: list[tuple[str, list[str]]] = []
        for line in block.splitlines():
            if match := re.match(r"(?:\$ )?((?:python|make) .*)", line):
                starts.append((match[1], []))
            elif starts:
                starts[-1][1].append(line)
        for text, output in starts:
            yield Command(page, text, tuple(output))


ALL = [command for page in PAGES for command in commands(page)]
MAIN = [command for command in ALL if command.words[:2] == ["python", "main.py"]]


# --- what commands say


def parse(words: list[str]) -> None:
    """Read a command line without running it; raises click's error for what does not exist."""
    context = CLI.make_context("viscoin", words, resilient_parsing=False)
    command, rest = CLI, words
    while hasattr(command, "resolve_command"):
        _, command, rest = command.resolve_command(context, rest)
        if hasattr(command, "resolve_command"):
            continue
    command.make_context(command.name, rest)


@pytest.mark.parametrize("command", MAIN, ids=lambda command: command.text[:70])
def test_command_and_its_options_exist(command: Command) -> None:
    parse(command.words[2:])


def test_other_commands_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in ALL:
        if command.words[0] == "make":
            assert {word for word in command.words[1:] if "=" not in word} <= set(targets), command
        elif not command.words[1].startswith("-m"):
            assert (ROOT / command.words[1]).is_file(), command


def options(command: Any = CLI) -> set[str]:
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return own.union({"--help"}, *(options(child) for child in getattr(command, "commands", {}).values()))


def options_of_scripts() -> set[str]:
    """Those named in full, the parameters that Typer makes options of, and those of benchmarks and of SLURM's jobs."""
    jobs = "".join(path.read_text() for path in ROOT.glob("slurm/*.sbatch"))
    text = "".join(path.read_text() for path in ROOT.glob("scripts/*.py"))
    parameters = re.findall(r"^    (\w+): Annotated", text, re.MULTILINE)
    named = {*re.findall(rf'"({OPTION})"', text), *re.findall(rf"SBATCH ({OPTION})", jobs)}
    benchmarks = (options(typer.main.get_command(program(command))) for command in BENCHMARKS.values())
    return {*named, *(f"--{name.replace('_', '-')}" for name in parameters)}.union(*benchmarks)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_running_text_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    named = {option for code in re.findall(r"`([^`\n]+)`", text) for option in re.findall(rf"(?<!\S){OPTION}", code)}
    assert named <= options() | options_of_scripts()


def test_reasons_are_needed() -> None:
    unused = [part for part in NOT_RUN if not any(part in command.text for command in ALL)]
    assert unused == []


def test_page_of_commands_is_what_their_help_says() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "write_command_docs.py"))
    assert script["PAGE"].read_text() == script["page"](), "run: python scripts/write_command_docs.py"


def message(node: ast.AST) -> str | None:
    """The text of a literal, with … for values, or of an error as the command line shows it."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "Refused":
        parameter, value, reason, *remedy = (
            None if isinstance(part, ast.Constant) and part.value is None else message(part) or "…"
            for part in node.args
        )
        shown = value and Path(value)  # a text that is no word would get quotes
        return Refused(parameter, shown, reason or "", *(part or "" for part in remedy)).sentence(option)
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None


def option(parameter: str) -> str | None:
    return None if "." in parameter else f"--{parameter}".replace("_", "-")


def test_errors_in_the_answers_are_those_of_the_code() -> None:
    files = [path for package in ("viscoin", "stylegan2_ada") for path in (ROOT / package).rglob("*.py")]
    texts = [message(node) for path in files for node in ast.walk(ast.parse(path.read_text()))]
    said = "\n".join(text for text in texts if text)
    quoted = [text.strip() for text in blocks(ROOT / "docs" / "faq.md", "text")]
    assert len(quoted) >= 10
    assert [text for text in quoted if text not in said] == []


# --- what they do


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tiny models of the birds, where the shipped ones are looked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("assets")
        recipe = tiny_recipe(viscoin__n_concepts=CONCEPTS, dataset__test=IMAGES)
        write_models(folder / "birds", recipe)
        judge, names = Judge(attribute_names(), recipe.dataset.resolution), class_names(recipe.dataset.classes)
        save_model(folder / "birds" / "judge.safetensors", judge, "judge", recipe=recipe, class_names=names)
        yield folder


@pytest.fixture
def workshop(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_resamples: None) -> Path:
    """A folder with all the files that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("viscoin.models.files.ASSETS", models)
    for name in ("docs", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_images(tmp_path / "photos", {"cat": 20, "dog": 20}, size=40)
    for name in ("my-bird.jpg", "robin.jpg", "wren.png"):
        Image.effect_noise((40, 50), 80).convert("RGB").save(tmp_path / name)
    network = timm.create_model("viscoin_resnet10", num_classes=2)
    torch.save({"state_dict": network.state_dict(), "arch": "viscoin_resnet10"}, tmp_path / "my-network.pth")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    code = "import timm\n\n\ndef build():\n    return timm.create_model('resnet18', num_classes=2)\n"
    (tmp_path / "my_network.py").write_text(code)
    digits = runpy.run_path(str(ROOT / "scripts" / "write_digits.py"))["write_digits"]
    digits(tmp_path / "digits")
    (mine,) = blocks(ROOT / "docs" / "recipes.md", "yaml")
    (tmp_path / "mine.yaml").write_text(mine)
    (plugin,) = blocks(ROOT / "docs" / "plugins.md", "python")
    (tmp_path / "my_method.py").write_text(plugin)
    old = tmp_path / "runs" / "photos-classifier-20261121-043058"
    old.mkdir(parents=True)
    recipe = tiny_recipe(dataset__name="photos", dataset__test=None).model_dump()
    header = {"kind": "classifier", "created": "2026-11-21T04:30:58", "recipe": recipe}
    (old / "recipe.yaml").write_text(yaml.safe_dump(header))
    Run.create("classifier", tiny_recipe(), tmp_path / "runs" / "birds").log(1, {"loss": 2.0})
    return tmp_path


def smaller(command: Command) -> list[object]:
    """The words of a command after `main.py`, and what makes it small."""
    words: list[object] = [*command.words[2:]]
    start = " ".join(command.words[2:4]) if words[0] in ("train", "test") else command.words[2]
    extra = [*SMALLER.get(start, [])]
    if words[0] in ("train", "data", "sweep") and not {"--dry-run", "prepare"} & set(words):
        # The page on the digits chooses test images by number, and says of how many files one is left out.
        splits = {f"dataset.{split}" for split in ("train", "validation", "test")}
        kept = splits if "--skip-bad-files" in words else {"dataset.test"}
        kept = kept if "digits" in command.text else set()
        batch = {"classifier.batch_size": 64} if "--skip-bad-files" in words else {}
        sections = ("dataset", "concept2clip", *PARTS.get(start, ()))
        for key, value in (SETTINGS | batch).items():
            if key.startswith(sections) and key not in kept:
                extra += ["--set", f"{key}={value}"]
        if "viscoin" in sections:
            extra += ["--set", f"viscoin.n_concepts={CONCEPTS}"]
        if words[0] == "train" and words[1] != "all" and "--out" not in words:  # folders named by the second would meet
            extra += ["--out", Path("runs") / f"{len(list(Path('runs').iterdir()))}"]
    return words + extra


def label(line: str) -> str | None:
    """What a line of a table is about, with all numbers alike; None where the line is no such line."""
    match = re.match(r"  ?(\S.*?)  +\S", line)
    return re.sub(r"\d+", "N", match[1]) if match else None


def run(command: Command) -> None:
    """Run it, and compare errors, warnings and the labels of tables with what the page shows."""
    if command.words[0] == "make":
        return
    if command.words[1] != "main.py":
        done = subprocess.run([sys.executable, *command.words[1:]], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [line for line in command.output if line]
        return
    errors = [line for line in command.output if line.startswith("Error: ")]
    answer = Answer(*(command.words[2:] if errors else smaller(command)))
    said = answer.out + answer.err
    assert answer.code == (2 if errors else 0), said
    for line in command.output:
        if line.startswith(("Error: ", "left out ")):
            assert line in said.replace(f"{ROOT}/", "").splitlines()
        elif name := label(line):
            assert name in re.sub(r"\d+", "N", said), f"{command.text} does not print {name!r}: {said}"


RUN = [page for page in PAGES if any(not command.reason for command in MAIN if command.page == page)]


@pytest.mark.long
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_commands_run(page: Path, workshop: Path) -> None:
    for command in commands(page):
        if not command.reason:
            if command.output and "truncated" in command.output[0]:
                spoil(workshop / "digits/3/0003.png")
            run(command)


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


# --- Python


def names_of_stylegan2(folder: Path) -> dict[str, Any]:
    """What the example of projection calls f, generator, images and path."""
    Answer("project", "--image-indices", 3, "--steps", 3, "--out", "projected").went_well()
    (path,) = Path("projected").glob("*.safetensors")
    f, generator = (load_model(folder / "birds" / f"{kind}.safetensors").model for kind in ("classifier", "gan"))
    return {"f": f, "generator": generator, "images": torch.zeros(1, 3, 32, 32), "path": path}


def files_of_export(folder: Path) -> dict[str, Any]:
    """The files that the examples of export open; they are made once."""
    store = folder / "exported"
    for words in (
        "viscoin.safetensors --to onnx --output birds-concepts.onnx",
        "viscoin.safetensors --to onnx --part decoder --output birds-decoder.onnx",
        "classifier.safetensors --to torchscript --output f.pt",
        "classifier.safetensors --to safetensors --output resnet.safetensors",
    ):
        model, *options, output = words.split()
        if not (store / output).is_file():
            Answer("export", folder / "birds" / model, *options, store / output).went_well()
        Path(output).symlink_to(store / output)
    return {}


GIVEN: dict[str, Callable[[Path], dict[str, Any]]] = {
    "stylegan2.md": names_of_stylegan2,
    "export.md": files_of_export,
}
PYTHON = [(page, text) for page in PAGES for text in blocks(page, "python")]


@pytest.mark.long
@pytest.mark.parametrize(("page", "text"), PYTHON, ids=[page.name for page, _ in PYTHON])
def test_python_runs(page: Path, text: str, workshop: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands; what a page takes as given is tiny, the models that come along are the real ones."""
    names = GIVEN[page.name](models) if page.name in GIVEN else {}
    monkeypatch.setattr("viscoin.models.files.ASSETS", ASSETS)
    exec(compile(text, str(page), "exec"), names)
    for name, shape in re.findall(r"^(\w+).*# (\([\d, ]+\))", text, re.MULTILINE):
        assert str(tuple(names[name].shape)) == shape


def test_there_is_python() -> None:
    assert {page.name for page, _ in PYTHON} >= {"README.md", "index.md", *GIVEN}


# --- links, pictures and the site


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if not target.startswith(("http", "#")):
                assert (page.parent / target.partition("#")[0]).exists(), f"{page.name} links to {target}"


@pytest.mark.slow
def test_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    html = {page.relative_to(tmp_path / "site").as_posix(): page.read_text() for page in tmp_path.rglob("*.html")}
    pages = {page.stem for page in ROOT.glob("docs/*.md")} | {f"api/{page.stem}" for page in ROOT.glob("docs/api/*.md")}
    assert {name.removesuffix(".html") for name in html} == pages | {"404"}
    for name, text in html.items():
        assert not re.findall(r"""(?:src=|<link[^>]* href=)["']?(?:https?:)?//[^"' >]+""", text), name
    assert "train_viscoin" in html["api/training.html"] and "Raises" in html["api/models.html"]
