"""Amplification: controls, the lambda curve and its reliable range by hand, files, moving pictures, the command."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import Answer, write_images, write_models
from torch import Tensor, nn
from toy_ensemble import SIZE, ToyEnsemble, toy_dataset

from viscoin.analysis.amplification import AmplificationResult, amplify_images, random_selection
from viscoin.analysis.amplification_curve import (
    LambdaCurve,
    Reference,
    curve_factors,
    lambda_curve,
    usual_reconstructions,
)
from viscoin.analysis.amplification_files import export_images
from viscoin.inference.batches import TooFewImages
from viscoin.plotting.amplification import concept_list
from viscoin.plotting.sweep import save_gif, save_mp4, sweep_factors, sweep_frames

HALF = SIZE // 2
AMOUNTS = [0.2, 0.4, 0.6, 0.0]


class Translator(nn.Module):
    """Two styles, both phi + 1; the mean style is 1, so their distance to it is |phi|."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fixed_w_avg", torch.ones(4))

    def forward(self, concept_maps: Tensor, support: Tensor) -> Tensor:
        return 1 + concept_maps.amax((2, 3))[:, None].repeat(1, 2, 1)


class StyledGenerator(nn.Module):
    """Its directions move the first style by `push` times the change of each concept."""

    def __init__(self, push: float = 0.0) -> None:
        super().__init__()
        self.mapping, self.push = Translator(), push

    def styles(self, concept_maps: Tensor, support: Tensor, original: Tensor) -> Tensor:
        moved = self.mapping(concept_maps, support)
        moved[:, 0] += self.push * (concept_maps - original).amax((2, 3))
        return moved


class StyledToy(ToyEnsemble):
    """Whatever concept 0 has above 0.2 is drawn `leak` times into the quadrant of concept 1 as well."""

    def __init__(self, leak: float = 0.0, push: float = 0.0) -> None:
        super().__init__()
        self.generator = StyledGenerator(push)
        self.leak = leak

    def decode(self, concept_maps: Tensor, support: Tensor, noise_mode: str = "const") -> Tensor:
        leaked = concept_maps.clone()
        leaked[:, 1] += self.leak * (concept_maps[:, 0] - 0.2).clamp_min(0)
        return super().decode(leaked, support)


def toy_images(*amounts: list[float]) -> Tensor:
    return toy_dataset(np.array(amounts), [0] * len(amounts)).batch(range(len(amounts)))[0]


def choose(*concepts: int) -> Tensor:
    return torch.tensor([[k in concepts for k in range(4)]])


def amplified(factors: tuple[float, ...] = (0.0, 1.0, 2.0)) -> AmplificationResult:
    images = toy_images(AMOUNTS, [0.4, 0.0, 0.0, 0.2])
    return amplify_images(ToyEnsemble(), images, choose(2).expand(2, 4), factors)


# --- amplification and control --------------------------------------------------------------------------------------


def test_multiplier_one_changes_nothing_and_the_change_map_is_the_difference_to_it():
    result = amplified()
    assert (result.images[:, 1] == result.originals).all() and not result.changes[:, 1].any()
    assert result.changes[0, 0, HALF:, :HALF] == pytest.approx(np.full((HALF, HALF), 0.6), abs=1e-6)
    assert result.changes[0, 2, HALF:, :HALF] == pytest.approx(np.full((HALF, HALF), 0.4), abs=1e-6)  # 1.2 is clamped
    assert not result.changes[0, :, :HALF].any() and not result.changes[0, :, :, HALF:].any()
    assert not result.changes[1].any()  # concept 2 is not active there


def test_probabilities_of_all_classes_by_hand():
    result = amplified()
    for column, amount in enumerate((0.6, 0.0, 0.6, 1.0)):  # original, then multipliers 0, 1 and 2
        expected = 1 / (1 + np.exp(4 * 0.2 + 0.4 - 4 * amount))
        assert result.g_classes[0, column] == pytest.approx([1 - expected, expected], abs=1e-5)
        assert result.f_classes[0, column] == pytest.approx([1 - expected, expected], abs=1e-5)
    assert result.predicted.tolist() == result.f_predicted.tolist() == [1, 0]
    assert result.g_original[0] == result.g_classes[0, 0, 1]
    assert (result.f_probability[0] == result.f_classes[0, 1:, 1]).all()


