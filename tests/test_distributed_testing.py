"""Tests by several processes give the numbers of one: in spawned processes, and through `python main.py`."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tiny_models import Answer, close, set_options, tiny_recipe, write_images, write_models
from torch import multiprocessing, nn
from toy_ensemble import ToyEnsemble, toy_dataset

from stylegan2_ada.metrics import path_lengths
from stylegan2_ada.networks import Generator
from stylegan2_ada.together import collect, once, one_first, own, together
from viscoin.analysis import gallery
from viscoin.analysis.concepts import collect_concepts
from viscoin.config import DatasetConfig
from viscoin.datasets import load_dataset
from viscoin.datasets.birds import attribute_names
from viscoin.models.classifier import Classifier
from viscoin.models.ensemble import VisCoIN
from viscoin.models.judge import Judge
from viscoin.runs.run import read_metrics
from viscoin.testing import classifier, consistency, drawing, ensemble, gan, truth
from viscoin.testing.drawing import judged
from viscoin.testing.image_features import ClassifierFeatures
from viscoin.testing.truth import attributes, causal, localisation
from viscoin.training.viscoin import build_ensemble

pytestmark = pytest.mark.slow  # other processes import everything again

ROOT = Path(__file__).parents[1]
PROCESSES = 3
RESAMPLING, RESAMPLES = (attributes, causal, localisation, judged), 10  # intervals would take most of the time


# --- sharing --------------------------------------------------------------------------------------------------------


class Odd(Exception):
    """Cannot be sent: its arguments are not those that it is made with."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def shares() -> dict:
    """How parts are dealt, and what comes back."""
    found: dict = {"outside": collect(part for part in own(range(5)))}
    with together():
        found["own"] = list(own(range(7)))
        for count in (7, 3, 2, 0):
            found[f"collected {count}"] = collect(part * 10 for part in own(range(count)))
        found["none is a result"] = collect(None for _ in own(range(4)))
        found["once"] = once(dist.get_rank)
        found["each"] = one_first(dist.get_rank)
        with together():
            found["nested"] = collect(part for part in own(range(4)))
    return found


def failures() -> list:
    """What the exceptions of one process, of any kind and anywhere, are in all of them."""
    me, found = dist.get_rank(), []

    def attempt(block) -> None:
        try:
            with together():
                block()
                collect(own(range(4)))
            found.append("nothing")
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")

    def bad(number: int, error: Exception) -> None:
        if me == number:
            raise error

    attempt(lambda: collect(bad(1, ValueError("in a part")) for _ in own(range(4))))
    attempt(lambda: bad(2, ValueError("beside the work")))
    attempt(lambda: once(lambda: bad(0, OSError("disk full"))))
    attempt(lambda: bad(me, ValueError("the same mistake")))
    attempt(lambda: bad(2, Odd(1, 2)))
    attempt(lambda: None)
    return found


def test_parts_are_dealt_by_turns_and_all_have_all_results(answers):
    for number, found in enumerate(answer["shares"] for answer in answers):
        assert found["outside"] == list(range(5))
        assert found["own"] == list(range(7))[number::PROCESSES]
        for count in (7, 3, 2, 0):
            assert found[f"collected {count}"] == [10 * part for part in range(count)]
        assert found["none is a result"] == [None] * 4
        assert (found["once"], found["each"], found["nested"]) == (0, number, list(range(4)))


def test_an_exception_of_one_process_ends_all(answers):
    for number, found in enumerate(answer["failures"] for answer in answers):
        assert found == [
            "ValueError: in a part",
            "ValueError: beside the work",
            "OSError: disk full",
            "ValueError: the same mistake",
            "Odd: 1 and 2" if number == 2 else "RuntimeError: process 2: Odd: 1 and 2",
            "nothing",
        ]


# --- measures -------------------------------------------------------------------------------------------------------


def models() -> tuple[Generator, Classifier]:
    torch.manual_seed(0)
    layers = {"channel_base": 128, "channel_max": 8}
    generator = Generator(8, 2, 8, 32, 3, mapping_kwargs={"num_layers": 2}, synthesis_kwargs=layers)
    for name, value in generator.named_parameters():
        if name.endswith("noise_strength"):  # so that random noise shows
            nn.init.constant_(value, 0.5)
    return generator, Classifier("viscoin_resnet10", 2, 32)


def bird_ensemble(generator: Generator, f: Classifier) -> VisCoIN:
    torch.manual_seed(1)
    generator.mapping.w_avg.normal_()
    return build_ensemble(tiny_recipe().viscoin, f, generator, ["left", "right"])


