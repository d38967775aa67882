"""Steering by files: what commands do, that a record repeats a training bit by bit, and that a kill loses none."""

import json
import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import STEPS, Toy, at, metrics, raises
from test_loop import train as fit_toy
from tiny_models import Answer

from viscoin.config import load_recipe
from viscoin.errors import Refused
from viscoin.runs import control
from viscoin.runs.control import INBOX, Entry, Record, read_record, send, waiting
from viscoin.runs.replay import start_replay
from viscoin.runs.run import Run
from viscoin.runs.status import Status, StatusFile, read_status
from viscoin.training import loop, steering
from viscoin.training.failures import Failed
from viscoin.training.loop import Interrupted

RATE = {"classifier.learning_rate": 0.02}
Plan = Mapping[int, list[tuple[str, dict[str, Any]]]]


class Steered(Toy):
    """A toy whose learning rate may change."""

    steerable = ("learning_rate", "early_stopping")

    def apply(self, values: Mapping[str, Any]) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = values.get("learning_rate", group["lr"])


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(steering, "LOOK_EVERY", 0)
    monkeypatch.setattr(loop, "LOOK_EVERY", 0.01)


@pytest.fixture
def new(tmp_path) -> Callable[[str], Run]:
    return lambda name: Run.create("classifier", load_recipe("birds"), tmp_path / name)


@pytest.fixture
def run(new):
    return new("run")


@pytest.fixture
def plan(monkeypatch) -> Callable[[Run, Plan], None]:
    """Have commands arrive during the steps before those which they name, each once."""

    def set_up(run: Run, commands: Plan) -> None:
        left, agree = dict(commands), loop._Loop.agree

        def agreed(self, stopping: int, late: bool) -> tuple[int, bool, bool]:
            if self.run.path == run.path:
                for command, values in left.pop(self.done, []):
                    send(run.path, command, values, by="anna")
            return agree(self, stopping, late)

        monkeypatch.setattr(loop._Loop, "agree", agreed)

    return set_up


@pytest.fixture
def while_paused(monkeypatch) -> Callable[..., list[str]]:
    """Do one thing after the other while a training waits; returns the states that status.json had then."""

    def set_up(run: Run, *actions: Callable[[], Any]) -> list[str]:
        left, states = list(actions), list[str]()

        def sleep(seconds: float) -> None:
            states.append(read_status(run.path).state)
            left.pop(0)()

        monkeypatch.setattr(loop.time, "sleep", sleep)
        return states

    return set_up


def sends(run: Run, command: str, values: dict[str, Any] | None = None) -> Callable[[], Any]:
    return lambda: send(run.path, command, values)


def train(run: Run, task: Toy | None = None, **changes: Any) -> Toy:
    task = task or Steered()
    fit_toy(run, task, **changes)
    return task


def record(run: Run) -> list[tuple[int, str, bool]]:
    return [(entry.step, entry.command, entry.refused is None) for entry in read_record(run.path)]


def same(one: tuple[Run, Toy], other: tuple[Run, Toy]) -> None:
    """Weights, checkpoints and metrics are equal bit by bit."""
    assert torch.equal(one[1].weight, other[1].weight)
    assert metrics(one[0]) == metrics(other[0])
    for name in ("last", "best"):
        states = [run.load_checkpoint(name) for run, _ in (one, other)]
        assert (states[0] is None) == (states[1] is None)
        if states[0] is not None:
            assert str(states[0]) == str(states[1])


def replayed(run: Run, new: Callable[[str], Run], **changes: Any) -> tuple[Run, Toy]:
    """A new run that repeats the commands of another."""
    again = new(f"again-{len(list(run.path.parent.iterdir()))}")
    start_replay(again, run.path)
    return again, train(again, **changes)


# --- files -------------------------------------------------------------------------------------------------------


