"""Figures: journal sizes, readable text inside the page, names instead of numbers, and the right pixels."""

from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from viscoin.analysis.amplification import AmplificationResult
from viscoin.analysis.amplification_curve import LambdaCurve, Reference
from viscoin.analysis.concepts import ConceptTable
from viscoin.attribution.heatmaps import HeatmapResult
from viscoin.plotting import amplification, concepts, data, evaluation, fonts, heatmaps, style, training
from viscoin.runs.metrics import Log
from viscoin.statistics.bootstrap import Estimate
from viscoin.testing.consistency import ConceptConsistency, Consistency
from viscoin.testing.faithfulness import Faithfulness
from viscoin.testing.sufficiency import RANKINGS, Sufficiency
from viscoin.testing.truth import AttributeResult, AttributeScore

C, K, N = 6, 12, 60
NAMES = ["plume-crested blue hookbill", "fork-tailed white-eyed spike-crested rust needlebill", "finch", "d", "e", "f"]


def pictures(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)


@cache
def concept_table() -> ConceptTable:
    rng = np.random.default_rng(0)
    labels = np.arange(N) % C
    prototypes = rng.random((C, K)) * (rng.random((C, K)) < 0.3)
    prototypes[:, -1] = 0
    relevance = prototypes[labels] / prototypes[labels].max(1, keepdims=True).clip(0.1)
    classes = np.eye(C)[labels]
    return ConceptTable(prototypes[labels], classes, classes, labels, relevance, np.arange(N), prototypes - 0.1)


@cache
def amplified() -> AmplificationResult:
    rng, originals = np.random.default_rng(0), pictures(3)
    classes = rng.dirichlet(np.ones(C), (2, 3, 5))
    classes[1, :, 0] = np.eye(C)[:3]  # g predicts 0, 1, 2
    return AmplificationResult(
        factors=np.array([0.0, 1.0, 2.0, 4.0]),
        originals=originals,
        images=np.stack([originals] * 4, 1),
        changes=rng.random((3, 4, 16, 16)),
        selection=np.array([[True] * K, [False] * K, [False] * 3 + [True] + [False] * (K - 4)]),
        relevance=rng.random((3, K)),
        f_classes=classes[0],
        g_classes=classes[1],
    )


def followed() -> LambdaCurve:
    rng, factors = np.random.default_rng(0), np.linspace(0, 4, 17)
    f, g = rng.uniform(0.8, 1, (2, 3, 17))
    change = np.abs(factors - 1) * np.ones((3, 1))
    reference = Reference(np.ones(K), 1.0, 1.2, 100)
    return LambdaCurve(factors, np.arange(3), f, g, change, change / 3, 0.9 + factors * np.full((3, 1), 0.1), reference)


@cache
def located() -> HeatmapResult:
    heat = np.random.default_rng(0).random((3, 4, 16, 16))
    indices = np.arange(12).reshape(3, 4)
    return HeatmapResult(pictures(3), indices, heat, heat, heat[..., 0, 0], heat[..., 0, 1], np.array([0, 1, 2]))


def attributes(shift: float) -> AttributeResult:
    scores = [AttributeScore(f"wing colour: {i}", i, 1, 0.99 - 0.01 * i - shift, 0.9) for i in range(34)]
    return AttributeResult(scores, [])


def kept_concepts() -> tuple[list[Sufficiency], dict[str, Estimate]]:
    kept = (1, 2, 4, 8, 12)
    hits = np.random.default_rng(0).random((30, 5)) < np.linspace(0.3, 1, 5)
    found = [Sufficiency(ranking, kept, hits) for ranking in RANKINGS]
    return found, {f"kept_concepts.{item.ranking}.{key}": e for item in found for key, e in item.estimates(0).items()}


def consistency(n: int) -> Consistency:
    shares = np.random.default_rng(0).uniform(0.5, 1, (n, 2))
    return Consistency(
        (2.0, 3.0), [ConceptConsistency(3 * i, tuple(s), 100, 50) for i, s in enumerate(shares)], 1, 2, 0, 0
    )


