"""Penalties: their formulas, what they draw, that replays and resumed runs are equal, and what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_steered_tasks import flat
from tiny_models import Answer, set_options, tiny_recipe, write_images, write_models

from viscoin.config import ClassifierConfig, load_recipe
from viscoin.datasets import ImageDataset, load_dataset
from viscoin.errors import Refused
from viscoin.models.class_maps import check_class_maps, last_map, on_grid, share_inside
from viscoin.models.classifier import Classifier
from viscoin.models.files import load_model
from viscoin.penalties import Attention, Confusion, NotFor, NotIn, Swap, edited, named, read_boxes
from viscoin.runs.control import read_record, send
from viscoin.runs.kept import keep_file
from viscoin.runs.replay import start_replay
from viscoin.runs.run import Run
from viscoin.runs.status import read_status
from viscoin.training import loop, steering
from viscoin.training.classifier import train_classifier
from viscoin.training.concept_penalties import OfConcepts, mean_inside
from viscoin.training.data import StepBatches
from viscoin.training.loop import Interrupted
from viscoin.training.penalties import Costs, OfClassifier, Penalties, of_another_class
from viscoin.training.regions import draw_boxes, find_region
from viscoin.training.runtime import Runtime
from viscoin.training.viscoin import build_ensemble

RUNTIME = Runtime("cpu", "32-true")
CORNER = "0,0,0.5,0.5"


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path_factory):
    monkeypatch.setattr("os.fsync", lambda file: None)
    monkeypatch.setattr(steering, "LOOK_EVERY", 0)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def plain(n: int = 8, side: int = 4, split: str = "train", files: list[str] | None = None) -> ImageDataset:
    """Image i is 10 i everywhere, of class i mod 2."""
    pixels = np.broadcast_to(10 * np.arange(n, dtype=np.uint8)[:, None, None, None], (n, side, side, 3))
    return ImageDataset("plain", split, pixels.copy(), np.arange(n) % 2, ["a", "b"], files)


@pytest.fixture
def run(tmp_path):
    return Run.create("classifier", tiny_recipe(), tmp_path / "run")


def swaps(run: Run, text: str = f"swap region={CORNER}", dataset: ImageDataset | None = None) -> Penalties:
    data = dataset or plain()
    return Penalties("classifier", load_recipe("birds", {"classifier.penalties": text}).classifier.penalties, data,
                     plain(split="validation"), 0, run)  # fmt: skip


def numbers(images: torch.Tensor) -> torch.Tensor:
    """(B, H, W): which image of `plain` each pixel shows."""
    return ((images[:, 0] + 1) * 12.75).round().long()


# --- words --------------------------------------------------------------------------------------------------------


def test_text_keys_and_values_mean_the_same_penalties():
    text = "swap region=0,0,0.25,0.5 share=0.3; attention region='left wing' weight=2 name=wing"
    keys = [
        {"penalty": "swap", "region": [0, 0, 0.25, 0.5], "share": 0.3},
        {"penalty": "attention", "region": "left wing", "weight": 2, "name": "wing"},
    ]
    found = [load_recipe("birds", {"classifier.penalties": given}).classifier.penalties for given in (text, keys)]
    assert found[0] == found[1] == [
        Swap(name="swap", region="0,0,0.25,0.5", share=0.3), Attention(name="wing", region="left wing", weight=2.0),
    ]  # fmt: skip
    assert read_boxes("0,0,.5,1+0.5,0,1,1") == ((0, 0, 0.5, 1), (0.5, 0, 1, 1)) and read_boxes("crest") == ()


def test_names_are_given_and_kept():
    one = Swap(region="a")
    assert [each.name for each in named([one, Swap(region="b", name="swap"), one])] == ["swap-2", "swap", "swap-3"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("swap region=0,0,2,1", "no box within the image"),
        ("swap region=0.5,0,0.5,1", "left below right"),
        ("swap region=nan,0,1,1", "no box within the image"),
        ("swap region=-1,0,1,1", "no box within the image"),
        ("swap region=0,0,1", "is no box; give boxes as 0,0,0.25,0.25"),
        ("attention region=crest weight=-1", "weight = '-1': input should be greater than or equal to 0"),
        ("attention region=crest weight=nan", "finite number"),
        ("attention region=crest weight=inf", "finite number"),
        ("swap region=crest share=1.5", "less than or equal to 1"),
        ("swap region=crest weight=1", "unknown key 'classifier.penalties.0.swap.weight'"),
        ("swap", "region = "),
        ("confusion label=gull predicted=gull", "label and predicted are both 'gull'; give two classes"),
        ("confusion label=gull", "predicted = "),
        ("confusion label=gull predicted=tern weight=-1", "greater than or equal to 0"),
        ("confusion label=gull predicted=tern region=crest", "unknown key"),
        ("swap crest", "'crest' is no KEY=VALUE"),
        ("swap region='crest", "cannot be read"),
        ("dance region=crest", "expected tags: 'swap', 'attention'"),
        ("swap region=a name=x; attention region=a name=x", "two penalties are called 'x'"),
        ("swap region=a name=A/b", "pattern"),
        ("; ".join(["swap region=crest"] * 17), "17 penalties, and at most 16"),
        (7, "valid list"),
        *(
            ([{"penalty": "swap", "region": region}], "is no box, nor a list of boxes")
            for region in ([[0, 0, 1, 1], 5], [5, [0, 0, 1, 1]], [[0, 0, 1, 1], None], [], [[]], ["a"], [[[0]]])
        ),
    ],
)
def test_what_is_no_penalty_is_refused_in_one_line(text, said):
    with pytest.raises(Refused) as error:
        load_recipe("birds", {"classifier.penalties": text})
    assert said in str(error.value) and "classifier.penalties" in str(error.value) and "\n" not in str(error.value)


def test_commands_edit_the_list():
    def told(*commands: Mapping[str, Any]) -> list[Any]:
        found: list[Any] = []
        for command in commands:
            before = found
            found, record = edited("classifier", before, command)
            assert edited("classifier", before, record)[0] == found  # as a replay does
        return found

    add = {"do": "add", "penalty": "swap", "region": CORNER, "share": "0.25"}
    assert told(add) == [Swap(name="swap", region=CORNER, share=0.25)]
    assert told(add, {"do": "change", "name": "swap", "share": 1}) == [Swap(name="swap", region=CORNER, share=1)]
    assert [one.name for one in told(add, add, {"do": "remove", "name": "swap"}, add)] == ["swap-2", "swap"]
    for command, said in (
        ({"do": "remove", "name": "x"}, "no such penalty; choose one of: swap"),
        ({"do": "change", "name": "swap", "share": 2}, "less than or equal to 1"),
        ({"do": "change", "name": "swap", "penalty": "attention"}, "takes no 'share'"),
        ({**add, "name": "swap"}, "two penalties are called 'swap'"),
        ({"do": "add", "penalty": "not_for"}, "choose swap, attention or confusion"),
        ({"do": "add", "penalty": "swap"}, "region is missing; give boxes"),
    ):
        with pytest.raises(Refused, match=said):
            told(add, command)


# --- regions ------------------------------------------------------------------------------------------------------


def test_boxes_are_the_pixels_whose_middle_lies_in_them():
    drawn = draw_boxes(read_boxes("0,0,0.5,0.25+0.9,0.9,1,1"), 4)
    assert drawn.astype(int).tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert draw_boxes(((0.25, 0.5, 1, 1),), 4).sum() == 6 and draw_boxes(((0.1, 0.1, 0.4, 0.4),), 4).sum() == 4


def test_parts_and_background_are_those_of_the_data(run):
    birds = load_dataset("birds", "train", tiny_recipe().dataset)
    parts = birds.part_masks(3)
    crest = find_region("crest", birds, run).mask(birds, 3)
    assert np.array_equal(crest, parts[list(birds.part_names).index("crest")])
    assert np.array_equal(find_region("background", birds, run).mask(birds, 3), ~parts.any(0))
    with pytest.raises(Refused, match="region nose: there is no such part; choose one of: background, body, head"):
        find_region("nose", birds, run)
    with pytest.raises(Refused, match="dataset 'plain' has no part masks; give boxes"):
        find_region("background", plain(), run)
    with pytest.raises(Refused, match="covers no pixel of 4x4"):
        find_region("0.1,0.3,0.12,0.32", plain(), run)


def test_mask_and_marked_images_are_kept_in_the_run_by_digest(run, tmp_path):
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:4, :2] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    kept = keep_file(run.path, tmp_path / "mask.png")
    (tmp_path / "mask.png").unlink()
    assert (
        find_region(kept, plain(), run).mask(plain(), 0).tolist()
        == [[True, False, False, False]] * 2 + [[False] * 4] * 2
    )
    data = plain(files=["x/one.png", *(f"y/{i}.png" for i in range(7))])
    (tmp_path / "marks.json").write_text('{"one.png": [0, 0, 0.5, 0.5], "2": [[0, 0, 1, 0.25], [0, 0.75, 1, 1]]}')
    region = find_region(str(tmp_path / "marks.json"), data, run, new=True)
    (tmp_path / "marks.json").write_text("{}")  # it is another one now, and the run has its own
    assert find_region(str(tmp_path / "marks.json"), data, run).marked == region.marked
    assert region.mask(data, 0).sum() == 4 and region.mask(data, 2).sum() == 8 and not region.mask(data, 1).any()
    assert region.marked_of(data).tolist() == [0, 2]
    assert sorted(path.suffix for path in (run.path / "regions").iterdir()) == [".json", ".png"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "no file of marked images"), ("{}", "it holds no object"), ("[1]", "it holds no object"),
        ('{"9": [0,0,1,1]}', "image 9: there are 8"), ('{"cat.png": [0,0,1,1]}', "'cat.png' is no training image"),
        ('{"1": [0,0,2,1]}', "no box within the image"), ('{"1": "x"}', "is no box"), ('{"1": []}', "is no box"),
        ('{"validation": {"1": [0,0,1,1]}}', "no training image is marked"),
        ('{"1": ["a",0,1,1]}', "could not convert"),
        ('{"train": {"1": [0,0,1,1]}, "validation": {"99999999999999999999": [0,0,1,1]}}', "there are not so many"),
    ],
)  # fmt: skip
def test_files_of_marked_images_that_are_none_are_refused(run, tmp_path, content, said):
    (tmp_path / "marks.json").write_text(content)
    with pytest.raises(Refused, match=said):
        find_region(keep_file(run.path, tmp_path / "marks.json"), plain(), run)


def test_commands_name_no_files_of_the_machine(run, tmp_path):
    (tmp_path / "marks.json").write_text('{"1": [0, 0, 1, 1]}')
    for region in (str(tmp_path / "marks.json"), "regions/none.json", "regions/../marks.json"):
        with pytest.raises(Refused, match="no such file"):
            find_region(region, plain(), run)
    with pytest.raises(Refused, match="it cannot be read"):
        keep_file(run.path, tmp_path / "none.json")


# --- swap ---------------------------------------------------------------------------------------------------------


def test_swap_takes_the_region_of_another_image_and_nothing_else(run):
    batches = StepBatches(plain(), 4, 0, penalties=swaps(run, f"swap region={CORNER} share=1"))
    untouched = StepBatches(plain(), 4, 0)
    for step in range(6):
        (images, labels), (before, same) = batches(step), untouched(step)
        shown = numbers(images)
        assert torch.equal(labels, same) and torch.equal(shown[:, 2:], numbers(before)[:, 2:])
        corner, own = shown[:, :2, :2].flatten(1), shown[:, 3, 3]
        assert (corner == corner[:, :1]).all() and (corner[:, 0] != own).all()


def test_swaps_are_drawn_by_seed_name_and_step_in_a_share_of_the_batch(run):
    one = StepBatches(plain(), 8, 0, penalties=swaps(run))
    again = StepBatches(plain(), 8, 0, penalties=swaps(run), workers=2)
    other = StepBatches(plain(), 8, 0, penalties=swaps(run, f"swap region={CORNER} name=other"))
    taken = []
    for step in (5, 2, 3):
        images = one(step)[0]
        assert torch.equal(images, again(step)[0]) and not torch.equal(images, other(step)[0])
        shown = numbers(images)
        taken.append((shown[:, 0, 0] != shown[:, 3, 3]).float().mean())
    assert 0.2 < np.mean(taken) < 0.8
    halves = [StepBatches(plain(), 8, 0, rank=rank, world_size=2, penalties=swaps(run))(5)[0] for rank in range(2)]
    assert torch.equal(torch.stack(halves, 1).flatten(0, 1), one(5)[0])


def test_change_reaches_batches_that_were_prepared_ahead(run):
    penalties = swaps(run, f"swap region={CORNER} share=0")
    batches = StepBatches(plain(), 8, 0, penalties=penalties, workers=2)
    batches(0)
    penalties.use([Swap(name="swap", region=CORNER, share=1.0)])
    shown = numbers(batches(1)[0])
    assert (shown[:, 0, 0] != shown[:, 3, 3]).all()


def test_flips_turn_region_and_image_together(run):
    penalties = swaps(run, f"attention region={CORNER}")
    penalties.check_one = lambda penalty: None  # type: ignore[method-assign]
    pixels = plain().pixels.copy()
    pixels[:, :2, :2] = 255
    data = ImageDataset("plain", "train", pixels, np.arange(8) % 2, ["a", "b"])
    images, _ = StepBatches(data, 8, 0, horizontal_flip=True, penalties=penalties)(0)
    assert images.shape == (8, 4, 4, 4)
    assert torch.equal(images[:, 0] == 1, images[:, 3] == 1)
    assert set(images[:, 3].flatten(1).argmax(1).tolist()) == {0, 2}


def test_marked_images_are_drawn_more_often(run, tmp_path):
    (tmp_path / "marks.json").write_text('{"3": [0, 0, 0.5, 0.5]}')
    penalties = swaps(run, f"swap region={keep_file(run.path, tmp_path / 'marks.json')} share=1", plain(24))
    batches = StepBatches(plain(24), 50, 0, penalties=penalties)
    shown = numbers(batches(0)[0])
    marked = shown[:, 3, 3] == 3
    assert 5 <= marked.sum() <= 25 and (shown[marked][:, 0, 0] != 3).all()
    assert (shown[~marked][:, 0, 0] == shown[~marked][:, 3, 3]).all()
    assert penalties.measured_images(penalties.active[0].region)[1].tolist() == [3]


def test_donors_of_the_measurement_are_of_another_class():
    labels = np.array([0, 0, 0, 1, 2, 2])
    donors = of_another_class(labels, np.array([0, 2, 3, 5]), 0)
    assert (labels[donors] != labels[[0, 2, 3, 5]]).all()
    assert np.array_equal(donors, of_another_class(labels, np.array([0, 2, 3, 5]), 0))
    assert of_another_class(np.zeros(3, int), np.arange(3), 0) is None


# --- terms of the loss --------------------------------------------------------------------------------------------


def test_share_of_the_map_by_hand():
    last = torch.tensor([[[[1.0, 2.0], [3.0, 0.0]], [[0.0, 1.0], [0.0, 5.0]]]]).requires_grad_()
    weight = torch.tensor([[2.0, -1.0], [0.0, 1.0]])
    region = torch.zeros(1, 4, 4)
    region[:, :2, :] = 1  # the upper row of cells
    region[:, 2, :2] = 1  # and half of the lower left one
    # class 0: relu(2 A - B) = [[2, 3], [6, 0]]; class 1: [[0, 1], [0, 5]]
    assert share_inside(last, weight, torch.tensor([0]), region).tolist() == pytest.approx([(2 + 3 + 3) / 11])
    assert share_inside(last, weight, torch.tensor([1]), region).tolist() == pytest.approx([1 / 6])
    assert share_inside(0 * last, weight, torch.tensor([0]), region).tolist() == [0]
    share_inside(last, weight, torch.tensor([0]), region).sum().backward()
    assert last.grad[0, 0, 1, 1] == 0 and last.grad[0, 0, 0, 0] > 0  # d/d cam = (in - share) / sum, times the weight
    assert float(last.grad[0, 0, 1, 0]) == pytest.approx(2 * (0.5 - 8 / 11) / 11)


def test_map_is_that_of_the_logits_and_other_heads_are_refused():
    torch.manual_seed(0)
    model, images = Classifier("viscoin_resnet10", 3, 32), torch.randn(2, 3, 32, 32)
    model.eval()
    logits, last = last_map(model, images)
    assert torch.equal(logits, model(images))
    layer = model.last_layer
    torch.testing.assert_close(layer(last.mean((2, 3))), logits)
    torch.nn.init.zeros_(layer.weight)
    check_class_maps(model)
    for backbone in ("viscoin_vit_patch8", "convnext_atto"):  # tokens; a layer norm after the mean
        other = Classifier(backbone, 3, 64)
        torch.nn.init.zeros_(other.last_layer.weight)  # all heads are alike then
        other.train()
        with pytest.raises(Refused, match=f"{backbone}: it does not end in the mean over positions"):
            check_class_maps(other)
        assert other.training


@pytest.mark.parametrize(
    ("changes", "penalty", "said"),
    [
        ({"mixup": 0.2}, Attention(region=CORNER), "the region of an image cannot follow classifier.mixup"),
        ({"rotation": 5}, Attention(region=CORNER), "cannot follow classifier.rotation"),
        ({"rand_augment": 1}, Attention(region=CORNER), "cannot follow classifier.rand_augment"),
        ({"backbone": "viscoin_vit_patch8"}, Attention(region=CORNER), "it has no class activation map; use swap"),
        ({"few": 1}, Swap(region=CORNER), "no other training image to swap with"),
        ({"body": False}, Swap(region=CORNER), "has computed the features of its images once"),
        ({}, Confusion(label="a", predicted="c"), "predicted c: there is no such class; choose 0 to 1, or a, b"),
        ({}, Confusion(label="2", predicted="a"), "label 2: there is no such class"),
        ({}, Confusion(label="9" * 200, predicted="a"), "there is no such class"),
        ({}, Confusion(label="a", predicted="0"), "predicted 0: it is the true class itself; give two classes"),
        ({"few": 1}, Confusion(label="b", predicted="a"), "label b: no training image is of this class"),
    ],
)
def test_what_a_training_cannot_have_is_refused(run, changes, penalty, said):
    changes = dict(changes)
    few, body = changes.pop("few", 8), changes.pop("body", True)
    config = ClassifierConfig(**changes)
    model = Classifier(changes.get("backbone", "viscoin_resnet10"), 2, 32)
    data = plain(few, 32)
    penalties = OfClassifier(model, config, data, data, 0, run, body)
    with pytest.raises(Refused) as error:
        penalties.check([penalty])
    assert said in str(error.value).replace("`", "")
    if "rotation" in changes:
        penalties.check([Swap(region=CORNER)])


@pytest.fixture(scope="module")
def ensemble():
    torch.manual_seed(0)
    f = Classifier("viscoin_resnet10", 2, 32)
    return build_ensemble(tiny_recipe(viscoin__without_generator=True).viscoin, f, None, ["a", "b"])


@torch.no_grad()
def test_terms_of_concepts_by_hand(ensemble, tmp_path):
    run = Run.create("viscoin", tiny_recipe(), tmp_path / "run")
    data, config = plain(8, 32), tiny_recipe().viscoin
    penalties = OfConcepts(ensemble, config, data, data, 0, run)
    penalties.use([
        NotFor(name="for", concept=1, label="b", weight=2.0), NotIn(name="in", concept=2, region=CORNER, weight=3.0),
        NotIn(name="off", concept=2, region=CORNER, weight=0.0),
    ])  # fmt: skip
    ensemble.eval()
    code = ensemble.encode(torch.randn(3, 3, 32, 32))
    regions = torch.zeros(2, 1, 32, 32)
    regions[0, 0, :16, :16] = 1  # the second image has none
    ensemble.explainer.linear.weight[1, 1] = 0.5
    terms = penalties.terms(code, regions, 1)
    assert terms.keys() == {"penalties.for", "penalties.in"}
    phi = code.concept_maps[:, 1].flatten(1).max(1).values
    assert float(terms["penalties.for"]) == pytest.approx(2 * 0.5 * float(phi.mean()), rel=1e-5) and phi.mean() > 0
    places = ensemble.concept_extractor.places(code.latent[1:2])[0, 2]
    cells = on_grid(regions[:1, 0], places.shape[-2:])[0]
    wanted = 3 * float((places * cells).sum() / cells.sum()) / 2
    assert float(terms["penalties.in"]) == pytest.approx(wanted, rel=1e-5)
    ensemble.explainer.linear.weight[1, 1] = -0.5  # it speaks against the class: that is allowed
    assert float(penalties.terms(code, regions, 1)["penalties.for"]) == 0
    assert mean_inside(torch.ones(1, 3, 3), torch.zeros(1, 9, 9)).tolist() == [0]


@pytest.mark.parametrize(
    ("changes", "penalty", "said"),
    [
        ({}, NotFor(concept=6, label="a"), "concept 6: there is no such concept; choose one from 0 to 5"),
        ({}, NotFor(concept=1, label="2"), "label 2: there is no such class; choose 0 to 1, or a, b"),
        ({}, NotIn(concept=1, region="crest"), "dataset 'plain' has no part masks"),
        (
            {"initialisation": "pursuit", "hold_concepts": 1}, NotFor(concept=1, label="a"),
            "stay as they are for the whole training; train with viscoin.hold_concepts below 1",
        ),
    ],
)  # fmt: skip
def test_concept_penalties_that_cannot_be_are_refused(ensemble, run, changes, penalty, said):
    config = tiny_recipe().viscoin.model_copy(update=changes)
    penalties = OfConcepts(ensemble, config, plain(8, 32), plain(8, 32), 0, run)
    with pytest.raises(Refused) as error:
        penalties.check([penalty])
    assert said in str(error.value).replace("`", "")


# --- trainings: what they share -----------------------------------------------------------------------------------


def train(recipe: Any, folder: Path) -> tuple[Run, dict[str, Any]]:
    run = Run.create("classifier", recipe, folder)
    train_classifier(recipe, run, RUNTIME)
    state = run.load_checkpoint("last")
    assert state is not None
    return run, state


def scores(run: Run) -> dict[str, float]:
    return {key: value for line in run.metrics() for key, value in line.items() if key not in ("step", "time")}


@pytest.fixture
def arrive(monkeypatch):
    """Have commands arrive in the runs of a folder of that name, during the steps before those which they name."""

    def set_up(name: str, commands: dict[int, list[tuple[str, dict[str, Any]]]]) -> None:
        left, agree = dict(commands), loop._Loop.agree

        def agreed(self, *arguments: Any) -> Any:
            for command, values in left.pop(self.done, []) if self.run.path.name == name else ():
                send(self.run.path, command, values)
            return agree(self, *arguments)

        monkeypatch.setattr(loop._Loop, "agree", agreed)

    return set_up


# --- confused classes ---------------------------------------------------------------------------------------------


def test_expected_cost_of_a_confused_pair_by_hand():
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    logits, labels = probabilities.log().requires_grad_(), torch.tensor([0, 0, 1, 2])
    costs = Costs([("pair", 4.0, 0, 1), ("other", 1.0, 2, 0)], labels)
    terms = costs.terms(logits, labels)
    assert {key: (weight, pytest.approx(value.item())) for key, (weight, value) in terms.items()} == {
        "penalties.pair.probability": (4.0, (0.2 + 0.6) / 2), "penalties.other.probability": (1.0, 0.2),
    }  # fmt: skip
    terms["penalties.pair.probability"][1].backward()
    assert not logits.grad[2:].any()  # images of other classes have no part in it
    assert logits.grad[1].tolist() == pytest.approx([-0.6 * 0.3 / 2, 0.6 * 0.4 / 2, -0.6 * 0.1 / 2])
    logits = logits.detach()
    halves = [costs.terms(logits[some], labels[some]) for some in (slice(1), slice(1, 4))]  # of an accumulated batch
    assert float(sum(found["penalties.pair.probability"][1] for found in halves)) == pytest.approx(0.4)
    mixed = torch.tensor([[0.5, 0.5, 0], [0, 0, 1.0]])
    value = Costs([("pair", 1.0, 0, 1)], mixed).terms(logits[:2], mixed)["penalties.pair.probability"][1]
    assert float(value) == pytest.approx(0.2)
    none = Costs([("pair", 1.0, 1, 0)], labels[:2])
    term = none.terms(logits[:2], labels[:2])["penalties.pair.probability"][1]
    assert float(term) == 0 and none.logged({"penalties.pair.probability": term, "x": term})["x"] == 0
    assert torch.isnan(none.logged({"penalties.pair.probability": term})["penalties.pair.probability"])


def test_costs_of_two_processes_average_to_those_of_one(monkeypatch):
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 2, 0, 1])
    pairs, key = [("pair", 1.0, 0, 1)], "penalties.pair.probability"
    whole = Costs(pairs, labels).terms(logits, labels)[key][1]
    monkeypatch.setattr("viscoin.training.penalties.mean_over_processes", lambda count: torch.tensor(3 / 2))
    shares = [Costs(pairs, labels[mine]).terms(logits[mine], labels[mine])[key][1] for mine in (slice(4), slice(4, 6))]
    assert float(sum(shares) / 2) == pytest.approx(float(whole)) and float(whole) > 0.05


def test_confused_share_is_that_of_the_images_of_each_class(run):
    data = plain(9, 32)  # five of class a, four of class b
    penalties = OfClassifier(Classifier("viscoin_resnet10", 2, 32), ClassifierConfig(), data, data, 0, run)
    penalties.use([Confusion(name="pair", label="a", predicted="1", weight=0.0)])

    def look(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Images 0, 2 and 3 are called a, the others b, each with 0.75."""
        called = ~torch.isin(numbers(images)[:, 0, 0], torch.tensor([0, 2, 3]))
        return torch.where(torch.stack([~called, called], 1), 0.75, 0.25).log(), None

    found = penalties.measure(look, torch.device("cpu"))
    assert {key.rpartition(".")[2]: pytest.approx(value) for key, value in found.items()} == {
        "confused": 3 / 5, "recall": 2 / 5, "probability": (3 * 0.75 + 2 * 0.25) / 5, "confused_back": 1 / 4,
    }  # fmt: skip
    penalties.validation = ImageDataset("plain", "validation", data.pixels[:4], np.ones(4, int), ["a", "b"])
    assert penalties.measure(look, torch.device("cpu")) == {"penalties.pair.confused_back": 0.75}
    assert not penalties.costs(torch.tensor([0, 1])).pairs  # of strength 0: measured only


