"""`attribute`: questions and their known answers, states of a training, two tests of maps, figures, page, command."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from tiny_models import Answer, set_options, tiny_recipe, write_images, write_models
from toy_ensemble import SIZE, ToyEnsemble, toy_dataset

from viscoin.analysis import attribution_demos as demos
from viscoin.analysis.attribution import AttributionStudy, Settings, expand_methods, save_maps, study_attribution
from viscoin.analysis.attribution_checkpoints import CheckpointStudy, expand_checkpoints
from viscoin.analysis.attribution_images import ImageChoice
from viscoin.analysis.questions import Asked, Views, ask, target_of
from viscoin.attribution import METHODS, AttributionResult
from viscoin.attribution.targets import ClassifierLogit
from viscoin.cli.attribute import METHOD_HELP
from viscoin.errors import Refused
from viscoin.inference.loading import Pictures
from viscoin.models.classifier import Classifier
from viscoin.models.files import load_model
from viscoin.plotting import style
from viscoin.plotting.attribution import attribution_figures, checkpoint_figure, describe_view, painted
from viscoin.plotting.attribution_demos import demo_figures
from viscoin.reports.attribution_page import write_attribution_page

NAMES = ["left", "right"]


pytestmark = pytest.mark.usefixtures("own_cache")


def toy_pictures(labels: bool = True) -> Pictures:
    """Two images of the toy: the first is of class left, the second of class right, and labelled left."""
    images, _ = toy_dataset([[0.9, 0.5, 0.1, 0.0], [0.1, 0.0, 0.8, 0.0]], [0, 0]).batch([0, 1])
    return Pictures(images, ["one", "two"], np.array([0, 0]) if labels else None)


def toy_study(methods=("saliency",), asked=None, pictures=None, **settings) -> AttributionStudy:
    target, asked = target_of(ToyEnsemble(), "f"), asked or Asked()
    return study_attribution(target, pictures or toy_pictures(), NAMES, methods, asked, Settings(**settings))


def quadrants(heat: torch.Tensor) -> list[float]:
    """Means of a map in the four quadrants, the first one as 1."""
    half = SIZE // 2
    means = heat.unflatten(0, (2, half)).unflatten(2, (2, half)).mean((1, 3)).flatten()
    return [round(float(mean / means[0]), 3) if means[0] else float(mean) for mean in means]


# --- questions ------------------------------------------------------------------------------------------------------


def test_maps_of_the_toy_are_its_weights():
    study = toy_study(["saliency", "input-x-gradient"], Asked(("left",)))
    assert quadrants(study.results["saliency"].maps[0]) == [1, 0.25, 0, 0]
    assert study.views.targets.tolist() == [0, 0] and study.views.question == "left"
    signed = study.results["input-x-gradient"]
    assert signed.signed and quadrants(signed.maps[0]) == pytest.approx([1, 0, 0, 0], abs=0.01)  # grey: 0.5


def test_one_class_against_another_is_the_difference_of_their_maps():
    alone = [toy_study(["input-x-gradient"], Asked((name,))).results["input-x-gradient"].maps for name in NAMES]
    study = toy_study(["input-x-gradient"], Asked(("left",), against="right"))
    torch.testing.assert_close(study.results["input-x-gradient"].maps, alone[0] - alone[1])
    assert study.views.question == "left against right" and study.views.against.tolist() == [1, 1]
    assert study.to_dict()["views"][0]["against"] == "right"


@pytest.mark.parametrize(
    ("target", "classes", "question"),
    [
        ("predicted", [0, 1], "the predicted class"),
        ("runner-up", [1, 0], "the runner-up"),
        ("true", [0, 0], "the true class"),
        ("right", [1, 1], "right"),
        ("1", [1, 1], "right"),
    ],
)
def test_a_class_by_rank_name_or_number(target, classes, question):
    views = ask(target_of(ToyEnsemble(), "f"), toy_pictures(), NAMES, Asked((target,)), "cpu", 8)
    assert views.targets.tolist() == classes and views.question == question


def test_a_name_comes_before_a_number():
    views = ask(target_of(ToyEnsemble(), "f"), toy_pictures(), ["1", "0"], Asked(("1",)), "cpu", 8)
    assert views.targets.tolist() == [0, 0]


def test_several_classes_of_each_image_stand_side_by_side():
    study = toy_study(["saliency", "smoothgrad"], Asked(("left", "right")))
    assert study.views.names == ["one", "one", "two", "two"] and study.views.targets.tolist() == [0, 1, 0, 1]
    assert quadrants(study.results["saliency"].maps[1])[2] > 0 == quadrants(study.results["saliency"].maps[1])[0]
    alone = toy_study(["smoothgrad"], Asked(("right",))).results["smoothgrad"].maps
    torch.testing.assert_close(study.results["smoothgrad"].maps[1::2], alone)  # the noise is that of the image


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(("magic",)), "target magic: there is no such class; choose predicted, true, runner-up, a number"),
        (Asked(("2",)), "target 2: out of range; there are 2 classes"),
        (Asked(("-1",)), "target -1: out of range"),
        (Asked(("predicted",), "left"), "against left: of one that is the explained class itself"),
        (Asked(against="lefft"), "against lefft: there is no such class; .* such as 'left'"),
    ],
)
def test_wrong_classes_are_refused(asked, message):
    with pytest.raises(Refused, match=message):
        toy_study(asked=asked)


def test_true_classes_must_be_known():
    with pytest.raises(Refused, match="target true: the true classes of these images are not known; name a class"):
        toy_study(asked=Asked(("true",)), pictures=toy_pictures(labels=False))


def test_a_classifier_has_no_concepts():
    with pytest.raises(Refused, match="of concepts: a classifier has logits of f alone"):
        target_of(ToyEnsemble().classifier, "concepts")
    with pytest.raises(Refused, match="of h: unknown scores; choose one of: f, g, concepts"):
        target_of(ToyEnsemble(), "h")


# --- methods --------------------------------------------------------------------------------------------------------


def test_all_are_all_but_controls_and_unknown_ones_are_refused():
    assert expand_methods(["edges", "all"])[0] == "edges"
    assert "edges" not in expand_methods(["all"])
    assert expand_methods(["saliency", "saliency"]) == ["saliency"]
    with pytest.raises(Refused, match=r"method magic: unknown method; choose all, or some of: .*gradcam"):
        expand_methods(["saliency", "magic"])


def test_help_names_every_method():
    named = re.search(r"([a-z-]+\|)+[a-z-]+", METHOD_HELP)
    assert named is not None and set(named[0].split("|")) == {*METHODS, "all"}


def test_a_method_that_does_not_hold_is_left_out_beside_others_and_refused_alone(caplog):
    caplog.set_level("WARNING", logger="viscoin")
    study = toy_study(["rollout", "saliency"])
    assert list(study.results) == ["saliency"] and "vision transformer" in study.left_out["rollout"]
    assert study.to_dict()["left_out"] == dict(study.left_out)
    assert "left out: rollout does not hold" in caplog.text
    with pytest.raises(Refused, match="method rollout: does not hold"):
        toy_study(["rollout"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": "layer4"}, "layer layer4: does not go with saliency; only with .*gradcam"),
        ({"options": {"samples": 3}}, "option 'samples=3': saliency have no such option; leave it out"),
        ({"baseline": "pink"}, "baseline pink: unknown; choose blur, grey, noise"),
    ],
)
def test_settings_that_no_method_knows_are_refused(settings, message):
    with pytest.raises(Refused, match=message):
        toy_study(**settings)


def test_options_go_to_the_methods_that_have_them():
    study = toy_study(["saliency", "smoothgrad"], options={"samples": 3})
    assert study.results["smoothgrad"].options["samples"] == 3
    assert study.results["smoothgrad"].forwards == 3 and study.results["saliency"].options == {}


def test_an_option_that_fits_others_leaves_a_method_out_and_a_wrong_one_is_refused_first(monkeypatch):
    few = {"samples": 5}
    study = toy_study(["kernel-shap", "smoothgrad"], options=few)
    assert list(study.results) == ["smoothgrad"]
    assert study.left_out["kernel-shap"] == "with samples=5: too few for 7x7 cells"
    with pytest.raises(Refused, match="option 'samples=5': too few for 7x7 cells; give more than 49"):
        toy_study(["kernel-shap"], options=few)
    monkeypatch.setattr("viscoin.analysis.attribution.explain", lambda *_: pytest.fail("it began"))
    with pytest.raises(Refused, match="option 'p=2': not possible for method rise"):
        toy_study(["saliency", "rise"], options={"p": 2})


def test_arrays_hold_every_map(tmp_path):
    study = toy_study(["saliency", "occlusion"], Asked(("left",), "right"))
    with np.load(save_maps(tmp_path / "maps.npz", study)) as found:
        assert set(found) == {"images", "targets", "logits", "against", *(
            f"{method}.{kind}" for method in study.results for kind in ("maps", "native"))}  # fmt: skip
        assert found["saliency.maps"].dtype == np.float32
        np.testing.assert_array_equal(found["occlusion.maps"], study.results["occlusion"].maps.numpy())


# --- states of a training -------------------------------------------------------------------------------------------


def test_a_run_keeps_the_model_of_each_epoch_and_they_stand_below_one_another(here, models):
    Answer(
        "train", "classifier", *set_options(), "--epochs", 2, "--set", "classifier.keep_every=1", "--no-pretrained",
        "--out", "run", "--device", "cpu",
    ).went_well()  # fmt: skip
    files = expand_checkpoints([Path("run")], None, "birds")
    assert list(files) == ["epoch 1", "epoch 2"]
    states = [load_model(path).model.state_dict() for path in files.values()]
    assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0])
    logged = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    accuracies = [line["validation.accuracy"] for line in logged if "validation.accuracy" in line]
    options = ["--checkpoints", "run", "--methods", "gradcam,saliency", "--image-indices", "3,5", "--target", "true"]
    Answer("attribute", *options, "--out", "out", "--device", "cpu").went_well()
    found = json.loads((here / "out" / "results.json").read_text())["checkpoints"]
    assert [(row["name"], row["accuracy"]) for row in found] == list(zip(["epoch 1", "epoch 2"], accuracies))
    assert {path.name for path in (here / "out").iterdir()} == {
        "checkpoints-1.png", "checkpoints-2.png", "maps-1.npz", "maps-2.npz", "results.json",
    }  # fmt: skip
    Answer("attribute", *options, "--epochs", "2,7").refused("--epochs 7", "it has 1, 2")
    Answer("attribute", "--checkpoints", models["classifier"], "--epochs", 1).refused("--epochs 1", "keep_every")


def test_states_must_have_the_same_classes(here, models):
    other = write_models(here / "other", tiny_recipe(dataset__classes=5))["classifier"]
    options = ["--checkpoints", other, "--checkpoints", models["classifier"], "--image-indices", "1"]
    Answer("attribute", *options).refused("--checkpoints", "other classes")
    Answer("attribute", "--checkpoints", "none").refused("--checkpoints: there is no model file or run folder none")


# --- right and wrong ------------------------------------------------------------------------------------------------


def test_right_and_wrong_predictions(models, caplog):
    subject, pictures, groups = ImageChoice(right_and_wrong=3, device="cpu").load("classifier", models["classifier"], 1)
    logits = subject.model(pictures.images)
    hits = (logits.argmax(1).numpy() == pictures.labels).tolist()
    assert hits == [True] * groups["right"] + [False] * groups["wrong"] and groups["wrong"] == 3
    caplog.set_level("WARNING", logger="viscoin")
    _, _, many = ImageChoice(right_and_wrong=40, device="cpu").load("classifier", models["classifier"], 1)
    assert sum(many.values()) == 40 and "of 40 test images" in caplog.text


# --- the two tests of maps ------------------------------------------------------------------------------------------


def tiny_classifier(backbone: str = "viscoin_resnet10", side: int = 32) -> Classifier:
    torch.manual_seed(0)
    return Classifier(backbone, 2, side).eval()


@pytest.mark.parametrize(("backbone", "side"), [("viscoin_resnet10", 32), ("test_vit", 64)])
def test_the_moved_network_computes_the_same_also_at_the_border(backbone, side):
    f, x = tiny_classifier(backbone, side), torch.rand(2, 3, side, side) * 2 - 1
    moved = demos.shifted(f, 0.3)
    with torch.no_grad():
        before, after = f(x), moved(x + 0.3)
        assert (f(x + 0.3) - before).abs().max() > 1e-3 * before.abs().max()
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_of_the_same_function_gradients_stay_and_products_with_the_input_do_not():
    pictures = Pictures(torch.rand(2, 3, 32, 32) * 2 - 1, ["a", "b"])
    result = demos.study_shift(tiny_classifier(), pictures, NAMES)
    stays = {row.title: row.stays for row in result.rows}
    assert stays == {
        "Grad-CAM": True, "Saliency": True, "Input x Gradient": False,
        "Integrated Gradients, baseline grey": False, "Integrated Gradients, baseline moved along": True,
    }  # fmt: skip
    assert result.logit_difference < 1e-4 and "Saliency: the same, rank correlation 1.00" in result.summary
    assert set(demo_figures(result)) == {"shift"}


def test_a_network_that_begins_otherwise_cannot_be_moved():
    f = tiny_classifier()
    f.model.conv1.padding_mode = "reflect"
    with pytest.raises(Refused, match="demo shift: the network does not begin with a plain convolution"):
        demos.shifted(f, 0.3)


def test_a_map_with_nothing_left_is_called_empty():
    maps = {"gradcam": np.ones((2, 2, 16, 16)), "saliency": np.ones((2, 2, 16, 16))}
    maps["gradcam"][1, 0] = 0
    like = {method: np.array([[1.0, 1.0], [0.0, 0.5]]) for method in maps}
    result = demos.RandomisedResult(made_study(2).views, ["trained", "fc"], np.full((2, 2), 0.5), maps, like, like)
    first, second = result.summary.split("\n")
    assert first.endswith("redrawn; 1 of 2 maps are empty") and second.endswith("redrawn")
    assert result.to_dict()["methods"]["gradcam"]["empty_maps"] == [0, 1]
    texts = [text.get_text() for text in demo_figures(result)["randomise"].findobj(Text)]
    assert texts.count("empty") == 1 and any("ρ 0.00" in text for text in texts)


def test_edges_do_not_notice_redrawn_weights_and_others_do():
    f = tiny_classifier()
    for part in f.modules():  # timm begins residual branches with 0, so that little of the image is read
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(part.weight)
    before = {name: value.clone() for name, value in f.state_dict().items()}
    pictures = Pictures(torch.rand(2, 3, 32, 32) * 2 - 1, ["a", "b"])
    result = demos.study_randomisation(f, pictures, NAMES, ["saliency"])
    assert result.steps[:2] == ["trained", "fc"] and result.steps[-1] == "conv1"
    assert result.correlation["edges"] == pytest.approx(1) and result.similarity["edges"] == pytest.approx(1)
    assert result.correlation["saliency"][0] == pytest.approx(1) and (result.correlation["saliency"][-1] < 0.9).all()
    assert all(torch.equal(value, before[name]) for name, value in f.state_dict().items())
    assert set(demo_figures(result)) == {"randomise", "randomise-curves"}


# --- figures and page -----------------------------------------------------------------------------------------------


def made_study(views: int = 4, names: tuple[str, ...] = ("gradcam", "cam", "integrated-gradients")) -> AttributionStudy:
    """A study of no model at all: figures and page need nothing but its numbers."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (views, 16, 16, 3), dtype=np.uint8)
    classes = [
        "fork-tailed red-eyed spike-crested gold needlebill",
        "owl",
        "a name so long that it cannot be shown whole",
    ]
    logits = random.normal(size=(views, 3)) * 3
    known = Views(
        images, [f"birds-test-{i}" for i in range(views)], list(range(views)), random.integers(0, 3, views), classes,
        logits, logits.argmax(1), None, classes, "the predicted class",
    )  # fmt: skip
    results = {}
    for name in names:
        maps = torch.randn(views, 16, 16, generator=torch.Generator().manual_seed(1))
        maps = maps if METHODS[name].signed else maps.abs()
        options = {"layer": "stages.3.blocks.2"} if METHODS[name].layered else {}
        results[name] = AttributionResult(
            maps,
            maps,
            METHODS[name].signed,
            torch.zeros(views),
            torch.from_numpy(logits),
            name,
            options,
            None,
            1,
            1,
            0.1,
        )
    return AttributionStudy(known, results, {"rollout": "does not hold"})