def test_top_classes_begin_with_the_predicted_one_then_go_by_the_largest_probability_anywhere():
    f = np.array([[[0.6, 0.3, 0.1, 0.0], [0.0, 0.2, 0.8, 0.0]]])
    g = np.array([[[0.5, 0.4, 0.1, 0.0], [0.1, 0.2, 0.7, 0.0]]])
    result = replace(amplified((2.0,)), f_classes=f, g_classes=g)
    assert result.top_classes(0).tolist() == [0, 2, 1]
    assert result.top_classes(0, 9).tolist() == [0, 2, 1, 3]
    assert amplified().top_classes(0).tolist() == [1, 0]  # there are but two


def test_what_the_table_of_an_amplification_says():
    row = amplified().to_dict(["left", "right"])[0]
    assert row["predicted"] == "right" and row["concepts"] == [2] and row["relevance"] == [1]
    assert row["change"] == pytest.approx({"0": 0.6 / 4, "1": 0, "2": 0.4 / 4}, abs=1e-6)
    assert list(row["classes"]) == ["right", "left"]
    assert row["classes"]["left"]["g"]["0"] == pytest.approx(1 / (1 + np.exp(-1.2)), abs=1e-5)


def test_the_control_takes_as_many_active_concepts_that_were_not_chosen():
    phi = torch.tensor([[1.0] * 30 + [0.0] * 10] * 20)
    selection = torch.zeros(20, 40, dtype=torch.bool)
    selection[:, [3, 7]] = True
    drawn = random_selection(phi, selection, seed=1)
    assert (drawn.sum(1) == 2).all()
    assert not drawn[:, [3, 7]].any() and not drawn[:, 30:].any()
    assert drawn.any(0).sum() > 10  # other ones in each image
    assert (random_selection(phi, selection, seed=1) == drawn).all()
    assert (random_selection(phi[:5], selection[:5], seed=1) == drawn[:5]).all()
    assert (random_selection(phi, selection, seed=2) != drawn).any()


def test_the_control_is_smaller_where_too_few_concepts_are_active():
    phi = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    drawn = random_selection(phi, torch.tensor([[True, True, False, False]] * 2))
    assert drawn.tolist() == [[False, False, True, False], [False] * 4]


@pytest.mark.parametrize("factors", [(1.0, -2.0), (float("nan"),), (float("inf"),), ()])
def test_multipliers_that_are_none(factors):
    with pytest.raises(ValueError, match="multipliers must be 0 or more"):
        amplify_images(ToyEnsemble(), toy_images(AMOUNTS), choose(0), factors)


# --- the lambda curve -----------------------------------------------------------------------------------------------

REFERENCE = Reference(np.array([0.4, 0.8, 0.0, 0.5], np.float32), 0.5, 1.5, 20)


def test_curve_by_hand():
    curve = lambda_curve(StyledToy(), toy_images([0.2, 0.4, 0.0, 0.2]), choose(0), REFERENCE, (4, 0, 10, 2))
    assert curve.factors.tolist() == [0, 1, 2, 4, 10]  # 1 is added
    drawn = np.array([0, 0.2, 0.4, 0.8, 1.0])  # the last one is clamped
    assert curve.on_target[0] == pytest.approx(np.abs(drawn - 0.2) / 0.4, abs=1e-5)
    assert curve.off_target[0] == pytest.approx(np.zeros(5), abs=1e-6)
    target = 1 / (1 + np.exp(-(4 * drawn + 0.4)))
    assert curve.f_target[0] == pytest.approx(target, abs=1e-4)
    assert curve.g_target[0] == pytest.approx(target, abs=1e-4)
    styles = np.sqrt(np.square(0.2 * curve.factors) + 0.4**2 + 0.2**2) / 0.5  # before clamping
    assert curve.style_distance[0] == pytest.approx(styles, abs=1e-5)
    assert styles[2] < 1.5 < styles[3]
    assert curve.reliable.tolist() == [[True, True, True, False, False]]
    assert curve.reliable_range == (0, 2)