def test_commands_of_two_writers_are_all_there_in_order(run):
    def write(name: str) -> None:
        for i in range(20):
            send(run.path, "note", {"text": f"{name}{i}"}, by=name)

    writers = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    [writer.start() for writer in writers]
    [writer.join() for writer in writers]
    train(run, steps=2)
    entries = read_record(run.path)
    assert len(entries) == 40 and not waiting(run.path) and {entry.step for entry in entries} == {0}
    assert [entry.time for entry in entries] == sorted(entry.time for entry in entries)
    for name in "ab":
        assert [e.values["text"] for e in entries if e.by == name] == [f"{name}{i}" for i in range(20)]


def test_line_that_was_cut_off_is_no_entry_and_the_next_one_stands_alone(run):
    first, second = (Entry(name, "note", {"text": name}, "b", 1.5, step) for step, name in enumerate("ab"))
    Record(run.path).append(first)
    with (run.path / "control.jsonl").open("a") as file:
        file.write('{"id": "c", "comm')
    assert read_record(run.path) == [first]
    Record(run.path).append(second)
    assert read_record(run.path) == [first, second]


@pytest.mark.parametrize(
    "line", ["{}", "[]", "x", '{"id": 1, "command": "stop", "values": {}, "step": 1}', "[" * 10**5]
)
def test_damaged_record_is_refused(run, line):
    (run.path / "control.jsonl").write_text(f"{line}\n")
    with pytest.raises(Refused, match=r"control.jsonl is damaged: line 1 is no command"):
        train(run)