def training_logs(runs: int) -> list[Log]:
    steps = np.arange(50, 6000, 50)
    values = {
        f"train.{name}": (steps, np.exp(-steps / 1000)) for name in ("total", "l1", "accuracy_on_reconstructions")
    }
    values["validation.l1"] = (steps[::10], np.exp(-steps[::10] / 1500))
    return [Log(values, 0, Path(f"runs/birds-viscoin-2026112{i}-034500/metrics.jsonl")) for i in range(runs)]


FIGURES = {
    "contact_sheet": lambda: data.contact_sheet(pictures(9), (NAMES * 2)[:9]),
    "part_masks": lambda: data.part_masks(pictures(4), np.zeros((4, 8, 16, 16), bool), [f"part {i}" for i in range(8)]),
    "real_and_generated": lambda: data.real_and_generated(pictures(12), pictures(12)),
    "reconstructions": lambda: data.reconstructions(pictures(8), pictures(8)),
    "activation_per_image": lambda: concepts.activation_per_image(concept_table()),
    "activation_per_concept": lambda: concepts.activation_per_concept(concept_table()),
    "concept_entropies": lambda: concepts.concept_entropies(concept_table()),
    "class_concept_importance": lambda: concepts.class_concept_importance(concept_table(), NAMES),
    "concept_class_importance": lambda: concepts.concept_class_importance(concept_table(), NAMES),
    "co_activation": lambda: concepts.co_activation(concept_table(), {0: "plume crest", 7: "rust belly"}),
    "amplification": lambda: amplification.amplification_figure(amplified(), NAMES, np.array([0, 1, 0])),
    "amplification_and_control": lambda: amplification.amplification_figure(
        amplified(), NAMES, np.array([0, 1, 0]), control=amplified(), concept_names={3: "plume crest"}
    ),
    "lambda_curve": lambda: amplification.curve_figure(followed(), followed()),
    "heatmaps": lambda: heatmaps.heatmap_figure(located(), NAMES, np.array([0, 1, 0])),
    "accuracy": lambda: evaluation.accuracy_figure(
        {
            "classifier": {"accuracy": 1.0},
            "ensemble": {"accuracy": 0.9, "agreement": 0.95, "accuracy_on_reconstructions": 0.05},
        }
    ),
    "accuracy_with_intervals": lambda: evaluation.accuracy_figure(
        {
            "classifier": {"accuracy": 0.8},
            "ensemble": {"accuracy": 0.7, "agreement": 0.95, "accuracy_on_reconstructions": 0.05},
        },
        {
            "classifier.accuracy": Estimate(0.8, 0.7, 0.9, 40),
            "ensemble.accuracy": Estimate(0.7, 0.6, 0.8, 40),
            "ensemble.agreement": Estimate(0.95, 0.88, 1.0, 40),
            "ensemble.accuracy_on_reconstructions": Estimate(0.05, 0.02, 0.3, 40),
        },
    ),
    "faithfulness": lambda: evaluation.faithfulness_figure(
        [Faithfulness(tau, np.linspace(0, 1, 20) ** 2, np.zeros(20), np.full(20, 3)) for tau in (0.1, 0.2, 0.4)]
    ),
    "kept_concepts": lambda: evaluation.kept_concepts_figure(*kept_concepts()),
    "consistency": lambda: evaluation.consistency_figure(consistency(8)),
    "consistency_of_many": lambda: evaluation.consistency_figure(consistency(64)),
    "attributes": lambda: evaluation.attribute_figure(attributes(0), attributes(0.2)),
    "confusion": lambda: evaluation.confusion_figure(np.eye(C, dtype=int) * 9 + 1, NAMES),
    "training": lambda: training.training_figure(training_logs(1), smoothing=0.9),
    "training_of_two_runs": lambda: training.training_figure(training_logs(2), names=["l1", "total"], log_scale=True),
}


@cache
def drawn(name: str) -> Figure:
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    return figure


def texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in texts(figure))


@pytest.mark.parametrize("name", FIGURES)
def test_figures_fit_a_page_and_can_be_read(name):
    figure = drawn(name)
    assert figure.get_figwidth() <= style.PAGE + 1e-6
    assert figure.get_figheight() <= 9
    assert all(text.get_fontsize() >= 6.5 for text in texts(figure))
    ink = figure.get_tightbbox()  # inches; what lies outside the page would be cut off
    assert min(ink.x0, ink.y0) >= -0.01
    assert ink.x1 <= figure.get_figwidth() + 0.01 and ink.y1 <= figure.get_figheight() + 0.01


