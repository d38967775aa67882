"""The training loop: what it writes, that a stopped run goes on as if it never stopped, and that NaNs do no harm."""

import math
import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from viscoin.config import load_recipe
from viscoin.datasets import ImageDataset
from viscoin.inference.devices import resolve_device
from viscoin.runs.run import Run, read_metrics
from viscoin.training import loop
from viscoin.training.checkpoints import load_best, read_once
from viscoin.training.data import StepBatches
from viscoin.training.loop import Interrupted, check_finite, fit
from viscoin.training.runtime import Runtime, make_fabric, seed_step

STEPS, EVALUATE_EVERY, LOG_EVERY = 20, 6, 4


class Toy:
    """Fits one weight per pixel to noisy images; `before` is called with each step's number."""

    def __init__(self, before: Callable[[int], None] = lambda step: None, scores: list[float] | None = None) -> None:
        self.weight = torch.zeros(3, 4, 4, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.weight], 0.1)
        self.before, self.scores, self.evaluated = before, scores, []

    def step(self, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        self.before(step)
        noise = torch.randn_like(images)
        terms = {"fit": (self.weight - images - noise).square().mean(), "size": 0.1 * self.weight.abs().mean()}
        check_finite(terms, step)
        self.optimizer.zero_grad()
        sum(terms.values()).backward()
        self.optimizer.step()
        return {key: value.detach() for key, value in terms.items()}

    def evaluate(self, step: int) -> tuple[dict[str, float], float | None]:
        self.evaluated.append(step)
        torch.randn(7)  # evaluations may draw, and must not disturb the training
        value = float(self.weight.detach().sum())
        return {"sum": value}, None if self.scores is None else self.scores[math.ceil(step / EVALUATE_EVERY) - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self.weight.copy_(state["weight"])
        self.optimizer.load_state_dict(state["optimizer"])


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_disks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture
def run(tmp_path):
    return Run.create("classifier", load_recipe("birds"), tmp_path / "run")


def batches() -> StepBatches:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
    return StepBatches(ImageDataset("toy", "train", pixels, np.zeros(10, int), ["a"]), 3, 0, horizontal_flip=True)


def train(run: Run, task: Toy, **changes: Any) -> dict[str, float]:
    settings = {
        "seed": 5,
        "evaluate_every": EVALUATE_EVERY,
        "log_every": LOG_EVERY,
        "device": torch.device("cpu"),
        "title": "toy",
        "steps": STEPS,
    }
    return fit(run, task, batches(), **settings | changes)


def metrics(run: Run) -> list[dict[str, Any]]:
    """The logged lines without their times."""
    return [{key: value for key, value in line.items() if key != "time"} for line in read_metrics(run.metrics_path)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Weights and metrics of a run that was left alone."""
    run = Run.create("classifier", load_recipe("birds"), tmp_path_factory.mktemp("runs") / "run")
    task = Toy()
    train(run, task)
    return task.weight.detach(), metrics(run)


def at(number: int, action: Callable[[], Any]) -> Callable[[int], None]:
    return lambda step: action() if step == number else None


def raises(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


# --- what it writes ----------------------------------------------------------------------------------------------


def test_what_a_run_writes(run):
    task = Toy(scores=[0.1, 0.3, 0.2, 0.0])
    results = train(run, task)
    assert task.evaluated == [6, 12, 18, 20]
    assert results == {"sum": float(task.weight.detach().sum())}
    lines = metrics(run)
    assert [line["step"] for line in lines if "train.fit" in line] == [4, 8, 12, 16, 20]
    assert [line["step"] for line in lines if "validation.sum" in line] == [6, 12, 18, 20]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert sorted(os.listdir(run.checkpoints)) == ["best.pt", "last.pt", "previous.pt"]
    assert run.load_checkpoint("last")["step"] == 20


def test_logged_terms_are_means_over_steps(run):
    values = []
    task = Toy()
    original = task.step
    task.step = lambda *arguments: values.append(original(*arguments)) or values[-1]
    train(run, task, steps=6)
    lines = [line for line in metrics(run) if "train.fit" in line]
    assert [line["step"] for line in lines] == [4, 6]
    for line, part in zip(lines, (values[:4], values[4:])):
        assert line["train.fit"] == pytest.approx(float(torch.stack([value["fit"] for value in part]).mean()))


def test_terms_that_are_not_always_there_are_averaged_over_the_steps_that_have_them(run):
    task = Toy()
    original = task.step
    task.step = lambda images, labels, step: (
        original(images, labels, step) | ({"lazy": torch.tensor(float(step))} if step % 2 else {})
    )
    train(run, task, steps=4)
    assert metrics(run)[0]["train.lazy"] == 2.0  # of steps 1 and 3


def test_pictures_are_drawn_at_evaluations(run):
    drawn = []
    train(run, Toy(), on_evaluate=drawn.append)
    assert drawn == [6, 12, 18, 20]


def test_evaluation_without_results_leaves_no_line(run):
    task = Toy()
    task.evaluate = lambda step: ({}, None)
    assert train(run, task) == {}
    assert all("train.fit" in line for line in metrics(run))


def test_checkpoints_by_time(run):
    saved = []
    original = run.save_checkpoint
    run.save_checkpoint = lambda name, state, keep: saved.append((name, state["step"])) or original(name, state, keep)
    train(run, Toy(), steps=4, save_seconds=0)
    assert saved == [("last", step) for step in (1, 2, 3, 4)]
    saved.clear()
    for path in run.checkpoints.iterdir():
        path.unlink()
    train(run, Toy(), steps=4, save_seconds=1e9)
    assert saved == [("last", 4)]


def test_time_between_checkpoints_counts_from_the_last_one(run, monkeypatch):
    saved, ticks = [], iter(range(1000))
    monkeypatch.setattr(run, "save_checkpoint", lambda name, state, keep: saved.append(state["step"]))
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(ticks) / 2)  # there are two looks at the clock in a step
    train(run, Toy(), steps=10, evaluate_every=100, save_seconds=2.4)
    assert saved == [3, 6, 9, 10]


# --- going on ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "number"), [(signal.SIGTERM, n) for n in (0, 5, 9, 18)] + [(signal.SIGINT, 9)])
def test_stopped_run_goes_on_as_if_never_stopped(run, uninterrupted, kind, number):
    before = signal.getsignal(kind)
    with pytest.raises(Interrupted, match=rf"at step {number + 1} of 20; resume with `resume` `out` {run.path}"):
        train(run, Toy(at(number, lambda: signal.raise_signal(kind))))
    assert signal.getsignal(kind) is before
    assert run.load_checkpoint("last")["step"] == number + 1
    task = Toy(lambda step: pytest.fail("ran again") if step <= number else None)
    train(run, task)
    weight, lines = uninterrupted
    assert torch.equal(task.weight, weight)
    assert metrics(run) == lines


@pytest.mark.parametrize("number", [2, 8, 19])
def test_killed_run_repeats_the_steps_since_its_last_checkpoint(run, uninterrupted, number):
    with pytest.raises(MemoryError):
        train(run, Toy(at(number, raises(MemoryError()))))
    with run.metrics_path.open("a") as file:
        file.write('{"step": 3, "train.f')  # a line cut off
    task = Toy()
    train(run, task)
    assert torch.equal(task.weight, uninterrupted[0])
    assert metrics(run) == uninterrupted[1]


def test_stop_during_the_last_step_stops_what_would_follow(run, uninterrupted):
    with pytest.raises(Interrupted, match="stopped at step 20 of 20"):
        train(run, Toy(at(STEPS - 1, lambda: signal.raise_signal(signal.SIGTERM))))
    task = Toy(lambda step: pytest.fail("trained on"))
    train(run, task)
    assert torch.equal(task.weight, uninterrupted[0])
    assert metrics(run) == uninterrupted[1]


def test_second_signal_stops_at_once(run):
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    task = Toy(at(7, twice))
    with pytest.raises(KeyboardInterrupt) as caught:
        train(run, task)
    assert not isinstance(caught.value, Interrupted)
    assert run.load_checkpoint("last")["step"] == 6


def test_signal_during_saving_is_answered_after_the_next_step(run):
    """What says that the state is saved must be true: the signal comes when the decision not to save was taken."""
    sent = []

    class Clock:
        @staticmethod
        def monotonic() -> float:
            if len(sent) < 5:
                sent.append(1)
                if len(sent) == 5:  # asked twice at the start and twice in each step
                    signal.raise_signal(signal.SIGTERM)
            return 0.0

        time = staticmethod(lambda: 0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "time", Clock)
        with pytest.raises(Interrupted, match="stopped at step 3"):
            train(run, Toy())
    assert run.load_checkpoint("last")["step"] == 3


def test_finished_run_has_nothing_to_do(run, uninterrupted):
    train(run, Toy())
    task = Toy(lambda step: pytest.fail("trained on"))
    assert train(run, task) == {}
    assert torch.equal(task.weight, uninterrupted[0])
    assert metrics(run) == uninterrupted[1]


def test_training_in_a_thread_leaves_signals_alone(run, uninterrupted):
    task = Toy()
    thread = threading.Thread(target=train, args=(run, task))
    thread.start()
    thread.join(60)
    assert torch.equal(task.weight, uninterrupted[0])


# --- several processes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "looks"), [(0.001, [1, 11, 21]), (2, [1, 3, 5, 7]), (60, [1, 2, 3, 4])])
def test_processes_agree_often_enough_where_steps_are_slow(run, monkeypatch, seconds, looks):
    """A warning comes two minutes before the end; whoever has it must be heard before that is over."""
    of = loop._Loop(run, Toy(), batches(), 100, torch.device("cpu"), "toy", EVALUATE_EVERY, LOG_EVERY, 60)
    of.alone, seen = False, []
    clock = of.began
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock)
    monkeypatch.setattr(loop.dist, "all_reduce", lambda wishes, how: seen.append(of.done))
    for of.done in range(1, looks[-1] + 1):
        clock += seconds
        assert of.agree(signal.SIGTERM, True) == (
            (signal.SIGTERM, True, False) if of.done in looks else (0, False, False)
        )
    assert seen == looks
    of.done = of.steps  # all look at the end, wherever that is
    assert of.agree(0, False) == (0, False, False) and seen[-1] == of.steps


def read_in(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    own = Run(Path(folder) / f"{rank}")
    found = [read_once(own.last_checkpoint)]
    for name in ("last", "previous"):
        (own.checkpoints / f"{name}.pt").write_bytes(b"torn")
    try:
        read_once(own.last_checkpoint)
    except ValueError as error:
        found.append(str(error))
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_all_processes_go_on_from_what_the_first_one_reads(tmp_path):
    """Though the second one has another disk, or sees what another machine wrote only later."""
    for rank in (0, 1):
        run = Run.create("classifier", load_recipe("birds"), tmp_path / f"{rank}")
        run.save_checkpoint("last", {"step": 7 - rank, "weights": torch.full((3,), float(rank))})
    torch.multiprocessing.spawn(read_in, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        state, said = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert state["step"] == 7 and not state["weights"].any()
        assert "0/checkpoints can be read" in said


# --- the best model ----------------------------------------------------------------------------------------------


def weights_after(tmp_path: Path, steps: int) -> Tensor:
    run = Run.create("classifier", load_recipe("birds"), tmp_path / f"{steps}")
    task = Toy()
    train(run, task, steps=steps)
    return task.weight.detach()


def test_best_checkpoint_is_a_copy(run, tmp_path):
    """Trap 3: kept as a reference, it would hold the weights of the last step."""
    task = Toy(scores=[0.1, 0.3, 0.3, 0.2])
    train(run, task)
    best = run.load_checkpoint("best")
    assert (best["step"], best["best"]) == (12, 0.3)  # the first of equals
    assert torch.equal(best["task"]["weight"], weights_after(tmp_path, 12))
    assert not torch.equal(best["task"]["weight"], task.weight)
    assert load_best(run, task) == 12
    assert torch.equal(task.weight, best["task"]["weight"])


def test_best_score_outlives_an_interruption(run):
    scores = [0.1, 0.3, 0.2, 0.0]
    with pytest.raises(Interrupted):
        train(run, Toy(at(13, lambda: signal.raise_signal(signal.SIGTERM)), scores))
    train(run, Toy(scores=scores))
    assert run.load_checkpoint("best")["step"] == 12


def test_without_scores_the_last_is_the_best(run):
    task = Toy()
    train(run, task)
    assert sorted(os.listdir(run.checkpoints)) == ["last.pt", "previous.pt"]
    last = task.weight.detach().clone()
    with torch.no_grad():
        task.weight.zero_()
    assert load_best(run, task) == STEPS
    assert torch.equal(task.weight, last)


def test_lost_best_weights_are_told_and_the_best_of_the_rest_is_taken(run, caplog):
    scores = [0.1, 0.9, 0.2, 0.3]
    with pytest.raises(Interrupted):
        train(run, Toy(at(13, lambda: signal.raise_signal(signal.SIGTERM)), scores))
    (run.checkpoints / "best.pt").unlink()
    train(run, Toy(scores=scores))
    assert "best.pt is gone" in caplog.text
    assert run.load_checkpoint("best")["step"] == STEPS


@pytest.mark.parametrize("kept", ["model.safetensors", "metrics.jsonl"])
def test_no_trained_run_is_trained_again_from_the_start(run, kept):
    """Its model, or metrics of more than one evaluation, prove that there were checkpoints."""
    train(run, Toy(scores=[0.1, 0.3, 0.2, 0.0]))
    run.model_path.write_bytes(b"weights")
    for path in (run.checkpoints / "last.pt", run.checkpoints / "previous.pt", run.model_path, run.metrics_path):
        if path.name != kept:
            path.unlink()
    before = (run.path / kept).read_bytes()
    with pytest.raises(ValueError, match=r"no checkpoint to go on from; restore that, .*, or remove"):
        train(run, Toy())
    assert (run.path / kept).read_bytes() == before


def test_run_that_was_killed_before_its_first_checkpoint_begins_again(run, caplog):
    run.log(4, {"train.fit": 9.0})
    run.log(EVALUATE_EVERY, {"validation.sum": 9.0})
    run.save_checkpoint("best", {"step": EVALUATE_EVERY})  # comes before the first last.pt
    train(run, Toy())
    assert "begins again" in caplog.text
    assert metrics(run)[0]["step"] == 4 and all(9.0 not in line.values() for line in metrics(run))


def test_no_checkpoint_at_all(run):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        load_best(run, Toy())


# --- losses that are no numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_loss_stops_before_the_weights_change(run, tmp_path, value):
    def spoil() -> None:
        original = torch.Tensor.abs
        torch.Tensor.abs = lambda tensor: original(tensor) * value
        task.restore = lambda: setattr(torch.Tensor, "abs", original)

    task = Toy(at(14, spoil))
    try:
        with pytest.raises(ValueError) as caught:
            train(run, task)
    finally:
        task.restore()
    assert "step 14: size = " in str(caught.value) and "fit" not in str(caught.value)
    assert "`resume`" in str(caught.value)
    assert torch.equal(task.weight, weights_after(tmp_path, 14))
    last = run.load_checkpoint("last")
    assert last["step"] == 12
    assert torch.equal(last["task"]["weight"], weights_after(tmp_path, 12))


def test_check_finite_names_all_bad_terms_and_passes_good_ones():
    good = torch.ones((), requires_grad=True)
    check_finite({"a": good, "b": good.half()}, 0)
    with pytest.raises(ValueError, match=r"step 7: b = nan, c = inf;"):
        check_finite({"a": good, "b": good * float("nan"), "c": torch.tensor(float("inf"))}, 7)


# --- devices and seeds -------------------------------------------------------------------------------------------


def test_draws_depend_on_seed_step_and_rank():
    def draw(*arguments: int) -> float:
        seed_step(*arguments)
        return float(torch.rand(()))

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(*key) for key in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 1), (2**32, 7), (0, 10**9)]}) == 7


@pytest.mark.parametrize("device", ["tpu", "cpu:0", "cpu:1", "cuda:x", "", "mps:1", "cuda:"])
def test_unknown_devices(device):
    if device == "cuda:" and torch.cuda.is_available():
        pytest.skip("a number may be left out")
    for function, argument in ((make_fabric, Runtime(device)), (resolve_device, device)):
        with pytest.raises(ValueError, match=f"device '?{device}'?: "):
            function(argument)


def test_devices_and_precision():
    assert make_fabric(Runtime("cpu", "32-true")).device == resolve_device("cpu") == torch.device("cpu")
    assert make_fabric().device.type == resolve_device("auto").type
    with pytest.raises(ValueError, match=r"precision 8: unknown; choose auto, 32-true"):
        make_fabric(Runtime("cpu", "8"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_absent_device():
    with pytest.raises(ValueError, match=r"device cuda: PyTorch sees no CUDA device here; use cpu"):
        resolve_device("cuda")