def test_what_directions_move_counts_as_distance_too():
    curve = lambda_curve(StyledToy(push=3.0), toy_images([0.2, 0.4, 0.0, 0.2]), choose(0), REFERENCE, (1, 2))
    still, moved = np.array([0.4, 0.4, 0.0, 0.2]), np.array([1.0, 0.4, 0.0, 0.2])  # by 3 times its change of 0.2
    expected = np.sqrt((np.square(still).sum() + np.square(moved).sum()) / 2) / 0.5
    assert curve.style_distance[0] == pytest.approx([np.sqrt(0.24) / 0.5, expected], abs=1e-5)


def test_other_concepts_that_move_more_than_the_chosen_one_end_the_reliable_range():
    far = replace(REFERENCE, largest_distance=100.0)
    curve = lambda_curve(StyledToy(leak=2.0), toy_images([0.2, 0.1, 0.0, 0.2]), choose(0), far, (0, 2, 3))
    # concept 1 grows by 2 (0.2 lambda - 0.2) in units of 0.8, averaged with concept 3; concept 2 has no scale
    growth = np.array([0, 0, 0.2, 0.4])
    assert curve.off_target[0] == pytest.approx(2 * growth / 0.8 / 2, abs=1e-5)
    assert curve.on_target[0] == pytest.approx([0.5, 0, 0.5, 1.0], abs=1e-5)
    assert curve.reliable.all()
    weak = replace(far, scale=np.array([0.4, 0.1, 0.0, 0.5], np.float32))
    curve = lambda_curve(StyledToy(leak=2.0), toy_images([0.2, 0.1, 0.0, 0.2]), choose(0), weak, (0, 2, 3))
    assert curve.reliable_range == (0, 1)


def test_images_without_a_chosen_concept_are_left_out_of_the_curve():
    images, selection = toy_images(AMOUNTS, AMOUNTS, AMOUNTS), torch.cat([choose(), choose(0), choose(1, 2)])
    curve = lambda_curve(StyledToy(), images, selection, REFERENCE, batch_size=1)
    assert curve.rows.tolist() == [1, 2] and curve.f_target.shape == (2, len(curve_factors(4)))
    with pytest.raises(ValueError, match="no concept is chosen"):
        lambda_curve(StyledToy(), images[:1], selection[:1], REFERENCE)
    with pytest.raises(ValueError, match="multipliers must be 0 or more"):
        lambda_curve(StyledToy(), images, selection, REFERENCE, (-1,))


def curve_of(distance: list[list[float]]) -> LambdaCurve:
    """A curve over multipliers 0 to 4 that is reliable where the distance is at most 1."""
    values = np.array(distance)
    still = np.zeros_like(values)
    reference = Reference(np.ones(4), 1.0, 1.0, 20)
    return LambdaCurve(np.arange(5.0), np.arange(len(values)), still, still, still, still, values, reference)


def test_the_reliable_range_is_one_piece_around_one():
    assert curve_of([[2, 1, 1, 2, 1]]).reliable_range == (1, 2)
    assert curve_of([[1, 1, 1, 1, 1]]).reliable_range == (0, 4)
    assert curve_of([[1, 2, 1, 1, 1]]).reliable_range is None
    assert curve_of([[0, 1, 2, 1, 1]]).reliable_range == (0, 1)
    both = curve_of([[1, 1, 1, 2, 2], [2, 1, 2, 2, 2], [2, 1, 1, 1, 2], [2, 2, 2, 2, 2]])
    assert both.reliable_range == (1, 2)  # for at least half of the images
    assert both.reliable_ranges == [(0, 2), (1, 1), (1, 3), None]
    said = json.loads(json.dumps(both.to_dict()))
    assert said["reliable_share"] == [0.25, 0.75, 0.5, 0.25, 0]
    assert said["reliable_ranges"]["3"] is None and said["style_distance"][2] == 1.5


