"""Real trainings that are steered: every value that may change has an effect, and replays are equal bit by bit."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_processes import curve, start
from tiny_models import Answer, set_options, tiny_recipe, write_models

from viscoin.config import Recipe
from viscoin.models.classifier import Classifier
from viscoin.models.files import load_model, read_file, save_model
from viscoin.runs.control import read_record, send, waiting
from viscoin.runs.run import Run
from viscoin.runs.status import read_status
from viscoin.training import classifier, diffmask, gan, judge, loop, steering, viscoin
from viscoin.training.runtime import Runtime, seed_step

HERE = Path(__file__).parent
RUNTIME = Runtime("cpu", "32-true")
MODULES = {"classifier": classifier, "gan": gan, "viscoin": viscoin, "diffmask": diffmask, "judge": judge}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    found = write_models(folder)
    torch.manual_seed(0)
    names = load_model(found["classifier"]).class_names
    vit = Classifier("viscoin_vit_patch8", len(names), 32)
    return found | {
        "vit": save_model(folder / "vit.safetensors", vit, "classifier", recipe=tiny_recipe(), class_names=names)
    }


# --- values ------------------------------------------------------------------------------------------------------

AUGMENTED = {"gan__augment": "ada", "gan__reconstruction": 0.1}
TASKS: list[tuple[str, dict[str, Any], int, dict[str, Any]]] = [
    (
        "classifier", {"classifier__optimizer": "sgd", "classifier__schedule": "step", "classifier__step_epochs": 1}, 4,
        {"learning_rate": 0.1, "weight_decay": 0.3, "label_smoothing": 0.3, "momentum": 0.1, "step_epochs": 9,
         "step_factor": 0.9},
    ),
    ("judge", {}, 0, {"learning_rate": 0.1, "weight_decay": 0.3, "blurred": 1.0, "noisy": 1.0}),
    ("gan", {}, 0, {"warm_start_learning_rate": 0.1}),
    ("gan", {"gan__warm_start": 0, "gan__matching": 0.064}, 0, {"matching_learning_rate": 0.1}),
    (
        "gan", AUGMENTED, 16,
        {"learning_rate": 0.1, "r1_gamma": 0.0, "path_length_weight": 9.0, "style_mixing": 0.7, "ema_kimg": 0.001,
         "ema_rampup": None, "reconstruction": 3.0, "perceptual": 5.0, "ada_kimg": 0.01},
    ),
    ("gan", {"gan__augment": "fixed", "gan__augment_p": 0.5}, 16, {"augment_p": 1.0}),
    (
        "viscoin", {"viscoin__decay_every": 1, "viscoin__warmup_steps": 0}, 3,
        {"learning_rate": 0.1, "translator_rate": 9.0, "decay_every": 9, "decay_factor": 0.1, "output_fidelity": 9.0,
         "sparsity": 9.0, "orthogonality": 9.0, "bimodality": 9.0, "perceptual": 9.0, "reconstruction_class": 9.0,
         "style": 9.0},
    ),
    ("diffmask", {}, 3, {"learning_rate": 0.1, "lr_placeholder": 0.1, "lr_alpha": 9.0, "eps": 3.0}),
]  # fmt: skip
ELSEWHERE = {"early_stopping", "keep_every", "ada_target"}  # of the loop, of evaluations, of a D that overfits


class Seen(Exception):
    pass


def flat(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state.detach().clone().double().flatten()]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [part for value in values for part in flat(value)]


def train(kind: str, recipe: Recipe, run: Run, models: dict[str, Path]) -> None:
    needs = {"gan": ("classifier",), "viscoin": ("classifier", "gan"), "diffmask": ("vit",)}.get(kind, ())
    function = getattr(MODULES[kind], f"train_{kind}")
    function(recipe, run, *(load_model(models[name]).model for name in needs), RUNTIME)


@pytest.mark.parametrize(("kind", "changes", "first", "values"), TASKS, ids=lambda value: str(value)[:12])
def test_every_value_that_may_change_has_an_effect_and_can_be_taken_back(
    tmp_path, monkeypatch, models, kind, changes, first, values
):
    """Of four steps on equal weights; what is set back leaves no trace."""
    recipe = tiny_recipe(**changes)

    def steps(task: Any, batches: Any) -> torch.Tensor:
        for step in range(first, first + 4):
            seed_step(0, step)
            task.step(*batches(step), step)
        return torch.cat(flat(task.state_dict()))

    def looks(run: Run, task: Any, batches: Any, *others: Any, **options: Any) -> None:
        assert values.keys() <= set(task.steerable)
        looked_at = {name for other, _, _, some in TASKS if other == kind for name in some}
        assert set(task.steerable) - ELSEWHERE <= looked_at
        task.step(*batches(0), first)  # so that optimisers have moments
        if "ada_target" in task.steerable:
            task.trainer.controller.p = 0.5
            task.apply({"ada_target": 0.25})
            assert task.trainer.controller.target == 0.25
        begun = torch.load(saved(task.state_dict()), weights_only=False)
        before = {name: getattr(task.config, name) for name in values}
        assert not [name for name, value in values.items() if value == before[name]]

        def fresh(name: str, value: Any) -> torch.Tensor:
            task.load_state_dict(torch.load(saved(begun), weights_only=False))
            task.apply({name: value})
            return steps(task, batches)

        name = next(iter(values))
        plain = fresh(name, before[name])
        for name, value in values.items():
            assert not torch.equal(fresh(name, value), plain), name
            assert torch.equal(fresh(name, before[name]), plain), name
        raise Seen

    def saved(state: Any) -> Path:
        torch.save(state, tmp_path / "state.pt")
        return tmp_path / "state.pt"

    monkeypatch.setattr(MODULES[kind], "fit", looks)
    with pytest.raises(Seen):
        train(kind, recipe, Run.create(kind, recipe, tmp_path / "run"), models)


def test_values_without_effect_are_not_offered(tmp_path, monkeypatch, models):
    def looks(run: Run, task: Any, *others: Any, **options: Any) -> None:
        offered[run.kind] = set(task.steerable)
        raise Seen

    offered: dict[str, set[str]] = {}
    for kind, changes in (
        ("classifier", {}),
        ("gan", {"gan__warm_start": 0, "gan__reconstruction": 0}),
        ("diffmask", {}),
    ):
        recipe = tiny_recipe(**changes, diffmask__placeholder="zeros")
        monkeypatch.setattr(MODULES[kind], "fit", looks)
        with pytest.raises(Seen):
            train(kind, recipe, Run.create(kind, recipe, tmp_path / kind), models)
    assert all("learning_rate" in names for names in offered.values())
    assert not offered["classifier"] & {"momentum", "step_factor"}
    assert not offered["gan"] & {"warm_start_learning_rate", "reconstruction", "perceptual", "augment_p", "ada_target"}
    assert "lr_placeholder" not in offered["diffmask"]


# --- replays -------------------------------------------------------------------------------------------------------

OPTIONS = {
    "classifier": ["--epochs", 2, "--set", "classifier.keep_every=1"],
    "gan": ["--kimg", 0.064, "--set", "gan.r1_interval=2"],
    "viscoin": ["--steps", 6],
    "diffmask": ["--epochs", 2, "--batch-size", 16, "--log-every-n-steps", 3],
}
COMMANDS: dict[str, dict[int, list[tuple[str, dict[str, Any]]]]] = {
    "classifier": {2: [("set", {"learning_rate": 0.02})], 5: [("evaluate", {}), ("set", {"label_smoothing": 0.2})]},
    "gan": {1: [("set", {"warm_start_learning_rate": 0.01})], 5: [("set", {"r1_gamma": 5, "learning_rate": 0.01})]},
    "viscoin": {
        2: [("penalty", {"do": "add", "penalty": "not_for", "concept": 1, "label": "0"})],
        3: [
            ("set", {"sparsity": 2, "learning_rate": 0.01}),
            ("penalty", {"do": "add", "penalty": "not_in", "concept": 2, "region": "crest", "weight": 3}),
        ],
        5: [("finish", {})],
    },
    "diffmask": {2: [("set", {"lr_alpha": 2, "learning_rate": 0.01})], 4: [("evaluate", {})]},
}
NEEDS = {"viscoin": ("classifier", "gan"), "gan": ("classifier",), "diffmask": ("classifier",)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIONS)
def test_replay_is_equal_bit_by_bit(tmp_path, monkeypatch, models, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(steering, "LOOK_EVERY", 0)
    found = dict(models, classifier=models["vit"]) if kind == "diffmask" else models
    given = [word for name in NEEDS.get(kind, ()) for word in (f"--{name}", found[name])]
    common = [kind, *given, "--device", "cpu", "--precision", "32-true", "--out"]
    left, agree = dict(COMMANDS[kind]), loop._Loop.agree

    def agreed(self, *arguments: Any) -> Any:
        for command, values in left.pop(self.done, []) if self.run.path.name == "steered" else ():
            send(self.run.path, command, values)
        return agree(self, *arguments)

    monkeypatch.setattr(loop._Loop, "agree", agreed)
    Answer("train", *common, "steered", *OPTIONS[kind], *set_options()).went_well()
    Answer("train", *common, "again", "--replay", "steered").went_well()
    steered, again = Path("steered"), Path("again")
    assert len(read_record(steered)) == sum(map(len, COMMANDS[kind].values()))
    assert read_record(steered) == read_record(again) and read_status(again).state == "finished"
    assert curve(steered) == curve(again)
    files = ["model.safetensors", *(str(p.relative_to(steered)) for p in steered.glob("checkpoints/*.safetensors"))]
    for name in files:
        assert (steered / name).read_bytes() == (again / name).read_bytes(), name
    one, other = (Run(path).load_checkpoint("last") for path in (steered, again))
    assert str(flat(one)) == str(flat(other)) and all(map(torch.equal, flat(one), flat(other)))
    told = read_file(steered / "model.safetensors")[1]["commands"]
    assert [line["step"] for line in told] == [step for step, some in COMMANDS[kind].items() for _ in some]
    Answer("train", *common, "other", "--replay", "steered", "--seed", 7).refused("another recipe (seed: 0 -> 7)")
    assert not Path("other").exists()


def alive(process: subprocess.Popen) -> None:
    assert process.poll() is None, process.communicate()
    time.sleep(0.1)


@pytest.mark.long
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two CPU cores")
def test_two_processes_obey_at_the_same_step(tmp_path):
    """Through the files alone, as on a cluster: set, pause, set, continue, and a replay that is equal bit by bit."""
    options = ["classifier", "--epochs", 40, "--batch-size", 16, "--devices", 2, "--set", "classifier.keep_every=20"]
    process = start(tmp_path, *options, "--out", "steered")
    run = tmp_path / "steered"

    def obeyed(command: str, values: dict[str, Any] | None = None) -> int:
        sent = send(run, command, values)
        while not (found := [entry for entry in read_record(run) if entry.id == sent.id]):
            alive(process)
        assert found[0].refused is None
        return found[0].step

    while read_status(run).step < 1:
        alive(process)
    obeyed("set", {"learning_rate": "0.05"})
    paused = obeyed("pause")
    while read_status(run).state != "paused":
        alive(process)
    attention = {"do": "add", "penalty": "attention", "region": "background", "weight": 3}
    assert (
        obeyed("penalty", attention) == obeyed("penalty", {"do": "add", "penalty": "swap", "region": "crest"}) == paused
    )
    assert obeyed("set", {"learning_rate": "0.001", "label_smoothing": 0.1}) == obeyed("continue") == paused
    obeyed("penalty", {"do": "remove", "name": "swap"})
    finished = obeyed("finish")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert finished < 160 and not waiting(run)
    process = start(tmp_path, *options, "--out", "again", "--replay", "steered")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert curve(run) == curve(tmp_path / "again")
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize(("kind", "processes", "kills"), [("classifier", 1, 10), ("gan", 1, 5), ("classifier", 2, 3)])
def test_kills_around_commands_lose_none(tmp_path, kind, processes, kills):
    line = [sys.executable, str(HERE / "steer_loop.py"), kind, str(processes), str(kills), str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