@pytest.mark.parametrize("more", [{}, {"classifier__mixup": 0.2}, {"classifier__accumulate": 2}])
def test_a_confused_pair_has_an_effect_and_is_repeated(tmp_path, more):
    text = "confusion label=0 predicted=1 weight=20"
    recipe = tiny_recipe(classifier__penalties=text, **more)
    _, plain_state = train(tiny_recipe(**more), tmp_path / "none")
    found, state = train(recipe, tmp_path / "with")
    assert not all(map(torch.equal, flat(plain_state), flat(state)))
    assert all(map(torch.equal, flat(state), flat(train(recipe, tmp_path / "again")[1])))
    told = scores(found)
    assert 0 <= told["train.penalties.confusion.probability"] <= 1
    measured = {key.rpartition(".")[2] for key in told if "validation.penalties.confusion." in key}
    assert measured == {"confused", "confused_back", "recall", "probability"}
    _, weightless = train(tiny_recipe(classifier__penalties=text.replace("20", "0"), **more), tmp_path / "measured")
    assert all(map(torch.equal, flat(plain_state), flat(weightless)))


def test_a_last_layer_alone_takes_the_cost_of_a_pair_while_it_trains(tmp_path, arrive):
    recipe = tiny_recipe(classifier__train_layers="head", classifier__horizontal_flip=False, classifier__epochs=2)
    values = {"do": "add", "penalty": "confusion", "label": 0, "predicted": 1, "weight": "5"}
    arrive("steered", {2: [("penalty", values)], 3: [("penalty", {"do": "add", "penalty": "swap", "region": CORNER})]})
    found, _ = train(recipe, tmp_path / "steered")
    added, refused = read_record(found.path)
    assert added.refused is None and added.values["label"] == "0" and added.values["weight"] == 5.0
    assert "computed the features" in (refused.refused or "")
    told = scores(found)
    assert "train.penalties.confusion.probability" in told and "validation.penalties.confusion.confused" in told


