"""Several threads on one model: results are those of one thread, and the model stays as it is."""

import copy
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_recipe, write_models
from torch import Tensor, nn

import viscoin.analysis
import viscoin.attribution
import viscoin.inference
from stylegan2_ada.networks import Generator
from viscoin.analysis import (
    amplification,
    amplification_curve,
    amplification_study,
    attribution_demos,
    attribution_images,
    concepts,
    gallery,
    projection,
    quality,
    questions,
    surgery,
)
from viscoin.analysis import attribution as attribution_study
from viscoin.attribution import attribute, cam, gradients, heatmap_methods, heatmaps, occlusion
from viscoin.attribution import concepts as concept_maps
from viscoin.attribution.explained import Explained
from viscoin.attribution.targets import ClassifierLogit, ConceptActivation, ExplainerLogit, Target
from viscoin.datasets import ImageDataset, load_dataset
from viscoin.inference import batches, execution
from viscoin.inference.loading import Pictures, Subject, SubjectWithImages
from viscoin.inference.twins import twin
from viscoin.models.ensemble import VisCoIN
from viscoin.models.files import load_model

THREADS, ROUNDS = 4, 2
# Parameters of these types are models, or hold one.
MODELS = (
    "VisCoIN",
    "Classifier",
    "Generator",
    "Module",
    "LoadedModel",
    "NamedDistance",
    "Explained",
    "Subject",
    "Target",
    "Latent",
)
# Functions with such a parameter that run no model: they read what has been found, or files.
RUN_NONE = {
    "analysis.projection.save_latent",
    "analysis.projection.choose_distance",  # of `classifier_distance`, or of LPIPS, whose weights are a download
    "analysis.projection.class_conditions",
    "inference.classes.check_classes",
    "inference.classes.images_for",
    "inference.loading.check_resolution",
    "inference.loading.choose_pictures",
    "inference.loading.load_validation",
    "inference.loading.part_outlines",
    "analysis.attribution.check_settings",
    "analysis.questions.predictor",
    "analysis.attribution_checkpoints.study_checkpoints",  # it runs those that it reads from files
    "attribution.attention.of_patches",
    "attribution.rise.random_masks",  # of a generator of random numbers
    "attribution.shapley.coalitions",  # likewise
    "inference.execution.prepare",  # changes a model, as it says: at load time, before there are threads
}

# These run models through functions that are called below.
THROUGH = {
    "analysis.attribution.explain",
    "analysis.attribution.run_method",
    "analysis.attribution_checkpoints.study_checkpoints",
    "analysis.attribution_demos.study_demo",
    "analysis.attribution_images.right_and_wrong",
    "analysis.questions.ask",
    "analysis.amplification_curve.edits_reliable",
    "analysis.explanation.prepare",
    "analysis.explanation_change.find_change",
    "analysis.explanation_change.usual_concepts",
    "analysis.explanation_concepts.count_votes",
    "analysis.explanation_concepts.open_library",
    "analysis.explanation_patches.fewest_patches",
    "analysis.explanation_places.find_places",
    "analysis.explanation_places.probabilities",
    "analysis.gallery.examples_of",
    "inference.classes.predict_labels",
    "attribution.diffmask.diffmask_maps",  # as others do, by `evaluation`; of a ViT, which these threads do not share
}

SURGERY = surgery.Surgery({1: 0.5}, [(0, 2)])


@dataclass(frozen=True)
class Shared:
    """What all threads use."""

    ensemble: VisCoIN
    generator: Generator
    distance: projection.NamedDistance
    data: ImageDataset
    images: Tensor
    selection: Tensor
    reference: amplification_curve.Reference
    table: concepts.ConceptTable

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return self.ensemble, self.generator


def _subject(shared: Shared, target: Target | None = None) -> Explained:
    target = target or ConceptActivation(shared.ensemble)
    observed = target.observe(shared.images.clone().requires_grad_())
    return Explained(target, shared.images, torch.tensor([[0, 1], [2, 0]]), observed)


def _of_subject(call: Callable[[Explained], Any]) -> Callable[[Shared], Any]:
    def run(shared: Shared) -> Any:
        with batches.evaluation(shared.ensemble, "cpu", gradients=True):
            return call(_subject(shared))

    return run


def _heatmaps(shared: Shared) -> list[Tensor]:
    model, chosen = shared.ensemble, torch.tensor([[0, 1], [2, 0]])
    targets = ConceptActivation(model), ClassifierLogit(model.classifier), ExplainerLogit(model)
    return [heatmaps.heatmaps(model, shared.images, target, chosen) for target in targets]


