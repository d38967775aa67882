"""`explain`: known answers for its parts, the choice of methods, what is said about trust, page, and command."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import Answer, tiny_recipe, write_images
from toy_ensemble import SIZE, ToyEnsemble, quadrants, toy_dataset

from viscoin.analysis.explanation_change import Change
from viscoin.analysis.explanation_concepts import Library, count_votes, fewest_concepts, open_library
from viscoin.analysis.explanation_patches import GRID, HiddenPatches, fewest_patches
from viscoin.analysis.explanation_places import Place, Places, find_places, strongest
from viscoin.analysis.explanation_places import _Hiding as _Hidden
from viscoin.analysis.explanation_trust import Facts, accuracy_of_f, how_far_to_trust, interval
from viscoin.analysis.questions import target_of
from viscoin.attribution.measured import CNN, PHOTOGRAPHS, VIT, Measured, MethodScores, measured_for, read_measured
from viscoin.attribution.methods import METHODS
from viscoin.attribution.targets import ClassifierLogit
from viscoin.errors import Refused
from viscoin.inference.loading import Pictures, Subject, load_subject
from viscoin.models.classifier import Classifier
from viscoin.models.files import ASSETS, has_model, load_model
from viscoin.reports.explanation_page import code, framed, share, signed, surely, where

DOCS = Path(__file__).parents[1] / "docs"
NAMES = ["left", "right"]


pytestmark = pytest.mark.usefixtures("own_cache")


def toy_image(*amounts: float) -> torch.Tensor:
    return toy_dataset([list(amounts)], [0]).batch([0])[0]


# --- methods by measured scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("measured", "part"), [(CNN, 0), (VIT, 1)])
def test_scores_of_methods_are_those_of_the_page(measured, part):
    text = (DOCS / "attribution-tests.md").read_text()
    cnn, vit = text.split("### On a vision transformer")
    rows = [line.split("|") for line in (cnn, vit)[part].splitlines() if line.startswith("| `")]
    cells = {row[1].strip(" `"): [cell.strip() for cell in row[2:]] for row in reversed(rows)}  # the first table counts
    parts = {row[1].strip(" `"): row for row in rows if len(row) == 10 and "±" in row[2] and "±" not in row[6]}
    for name, scores in measured.methods.items():
        contrast = float(parts[name][4].split("±")[0].strip(" *")) if name in parts else scores.contrast
        assert contrast == scores.contrast, name
        if part == 0:
            mean, pointing, _, gap, better, _ = cells[name][:6]
            assert [float(cell.split("±")[0].strip(" *")) for cell in (mean, pointing, gap)] == [
                scores.mean, scores.pointing, scores.gap
            ]  # fmt: skip
            assert better == f"{scores.better} of {measured.compared}"
        else:
            assert float(parts[name][5].split("±")[0].strip(" *")) == scores.mean
    if part == 1:
        said = (
            "`chefer`, `rollout` and `integrated-gradients` beat `edges` in 10, 11 and 8 of 17 scores, `gradcam` in 1"
        )
        assert (
            said in " ".join(cnn.split())
            and "`occlusion`, `kernel-shap`, `saliency` and `integrated-gradients` in 8" in vit
        )
        assert [measured.methods[name].better for name in measured.methods] == [10, 11, 8, 1, 8, 8]


def test_scores_of_methods_on_photographs_are_those_of_the_page():
    text = (DOCS / "photographs.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    cells = {row[0]: row[1:] for row in rows if len(row) == 8}  # the table with hidden pixels
    for name, scores in PHOTOGRAPHS.methods.items():
        pointing, gap = (float(cells[METHODS[name].title][i].split()[0]) for i in (0, 5))
        assert (pointing, gap) == (scores.pointing, scores.gap), name
        # pointing, mass, rank, and deletion, insertion and gap by blurring; the page shows of grey the gap alone
        stars = [i for i, cell in enumerate(cells[METHODS[name].title]) if cell.endswith("*")]
        assert scores.better in (len(stars), len(stars) + 1), name
    assert PHOTOGRAPHS.order[:3] == ["cam", "gradcampp", "kernel-shap"]


def test_large_networks_are_taken_for_those_of_photographs():
    assert measured_for(Classifier("viscoin_resnet10", 3, 128)) == (PHOTOGRAPHS, False)
    assert measured_for(Classifier("viscoin_resnet10", 3, 64)) == (CNN, False)


def test_methods_that_do_not_see_the_class_come_last():
    assert CNN.order[:3] == ["deeplift", "guided-backprop", "saliency"]
    assert VIT.order[:3] == ["occlusion", "kernel-shap", "integrated-gradients"]
    assert VIT.methods["rollout"].better > VIT.methods["occlusion"].better
    edges = {"edges": MethodScores(0.5, 0, 0.5), "mine": MethodScores(0.9, 17, 1.0), **CNN.methods}
    assert replace(CNN, methods=edges).order[0] == "deeplift"  # neither controls nor what is no method


def test_shipped_classifier_is_the_measured_one(models):
    shipped = load_model(ASSETS / "birds" / "classifier.safetensors").model
    assert measured_for(shipped) == (CNN, True)
    assert measured_for(load_model(models["classifier"]).model) == (CNN, False)


def test_own_measurement_chooses_methods(tmp_path):
    def row(ts, beaten):
        above = {name: {"value": 0.1} for name in "abcd"}
        return {
            "estimates": {"parts.ts": {"value": ts}, "parts.mean": {"value": 0.5}}, "above_edges": above,
            "not_above_edges": list("abcd")[beaten:],
        }  # fmt: skip

    path = tmp_path / "results.json"
    path.write_text(
        json.dumps({"n": 7, "methods": {"saliency": row(0.9, 1), "gradcam": row(0.8, 3), "cam": row(0.4, 4)}})
    )
    found = read_measured(tmp_path)
    assert found.order == ["gradcam", "saliency", "cam"] and (found.images, found.compared) == (7, 4)
    for text in ("{}", "no json", '{"n": 1, "methods": {}}'):
        path.write_text(text)
        with pytest.raises(Refused, match="measured"):
            read_measured(path)


# --- places ---------------------------------------------------------------------------------------------------------


def test_maps_of_the_toy_point_at_what_decides():
    pictures = Pictures(toy_image(0.9, 0.1, 0.3, 0.0), ["one"])
    measured = Measured(
        "toys", 5, 3, {name: MethodScores(None, 1, None) for name in ("saliency", "integrated-gradients")}
    )
    found = find_places(target_of(ToyEnsemble(), "f"), pictures, NAMES, measured, True)
    assert [place.method for place in found.maps] == ["saliency", "integrated-gradients"]
    heat = found.maps[0].heat
    assert heat[: SIZE // 2, : SIZE // 2].mean() > 3 * heat[: SIZE // 2, SIZE // 2 :].mean()
    assert found.contrast.method == "integrated-gradients" and found.contrast.signed
    assert find_places(target_of(ToyEnsemble(), "f"), pictures, NAMES, measured, True).to_dict() == found.to_dict()
    with pytest.raises(Refused, match="none of the measured"):
        find_places(target_of(ToyEnsemble(), "f"), pictures, NAMES, replace(measured, methods={}), True)


class Spots(torch.nn.Module):
    """Class 0 is there if any of some pixels is bright."""

    n_classes = 2

    def __init__(self, *places: int) -> None:
        super().__init__()
        self.places = list(places)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = images[:, :, self.places, self.places].mean(1).amax(1)
        return torch.stack([6 * bright, torch.zeros_like(bright)], 1)


def spots(*places: int) -> tuple[torch.Tensor, np.ndarray]:
    """A black image (1, 3, 32, 32) with bright pixels on its diagonal, and the map (32, 32) that shows them."""
    image, heat = -torch.ones(1, 3, 32, 32), np.zeros((32, 32))
    image[:, :, list(places), list(places)] = 1
    heat[list(places), list(places)] = 1
    return image, heat


def test_a_true_map_costs_the_prediction_and_a_false_one_does_not():
    (image, true), (_, false) = spots(9), spots(25)
    hiding = _Hidden(ClassifierLogit(Spots(9)), image, 0, "cpu", 8, 0)
    kept = [hiding.try_out(Place("saliency", heat, False, False)) for heat in (true, false)]
    assert kept[0].kept < 0.1 and kept[1].kept == pytest.approx(1)
    assert 0.5 < kept[0].kept_at_random == kept[1].kept_at_random <= 1


def test_strongest_tenth():
    heat = np.arange(100.0).reshape(10, 10)
    assert strongest(heat).sum() == 10 and strongest(heat)[9].all()


# --- what would change it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [(9,), (9, 25)])
def test_fewest_patches_are_those_that_decide(places):
    image, heat = spots(*places)
    found = fewest_patches(ClassifierLogit(Spots(*places)), image[0], heat)
    assert found.changes and (found.predicted, found.becomes) == (0, 1)
    assert np.argwhere(found.hidden).tolist() == [[place // 4, place // 4] for place in places]
    assert found.to_dict(NAMES)["becomes"] == "right" and len(found.image) == 32
    blind = fewest_patches(ClassifierLogit(Spots(*places)), image[0], np.zeros_like(heat))
    assert blind.changes and blind.count == len(places)  # a map that says nothing: what can be spared is spared


def test_a_flat_image_says_that_nothing_changes_it():
    found = fewest_patches(target_of(ToyEnsemble(), "f"), toy_image(0.5, 0.5, 0.5, 0.5)[0], np.zeros((SIZE, SIZE)))
    assert not found.changes and found.count == GRID * GRID


def test_fewest_concepts():
    phi, weight = torch.tensor([1.0, 1.0, 0.5, 0.0]), torch.tensor([[3.0, 0.2, 0.0, 0.0], [0.0, 0.0, 1.0, 9.0]])
    off = fewest_concepts(phi, weight, torch.zeros(2))
    assert (list(off.concepts), off.becomes, off.changes) == ([0], 1, True)
    stays = fewest_concepts(phi, weight, torch.tensor([5.0, 0.0]))  # the offset alone keeps the class
    assert not stays.changes and stays.becomes == 0


def test_concepts_that_can_be_spared_are_spared():
    # 0 costs most at first; but only 1 and 2 together let class 2 through, and then 0 does not matter
    weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, -3.0, -3.0]])
    off = fewest_concepts(torch.ones(3), weight, torch.tensor([1.0, 0.2, 3.9]))
    assert (list(off.concepts), off.becomes, off.changes) == ([1, 2], 2, True)


def test_votes_are_weights_times_activations(models):
    ensemble = load_model(models["viscoin"]).model
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    votes = count_votes(ensemble, image, Library(names={0: "crest"}))
    with torch.no_grad():
        logits, maps = ensemble.concept_maps(image[None])
        phi, weight = ensemble.activations(maps)[0], ensemble.explainer.weight.detach()
    assert (votes.predicted, votes.runner_up) == tuple(logits[0].topk(2).indices.tolist())
    assert votes.leading == sorted(votes.leading, key=lambda vote: -vote.vote)
    for vote in (*votes.leading, *votes.between):
        assert vote.vote == pytest.approx(float(phi[vote.concept] * weight[votes.predicted, vote.concept]), abs=1e-5)
        assert vote.against == pytest.approx(float(phi[vote.concept] * weight[votes.runner_up, vote.concept]), abs=1e-5)
    differences = [vote.difference for vote in votes.between]
    assert differences == sorted((d for d in differences if d > 0), reverse=True) + sorted(
        d for d in differences if d < 0
    )
    assert {vote.title for vote in votes.leading} <= {"crest (concept 0)", *(f"concept {k}" for k in range(1, 6))}


def a_change(before=(0.9, 0.1), after=(0.2, 0.8), off_target=0.02, on=(3,), off=(1,)) -> Change:
    pixels = np.zeros((4, 4, 3), np.uint8)
    heat = np.zeros((4, 4))
    return Change(on, off, pixels, pixels, heat, np.array(before), np.array(after), 0, 0.1, off_target, 8)


def test_a_change_is_described_by_names():
    assert a_change().describe({1: "dark eye", 3: "red eye"}) == "dark eye turned into red eye"
    assert a_change().describe({}) == "concept 1 turned into concept 3"
    assert a_change().describe({1: "dark eye"}) == a_change(on=()).describe({1: "dark eye"}) == "dark eye turned off"
    assert a_change().describe({3: "red eye"}) == a_change(off=()).describe({3: "red eye"}) == "red eye turned on"
    assert a_change(on=(3, 4), off=(1, 2)).describe({}).endswith(" and concept 2 turned into concept 4")
    assert a_change().changes and not a_change(after=(0.6, 0.4)).changes
    assert not a_change(before=(0.4, 0.6)).changes  # not by the change alone


# --- trust ----------------------------------------------------------------------------------------------------------


def some_facts(**changes) -> Facts:
    place = Place("deeplift", np.zeros((4, 4)), True, False, 0.1, 0.95)
    places = Places([place], None, 0.8, CNN, True)
    patches = HiddenPatches(np.ones((8, 8), bool), np.zeros((8, 8, 3), np.uint8), np.array([0.1, 0.9]), 0, 99)
    scores = {"accuracy": 0.95, "n": 200.0}
    return replace(Facts(scores, np.array([0.97, 0.03]), places, patches, None, None, Library(), NAMES), **changes)


def levels(facts: Facts) -> dict[str, str]:
    return {one.about: one.level for one in how_far_to_trust(facts)}


def test_trust_follows_what_was_measured():
    assert levels(some_facts()) == {"prediction": "good", "maps": "good", "patches": "fair"}
    assert levels(some_facts(scores={}))["prediction"] == "not measured"
    assert levels(some_facts(scores={}, probabilities=np.array([0.45, 0.4])))["prediction"] == "poor"
    assert levels(some_facts(probabilities=np.array([0.45, 0.4])))["prediction"] == "poor"
    assert levels(some_facts(change=a_change()))["drawing"] == "good"
    assert levels(some_facts(change=a_change(off_target=0.4)))["drawing"] == "fair"
    assert levels(some_facts(change=a_change(before=(0.4, 0.6))))["drawing"] == "poor"
    useless = Place("deeplift", np.zeros((4, 4)), True, False, 0.95, 0.96)
    assert levels(some_facts(places=Places([useless], None, 0.9, CNN, True)))["maps"] == "poor"
    other = some_facts(places=replace(some_facts().places, same_network=False))
    assert any("nobody has measured" in one.says for one in how_far_to_trust(other))


def test_accuracy_is_that_of_f(models):
    alone = [some_facts(scores=scores) for scores in ({"accuracy": 0.9, "n": 10}, {"validation.accuracy": 0.5}, {})]
    found = [None if one is None else (one.value, one.n) for one in map(accuracy_of_f, alone)]
    assert found == [(0.9, 10), (0.5, None), None]
    votes = count_votes(load_model(models["viscoin"]).model, torch.zeros(3, 32, 32), Library())
    of_g = some_facts(scores={"validation.accuracy": 0.5, "validation.agreement": 0.6}, votes=votes)
    assert accuracy_of_f(of_g) is None
    assert accuracy_of_f(replace(of_g, scores={"classifier.accuracy": 0.7, "n": 5})).value == 0.7


def a_subject(models, **changes) -> Subject:
    loaded = load_model(models["viscoin"])
    given = {"class_names": loaded.class_names, "config": tiny_recipe().dataset} | changes
    return Subject(loaded.model, loaded.path, torch.device("cpu"), **given)


def test_without_scores_the_images_of_the_crops_are_counted(models):
    subject = a_subject(models)
    library = open_library(subject)
    votes = count_votes(subject.model, torch.zeros(3, 32, 32), library)
    found = accuracy_of_f(some_facts(scores={}, votes=votes, library=library))
    table = library.table
    assert found.n == 24 and found.value == (table.f_probabilities.argmax(1) == table.labels).mean()
    assert "validation images" in found.source and "interval" in found.ends
    library.images.labelled = False
    assert accuracy_of_f(some_facts(scores={}, votes=votes, library=library)) is None


def test_images_for_crops_are_those_of_the_ensemble_or_say_why_not(models):
    assert open_library(a_subject(models)).images.split == "validation"
    others = open_library(a_subject(models, class_names=list("abcd")))
    assert others.images is None and "other classes" in others.missing
    gone = tiny_recipe().dataset.model_copy(update={"name": "no/such/folder"})
    assert "no/such/folder" in open_library(a_subject(models, config=gone)).missing
    own = load_subject("viscoin", models["viscoin"])
    foreign = replace(own, class_names=list("abcd"))
    assert open_library(foreign).images is own.images


def test_maps_that_do_not_hold_here_are_named():
    kept = {"deeplift": 0.1, "cam": 0.94}
    maps = [Place(name, np.zeros((4, 4)), True, False, value, 0.95) for name, value in kept.items()]
    judged = how_far_to_trust(some_facts(places=Places(maps, None, 0.9, CNN, True)))
    found = next(one for one in judged if one.about == "maps")
    assert found.level == "fair" and "Here DeepLIFT found" in found.says and "CAM did not" in found.says


def test_exact_intervals():
    assert interval(1.0, 50) == pytest.approx((0.929, 1.0), abs=1e-3)  # Clopper-Pearson
    assert interval(0.5, 10) == pytest.approx((0.187, 0.813), abs=1e-3)


# --- page -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.001, "under 1 %"),
        (0.5, "50 %"),
        (0.996, "over 99 %"),
        (1.004, "over 99 %"),
        (1.03, "103 %"),
        (1.14, "114 %"),
    ],
)
def test_shares(value, text):
    assert share(value).replace("\N{NO-BREAK SPACE}", " ") == text


def test_small_words_of_the_page():
    assert [surely(p) for p in (0.95, 0.6, 0.1)] == ["This is", "This is probably", "This may be"]
    assert [share(value) for value in (0.999, 0.5, 0.001)] == ["over 99\xa0%", "50\xa0%", "under 1\xa0%"]
    assert signed(-0.4) == "−0.40" and where((0, 0), 30) == "at the top left" and where((15, 15), 30) == "in the middle"
    assert where(None, 30) == "nowhere"
    assert code("run `a <b>` now") == "run <code>a &lt;b&gt;</code> now"


def test_frames_lie_around_hidden_patches():
    hidden = np.zeros((8, 8), bool)
    hidden[0, 0] = True
    drawn = framed(quadrants([[0.5, 0.5, 0.5, 0.5]])[0], hidden)
    red = (drawn == (230, 70, 40)).all(2)
    side = len(drawn) // 8
    assert red[:side, :side].any() and not red[side:].any() and not red[:, side:].any()
    assert not red[side // 2, side // 2]


def pages_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.html")}


def check_page(text: str) -> None:
    assert "http://" not in text and "https://" not in text and "<script" not in text
    images = re.findall(r"<img[^>]*>", text)
    assert images and all(" alt=" in image for image in images)
    assert all(f'id="{name}"' in text for name in re.findall(r'href="#([^"]+)"', text))
    for heading in ("Where it looks", "What would change its mind", "How far to trust this"):
        assert heading in text


# --- command --------------------------------------------------------------------------------------------------------


def test_explain_an_ensemble(here, models):
    done = Answer(
        "explain", "--viscoin", models["viscoin"], "--image-indices", "0,3", "--out", "r", "--json"
    ).went_well()
    found = json.loads(done.out)["explanations"]
    assert [one["image"] for one in found] == ["birds-test-0", "birds-test-3"]
    pages = pages_of(here / "r")
    assert set(pages) == {"birds-test-0.html", "birds-test-3.html", "index.html"}
    for one in found:
        page = pages[f"{one['image']}.html"]
        check_page(page)
        assert "Why: concepts for and against" in page and one["predicted"] in page
        assert one["drawn_change"] is not None and {row["about"] for row in one["trust"]} >= {"concepts", "drawing"}
        assert json.loads((here / "r" / f"{one['image']}.json").read_text())["classes"] == one["classes"]
        assert len(one["where"]["maps"]) == 3 and one["where"]["contrast"]["signed"]
    assert 'href="birds-test-3.html"' in pages["index.html"]


def test_explain_a_photograph_by_a_classifier_alone(here, models):
    Image.fromarray(quadrants([[0.9, 0.5, 0.1, 0.0]])[0].repeat(5, 0).repeat(8, 1)).save("photo.png")
    done = Answer("explain", "photo.png", "--classifier", models["classifier"], "--out", "r").went_well()
    assert "photo.html" in done.err.splitlines()[-1] and "where it looks (1 of 2)" in done.err
    page = pages_of(here / "r")["photo.html"]
    check_page(page)
    found = json.loads((here / "r" / "photo.json").read_text())
    assert found["concepts"] is None and "train viscoin" in found["missing"]["concepts"] and "true" not in found
    assert found["fewest_patches"]["tried"] > 64 and "No concepts" in page
    assert not (here / "r" / "index.html").exists()


def test_names_and_own_measurement_reach_the_page(here, models):
    Path("names.csv").write_text("concept,name\n" + "".join(f"{k},thing {k}\n" for k in range(6)))
    row = {"estimates": {}, "above_edges": {"a": {}}, "not_above_edges": []}
    Path("results.json").write_text(json.dumps({"n": 9, "methods": {"gradcam": row}}))
    options = ("--concept-names", "names.csv", "--measured", "results.json", "--out", "r", "--image-indices", "1")
    Answer("explain", "--viscoin", models["viscoin"], *options).went_well()
    found = json.loads((here / "r" / "birds-test-1.json").read_text())
    assert [place["method"] for place in found["where"]["maps"]] == ["gradcam"] and found["where"]["contrast"] is None
    assert found["where"]["chosen_by"]["images"] == 9 and found["where"]["chosen_by"]["same_network"]
    assert "thing " in pages_of(here / "r")["birds-test-1.html"]


def test_images_without_classes_are_explained(here, models):
    write_images(Path("photos"), {".": 3})
    options = ("--dataset", "photos", "--viscoin", models["viscoin"], "--image-indices", "1", "--out", "r")
    Answer("explain", *options).went_well()
    (path,) = Path("r").glob("*.json")
    found = json.loads(path.read_text())
    assert "true" not in found and found["concepts"]["leading"][0]["seen_in"]
    assert next(row for row in found["trust"] if row["about"] == "prediction")["level"] in ("poor", "not measured")


def test_where_there_is_no_ensemble_the_classifier_is_explained(here, models):
    assert has_model("viscoin", None) and not has_model("viscoin", "no-such-data")
    Answer("explain", "--dataset", "cub", "--out", "r").refused("no classifier model of dataset 'cub'")


def test_mistakes_are_named_and_nothing_is_written(here, models):
    f = ("--classifier", models["classifier"])
    Path("text.png").write_text("no image")
    Image.fromarray(quadrants([[0.9, 0.5, 0.1, 0.0]])[0]).save("small.png")
    out = ("--out", "r")
    Answer("explain", "text.png", *f, *out).refused("text.png", "no image of a known format")
    Answer("explain", "none.png", *f, *out).refused("none.png")
    Answer("explain", "--classifier", models["viscoin"], *out).refused("holds a viscoin model")
    Answer("explain", *f, "--viscoin", models["viscoin"], *out).refused("--classifier", "--viscoin")
    Answer("explain", *f, "--concept-names", "x.csv", *out).refused("--concept-names")
    Answer("explain", "small.png", *f, "--image-indices", "1", *out).refused("--image-indices")
    Answer("explain", *f, "--measured", "text.png", *out).refused("--measured", "test attribution")
    assert not Path("r").exists()
    done = Answer("explain", "text.png", "small.png", *f, "--skip-bad-files", *out).went_well()
    assert "left out: text.png" in done.err and Path("r/small.html").is_file()