def views(model: VisCoIN, dataset) -> list[gallery.ConceptView]:
    """Pages of all concepts, two at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "STRIPS_AT_ONCE", 2)
        table = collect_concepts(model, dataset, batch_size=16)
        return list(gallery.view_concepts(model, dataset, table, table.order, examples=2).values())


def measures() -> dict:
    """Everything that shares images, samples, pairs or concepts, in batches that do not divide by the processes."""
    amounts = np.random.default_rng(0).uniform(0.1, 0.9, (26, 4)).round(2)
    toy, labels = toy_dataset(amounts, [0, 1] * 13), [0, 1] * 13
    noise = np.random.default_rng(1).integers(0, 256, (26, 32, 32, 3), dtype=np.uint8)
    large = type(toy)("noise", "test", noise, np.array(labels), ["left", "right"])
    generator, f = models()
    model = ToyEnsemble()
    config = DatasetConfig(name="birds", resolution=32, classes=2, validation=30, test=30)
    birds_explained = bird_ensemble(generator, f)
    judge = Judge(attribute_names(), 32)
    known, birds = (load_dataset("birds", split, config) for split in ("validation", "test"))
    with together():
        tested = ensemble.test_ensemble(model, toy, batch_size=4, faithfulness_limit=5, seed=1)
        few = ensemble.test_ensemble(model, toy, batch_size=4, limit=2)
        compared = gan.measure_gan(generator, large, ClassifierFeatures(f), 13, ["fid", "pr", "is"], batch_size=3)
        pairs = torch.randn(2, 11, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            lengths = path_lengths(
                generator, lambda a, b: (a - b).square().mean((1, 2, 3)), tuple(pairs), torch.zeros(11, 2), batch_size=2
            )
        found = {
            "ensemble": tested.to_dict(),
            "images": {name: getattr(tested, name) for name in ("indices", "l1", "activations", "features_rebuilt")},
            "few": few.to_dict(),
            "consistency": consistency.test_consistency(
                model, toy, tested.activations, tested.indices, batch_size=7, factors=(2,), concepts=2
            ).to_dict(),
            "classifier": classifier.test_classifier(f.eval(), large, batch_size=4).probabilities,
            "samples": compared.values,
            "plane": compared.plane,
            "lengths": lengths,
            "truth": truth.test_truth(birds_explained, known, birds, scenes=5).to_dict(),
            "drawing": drawing.test_drawing(
                birds_explained, known, birds, collect_concepts(birds_explained, birds, batch_size=7).activations,
                np.arange(30), judge, batch_size=7, images=20, edits=40,
            ).to_dict(),
            "concepts": vars(collect_concepts(model, toy, batch_size=4)),
            "views": [vars(view) for view in views(birds_explained, birds)],
            "kept": vars(collect_concepts(model, toy, batch_size=4)),
        }  # fmt: skip
    # processes that train call this one without more ado
    return found | {"distance": gan.test_gan(generator, f, large, 13, batch_size=4).fid}


def run(number: int, out: Path) -> None:
    """One of the processes: writes down what it has found."""
    os.environ["XDG_CACHE_HOME"] = str(out / "cache")
    torch.set_num_threads(1)
    for module in RESAMPLING:
        module.RESAMPLES = RESAMPLES
    dist.init_process_group("gloo", (out / "meeting").as_uri(), rank=number, world_size=PROCESSES)
    found = {"measures": measures(), "shares": shares(), "failures": failures()}
    (out / f"{number}.pickle").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> list[dict]:
    """What each process has found."""
    out = tmp_path_factory.mktemp("answers")
    multiprocessing.spawn(run, (out,), PROCESSES)
    return [pickle.loads((out / f"{number}.pickle").read_bytes()) for number in range(PROCESSES)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    """The measures of a single process, this one."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("alone")))
        for module in RESAMPLING:
            patch.setattr(module, "RESAMPLES", RESAMPLES)
        torch.set_num_threads(1)
        try:
            return measures()
        finally:
            torch.set_num_threads(threads)


def test_measures_of_three_processes_are_those_of_one_bit_for_bit(answers, alone):
    for answer in answers:
        np.testing.assert_equal(answer["measures"], alone)


def test_the_comparison_sees_all_images_and_drawn_noise(alone):
    assert alone["images"]["indices"].tolist() == list(range(26)) and alone["few"]["n"] == 2
    assert [view["concept"] for view in alone["views"]] and len(alone["views"]) == 6
    assert len(alone["lengths"]) == 11 and np.ptp(alone["lengths"]) > 0
    assert alone["kept"]["labels"].shape == (26,)
    generator, _ = models()
    z, c = torch.zeros(1, 8), torch.zeros(1, 2)
    assert (generator(z, c) - generator(z, c)).abs().max() > 0.01


# --- commands -------------------------------------------------------------------------------------------------------

two = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores, as each process takes one")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with tiny models, in which commands keep what they compute."""
    folder = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        write_models(folder)
        yield folder


def main(place: Path, *arguments: object, timeout: float = 900) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "main.py", *arguments, "--device", "cpu"]
    return subprocess.run(list(map(str, command)), cwd=place, capture_output=True, text=True, timeout=timeout)