# --- trainings ----------------------------------------------------------------------------------------------------


def test_penalty_of_no_strength_measures_and_changes_no_bit(tmp_path):
    none, plain_state = train(tiny_recipe(), tmp_path / "none")
    measured = "attention region=crest weight=0; swap region=crest share=0"
    found, state = train(tiny_recipe(classifier__penalties=measured), tmp_path / "measured")
    assert all(map(torch.equal, flat(plain_state), flat(state)))
    more = scores(found)
    assert {key: value for key, value in more.items() if "penalties" not in key} == scores(none)
    own = {key.rpartition(".")[2]: value for key, value in more.items() if "penalties.attention" in key}
    assert own.keys() == {"accuracy", "accuracy_swapped", "cam_share"} and all(0 <= x <= 1 for x in own.values())
    assert not [key for key in more if key.startswith("train.penalties")]  # nor does it cost a step anything
    assert own["accuracy"] == more["validation.accuracy"]  # of the same images
    told = read_status(found.path).penalties
    assert told is not None and [one["name"] for one in told["active"]] == ["attention", "swap"]
    assert told["regions"][0] == "background" and told["kinds"] == ["swap", "attention", "confusion"]


@pytest.mark.parametrize("text", ["attention region=0,0,0.5,0.5 weight=5", "swap region=background"])
def test_penalties_have_an_effect(tmp_path, text):
    _, plain_state = train(tiny_recipe(), tmp_path / "none")
    found, state = train(tiny_recipe(classifier__penalties=text), tmp_path / "with")
    assert not all(map(torch.equal, flat(plain_state), flat(state)))
    assert ("train.penalties.attention.cam_share" in scores(found)) == text.startswith("attention")