def test_full_disk_while_a_command_is_recorded_leaves_it_in_the_inbox(run, monkeypatch):
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    def starts() -> None:
        monkeypatch.setattr(os, "fsync", lambda file: None)
        send(run.path, "set", RATE)
        monkeypatch.setattr(control.os, "fsync", full)

    with pytest.raises(Failed, match="make room, then resume"):
        train(run, Steered(at(3, starts)), save_seconds=1e9)
    assert read_record(run.path) == [] and len(waiting(run.path)) == 1
    assert (read_status(run.path).state, read_status(run.path).reason) == ("failed", "No space left on device")
    monkeypatch.setattr(os, "fsync", lambda file: None)
    train(run)
    assert record(run) == [(0, "set", True)] and not waiting(run.path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"command": "dance"}', "there is no command 'dance'; choose pause, continue"),
        ('{"command": "set"', "the file cannot be read"),
        ("[1]", "it is no command"),
        ('{"command": "set", "values": 3}', "it is no command"),
        ('{"command": "set"}', "set needs a value"),
        ('{"command": "note", "values": {"text": ""}}', "a note is a text"),
        ('{"command": "pause", "values": {"at": "noon"}}', "choose evaluations or never"),
        ('{"command": "stop", "values": {"now": 1}}', "stop takes no 'now'"),
        ('{"command": "penalty", "values": {"kind": "swap"}}', "penalty needs add, change or remove"),
        ('{"command": "penalty", "values": {"do": "remove", "name": "a"}}', "classifier has no penalties"),
        (
            '{"command": "set", "values": {"classifier.backbone": "x"}}',
            "cannot change while this training runs; choose",
        ),
        ('{"command": "set", "values": {"gan.kimg": 3}}', "choose classifier.learning_rate or classifier.early_stop"),
        ('{"command": "set", "values": {"learning_rate": "-1"}}', "greater than 0"),
        ('{"command": "set", "values": {"learning_rate": {"a": 1}}}', "valid number"),
        ('{"command": "set", "values": {"learning_rate": "nan"}}', "finite number"),
        ("x" * 70_000, "more than 65536 bytes"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_and_recorded(run, content, said, caplog):
    (run.path / INBOX).mkdir()
    (run.path / INBOX / "0001-a.json").write_text(content)
    (run.path / INBOX / ".0002-b.json").write_text("being written")
    train(run, steps=2)
    (entry,) = read_record(run.path)
    assert said in entry.refused and said in caplog.text
    assert os.listdir(run.path / INBOX) == [".0002-b.json"]
    assert torch.equal(train(run, steps=2).weight, train(run, steps=2).weight)


def test_pipe_in_the_inbox_does_not_stop_a_training(run):
    (run.path / INBOX).mkdir()
    os.mkfifo(run.path / INBOX / "0001-a.json")
    train(run, steps=2)
    assert "a named pipe" in read_record(run.path)[0].refused


# --- what commands do ----------------------------------------------------------------------------------------------


def test_set_takes_effect_at_its_step_and_a_replay_is_equal(run, new, plan):
    plan(run, {7: [("set", RATE)], 12: [("set", {"learning_rate": "0.5"}), ("note", {"text": "faster"})]})
    seen: dict[int, float] = {}
    task = Steered(lambda step: seen.update({step: task.optimizer.param_groups[0]["lr"]}))
    train(run, task)
    assert [seen[step] for step in (6, 7, 11, 12)] == [0.1, 0.02, 0.02, 0.5]
    entries = read_record(run.path)
    assert [(e.step, e.command, dict(e.values)) for e in entries] == [
        (7, "set", RATE), (12, "set", {"classifier.learning_rate": 0.5}), (12, "note", {"text": "faster"}),
    ]  # fmt: skip
    assert {entry.by for entry in entries} == {"anna"} and all(entry.time > 1e9 for entry in entries)
    again = replayed(run, new)
    same((run, task), again)
    assert not torch.equal(task.weight, train(new("plain")).weight)
    assert read_record(again[0].path) == entries and again[0].header["replay"] == str(run.path)


def test_pause_waits_takes_commands_and_goes_on(run, new, plan, while_paused):
    plan(run, {5: [("pause", {})]})
    states = while_paused(
        run, lambda: None, sends(run, "set", RATE), sends(run, "evaluate"), sends(run, "pause"), sends(run, "continue")
    )
    task = train(run)
    assert states == ["paused"] * 5
    assert record(run) == [(5, name, True) for name in ("pause", "set", "evaluate", "pause", "continue")]
    assert task.evaluated == [5, 6, 12, 18, 20]
    again = replayed(run, new)
    assert record(again[0]) == [(5, "set", True), (5, "evaluate", True)]
    same_but_obeyed = [metrics(run), metrics(again[0])]
    assert same_but_obeyed[0] == same_but_obeyed[1] and torch.equal(task.weight, again[1].weight)


def test_pause_and_continue_change_no_bit(run, new, plan, while_paused):
    plan(run, {5: [("pause", {})]})
    while_paused(run, sends(run, "continue"))
    task, plain = train(run), new("plain")
    assert torch.equal(task.weight, train(plain).weight) and metrics(run) == metrics(plain)
    with pytest.raises(Refused, match="no command has changed what it trained"):
        start_replay(new("again"), run.path)


def test_pause_at_each_evaluation_until_never(run, plan, while_paused):
    plan(run, {2: [("pause", {"at": "evaluations"})], 9: [("evaluate", {})]})
    states = while_paused(run, sends(run, "continue"), sends(run, "pause", {"at": "never"}), sends(run, "continue"))
    train(run)
    assert len(states) == 3
    assert [(step, name) for step, name, _ in record(run)] == [
        (2, "pause"), (6, "continue"), (9, "evaluate"), (12, "pause"), (12, "continue"),
    ]  # fmt: skip


@pytest.mark.parametrize("paused", [False, True])
def test_stop_saves_and_ends_as_ctrl_c_does(run, new, plan, while_paused, paused):
    plan(run, {7: [("set", RATE), ("pause" if paused else "stop", {})], 9: [("set", {"learning_rate": 0.3})]})
    while_paused(run, sends(run, "stop"))
    with pytest.raises(Interrupted, match="stopped at step 7 of 20; resume with") as caught:
        train(run)
    assert caught.value.signal == signal.SIGINT
    assert run.load_checkpoint("last")["step"] == 7 and read_status(run.path).state == "stopped"
    task = train(run, Steered(lambda step: pytest.fail("ran again") if step < 7 else None))
    assert [step for step, name, _ in record(run) if name == "set"] == [7, 9]
    again = replayed(run, new)
    assert torch.equal(task.weight, again[1].weight) and metrics(run) == metrics(again[0])


def test_signal_ends_a_paused_training(run, plan, while_paused):
    plan(run, {5: [("pause", {})]})
    while_paused(run, sends(run, "set", RATE), lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match="at step 5 of 20"):
        train(run)
    state = run.load_checkpoint("last")
    assert (state["step"], state["obeyed"]) == (5, 2)
    seen = []
    task = Steered(lambda step: seen.append(task.optimizer.param_groups[0]["lr"]))
    train(run, task)  # not paused again
    assert seen[0] == 0.02 and read_status(run.path).state == "failed"  # which has no model file


def test_finish_is_the_end_of_a_shorter_training(run, new, plan):
    plan(run, {9: [("finish", {}), ("set", RATE)]})
    task = Steered(scores=[0.1, 0.3, 0.2, 0.0])
    train(run, task)
    assert record(run) == [(9, "finish", True), (9, "set", False)]
    assert task.evaluated == [6, 9]
    assert [line["step"] for line in metrics(run) if "train.fit" in line] == [4, 8, 9]
    assert run.load_checkpoint("best")["step"] == 9 and run.load_checkpoint("last")["step"] == 9
    short = new("short")
    assert torch.equal(task.weight, train(short, steps=9).weight)
    assert metrics(run) == metrics(short)
    train(run, Steered(lambda step: pytest.fail("trained on")))
    again = replayed(run, new)
    assert metrics(again[0]) == metrics(run)


def test_evaluate_may_keep_better_weights_and_costs_no_patience(run, new, plan):
    def scored() -> Steered:
        task, original = Steered(), Steered.evaluate
        task.evaluate = lambda step: (original(task, step)[0], {6: 0.1, 8: 0.9, 9: 0.2}.get(step, 0.3))
        return task

    plan(run, {6: [("evaluate", {})], 8: [("evaluate", {})], 9: [("evaluate", {}), ("evaluate", {})]})
    task = train(run, scored(), patience=2)
    assert task.evaluated == [6, 8, 9, 12, 18]  # once at a step, and two planned ones without a better score are enough
    assert run.load_checkpoint("best")["step"] == 8
    again = new("again")
    start_replay(again, run.path)
    train(again, other := scored(), patience=2)
    same((run, task), (again, other))


def test_patience_can_be_set(run, plan):
    plan(run, {3: [("set", {"early_stopping": 1})], 7: [("set", {"early_stopping": "2"})]})
    task = train(run, Steered(scores=[0.9, 0.3, 0.2, 0.1]))
    assert task.evaluated == [6, 12, 18] and run.load_checkpoint("last")["stale"] == 2
    assert read_status(run.path).steerable["classifier.early_stopping"] == 2


def test_task_without_values_refuses_to_set_any(run):
    send(run.path, "set", RATE)
    train(run, Toy(), steps=2)
    assert "cannot change while this training runs; start another" in read_record(run.path)[0].refused


def test_command_that_comes_too_late_is_refused(run, plan):
    plan(run, {STEPS: [("evaluate", {})]})
    train(run)
    assert record(run) == [(STEPS, "evaluate", False)] and not waiting(run.path)
    assert read_record(run.path)[0].refused == "the training has ended"


# --- kills ---------------------------------------------------------------------------------------------------------

KILLS = {
    "before it is recorded": (Record, "append", False),
    "after it is recorded": (Record, "append", True),
    "after it has left the inbox": (steering.Steering, "_take", True),
    "before it is obeyed": (steering.Steering, "_report", False),
    "while it evaluates": (loop._Loop, "evaluate", False),
    "after it has evaluated": (loop._Loop, "evaluate", True),
    "before it is saved": (loop._Loop, "save", False),
    "after it is saved": (loop._Loop, "save", True),
}


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("moment", KILLS)
def test_kill_around_commands_loses_none_and_obeys_none_twice(run, new, plan, moment, saved):
    """Killed at step 8 or 9, with a checkpoint of that step or an older one, and resumed."""
    owner, name, after = KILLS[moment]
    original, kills = getattr(owner, name), [1, 2]
    options = {"save_seconds": 0 if saved else 1e9}

    def dies(self, *arguments: Any, **others: Any) -> Any:
        found = original(self, *arguments, **others) if after else None
        if kills and getattr(self, "done", 8) >= 8 and read_status(run.path).step >= 7 and kills.pop():
            raise MemoryError
        return found if after else original(self, *arguments, **others)

    commands = [("set", RATE), ("evaluate", {}), ("set", {"learning_rate": 0.4}), ("note", {"text": "x"})]
    plan(run, {8: commands, 15: [("finish", {})]})
    status = StatusFile.due
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StatusFile, "due", lambda self: True)
        patch.setattr(owner, name, dies)
        for _ in (1, 2):
            with pytest.raises(MemoryError):
                train(run, **options)
        task = train(run, **options)
    assert status and kills == []
    found = [(e.command, dict(e.values)) for e in read_record(run.path) if e.command != "finish"]
    assert [name for name, _ in found] == ["set", "evaluate", "set", "note"]
    again = replayed(run, new, **options)
    assert torch.equal(task.weight, again[1].weight) and metrics(run) == metrics(again[0])
    assert [(run.load_checkpoint("last")["step"], "finish", True)] == record(run)[-1:]