@pytest.mark.parametrize("name", FIGURES)
def test_captions_do_not_overlap(name):
    figure = drawn(name)
    found = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        found += [*axes.texts, axes.xaxis.label, axes.yaxis.label, axes._left_title]
    found = [text for text in found if text.get_text().strip()]
    boxes = [text.get_window_extent() for text in found]
    for i, one in enumerate(boxes):
        for j in range(i):
            assert not one.padded(-1).overlaps(boxes[j].padded(-1)), (found[i].get_text(), found[j].get_text())


def test_drawing_leaves_the_users_settings_alone():
    before = dict(mpl.rcParams)
    FIGURES["accuracy"]()
    assert dict(mpl.rcParams) == before


def test_plotting_keeps_no_global_figures():
    sources = Path(style.__file__).parent.glob("*.py")
    assert not [path.name for path in sources if "pyplot" in path.read_text()]


def test_names_stand_where_names_exist():
    assert "wing colour: 33" in words(drawn("attributes"))
    shown = words(drawn("class_concept_importance"))
    assert all(style.middle_cut(name, concepts.LONG_NAME) in shown for name in NAMES)
    assert "plume-crested" in words(drawn("contact_sheet"))
    assert "true:\nplume-crested blue\nhookbill\npredicted:\nfinch" in words(drawn("heatmaps"))


def test_amplification_shows_probabilities_and_concepts():
    shown = words(drawn("amplification"))
    result = amplified()
    assert f"{result.f_probability[2, 3]:.2f}" in shown and f"{result.g_probability[2, 3]:.2f}" in shown
    assert "no concept" in shown and "concept 3" in shown and "7 more" in shown.replace("\n", " ")
    assert "a finch" in shown and "true: plume-crested blue\n   hookbill" in shown
    assert "× 4" in shown


def test_training_curves_have_one_panel_for_each_measure():
    panels = [axes for axes in drawn("training").axes if axes.get_visible()]
    assert [axes.get_title(loc="left").replace("\n", " ") for axes in panels] == [
        "total", "l1", "accuracy on reconstructions",
    ]  # fmt: skip
    assert [len(axes.lines) for axes in panels] == [2, 3, 2]  # faint and smoothed training, few validation points
    assert "birds-viscoin-20261121-034500" in words(drawn("training_of_two_runs"))
    with pytest.raises(ValueError, match="the logs hold total, l1"):
        training.training_figure(training_logs(1), names=["nothing"])


def test_heatmap_overlay_is_grey_without_heat_and_coloured_with_it():
    image = np.full((2, 2, 3), 200, np.uint8)
    heat = np.array([[0.0, 1.0], [0.0, 0.0]])
    result = heatmaps.overlay(image, heat, mpl.colormaps[style.HEAT])
    assert np.ptp(result[0, 0]) < 0.01
    assert np.ptp(result[0, 1]) > 0.2


def test_importance_order_puts_concepts_beside_their_class():
    importance = np.array([[0.1, 0.0, 0.9, 0.3], [0.2, 0.8, 0.1, 0.0]])
    assert concepts.importance_order(importance, 3).tolist() == [2, 3, 1]


def test_image_grid_keeps_every_pixel(tmp_path):
    images = pictures(5)
    data.save_image_grid(images, tmp_path / "new" / "grid.png", columns=3)
    sheet = np.asarray(Image.open(tmp_path / "new" / "grid.png"))
    assert sheet.shape == (2 * 16 + 2, 3 * 16 + 4, 3)
    assert (sheet[18:, 18:34] == images[4]).all()
    assert (sheet[16:18] == 255).all()


def test_image_grid_of_a_tensor_is_clamped(tmp_path):
    values = torch.tensor([-3.0, -1.0, 0.0, 3.0]).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    data.save_image_grid(values, tmp_path / "grid.png", columns=4)
    assert np.asarray(Image.open(tmp_path / "grid.png"))[0, [0, 10, 20, 30], 0].tolist() == [0, 0, 128, 255]