def test_penalties_that_come_change_and_go_live_are_equal_in_a_replay_and_after_a_stop(tmp_path, arrive):
    recipe = tiny_recipe(classifier__epochs=3)
    (tmp_path / "marks.json").write_text('{"3": [0, 0, 0.5, 0.5], "5": [0, 0, 1, 0.5]}')
    folder = tmp_path / "steered"
    run = Run.create("classifier", recipe, folder)
    kept = keep_file(folder, tmp_path / "marks.json")
    arrive("steered", {
        2: [("penalty", {"do": "add", "penalty": "swap", "region": "crest"})],
        4: [("penalty", {"do": "add", "penalty": "attention", "region": CORNER, "weight": 3}),
            ("penalty", {"do": "add", "penalty": "swap", "region": kept, "name": "marks"})],
        5: [("penalty", {"do": "change", "name": "attention", "weight": "9"}), ("stop", {})],
        9: [("penalty", {"do": "remove", "name": "swap"})],
    })  # fmt: skip
    with pytest.raises(Interrupted):
        train_classifier(recipe, run, RUNTIME)
    run = Run.create("classifier", recipe, folder, resume=True)
    train_classifier(recipe, run, RUNTIME)
    entries = [entry for entry in read_record(folder) if entry.command == "penalty"]
    assert [entry.step for entry in entries] == [2, 4, 4, 5, 9] and not any(entry.refused for entry in entries)
    assert dict(entries[3].values) == {"do": "change", "name": "attention", "weight": 9.0}
    again = Run.create("classifier", recipe, tmp_path / "again")
    start_replay(again, folder)
    assert (again.path / kept).read_bytes() == (tmp_path / "marks.json").read_bytes()
    train_classifier(recipe, again, RUNTIME)
    one, other = run.load_checkpoint("last"), again.load_checkpoint("last")
    assert all(map(torch.equal, flat(one), flat(other)))
    assert run.model_path.read_bytes() == again.model_path.read_bytes()
    logged = [[{k: v for k, v in line.items() if k != "time"} for line in each.metrics()] for each in (run, again)]
    assert logged[0] == logged[1]
    measured = [line for line in run.metrics() if "validation.accuracy" in line]
    assert (
        "validation.penalties.swap.accuracy_swapped" in measured[1]
        and "validation.penalties.swap.accuracy" not in measured[2]
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"do": "add", "penalty": "swap", "region": "nose"}, "there is no such part"),
        ({"do": "add", "penalty": "swap", "region": "0,0,2,2"}, "no box within the image"),
        ({"do": "add", "penalty": "attention", "region": "crest", "weight": -1}, "greater than or equal to 0"),
        ({"do": "add", "penalty": "attention", "region": "crest", "weight": "nan"}, "finite number"),
        ({"do": "add", "penalty": "not_in", "region": "crest", "concept": 1}, "choose swap, attention or confusion"),
        ({"do": "add", "penalty": "swap", "region": "/etc/x.json"}, "keeps no such file"),
        ({"do": "remove", "name": "swap"}, "no such penalty; it has none"),
        ({"do": "change", "name": "swap"}, "penalty change needs a value"),
        ({"do": "add", "penalty": "swap", "region": [[0, 0, 1, 1], 5]}, "is no box, nor a list of boxes"),
        ({"penalty": "swap"}, "penalty needs add, change or remove"),
        ({"do": "remove"}, "needs the name"),
        ({"do": "remove", "name": "a", "share": 1}, "remove takes no 'share'"),
    ],
)
def test_live_penalties_that_cannot_be_are_refused_in_the_record(tmp_path, values, said, quick_folder):
    (quick_folder.path / "inbox").mkdir(exist_ok=True)
    path = quick_folder.path / "inbox" / "0001-a.json"
    path.write_text(json.dumps({"command": "penalty", "values": values}))
    task = quick_folder.task
    found = steering.Steering(quick_folder, task, 4)
    assert list(found.due(1, True)) == [] and not path.exists()
    assert said in (read_record(quick_folder.path)[-1].refused or "")
    assert task.penalties.wanted == [] and task.applied == []