def test_what_is_usual_by_hand():
    amounts = np.random.default_rng(0).integers(0, 128, (30, 4)) / 255
    amounts[:, 3] = 0
    found = usual_reconstructions(StyledToy(), toy_dataset(amounts, [0] * 30), batch_size=7)
    assert found.scale == pytest.approx(amounts.max(0), abs=1e-6)
    length = np.linalg.norm(amounts, axis=1)
    assert found.spread == pytest.approx(np.sqrt(np.square(length).mean()), abs=1e-5)
    assert found.largest_distance == pytest.approx(np.quantile(length / found.spread, 0.95), abs=1e-5)
    assert found.images == 30
    assert usual_reconstructions(StyledToy(), toy_dataset(amounts, [0] * 30), limit=25).images == 25
    with pytest.raises(TooFewImages, match="a curve needs at least 20 test images, toy has 9"):
        usual_reconstructions(StyledToy(), toy_dataset(amounts[:9], [0] * 9))


def test_multipliers_of_a_curve():
    assert curve_factors(4, 4) == [0, 1, 2, 3, 4]
    assert curve_factors(3, 2) == [0, 1, 1.5, 3]
    assert curve_factors(0.5, 2) == [0, 0.5, 1]


# --- files ----------------------------------------------------------------------------------------------------------


def test_export_writes_each_image_and_says_what_it_is(tmp_path):
    result = amplified((0.0, 1.0, 2.5))
    table = export_images(tmp_path / "a", {"chosen": result}, ["x", "y"], ["left", "right"], np.array([1, 1]))
    lines = {line["file"]: line for line in csv.DictReader(table.read_text().splitlines())}
    assert sorted(lines) == sorted(path.name for path in table.parent.glob("*.png")) and len(lines) == 2 * (1 + 3 * 2)
    line = lines["x-chosen-x2.5.png"]
    assert (line["image"], line["kind"], line["multiplier"], line["concepts"]) == ("x", "chosen", "2.5", "2")
    assert (line["label"], line["target"], line["g"]) == ("right", "right", "right")
    assert float(line["g_target"]) == pytest.approx(result.g_probability[0, 2], abs=1e-6)
    assert lines["y-original.png"]["concepts"] == lines["y-original.png"]["multiplier"] == ""
    assert (np.asarray(Image.open(tmp_path / "a" / "x-chosen-x2.5.png")) == result.images[0, 2]).all()
    change = np.asarray(Image.open(tmp_path / "a" / "x-chosen-x0-change.png"))
    assert change[-1, 0] == round(0.6 * 255) and change[0, 0] == 0
    export_images(tmp_path / "b", {"chosen": result, "random": result}, ["x", "y"], ["left", "right"])
    lines = list(csv.DictReader((tmp_path / "b" / "images.csv").read_text().splitlines()))
    assert [line["file"] for line in lines if line["kind"] == "original"] == ["x-original.png", "y-original.png"]
    assert {line["label"] for line in lines} == {""} and "random-change" in {line["kind"] for line in lines}
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"folder .*: cannot write there"):
        export_images(tmp_path / "file" / "c", {"chosen": result}, ["x", "y"], ["left", "right"])


def test_a_sweep_goes_up_and_comes_back(tmp_path):
    frames = sweep_frames(amplified(tuple(sweep_factors(2, 5))))
    assert sweep_factors(2, 5) == [0, 0.5, 1, 1.5, 2] and len(frames) == 8
    assert (frames[3] == frames[5]).all() and (frames[0] != frames[4]).any()
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0
    with Image.open(save_gif(tmp_path / "a.gif", frames, rate=10)) as gif:
        assert (gif.n_frames, gif.info["loop"], gif.info["duration"]) == (8, 0, 100)
        assert gif.size == frames[0].shape[1::-1]
    rust = np.full((32, 32, 3), (200, 80, 20), np.uint8)
    video = cv2.VideoCapture(str(save_mp4(tmp_path / "b" / "a.mp4", [rust] * 8)))
    good, first = video.read()
    assert good and np.abs(first[..., ::-1].astype(int) - rust).max() < 10
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 8
    assert {path.name for path in tmp_path.rglob("*.*")} == {"a.gif", "a.mp4"}
    with pytest.raises(ValueError, match=r"gif .*ends in \.gif"):
        save_gif(tmp_path / "a.png", frames)


