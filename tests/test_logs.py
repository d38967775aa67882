"""Logs: odd lines, resumes, several runs, tables, and logs that grow while somebody looks."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_models import Answer

from viscoin.kinds import TRAINED
from viscoin.plotting.training import training_figure
from viscoin.runs import metrics
from viscoin.runs.run import newest_of_any

Line = dict[str, Any] | str


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def text(lines: list[Line]) -> str:
    return "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)


def write(path: Path, lines: list[Line]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(lines))
    return path


def run(name: str, lines: list[Line]) -> Path:
    """A run folder with a log."""
    write(Path("runs", name, "metrics.jsonl"), lines)
    Path("runs", name, "recipe.yaml").write_text("kind: viscoin\n")
    return Path("runs", name)


def series(log: metrics.Log) -> dict[str, list[tuple[float, float]]]:
    return {name: list(zip(steps.tolist(), values.tolist())) for name, (steps, values) in log.series.items()}


def steps(n: int) -> list[Line]:
    return [{"step": 50 * i, "time": i, "train.l1": 1 / i, "train.total": 2 / i} for i in range(1, n + 1)]


# --- lines


def test_nested_and_odd_lines():
    lines: list[Line] = [
        {"step": 1, "train": {"l1": 1, "terms": {"a": 2}}, "note": "x", "on": True, "list": [1], "none": None},
        {"step": 2, "train_l1": 0.5, "test": {"acc": 0.25}},
        "{" * 9000,
        '{"step": 3, "train.l1": 1' + "0" * 400 + "}",
        '{"step": 3, "train.l1": NaN}',
        '{"step": 4} {"step": 5}',
        "\x00\xff",
    ]
    log = metrics.parse_log([line if isinstance(line, str) else json.dumps(line) for line in lines], Path("a.log"))
    assert log.broken == 4
    found = series(log)
    assert found["train.terms.a"] == [(1, 2)] and found["test.acc"] == [(2, 0.25)]
    assert found["train.l1"][:2] == [(1, 1), (2, 0.5)] and np.isnan(found["train.l1"][2][1])
    assert found.keys() == {"train.l1", "train.terms.a", "test.acc"}


def test_later_values_count_after_resumes(caplog):
    lines: list[Line] = [{"step": s, "train.l1": v} for s, v in ((1, 1), (2, 2), (3, 3), (2, 20), (3, 30), (3, 31))]
    log = metrics.read_log(write(Path("a.jsonl"), [*lines[:2], {"step": 2, "validation.l1": 5}, *lines[2:]]))
    assert series(log) == {"train.l1": [(1, 1), (2, 20), (3, 31)], "validation.l1": [(2, 5)]}
    assert log.replaced == 3


@pytest.mark.parametrize("epoch", [True, False])
def test_batches_that_start_again_in_every_epoch_are_no_resume(epoch):
    key = "iteration" if epoch else "batch"
    lines = [{"train_l1": 10 * e + b, key: b, **({"epoch": e} if epoch else {})} for e in (0, 1) for b in (0, 1, 2)]
    log = metrics.parse_log(list(map(json.dumps, lines)), Path("a.log"))
    assert series(log) == {"train.l1": [(1, 0), (2, 1), (3, 2), (4, 10), (5, 11), (6, 12)]}


def test_several_lines_of_one_epoch_stay():
    lines = [{"epoch": e, "train_l1": v} for e, v in ((1, 1), (1, 2), (2, 3))] + [{"test_acc": 0.5}]
    log = metrics.parse_log(list(map(json.dumps, lines)), Path("a.log"))
    assert series(log) == {"train.l1": [(1, 1), (1, 2), (2, 3)], "test.acc": [(2, 0.5)]}


def test_empty_logs_say_so():
    with pytest.raises(ValueError, match=r"the log a\.log is empty; wait .* `follow`"):
        metrics.read_log(write(Path("a.log"), ["", " "]))
    Answer("logs", "--logs-path", "a.log").refused("a.log is empty")


def test_smoothing_passes_over_what_is_not_finite():
    found = metrics.smooth(np.array([1.0, np.nan, 3.0]), 0.5)
    assert np.isnan(found[1]) and found[2] == pytest.approx((0.25 * 1 + 0.5 * 3) / 0.75)


# --- several runs


def test_names_of_runs_differ(tmp_path):
    def names(*paths: str) -> list[str]:
        return metrics.run_names([tmp_path / path for path in paths])

    assert names("runs/one/metrics.jsonl", "runs/two/metrics.jsonl") == ["one", "two"]
    assert names("a/run/metrics.jsonl", "b/run/metrics.jsonl") == ["a/run", "b/run"]
    assert names("logs/viscoin_30.log", "logs/viscoin_31.log") == ["viscoin_30", "viscoin_31"]
    assert len(set(names("logs/a.log", "logs/a.jsonl"))) == 2


def test_compared_runs_have_colours_and_names_of_their_own():
    found = [metrics.read_log(run(name, steps(3))) for name in ("one", "two")]
    figure = training_figure(found, names=["l1"])
    assert len({line.get_color() for line in figure.axes[0].lines}) == 2
    assert [entry.get_text() for entry in figure.legends[0].get_texts()] == ["one", "two", "train"]
    with pytest.raises(ValueError, match="9 runs are too many for one figure; choose up to 8"):
        training_figure(found[:1] * 9)


def test_log_scale_where_there_are_positive_values():
    lines: list[Line] = [{"step": i, "a": 10.0**-i, "b": 0.0} for i in range(5)]
    log = metrics.read_log(write(Path("a.jsonl"), lines))
    assert [axes.get_yscale() for axes in training_figure([log], log_scale=True).axes] == ["log", "linear"]
    assert [axes.get_yscale() for axes in training_figure([log]).axes] == ["linear", "linear"]


def test_table_has_a_row_for_every_value(here):
    one, two = run("one", [*steps(2), {"step": 100, "validation.l1": 0.1}]), run("two", [{"step": 1, "fid": 3.5}])
    options = ["--logs-path", one, "--logs-path", two, "--logs-path", one / "metrics.jsonl"]
    answer = Answer("logs", *options, "--csv", "tables/a.csv", "--log-scale").went_well()
    assert answer.out.split() == [
        str(here / "runs/one/figures/training-of-2-runs.png").replace(f"{here}/", ""),
        "tables/a.csv",
    ]
    with Path("tables/a.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["run", "split", "measure", "step", "value"],
        ["one", "train", "l1", "50", "1.0"],
        ["one", "train", "l1", "100", "0.5"],
        ["one", "train", "total", "50", "2.0"],
        ["one", "train", "total", "100", "1.0"],
        ["one", "validation", "l1", "100", "0.1"],
        ["two", "", "fid", "1", "3.5"],
    ]


@pytest.mark.parametrize("kind", TRAINED)
def test_the_newest_run_of_every_kind_of_training_is_found(kind):
    for name, other, year in (("old", "classifier", 2025), ("new", kind, 2026), ("other", "gan", 2024)):
        header = {"kind": other, "created": f"{year}-01-01T00:00:00", "recipe": {"dataset": {"name": "birds"}}}
        (run(name, steps(2)) / "recipe.yaml").write_text(json.dumps(header))
    found = newest_of_any("birds")
    assert found is not None and found.path == Path("runs/new")
    assert newest_of_any("cars") is None
    assert Answer("logs").went_well().out == "runs/new/figures/training.png\n"


def test_chosen_measures_alone(here):
    folder = run("one", [*steps(2), {"step": 100, "validation.l1": 0.1, "validation.mse": 0.2}])
    options = ["--logs-path", folder, "--out", "out", "--csv", "a.csv"]
    Answer("logs", *options, "--measures", "validation.l1, total").went_well()
    assert {line.split(",")[2] for line in Path("a.csv").read_text().splitlines()[1:]} == {"l1", "total"}
    assert "train,l1" not in Path("a.csv").read_text()
    Answer("logs", *options, "--measures", "l1,lpips").refused("--measures lpips", "there are l1, total, mse")
    Answer("logs", *options, "--smoothing", "1").refused("--smoothing 1", "below 1")


# --- growing logs


class Script:
    """Does the next thing in the place of each pause."""

    def __init__(self, *actions: Callable[[], Any]) -> None:
        self.actions = list(actions)

    def __call__(self, _pause: float) -> None:
        if not self.actions:
            raise KeyboardInterrupt
        self.actions.pop(0)()


def append(path: Path, content: str) -> Callable[[], Any]:
    def act() -> None:
        with path.open("a") as file:
            file.write(content)

    return act


def end(folder: Path) -> Callable[[], Any]:
    def act() -> None:
        model = folder / "model.safetensors"
        model.touch()
        later = (folder / "metrics.jsonl").stat().st_mtime_ns + 10**9
        os.utime(model, ns=(later, later))

    return act


def test_growing_log_is_followed_until_the_run_ends():
    folder = run("one", steps(2))
    file = folder / "metrics.jsonl"
    third, fourth = text(steps(3)[2:]), text(steps(4)[3:])
    script = Script(
        append(file, third[:9]),  # half a line
        append(file, third[9:] + "broken\n"),
        lambda: file.write_text(text(steps(1))),  # a resume: lines are dropped
        append(file, text(steps(2)[1:])),
        append(file, third + fourth),
        end(folder),
    )
    looks = list(metrics.follow([folder], sleep=script))
    assert [[json.loads(line)["step"] if "{" in line else line for _, line in look.fresh] for look in looks] == [
        [50, 100], [], [150, "broken"], [], [100], [150, 200], [],
    ]  # fmt: skip
    assert [look.rewritten for look in looks] == [[], [], [], [0], [], [], []]
    assert looks[2].logs[0].broken == 1
    assert looks[-1].logs[0].series["train.l1"][0].tolist() == [50, 100, 150, 200]


def test_log_that_is_not_there_yet_or_is_replaced_by_another_is_followed():
    folder = run("one", [])
    file = folder / "metrics.jsonl"
    file.unlink()
    script = Script(
        lambda: write(file, steps(2)), lambda: write(file, [{"step": 1, "fid": 1.0}]), file.unlink, end_without(folder)
    )
    looks: list[metrics.Growth] = []
    with pytest.raises(KeyboardInterrupt):
        looks.extend(metrics.follow([folder], sleep=script))
    assert [len(look.fresh) for look in looks] == [0, 2, 1, 0, 0]
    assert looks[2].logs[0].measures == ["fid"]


def end_without(folder: Path) -> Callable[[], Any]:
    """A model without a log is no end: a run that is started again may write one."""
    return (folder / "model.safetensors").touch


def test_command_that_follows(here, monkeypatch):
    folder = run("one", steps(1))
    file = folder / "metrics.jsonl"
    seen: list[bytes] = []
    figure = folder / "figures" / "training.png"

    def look() -> None:
        seen.append(figure.read_bytes())
        append(file, "oops\n" + text(steps(40)[1:]) + text([{"step": 2000, "validation.accuracy": 0.5}]))()

    monkeypatch.setattr("viscoin.runs.metrics.time.sleep", Script(look, end(folder)))
    monkeypatch.setattr("viscoin.cli.logs.REDRAW", 0.0)
    answer = Answer("logs", "--logs-path", folder, "--follow", "--measures", "l1,accuracy").went_well()
    assert answer.out.splitlines()[:3] == ["step 50  train: l1 1", "broken line: 'oops'", "step 100  train: l1 0.5"]
    assert answer.out.splitlines()[-2:] == ["step 2000  validation: accuracy 0.5", str(figure)]
    assert figure.read_bytes() != seen[0] and not list(folder.rglob("*.partial"))
    Image.open(figure).verify()


def test_command_that_is_interrupted_draws_what_there_is(here, monkeypatch):
    two = write(Path("old", "two.log"), [{"train_loss": 1.0}])
    monkeypatch.setattr("viscoin.runs.metrics.time.sleep", Script())
    options = ["--logs-path", run("one", steps(2)), "--logs-path", two, "--follow", "--out", "out"]
    answer = Answer("logs", *options, "--csv", "a.csv").went_well()
    assert "one  step 50  train: l1 1, total 2\n" in answer.out and "two  train: loss 1\n" in answer.out
    assert "stopped following" in answer.err
    assert (here / "out" / "training-of-2-runs.png").is_file() and len(Path("a.csv").read_text().splitlines()) == 6
    write(two, [])
    Answer("logs", "--logs-path", two, "--follow", "--out", "out").refused("two.log: no line with numbers has come")
    Answer("logs", "--logs-path", "runs/none", "--follow").refused("--logs-path runs/none", "to follow")