@pytest.fixture
def quick_folder(tmp_path):
    """A run whose task is nothing but its penalties."""

    class Task:
        steerable = ()

        def __init__(self, penalties: Penalties) -> None:
            self.penalties, self.applied = penalties, []

        def apply(self, values: Mapping[str, Any]) -> None:
            self.applied.append(values)

    run = Run.create("classifier", tiny_recipe(), tmp_path / "quick")
    birds = load_dataset("birds", "train", tiny_recipe().dataset)
    run.task = Task(OfClassifier(Classifier("viscoin_resnet10", 4, 32), ClassifierConfig(), birds, birds, 0, run))  # type: ignore[attr-defined]
    return run


def test_command_line_sends_and_refuses_penalties(tmp_path, run):
    (tmp_path / "marks.json").write_text('{"1": [0, 0, 1, 1]}')
    line = ("control", run.path, "penalty")
    assert "will be obeyed" in Answer(*line, "add", "swap", "region=left wing", "share=0.2").went_well().out
    Answer(*line, "add", "attention", f"region={tmp_path / 'marks.json'}").went_well()
    sent = [json.loads(path.read_text())["values"] for path in sorted((run.path / "inbox").iterdir())]
    assert sent[0] == {"do": "add", "penalty": "swap", "region": "left wing", "share": "0.2"}
    assert (run.path / sent[1]["region"]).is_file()
    Answer(*line).refused("penalty needs add, change or remove")
    Answer(*line, "remove").refused("needs the name of a penalty")
    Answer(*line, "add", "swap", "crest").refused("'crest' is no KEY=VALUE")
    Answer(*line, "add", "swap", f"region={tmp_path / 'none.json'}").refused("cannot be read")
    other = Run.create("gan", tiny_recipe(), tmp_path / "gan")
    Answer("control", other.path, "penalty", "add", "swap", "region=crest").refused(
        "a training of kind gan has no penalties; classifier and viscoin have"
    )