def test_torn_checkpoint_repeats_the_commands_since_the_one_before(run, new, plan):
    plan(run, {13: [("set", RATE)], 16: [("evaluate", {}), ("set", {"learning_rate": 0.4})]})
    with pytest.raises(MemoryError):
        train(run, Steered(at(17, raises(MemoryError()))), save_seconds=0)
    last = run.checkpoints / "last.pt"
    last.write_bytes(last.read_bytes()[:-100])
    task = train(run, Steered(lambda step: pytest.fail("ran again") if step < 16 else None))
    again = replayed(run, new)
    assert torch.equal(task.weight, again[1].weight) and metrics(run) == metrics(again[0])
    assert len(record(run)) == 3


# --- replay --------------------------------------------------------------------------------------------------------


def test_replay_that_is_stopped_goes_on_and_takes_no_other_commands(run, new, plan):
    plan(run, {4: [("set", RATE)], 14: [("set", {"learning_rate": 0.3})]})
    task, again = train(run), new("again")
    start_replay(again, run.path)
    send(again.path, "set", {"learning_rate": 0.7})
    send(again.path, "note", {"text": "mine"})
    with pytest.raises(Interrupted):
        train(again, Steered(at(8, lambda: signal.raise_signal(signal.SIGTERM))))
    assert [e.refused for e in read_record(again.path) if e.refused] == [
        f"this run replays the commands of {run.path}; start one without `replay`"
    ]
    with Run.opened("classifier", load_recipe("birds"), again.path) as resumed:
        start_replay(resumed, Path("gone"))
    other = train(again)
    assert torch.equal(task.weight, other.weight) and metrics(run) == metrics(again)


