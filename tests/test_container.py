"""The container files: what they copy exists, and what they start is the command that the other tests start."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from viscoin.cli import app

ROOT = Path(__file__).parents[1]
INSTRUCTION = re.compile(r"^([A-Z]+)\s+(.*)$")


def instructions():
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [INSTRUCTION.match(line).groups() for line in lines]


def test_what_is_copied_exists_and_is_not_left_out():
    left_out = (ROOT / ".dockerignore").read_text().split()
    copied = [word for name, rest in instructions() if name == "COPY" for word in rest.split()[:-1]]
    assert {"viscoin", "stylegan2_ada", "pyproject.toml", "requirements.txt"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists() and name not in left_out, name


def test_what_the_build_needs_is_copied():
    project = (ROOT / "pyproject.toml").read_text()
    copied = {word for name, rest in instructions() if name == "COPY" for word in rest.split()[:-1]}
    assert set(re.findall(r'"((?:LICENSE|README\.md))"', project)) | {"hatch_build.py"} <= copied
    for path in re.findall(r'"([\w.]+\.md)"', (ROOT / "hatch_build.py").read_text()):
        assert path in copied, path


def test_it_runs_as_a_user_the_command_that_is_tested():
    last = {name: rest for name, rest in instructions()}
    assert last["USER"] == "1000" and "readyz" in last["HEALTHCHECK"]
    words = [*yaml.safe_load(last["ENTRYPOINT"]), *yaml.safe_load(last["CMD"])]
    assert words[:2] == ["viscoin", "serve"]
    known = {name for parameter in typer.main.get_command(app).commands["serve"].params for name in parameter.opts}
    for compose in (None, *services().values()):
        options = [word for word in (words[2:] if compose is None else compose.get("command", [])) if word[:2] == "--"]
        assert set(options) <= known


def services():
    return yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


@pytest.mark.parametrize("name", ["viscoin", "viscoin-gpu"])
def test_it_is_reached_from_this_machine_alone(name):
    found = services()[name]
    base = services()[found["extends"]] if "extends" in found else found
    assert all(port.startswith("127.0.0.1:") for port in base["ports"])
    assert base["read_only"] is True and base["cap_drop"] == ["ALL"] and base["mem_limit"]


def test_the_health_check_is_python_that_compiles():
    check = {name: rest for name, rest in instructions()}["HEALTHCHECK"]
    command = yaml.safe_load(check[check.index("[") :])
    compile(command[-1], "healthcheck", "exec")
    assert shlex.split(command[0]) == ["python"]