COMMANDS = {
    "classifier": ["--batch-size", 16],
    "gan": ["--classifier", "classifier.safetensors", "--batch-size", 8, "--samples", 21, "--kid-subset", 10],
    "viscoin": [
        "--measures",
        "accuracy,fid,faithfulness,consistency,concepts",
        "--batch-size",
        16,
        "--consistency-concepts",
        2,
        "--consistency-images",
        20,
    ],
}


@pytest.fixture
def as_each_does(place, monkeypatch):
    """This process computes as each of the others: in their folder, by one thread."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(place)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@two
@pytest.mark.parametrize(
    "kind", ["viscoin", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("classifier", "gan"))]
)
def test_commands_of_two_processes_write_the_same_numbers_once(place, kind, as_each_does):
    common = ["test", kind, "--checkpoints", f"{kind}.safetensors", *COMMANDS[kind]]
    both = main(place, *common, "--out", f"{kind}-two", "--devices", 2)
    assert both.returncode == 0, both.stderr
    alone = Answer(*common, "--out", f"{kind}-one", "--device", "cpu").went_well()
    assert both.stdout.replace(f"{kind}-two", f"{kind}-one") == alone.out
    files = [sorted(path.name for path in (place / f"{kind}-{count}").iterdir()) for count in ("one", "two")]
    assert files[0] == files[1]
    one, other = (json.loads((place / f"{kind}-{count}/results.json").read_text()) for count in ("one", "two"))
    assert close(one, other)


@two
@pytest.mark.long
def test_adapter_of_two_processes_is_that_of_one(place, as_each_does, monkeypatch):
    training = ("train", "concept2clip", "--viscoin-pickle-path", "viscoin.safetensors", *set_options(), "--epochs", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "adapter-cache-two"))
    both = main(place, *training, "--devices", 2, "--out", "adapter-two")
    assert both.returncode == 0, both.stderr
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "adapter-cache-one"))
    Answer(*training, "--device", "cpu", "--out", "adapter-one").went_well()
    one, two = (read_metrics(place / f"adapter-{count}/metrics.jsonl")[-1] for count in ("one", "two"))
    assert two["validation.cosine"] == pytest.approx(one["validation.cosine"], abs=1e-3)
    assert contents(place / "adapter-cache-one/viscoin") == contents(place / "adapter-cache-two/viscoin")


@two
@pytest.mark.long
def test_concepts_of_two_processes_are_those_of_one(place, as_each_does, monkeypatch):
    model = ("--viscoin-pickle-path", "viscoin.safetensors")
    training = ("train", "concept2clip", *model, *set_options(), "--device", "cpu", "--epochs", 2)
    Answer(*training, "--out", "adapter").went_well()
    common = ["concepts", *model, "--names", "auto", "--concept2clip", "adapter", "--pages", 2, "--batch-size", 16]
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache-two"))  # where nothing is known
    both = main(place, *common, "--out", "concepts-two", "--devices", 2)
    assert both.returncode == 0, both.stderr
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache-one"))
    alone = Answer(*common, "--out", "concepts-one", "--device", "cpu").went_well()
    assert both.stdout.replace("concepts-two", "concepts-one") == alone.out
    one, other = contents(place / "concepts-one"), contents(place / "concepts-two")
    assert one.keys() == other.keys() >= {"names.csv", "concepts.json", "index.html", "co-activation.png"}
    assert [name for name in one if one[name] != other[name]] in ([], ["names.csv"])  # of names that fit alike
    one, other = contents(place / "cache-one/viscoin"), contents(place / "cache-two/viscoin")
    assert one == other
    assert [len([name for name in one if name.startswith(f"{kind}/")]) for kind in ("concepts", "embeddings")] == [2, 2]


def contents(folder: Path) -> dict[str, bytes]:
    # but for the records beside them, which hold times
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".sum"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@two
@pytest.mark.long
def test_what_all_processes_warn_of_is_said_once(place):
    few = main(
        place, "test", "viscoin", "--checkpoints", "viscoin.safetensors", "--measures", "accuracy", "--limit", 4,
        "--dataset-path", write_small_images(place / "small"), "--devices", 2, "--out", "few",
    )  # fmt: skip
    assert few.returncode == 0, few.stderr
    assert few.stderr.count("are enlarged") == 1


def write_small_images(folder: Path) -> Path:
    """Images smaller than those that the models are given, of their classes."""
    names = load_dataset("birds", "validation", tiny_recipe().dataset).class_names
    write_images(folder, dict.fromkeys(names, 10))
    labels = [[f"{name}/{i:02}.png", number] for number, name in enumerate(names) for i in range(10)]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "class_names": names}))
    return folder


@two
@pytest.mark.long
def test_a_mistake_is_told_once_and_ends_all_processes(place):
    (place / "file").touch()
    taken = main(
        place, "test", "classifier", "--checkpoints", "classifier.safetensors", "--out", "file/x", "--devices", 2
    )
    assert taken.returncode == 2, taken.stderr
    assert [line for line in taken.stderr.splitlines() if "rror" in line] == [
        "Error: --out file/x: cannot write there (Not a directory); choose another folder"
    ]