def readable(figure) -> None:
    """Nothing is cut, nothing lies on anything else, and letters are large enough."""
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    assert figure.get_figwidth() <= style.PAGE + 1e-6 and all(text.get_fontsize() >= 6.5 for text in texts)
    ink = figure.get_tightbbox()
    assert min(ink.x0, ink.y0) >= -0.01, ink
    assert ink.x1 <= figure.get_figwidth() + 0.01 and ink.y1 <= figure.get_figheight() + 0.01
    boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in texts]
    assert not [(a, b) for i, (a, one) in enumerate(boxes) for b, other in boxes[:i] if one.overlaps(other)]


@pytest.mark.parametrize("views", [1, 4, 8])
def test_figures_can_be_read(views):
    groups = {"right": views // 2, "wrong": views - views // 2}
    for figure in attribution_figures(made_study(views), groups=groups if views == 8 else None):
        readable(figure)


def test_a_number_keeps_its_sign_of_percent():
    study = made_study(4)
    lines = describe_view(study.views, 0, 17)
    assert any("%" in line for line in lines) and "%" not in lines


def test_a_class_is_named_once_where_it_is_predicted_and_explained():
    views = toy_study(asked=Asked(("left", "right"), None)).views
    roles = [[line.split()[0] for line in describe_view(views, view, 40) if "%" in line] for view in (0, 1)]
    assert roles == [["true,"], ["true,", "explained"]]
    contrast = toy_study(asked=Asked(against="runner-up")).views
    assert [line.split()[0] for line in describe_view(contrast, 0, 40) if "%" in line] == ["true,", "against"]


def test_names_break_at_their_hyphens():
    assert style.wrap("plume-crested blue finch", 10) == ["plume-", "crested", "blue finch"]
    assert style.wrap("plume-crested blue finch", 18) == ["plume-crested blue", "finch"]


def test_many_methods_take_several_pages():
    names = tuple(name for name, method in METHODS.items() if method.family != "learned")
    figures = attribution_figures(made_study(2, names))
    assert len(figures) > 2 and all(figure.get_figheight() < 11 for figure in figures)
    texts = [" ".join(text.get_text().split()) for figure in figures for text in figure.findobj(Text)]
    assert all(any(text.startswith(METHODS[name].title) for text in texts) for name in names)


def test_figure_of_checkpoints_can_be_read():
    study = CheckpointStudy(["epoch 1", "epoch 12"], [0.5, None], [made_study(1), made_study(1)])
    readable(checkpoint_figure(study, 0))


def test_colours_are_those_of_the_bar():
    image, heat = np.full((1, 4, 3), 128, np.uint8), np.array([[-2.0, 0.0, 1.0, 3.0]])
    signed = painted(image, heat, signed=True, overlay=False)[0]
    assert signed[0, 2] > signed[0, 0] and signed[2, 0] > signed[2, 2]  # blue against, red for
    assert signed[1] == pytest.approx([1, 1, 1], abs=0.05) and signed[2].tolist() == signed[3].tolist()
    positive = painted(image, heat, signed=False, overlay=False)[0]
    assert positive[0].tolist() == positive[1].tolist() and positive[1].sum() < 0.1 < positive[2].sum()


def test_one_scale_for_all_images_of_a_method():
    study = toy_study(["input-x-gradient"], Asked(("left",)))
    largest = float(study.results["input-x-gradient"].maps.abs().max())
    assert study.limit("input-x-gradient") == pytest.approx(largest) and not study.clipped("input-x-gradient")
    outlier = made_study(1)
    outlier.results["cam"].maps[0, 0, 0] = 1000
    assert outlier.limit("cam") < 10 and outlier.clipped("cam")


def test_page_needs_nothing_else_and_names_are_escaped(tmp_path):
    study = made_study()
    study.views.names[0] = "<script>alert(1)</script>"
    about = {"model": "f.safetensors", "dataset": "birds", "of": "f"}
    text = write_attribution_page(tmp_path / "index.html", study, about, {"right": 1, "wrong": 3}).read_text()
    assert "http" not in text and "<script" not in text and "<link" not in text and 'src="data:image/' in text
    assert text.count('type="radio" name="method"') == 3 and text.count(" checked") == 2
    views = study.views.to_dict()
    same = [view["true"] == view["predicted"] for view in views]
    assert text.count("<dt>true, predicted</dt>") == sum(same) and text.count("<dt>true</dt>") == 4 - sum(same)
    assert text.count("<dt>explained</dt>") == 0  # what is predicted is explained
    assert "width=device-width" in text and "prefers-color-scheme: dark" in text
    assert "Grad-CAM" in text and "Attention rollout does not hold" in text and "Wrong predictions" in text
    assert set(re.findall(r'src="([^"]{5})', text)) == {"data:"}


# --- the command ----------------------------------------------------------------------------------------------------


def test_command_writes_figures_numbers_arrays_and_a_page(here, models):
    Image.new("RGB", (50, 30), "red").save("photo.png")
    options = ["--image", "photo.png", "--method", "cam,rollout", "--method", "smoothgrad", "--option", "samples=2"]
    answer = Answer(
        "attribute", "--classifier", models["classifier"], *options, "--target", "0", "--against", "1", "--out", "out"
    ).went_well()
    assert {path.name for path in (here / "out").iterdir()} == {
        "attribution.png", "maps.png", "results.json", "maps.npz", "index.html",
    }  # fmt: skip
    found = json.loads((here / "out" / "results.json").read_text())
    assert list(found["methods"]) == ["cam", "smoothgrad"] and found["methods"]["smoothgrad"]["options"]["samples"] == 2
    assert "<h1>Where f looks</h1>" in (here / "out" / "index.html").read_text()
    assert found["of"] == "f" and list(found["left_out"]) == ["rollout"] and "true" not in found["views"][0]
    assert "left out: rollout" in answer.err and answer.err.strip().endswith("index.html")
    assert found["methods"]["cam"]["seconds"] > 0 and found["methods"]["cam"]["forwards"] == 1


@pytest.mark.parametrize("of", ["f", "g", "concepts"])
def test_command_on_the_scores_of_an_ensemble(here, models, of):
    options = ["--concept-indices", "1,4"] if of == "concepts" else []
    Answer(
        "attribute", "--viscoin", models["viscoin"], "--of", of, *options, "--image-indices", "3,5", "--out", "out"
    ).went_well()
    found = json.loads((here / "out" / "results.json").read_text())
    targets = [view["target"] for view in found["views"]]
    if of == "concepts":
        assert targets == ["concept 1", "concept 4"] * 2
        assert "<h1>Where concepts are</h1>" in (here / "out" / "index.html").read_text()
    else:
        assert targets == [view["predicted"] for view in found["views"]]
        model = load_model(models["viscoin"]).model
        with np.load("out/maps.npz") as arrays, torch.no_grad():
            x = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2) / 127.5 - 1
            wanted = (model if of == "g" else model.classifier)(x)
            np.testing.assert_allclose(arrays["logits"], wanted.numpy(), rtol=1e-3, atol=1e-4)


