"""The API as its own document describes it: whatever is asked, no error of the service, and answers that fit."""

import pytest
from test_serving import API, BEARER, TOKEN
from tiny_models import tiny_recipe, write_models

from viscoin.runs.run import Run
from viscoin.serving.app import create_app
from viscoin.serving.jobs import Jobs
from viscoin.serving.state import Settings

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

# All of schemathesis here, not when the schema is read: pytest parses its modules, which older CPythons refuse with
# "AST constructor recursion depth mismatch" while a thread of the service parses as well (numpy the head of an .npy).
import hypothesis  # noqa: E402
from hypothesis import HealthCheck  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.core.failures import FailureGroup  # noqa: E402
from schemathesis.specs.openapi import schemas  # noqa: E402, F401
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance  # noqa: E402

# An endless stream has no answer to look at; its parameters are those of its neighbours.
ENDLESS = f"{API}/runs/{{run}}/events"
# What leads on, in the place of what was made up, in every second case: else hardly any question reaches a model.
REAL = {
    "image": "birds/test/3", "run": "watched", "name": "birds", "split": "test", "index": 3, "k": 1,
    "method": "saliency", "kind": "classifier", "factors": {"1": 2.0},
}  # fmt: skip


class Process:
    """A training that is over."""

    def poll(self):
        return 0


@pytest.fixture
def api(tmp_path):
    """The schema of a service with a tiny ensemble and a run, which starts no trainings.

    schemathesis starts the service with its first question and ends it with the test.
    """
    path = write_models(tmp_path / "models")["viscoin"]
    run = Run.create("classifier", tiny_recipe(), tmp_path / "runs" / "watched")
    run.log(1, {"train.loss": 1.0, "validation.accuracy": 0.5})
    app = create_app(Settings([("viscoin", path)], tmp_path / "runs", "cpu", token=TOKEN))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Jobs, "_start", lambda self, job: Process())
        schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=BEARER | {"Host": "localhost"})
        service = app.state.service
        for engine in (service.quick, service.slow):  # what each does when it starts
            engine.submit("wait", list, [0]).result(timeout=120)
        assert service.models.failed is None and len(list(service.models)) == 1
        yield schema


def fitting(operation):
    return operation.as_strategy(generation_mode=GenerationMode.POSITIVE)


def odd(operation):
    """What breaks the schema, where anything can."""
    try:
        strategy = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
        strategy.validate()
        return strategy
    except Exception:
        return fitting(operation)


def ask_everything(schema, examples):
    """Questions of each operation; returns the answers that do not fit."""
    failures = []
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == ENDLESS:
            continue

        @hypothesis.settings(
            max_examples=examples, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @hypothesis.given(fitting(operation) | odd(operation), hypothesis.strategies.booleans())
        def ask(case, leading):
            for values in (case.path_parameters, case.query, case.body) if leading else ():
                if isinstance(values, dict):
                    values.update({key: REAL[key] for key in values.keys() & REAL.keys()})
            # What fits the schema may still name no image or method; and a parameter that comes twice counts once.
            case.call_and_validate(excluded_checks=[positive_data_acceptance, negative_data_rejection])

        try:
            ask()
        except FailureGroup as group:
            failures.append(f"{operation.label}: {group}")
    return failures


def test_no_question_is_an_error_of_the_service(api):
    assert ask_everything(api, 4) == []


@pytest.mark.long
def test_no_question_of_very_many_is_an_error_of_the_service(api):
    assert ask_everything(api, 200) == []