def test_replays_that_are_refused(run, new, plan, tmp_path):
    plan(run, {15: [("set", RATE)]})
    train(run)
    others = {
        "another recipe .dataset.train: .* -> 7": load_recipe("birds", {"dataset.train": 7}),
        "another recipe .classifier.epochs": load_recipe("birds", {"classifier.epochs": 7}),
    }
    for i, (said, recipe) in enumerate(others.items()):
        with pytest.raises(Refused, match=said):
            start_replay(Run.create("classifier", recipe, tmp_path / f"other{i}"), run.path)
    with pytest.raises(Refused, match="a classifier run, not a gan run"):
        start_replay(Run.create("gan", load_recipe("birds"), tmp_path / "gan"), run.path)
    with pytest.raises(Refused, match="there is no such run"):
        start_replay(new("again"), tmp_path / "nothing")
    begun = new("begun")
    train(begun, steps=1)
    with pytest.raises(Refused, match=r"was started without it; start a new run \(`out`\)"):
        start_replay(begun, run.path)
    with pytest.raises(Refused, match=r"a command .set. for step 15, and this training ends after 10"):
        replayed(run, new, steps=10)


# --- status and the command line -------------------------------------------------------------------------------------


def test_status_while_it_trains(run):
    seen: list[Status] = []
    patched = pytest.MonkeyPatch()
    patched.setattr(StatusFile, "due", lambda self: True)
    train(run, Steered(lambda step: seen.append(read_status(run.path))))
    patched.undo()
    assert [status.state for status in seen[:2]] == ["running", "running"]
    status = seen[9]
    assert (status.step, status.steps, status.process) == (9, STEPS, os.getpid())
    assert status.left == pytest.approx(11 * status.pace) and status.metrics.keys() >= {"train.fit", "validation.sum"}
    assert status.steerable == {
        "classifier.learning_rate": load_recipe("birds").classifier.learning_rate, "classifier.early_stopping": None,
    }  # fmt: skip
    assert json.loads((run.path / "status.json").read_text())["state"] == "finished"
    run.model_path.touch()
    assert read_status(run.path).state == "finished"