def test_saving_to_an_impossible_place_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write figure .*file/a\.png"):
        style.save_figure(drawn("accuracy"), tmp_path / "file" / "a.png")


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_figures_are_saved_in_the_format_of_their_suffix(tmp_path, suffix):
    path = style.save_figure(drawn("accuracy"), tmp_path / f"figure.{suffix}")
    head = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix]
    assert path.read_bytes().startswith(head)
    assert style.figure_bytes(drawn("accuracy"), suffix).startswith(head)


@pytest.mark.parametrize("name", ["$", "$$", "$\\frac{1}{0$", "5$ off, 10$ off_", "a_b^c", "%", "\\alpha"])
def test_names_that_look_like_formulas_are_drawn_as_they_are(name: str, tmp_path: Path) -> None:
    figure = data.contact_sheet(pictures(2), [name, "b"])
    saved = style.save_figure(figure, tmp_path / "a.png")
    drawn = next(text for text in figure.findobj(Text) if text.get_text() == name)
    assert not drawn.get_parse_math()
    other = style.save_figure(data.contact_sheet(pictures(2), ["x", "b"]), tmp_path / "b.png")
    assert saved.read_bytes() != other.read_bytes()


def test_codes_for_the_terminal_are_written_out_in_figures() -> None:
    figure = data.contact_sheet(pictures(2), ["\x1b[31mred\x07", "caf\udce9"])
    style.figure_bytes(figure)
    assert {text.get_text() for text in figure.findobj(Text)} >= {"\\x1b[31mred\\x07", "caf\\xe9"}


@pytest.fixture
def own_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that come with matplotlib, whatever this system has."""
    monkeypatch.setattr(fonts.fontManager, "ttflist", [])
    for name in ("DejaVuSans", "STIXGeneral"):
        fonts.fontManager.addfont(Path(mpl.get_data_path(), "fonts", "ttf", f"{name}.ttf"))
    fonts._families.cache_clear()
    fonts._warn.cache_clear()


@pytest.mark.usefixtures("own_fonts")
def test_letters_that_the_usual_font_lacks_are_drawn_by_another(caplog: pytest.LogCaptureFixture) -> None:
    figure = data.contact_sheet(pictures(2), ["Ⓐ", "b"])
    style.figure_bytes(figure)
    families = {text.get_text(): text.get_fontfamily() for text in figure.findobj(Text)}
    assert families["Ⓐ"] == ["DejaVu Sans", "STIXGeneral"]
    assert families["b"] == ["sans-serif"]
    assert not caplog.records


@pytest.mark.usefixtures("own_fonts")
def test_letters_that_no_font_has_are_named_once(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    for _ in range(2):
        style.figure_bytes(data.contact_sheet(pictures(2), ["猫", "犬 dog"]))
    assert [record.message for record in caplog.records] == [
        "no font of this system has the letters 犬猫: figures show boxes; install one, as Noto Sans CJK"
    ]
    assert not recwarn.list


def test_figures_say_which_image_is_which() -> None:
    names = ["cats-test-3-tom", "cats-test-5-a_photograph_with_a_name_that_is_too_long_for_the_margin"]
    for figure in (
        amplification.amplification_figure(amplified(), NAMES, np.array([0, 1, 0]), image_names=[*names, "third"]),
        heatmaps.heatmap_figure(located(), NAMES, np.array([0, 1, 0]), image_names=[*names, "third"]),
    ):
        words = "\n".join(text.get_text() for text in figure.findobj(Text))
        assert "cats-test-3-tom" in words and "…" in words


def test_figures_say_which_measures_and_values_they_leave_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps, values = np.arange(4), np.array([1.0, 1e308, -1e308, 2.0])
    many = {f"train.m{i}": (steps, values if i == 0 else steps * 1.0) for i in range(70)}
    figure = training.training_figure([Log(many, 0, Path("a.jsonl"))])
    style.figure_bytes(figure)
    assert sum(axes.get_visible() for axes in figure.axes) == training.MOST_PANELS
    assert [record.message for record in caplog.records] == [
        "the figure shows the first 60 of 70 measures; choose others by name",
        "train.m0 of a.jsonl: 2 values beyond 1e30 are left out of the figure",
    ]