def _attributed(shared: Shared) -> list[Tensor]:
    target = ConceptActivation(shared.ensemble)
    options: dict[str, dict[str, Any]] = {"gradcam": {"layer": 0}, "smoothgrad": {"samples": 2}}
    return [attribute(target, shared.images, method, [0, 2], **given).unit for method, given in options.items()]


def _evaluation(shared: Shared) -> Tensor:
    with batches.evaluation(shared.ensemble, "cpu"):
        return shared.ensemble(shared.images)


def _generate(shared: Shared) -> Tensor:
    with batches.evaluation(shared.ensemble, "cpu"):
        code = shared.ensemble.encode(shared.images)
        return amplification.generate(shared.ensemble, code, shared.selection, 2.0)


def _projected(shared: Shared) -> list[Any]:
    search = projection.Search(steps=3)
    found = projection.project_images(shared.generator, shared.images, ["a", "b"], shared.distance, search)
    return [(one.image, one.scores, one.latent.ws, one.latent.noises) for one in found]


def _of_birds(shared: Shared) -> Subject:
    names = shared.ensemble.class_names
    return Subject(shared.ensemble, Path("model"), torch.device("cpu"), names, tiny_recipe().dataset)


def _operated(shared: Shared) -> surgery.SurgeryResult:
    usual = surgery.measure_usual(_of_birds(shared))
    return surgery.operate(shared.ensemble, shared.images, [SURGERY], usual)


def _study(shared: Shared) -> dict[str, Any]:
    pictures = Pictures(shared.images, ["a", "b"])
    return amplification_study.study_amplification(
        _of_birds(shared), pictures, amplification_study.Choice(top_k=2)
    ).to_dict()


ASKED = questions.Asked(concepts=(0, 2))
DRAWN = attribution_study.Settings(options={"samples": 2})


def _views(shared: Shared) -> questions.Views:
    pictures = Pictures(shared.images, ["a", "b"])
    return questions.ask(ConceptActivation(shared.ensemble), pictures, shared.ensemble.class_names, ASKED, "cpu", 2)


def _maps(study: attribution_study.AttributionStudy) -> list[Tensor]:
    return [result.unit for result in study.results.values()]


def _explained(shared: Shared) -> list[Tensor]:
    target, images = ConceptActivation(shared.ensemble), shared.images.repeat_interleave(2, 0)
    methods = ["gradcam", "smoothgrad"]
    return _maps(attribution_study.explain(target, images, _views(shared), methods, DRAWN, "cpu"))


def _ran(shared: Shared) -> Tensor:
    target, images = ConceptActivation(shared.ensemble), shared.images.repeat_interleave(2, 0)
    return attribution_study.run_method(target, images, _views(shared), "smoothgrad", DRAWN, "cpu").unit


def _attribution(shared: Shared) -> list[Tensor]:
    target, pictures = ExplainerLogit(shared.ensemble), Pictures(shared.images, ["a", "b"])
    names = shared.ensemble.class_names
    return _maps(attribution_study.study_attribution(target, pictures, names, ["saliency", "gradcam"]))


def _right_and_wrong(shared: Shared) -> Any:
    subject = SubjectWithImages(**vars(_of_birds(shared)), images=shared.data)
    found, groups = attribution_images.right_and_wrong(subject, ExplainerLogit(shared.ensemble), 2)
    return found.names, groups


def _demo(name: str, shared: Shared) -> Any:
    pictures = Pictures(shared.images, ["a", "b"])
    asked, settings = questions.Asked(), attribution_study.Settings()
    found: Any = attribution_demos.study_demo(name, _of_birds(shared), pictures, ["gradcam"], asked, settings)
    return [row.correlation for row in found.rows] if name == "shift" else found.probabilities


def _shifted(shared: Shared) -> Tensor:
    moved = attribution_demos.shifted(shared.ensemble.classifier, 0.3)
    return questions.scores_of(ClassifierLogit(moved), shared.images, "cpu", 2)