def test_command_explains_the_most_relevant_concept_by_default(models):
    model = load_model(models["viscoin"]).model
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    views = ask(target_of(model, "concepts"), Pictures(images, ["a", "b"]), model.class_names, Asked(), "cpu", 4)
    with torch.no_grad():
        code = model.encode(images)
        relevance = model.relevance(model.activations(code.concept_maps), model.explain(code.concept_maps).argmax(1))
    assert views.targets.tolist() == relevance.argmax(1).tolist()


@pytest.mark.parametrize("demo", ["shift", "randomise"])
def test_command_shows_both_tests(here, models, demo):
    options = ["--demo", demo, "--method", "saliency", "--image-indices", "1"]
    answer = Answer("attribute", "--classifier", models["classifier"], *options, "--out", "out").went_well()
    assert "Saliency: " in answer.out and (here / "out" / f"{demo}.png").is_file()
    assert json.loads((here / "out" / "results.json").read_text())["demo"] == demo


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["--method", "magic"], ["--method magic", "gradcam"]),
        (["--method", "rollout"], ["--method rollout", "viscoin_resnet10", "those that do"]),
        (["--layer", "layer9"], ["--layer layer9", "layer4"]),
        (["--layer", "7"], ["--layer 7", "0 is the finest"]),
        (["--target", "magpie"], ["--target magpie", "there is no such class"]),
        (["--target", "4"], ["--target 4", "4 classes"]),
        (["--target", "true", "--image", "photo.png"], ["--target true", "not known"]),
        (["--against", "predicted"], ["--against predicted", "the explained class itself"]),
        (["--option", "samples"], ["--option samples", "samples=50"]),
        (["--option", "samples=3"], ["--option 'samples=3'", "no such option"]),
        (["--method", "smoothgrad", "--option", "samples=0"], ["--option 'samples=0'", "from 1"]),
        (["--baseline", "pink"], ["--baseline pink", "grey"]),
        (["--image", "note.png"], ["note.png", "no image"]),
        (["--image-indices", "0,1,2,3,4,5,6,7,8"], ["9 images", "at most 8"]),
        (["--image-indices", "0,1,2", "--target", "0", "--target", "1", "--target", "2"], ["3 images", "at most 2"]),
        (["--concept-indices", "1"], ["--concept-indices", "--of concepts"]),
        (["--of", "g"], ["--classifier", "ensemble"]),
        (["--epochs", "1"], ["--epochs", "--checkpoints"]),
        (["--demo", "magic"], ["--demo magic", "shift or randomise"]),
        (["--checkpoints", "x"], ["--classifier", "--checkpoints"]),
        (["--right-and-wrong", "2", "--image-indices", "1"], ["--right-and-wrong", "--image-indices"]),
    ],
)
def test_command_refuses(here, models, options, texts):
    (here / "note.png").write_text("no image")
    Image.new("RGB", (50, 30), "red").save("photo.png")
    Answer("attribute", "--classifier", models["classifier"], *options).refused(*texts)
    assert not list(here.glob("runs/*"))


def test_images_smaller_than_a_patch_are_refused(here):
    """A backbone whose patch is larger than the images cannot even be built; it says which sizes it takes."""
    options = ["--dataset", write_images(here / "photos", {"a": 9, "b": 9}, 16), "--set", "dataset.resolution=16"]
    network = ["--set", "classifier.backbone=vit_tiny_patch16_224", "--no-pretrained"]
    Answer("train", "classifier", *options, *network).refused("vit_tiny_patch16_224", "16 px")


def test_images_of_another_size_are_refused(models):
    f = ClassifierLogit(load_model(models["classifier"]).model)
    with pytest.raises(ValueError, match=r"takes images \(B, 3, 32, 32\), not \(1, 3, 16, 16\)"):
        study_attribution(f, Pictures(torch.zeros(1, 3, 16, 16), ["small"]), list("abcd"))
