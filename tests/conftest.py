"""The order of tests: those that take longest begin first, so that no process waits for the last of them."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by `-m`
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker("slow")
    items.sort(
        key=lambda item: 2 * bool(item.get_closest_marker("long")) + bool(item.get_closest_marker("slow")), reverse=True
    )


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    """Commands that run in this process set up loggers; the next test finds them as it would alone."""
    kept = [
        (logger := logging.getLogger(name), logger.level, logger.handlers[:]) for name in ("viscoin", "stylegan2_ada")
    ]
    yield
    for logger, level, handlers in kept:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture(autouse=True)
def no_plugins_stay() -> Iterator[None]:
    """Commands that load plugins enter them into the table of methods."""
    yield
    table = getattr(sys.modules.get("viscoin.attribution.methods"), "METHODS", {})
    for name in [name for name, method in table.items() if method.family == "plugin"]:
        del table[name]


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """For commands whose intervals do not matter: resampling would take most of the time."""
    for module in ("truth.attributes", "truth.causal", "truth.localisation", "scorecard.result"):
        monkeypatch.setattr(f"viscoin.testing.{module}.RESAMPLES", 10)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data of this module's tests goes to a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def models(own_cache: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny model files of all three kinds, by kind."""
    from tiny_models import write_models

    return write_models(tmp_path_factory.mktemp("models"))