CALLS: Mapping[str, Callable[[Shared], Any]] = {
    "inference.batches.evaluation": _evaluation,
    "inference.execution.precision_of": lambda shared: execution.precision_of(shared.ensemble),
    "analysis.amplification_study.study_amplification": _study,
    "attribution.heatmaps.heatmaps": _heatmaps,
    "attribution.heatmaps.concept_heatmaps": lambda s: heatmaps.concept_heatmaps(s.ensemble, s.images, stages=("psi",)),
    "inference.twins.twin": lambda s: twin(s.ensemble)(s.images).detach(),
    "attribution.attributing.attribute": _attributed,
    "attribution.heatmap_methods.maps_of": _of_subject(
        lambda subject: heatmap_methods.maps_of(subject, "gradcam", (0, 2))
    ),
    "attribution.cam.activation_maps": _of_subject(lambda subject: cam.activation_maps(subject, cam.hirescam, (1,))),
    "attribution.concepts.activation_grid": _of_subject(concept_maps.activation_grid),
    "attribution.concepts.amplification_change": _of_subject(concept_maps.amplification_change),
    "attribution.concepts.concepts_of": _of_subject(lambda subject: concept_maps.concepts_of(subject)[1].support),
    "attribution.gradients.integrated_gradients": _of_subject(gradients.integrated_gradients),
    "attribution.gradients.path_integral": _of_subject(lambda subject: gradients.path_integral(subject, 2)),
    "attribution.occlusion.occlusion": _of_subject(occlusion.occlusion),
    "analysis.questions.ask": _views,
    "analysis.questions.scores_of": lambda s: questions.scores_of(ExplainerLogit(s.ensemble), s.images, "cpu", 1),
    "analysis.attribution.explain": _explained,
    "analysis.attribution.run_method": _ran,
    "analysis.attribution.study_attribution": _attribution,
    "analysis.attribution_images.right_and_wrong": _right_and_wrong,
    "analysis.attribution_demos.shifted": _shifted,
    "analysis.attribution_demos.study_demo": lambda s: [_demo(name, s) for name in attribution_demos.DEMOS],
    "analysis.attribution_demos.study_shift": lambda s: _demo("shift", s),
    "analysis.attribution_demos.study_randomisation": lambda s: _demo("randomise", s),
    "analysis.amplification.image_relevance": lambda s: amplification.image_relevance(s.ensemble, s.images),
    "analysis.amplification.image_activations": lambda s: amplification.image_activations(s.ensemble, s.images),
    "analysis.amplification.amplify_images": lambda s: amplification.amplify_images(s.ensemble, s.images, s.selection),
    "analysis.amplification.generate": _generate,
    "analysis.amplification_curve.usual_reconstructions": lambda s: amplification_curve.usual_reconstructions(
        s.ensemble, s.data
    ),
    "analysis.amplification_curve.lambda_curve": lambda s: amplification_curve.lambda_curve(
        s.ensemble, s.images, s.selection, s.reference, (0.0, 2.0)
    ),
    "analysis.amplification_curve.kept_reconstructions": lambda s: amplification_curve.kept_reconstructions(
        s.ensemble, s.data
    ),
    "analysis.surgery.check_surgery": lambda s: surgery.check_surgery(s.ensemble, SURGERY),
    "analysis.surgery.operate": lambda s: _operated(s).to_dict(s.ensemble.class_names),
    "analysis.surgery.study_surgery": lambda s: surgery.study_surgery(
        _of_birds(s), Pictures(s.images, ["a", "b"]), SURGERY
    ).to_dict(),
    "analysis.surgery.measure_usual": lambda s: dict(surgery.measure_usual(_of_birds(s)).state_dict()),
    "analysis.concepts.fingerprint": lambda s: concepts.fingerprint(s.ensemble, s.data, np.arange(3)),
    "analysis.quality.measure_quality": lambda s: vars(quality.measure_quality(s.ensemble, s.data, s.table)),
    "analysis.concepts.collect_concepts": lambda s: concepts.collect_concepts(s.ensemble, s.data, force=True),
    "analysis.gallery.view_concepts": lambda s: gallery.view_concepts(s.ensemble, s.data, s.table, s.table.order[:2]),
    "analysis.projection.classifier_distance": lambda s: projection.classifier_distance(s.ensemble.classifier).function(
        s.images, s.images.flip(0)
    ),
    "analysis.projection.project_images": _projected,
    "analysis.projection.fingerprint": lambda s: projection.fingerprint(s.generator),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("threads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        recipe = tiny_recipe()
        paths = write_models(folder, recipe)
        ensemble, generator = load_model(paths["viscoin"]).model, load_model(paths["gan"]).model
        data = load_dataset("birds", "validation", recipe.dataset)
        reference = amplification_curve.usual_reconstructions(ensemble, data)
        table = concepts.collect_concepts(ensemble, data, force=True)
        selection = torch.zeros(2, ensemble.n_concepts, dtype=torch.bool)
        selection[:, :2] = True
        distance = projection.classifier_distance(ensemble.classifier)
        yield Shared(ensemble, generator, distance, data, data.batch([0, 1])[0], selection, reference, table)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_threads_give_what_one_gives_and_change_no_model(made: Shared, name: str, training: bool) -> None:
    for module in made.modules:
        module.requires_grad_(True)  # that freezing would show
        for part in module.modules():
            part.training = training
    before = [_state(module) for module in made.modules]
    drawn = torch.random.get_rng_state()
    serial = CALLS[name](made)
    for module, state in zip(made.modules, before, strict=True):
        _same(_state(module), state, exactly=True)
    assert torch.equal(torch.random.get_rng_state(), drawn), "draws from the random numbers that all threads share"
    for result in _in_threads(lambda: CALLS[name](made)):
        _same(result, serial)
    for module, state in zip(made.modules, before, strict=True):
        _same(_state(module), state, exactly=True)


def test_table_names_all_functions_that_take_a_model() -> None:
    wanted = set()
    for room in (viscoin.inference, viscoin.attribution, viscoin.analysis):
        for found in pkgutil.iter_modules(room.__path__, f"{room.__name__}."):
            module = importlib.import_module(found.name)
            for name, function in inspect.getmembers(module, inspect.isfunction):
                if name.startswith("_") or function.__module__ != module.__name__:
                    continue
                types = " ".join(str(p.annotation) for p in inspect.signature(function).parameters.values())
                if any(model in types.replace("'", " ") for model in MODELS):
                    wanted.add(f"{module.__name__}.{name}".removeprefix("viscoin."))
    assert wanted == CALLS.keys() | RUN_NONE | THROUGH


@pytest.mark.parametrize("c", [0, 3])
def test_hirescam_of_a_logit_behind_mean_pooling_adds_up_to_it(made: Shared, c: int) -> None:
    f = made.ensemble.classifier
    with batches.evaluation(f, "cpu", gradients=True):
        observed = ClassifierLogit(f).observe(made.images.clone().requires_grad_())
        logit = observed.scores[:, c]
        (gradient,) = torch.autograd.grad(logit.sum(), observed.maps[2], retain_graph=True)
        # the gradient of mean pooling is weight / (h * w), so that the sum over positions is the logit without bias
        heat = cam.hirescam(observed.maps[2], gradient)
    torch.testing.assert_close(heat.sum((1, 2)) + f.model.get_classifier().bias[c], logit, atol=1e-4, rtol=0)
    shown = heatmaps.heatmaps(f, made.images, ClassifierLogit(f), torch.full((2, 1), c), stages=(2,))[:, 0]
    size = made.images.shape[-2:]
    enlarged = nn.functional.interpolate(heat.clamp(min=0)[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    peak = enlarged.amax((1, 2), keepdim=True)
    torch.testing.assert_close(shown, enlarged / torch.where(peak > 0, peak, 1.0), atol=1e-4, rtol=0)


def _in_threads(call: Callable[[], Any]) -> list[Any]:
    """Results of all threads and rounds; what a thread raises is raised here."""
    start, results, failures = Barrier(THREADS), [], []

    def work() -> None:
        try:
            for _ in range(ROUNDS):
                start.wait(timeout=60)
                results.append(call())
        except BaseException as error:
            failures.append(error)
            start.abort()

    threads = [Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results


def _state(model: nn.Module) -> dict[str, Any]:
    """All of a model that a careless function could change."""
    return {
        "training": [module.training for module in model.modules()],
        "hooks": [
            (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
            for module in model.modules()
        ],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad is None for parameter in model.parameters()],
        "buffers": {name: buffer.clone() for name, buffer in model.named_buffers()},
        "weights": copy.deepcopy(model.state_dict()),
    }


def _same(a: Any, b: Any, exactly: bool = False) -> None:
    if is_dataclass(a):
        for field in fields(a):
            _same(getattr(a, field.name), getattr(b, field.name), exactly)
    elif isinstance(a, Mapping):
        assert a.keys() == b.keys()
        for key in a:
            _same(a[key], b[key], exactly)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            _same(one, other, exactly)
    elif isinstance(a, Tensor | np.ndarray | float):
        first, second = (np.asarray(x.detach() if isinstance(x, Tensor) else x) for x in (a, b))
        if exactly:
            np.testing.assert_array_equal(first, second)
        elif first.dtype == np.uint8:
            assert np.abs(first.astype(int) - second).max() <= 1
        else:
            np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)
    else:
        assert a == b
