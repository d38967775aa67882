"""Attribution methods from outside: functions images, targets, classifier -> maps, of installed packages and of files.

They are the user's own code and run with all the user's rights; what is run is logged.
"""

import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from viscoin.attribution.methods import ENTRY_POINTS, METHODS, register, said_by
from viscoin.errors import Refused, regular

PARAMETERS = ("images", "targets", "classifier")
SHAPE = "def my_method(images, targets, classifier): ... return maps"

logger = logging.getLogger(__name__)


def load_plugins(files: Sequence[Path] = ()) -> list[str]:
    """Enter the methods of installed packages and of files into `METHODS`, under the family "plugin".

    Of a package, each entry point of the group `viscoin.attributions` is a method of that name; one that cannot be
    loaded is left out with a warning. Of a file, each public function that is defined there and begins with the
    parameters images, targets, classifier is a method by its own name. A function may say `function.signed = True`:
    then its maps may be below zero. Loading again replaces what was loaded before.

    Returns:
        Names of all of them, those of files last.

    Raises:
        Refused: a file cannot be read or run, has no such function, or one that is called as a method of ours.
    """
    found = [name for point in entry_points(group=ENTRY_POINTS) if (name := _of_package(point))]
    return found + [name for file in files for name in _of_file(file)]


def _of_package(point: EntryPoint) -> str | None:
    package = point.dist.name if point.dist else point.value
    logger.info("attribution method %s: running the code of package %s", point.name, package)
    try:
        function = point.load()
        if not callable(function):
            raise Refused(None, None, f"{point.value} is no function", f"give one: {SHAPE}")
        _enter(point.name, function, f"package {package}")
    except Exception as error:  # whatever the code of others raises must not stop ours
        logger.warning("attribution method %s of package %s is left out: %s", point.name, package, said_by(error))
        return None
    return point.name


def _of_file(file: Path) -> list[str]:
    logger.info("running the code of %s, for its attribution methods", file)
    functions = dict(_functions(_run(file)))
    if not functions:
        wanted = f"it defines no function that begins with {', '.join(PARAMETERS)}"
        raise Refused("plugin", file, wanted, f"define one: {SHAPE}")
    for name, function in functions.items():
        _enter(name, function, str(file))
    logger.info("attribution methods of %s: %s", file, ", ".join(functions))
    return list(functions)


def _run(file: Path) -> ModuleType:
    """The module of a file, run anew under a name that no other file has."""
    if not regular(file).is_file():
        raise Refused("plugin", file, "there is no such file", "give a Python file")
    name = f"viscoin_plugin_{abs(hash(file.resolve())):x}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise Refused("plugin", file, "not a Python file", "give one whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as dataclasses and pickle of the file ask for it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise Refused("plugin", file, f"it cannot be run: {said_by(error, str(file))}", "mend it") from error
    return module


def _functions(module: ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public functions of a module that are attribution methods."""
    for name, function in vars(module).items():
        if name.startswith("_") or not inspect.isfunction(function) or function.__module__ != module.__name__:
            continue
        if tuple(inspect.signature(function).parameters)[: len(PARAMETERS)] == PARAMETERS:
            yield name, function


def _enter(name: str, function: Callable[..., Any], source: str) -> None:
    if name in METHODS and METHODS[name].family != "plugin":
        raise Refused("plugin", source, f"there is a method {name} already", "give the function another name")
    words = " ".join((inspect.getdoc(function) or "").split(". ")[0].split())
    signed = bool(getattr(function, "signed", False))
    register(name, function, reference=words or source, signed=signed, replace=True)
