"""The order of tests: those that take longest begin first, so that no process waits for the last of them."""

import pytest


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by `-m`
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker("slow")
    items.sort(
        key=lambda item: 2 * bool(item.get_closest_marker("long")) + bool(item.get_closest_marker("slow")), reverse=True
    )


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """For commands whose intervals do not matter: resampling would take most of the time."""
    for module in ("attributes", "causal", "localisation"):
        monkeypatch.setattr(f"viscoin.testing.truth.{module}.RESAMPLES", 10)