def test_a_run_says_which_penalties_it_has(tmp_path):
    run, _ = train(tiny_recipe(classifier__penalties="swap region=crest"), tmp_path / "run")
    run.model_path.unlink()  # as if it still ran: its state says what is in force
    assert "penalty swap: penalty swap, region crest, share 0.5" in Answer("control", run.path).went_well().out
    line = ("control", run.path, "penalty")
    Answer(*line, "remove", "other").refused("no such penalty; choose one of: swap")
    Answer(*line, "add", "swap", "region=0,0,3,1").refused("no box within the image")
    Answer(*line, "add", "not_for", "concept=1").refused("choose swap, attention or confusion")


def test_folder_with_masks_has_its_part(tmp_path):
    write_images(tmp_path / "data" / "images", {"a": 12, "b": 12}, 32)
    for name in ("a", "b"):
        (tmp_path / "data" / "images" / "masks" / name).mkdir(parents=True)
        for i in range(12):
            mask = np.zeros((32, 32), dtype=np.uint8)
            mask[:16] = 255
            Image.fromarray(mask).save(tmp_path / "data" / "images" / "masks" / name / f"{i:02}.png")
    recipe = load_recipe("folder", {
        "dataset.name": str(tmp_path / "data" / "images"), "dataset.resolution": 32, "classifier.epochs": 1,
        "classifier.batch_size": 8, "classifier.pretrained": False, "classifier.backbone": "viscoin_resnet10",
        "classifier.penalties": "attention region=background; swap region=object",
    })  # fmt: skip
    run, _ = train(recipe, tmp_path / "run")
    assert scores(run).keys() >= {
        "validation.penalties.attention.cam_share", "validation.penalties.swap.accuracy_swapped",
    }  # fmt: skip


def test_ensembles_measure_their_penalties(tmp_path, monkeypatch):
    models = write_models(tmp_path / "models")
    text = "not_for concept=1 label=0 weight=5; not_in concept=2 region=crest"
    options = (
        "--classifier",
        models["classifier"],
        "--gan",
        models["gan"],
        "--device",
        "cpu",
        "--precision",
        "32-true",
    )
    Answer(
        "train", "viscoin", *set_options(), *options, "--out", tmp_path / "run", "--set", f"viscoin.penalties={text}"
    ).went_well()
    found = scores(Run(tmp_path / "run"))
    wanted = {
        "not_for": {"vote", "predicted"}, "not_in": {"accuracy", "accuracy_swapped", "map_share", "activation"},
    }  # fmt: skip
    for name, keys in wanted.items():
        assert {key.rpartition(".")[2] for key in found if f"validation.penalties.{name}." in key} == keys
        assert f"train.penalties.{name}" in found
    told = load_model(tmp_path / "run" / "model.safetensors", "viscoin").recipe["viscoin"]["penalties"]
    assert [one["name"] for one in told] == ["not_for", "not_in"]
