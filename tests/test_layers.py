"""The rule of imports: rooms stand on floors, and no import goes up, not even one inside a function."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up; a room is a folder or file of viscoin/, and what stands on one floor may not form a circle.
FLOORS = (
    ("signals",),
    ("errors", "estimates", "files", "texts", "processes", "program", "printing", "captions", "penalties"),
    ("config", "kinds", "statistics"),
    ("runs", "presets", "slurm"),
    ("datasets",),
    ("models",),
    ("legacy", "inference"),
    ("attribution", "export"),
    ("testing", "training"),
    ("analysis",),
    ("naming", "training.pipeline"),
    ("sweep",),
    ("plotting",),
    ("reports", "dashboard"),
    ("serving",),
    ("cli",),
)
# `training` knows nothing that measures or explains, but for `training.pipeline`, which stands above, and one place:
# the generator's training logs the FID of its samples, which `testing` measures.
EXCEPT = {("viscoin.training.gan", "viscoin.testing.gan")}
FORBIDDEN = {
    "training": {"testing", "analysis", "attribution", "naming"},
    "plotting": {"models", "inference", "training"},
    "statistics": {"errors", "files", "config"},
}


def modules() -> dict[str, Path]:
    found = {}
    for top in ("viscoin", "stylegan2_ada"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Line and module of each import of ours, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(path.relative_to(ROOT).parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (above, node.module)))
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                if whole in known or module in known:
                    yield node.lineno, whole if whole in known else module


def room(module: str) -> str:
    """ "viscoin.datasets.birds" -> "datasets"; rooms within rooms are named in FLOORS."""
    if module.split(".")[0] != "viscoin":
        return module.split(".")[0]
    inner = module.removeprefix("viscoin.")
    nested = [name for floor in FLOORS for name in floor if "." in name and (inner + ".").startswith(name + ".")]
    return nested[0] if nested else inner.split(".")[0]


def floors() -> dict[str, int]:
    return {name: number for number, names in enumerate(FLOORS) for name in names}


def broken(known: dict[str, Path]) -> list[str]:
    found, level = [], floors()
    for module, path in known.items():
        here = room(module)
        for line, target in imports(path, known):
            there = room(target)
            where = f"{path.relative_to(ROOT)}:{line}: {here} imports {there} ({target})"
            if here == there or (module, target) in EXCEPT or module in ("viscoin", "viscoin.__main__"):
                continue
            if here == "stylegan2_ada":
                found.append(f"{where}; the generator's library knows nothing of viscoin")
            elif level.get(there, 0) > level[here]:
                found.append(f"{where}, which stands above it")
            elif there in FORBIDDEN.get(here, ()):
                found.append(f"{where}, which {here} may not know")
    return found


def test_no_import_goes_up() -> None:
    assert broken(modules()) == []


def test_every_room_has_its_floor() -> None:
    rooms = {room(module) for module in modules()} - {"viscoin", "stylegan2_ada", "__main__"}
    assert rooms - set(floors()) == set(), "name the floor of a new room in FLOORS"


def test_rooms_form_no_circle() -> None:
    edges, known = defaultdict(set), modules()
    for module, path in known.items():
        edges[room(module)] |= {room(target) for _, target in imports(path, known)} - {room(module), "viscoin"}
    while edges:
        ends = [name for name, targets in edges.items() if not targets & edges.keys()]
        assert ends, f"these rooms import one another: {', '.join(sorted(edges))}"
        for name in ends:
            del edges[name]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("viscoin.datasets.base", "from viscoin.models import files"),
        ("viscoin.training.loop", "import viscoin.testing.ensemble"),
        ("viscoin.attribution.cam", "from viscoin.testing.truth import test_truth"),
        ("viscoin.plotting.style", "from viscoin.models.ensemble import VisCoIN"),
        ("stylegan2_ada.loss", "from viscoin.config import Recipe"),
        ("viscoin.analysis.concepts", "def f():\n    from viscoin.cli import options"),
    ],
)
def test_a_broken_rule_is_named(module: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, path in modules().items():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(line if name == module else "")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (text,) = broken(modules())
    assert text.startswith(module.replace(".", "/") + ".py:") and "imports" in text


# --- the command line: declarations, one library call, printing ---------------------------------------------------


def body_lines(function: ast.FunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_of_commands_are_short() -> None:
    long = [
        f"{path.name}: {node.name} has {body_lines(node)} lines"
        for path in sorted((ROOT / "viscoin" / "cli").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and body_lines(node) > 40
    ]
    assert long == []