def test_names_of_concepts_stand_beside_their_indices():
    assert concept_list(np.array([3, 5]), names={5: "blue wing"}) == "concepts 3, 5 (blue wing)"


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def run(models, tmp_path, monkeypatch):
    """`amplify` on a tiny ensemble, in an empty folder and without shipped models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("viscoin.models.files.ASSETS", tmp_path / "assets")
    return lambda *options: Answer("amplify", "--viscoin-pickle-path", models["viscoin"], *options)


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_command_writes_figures_numbers_and_files(run):
    moving = ["--gif", "a.gif", "--mp4", "a.mp4"]
    options = ["--concept-top-k", 2, "--image-indices", "3,5", "--multipliers", "1,3", "--multipliers", "0.5"]
    run(*options, "--curve", "--export", "single", *moving, "--out", "out").went_well()
    assert {path.name for path in Path("out").iterdir()} == {
        "amplification.png", "amplification-curve.png", "results.json",
    }  # fmt: skip
    found = results(Path("out"))
    assert found["images"] == ["birds-test-3", "birds-test-5"] and found["multipliers"] == [1, 3, 0.5]
    for chosen, control in zip(found["chosen"], found["random"], strict=True):
        assert len(chosen["concepts"]) == 2 and not set(chosen["concepts"]) & set(control["concepts"])
    assert found["curve"]["chosen"]["multipliers"][-1] == 3
    assert len(list(Path("single").glob("*.png"))) == 2 * (1 + 2 * 3 * 2)
    assert Path("a.gif").is_file() and Path("a.mp4").is_file()


def test_command_takes_any_image_and_needs_no_dataset_for_it(run, tmp_path, monkeypatch):
    picture = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "mine.jpg")
    Image.fromarray(picture).convert("L").save(tmp_path / "grey.png")
    files = ["--image", "mine.jpg", "--image", "grey.png"]
    with monkeypatch.context() as patch:
        patch.delattr("viscoin.datasets.load_dataset")
        answer = run(*files, "--concept-indices", "0", "--no-control", "--out", "out").went_well()
    assert "40x50 px: centre-cropped and resized to 32 px" in answer.err
    found = results(Path("out"))
    assert found["images"] == ["mine", "grey"] and "labels" not in found and "random" not in found
    run(*files, "--concept-indices", "0", "--curve", "--out", "curve").went_well()


def test_command_refuses_what_makes_no_sense(run, tmp_path):
    (tmp_path / "text.png").write_text("this is no picture")
    some = ["--concept-top-k", 1]
    run(*some, "--image", "text.png").refused("text.png", "no image")
    run(*some, "--image", "nowhere.png").refused("nowhere.png")
    run(*some, "--image", ".").refused("directory")
    run(*some, "--image", "text.png", "--image-indices", "1").refused("--image-indices", "--image")
    run(*some, "--multipliers", "1,-2").refused("--multipliers", "--multipliers -2", "0 or more")
    run(*some, "--multipliers", "two").refused("--multipliers", "--multipliers two")
    run(*some, "--multipliers", "1,,2").refused("--multipliers", "''")
    run(*some, "--multipliers", "inf").refused("--multipliers", "--multipliers inf")
    run(*some, "--multipliers", "1,2,3,4,5,6,7").refused("--multipliers", "7", "at most 6")
    run(*some, "--gif", "a.png").refused("--gif", "a.png", ".gif")
    run(*some, "--mp4", "a.gif").refused("--mp4", "a.gif", ".mp4")
    run("--concept-indices", "2,6").refused("--concept-indices", "6", "6 concepts")
    run("--concept-top-k", 7).refused("--concept-top-k", "7", "6 concepts")
    run().refused("--concept-threshold", "--concept-top-k", "none")
    data = write_images(tmp_path / "data", {"cat": 10, "dog": 10})
    run(*some, "--dataset", data).refused("cat, dog", "4 classes", "2 classes")
    assert not list(tmp_path.glob("runs/*"))