def test_status_of_the_dead_and_the_silent(run, monkeypatch):
    assert read_status(run.path).state == "stopped"
    file = StatusFile(run)
    file.write("running")
    assert read_status(run.path).state == "failed"  # nobody has it
    with run.lock():
        assert read_status(run.path).state == "running"
        monkeypatch.setattr("viscoin.runs.status.SILENT", -1)
        assert read_status(run.path).state == "silent"
        (run.path / ".owner.json").write_text(json.dumps({"process": 2**22 + 1, "host": file.status.host}))
        assert read_status(run.path).state == "failed"
    (run.path / "status.json").write_text("[" * 10**5)
    assert read_status(run.path).state == "stopped"
    run.model_path.touch()
    assert read_status(run.path).state == "finished"


def test_command_line(run, plan):
    path = run.path
    answers: dict[int, Answer] = {}

    def asks(step: int) -> None:
        if step == 0:
            Answer("control", path, "set", "learning_rat=0.3").refused("classifier.learning_rat", "cannot change")
            Answer("control", path, "set", "learning_rate").refused("learning_rate: expected KEY=VALUE")
            Answer("control", path, "set", "learning_rate=0").refused("greater than 0")
            Answer("control", path, "stop", "now").refused("stop stands alone")
            Answer("control", path, "dance").refused("there is no command 'dance'")
            answers[0] = Answer("control", path, "set", "learning_rate=3e-1", "early_stopping=9", "--wait", 0)
        if step == 2:
            answers[2] = Answer("control", path)

    train(run, Steered(asks))
    assert answers[0].went_well().out == "sent: set; it will be obeyed soon\n"
    assert answers[2].went_well().out.startswith(f"{path}: running, step 1 of 20")
    assert "  step 1: set classifier.learning_rate=0.3 classifier.early_stopping=9" in answers[2].out.splitlines()
    (entry,) = read_record(path)
    assert dict(entry.values) == {"classifier.learning_rate": 0.3, "classifier.early_stopping": 9}


def test_command_line_waits_for_the_fate(run):
    def obeys() -> None:
        while not (found := waiting(run.path)):
            pass
        refused = None if "note" in found[0].read_text() else "no"
        Record(run.path).append(Entry(found[0].stem, "note", {"text": "x"}, "b", 1.0, 4, refused))
        found[0].unlink()

    with run.lock():
        for words, check in ((("note", "x", "y"), "obeyed at step 4: note\n"), (("evaluate",), "")):
            thread = threading.Thread(target=obeys)
            thread.start()
            answer = Answer("control", run.path, *words)
            thread.join()
            assert answer.out == check
    answer.refused("Error: no")


def test_runs_that_cannot_be_steered(run, tmp_path):
    Answer("control", tmp_path / "nothing", "stop").refused("there is no run in it")
    for command in ("pause", "continue", "stop"):
        Answer("control", run.path, command).refused("no training runs there (it is stopped)")
    assert "when the run is resumed" in Answer("control", run.path, "evaluate").went_well().out
    train(run)
    run.model_path.touch()
    Answer("control", run.path, "evaluate").refused("this training has ended")
    assert record(run) == [(0, "evaluate", True)]
