"""`attribute`: where a classifier looks, by any method."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viscoin.cli import options
from viscoin.cli.output import echo
from viscoin.cli.results import results_folder
from viscoin.errors import Refused

if TYPE_CHECKING:
    from viscoin.analysis.attribution import Settings
    from viscoin.analysis.attribution_images import ImageChoice
    from viscoin.analysis.questions import Asked

IMAGES = {"shift": 2, "randomise": 4}  # of the demos
USUAL = 4

METHOD_HELP = (
    "cam|gradcam|hirescam|gradcampp|smoothgradcampp|xgradcam|layercam|scorecam|sscam|attention|rollout|chefer|saliency|"
    "input-x-gradient|smoothgrad|integrated-gradients|deeplift|guided-backprop|gradient-shap|occlusion|rise|kernel-shap|"
    "diffmask|random|centre|edges|all; several by commas or repeated; all: but the last three, if they hold. Default: "
    "gradcam."
)
TARGET_HELP = "Class to explain: predicted (default), true, runner-up, a name or a number; repeatable."
LAYER_HELP = "Layer for CAMs: 0 (finest) to 2, a module, or all multiplied. Default: the last that matters."


def attribute(
    classifier: Annotated[Path | None, options.model_option("--classifier", "Classifier f")] = None,
    viscoin: Annotated[Path | None, options.model_option("--viscoin", "Ensemble, to explain it or its f")] = None,
    of: Annotated[
        str, typer.Option("--of", metavar="f|g|concepts", help="Logits of f or g, or activations of concepts.")
    ] = "f",
    method: Annotated[list[str] | None, typer.Option("--method", "--methods", metavar="NAME", help=METHOD_HELP)] = None,
    target: Annotated[list[str] | None, typer.Option("--target", metavar="CLASS", help=TARGET_HELP)] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="CLASS", help="Subtract its logit: why the target and not this.")
    ] = None,
    concept_indices: options.ConceptIndices = None,
    layer: Annotated[str | None, typer.Option("--layer", metavar="0|1|2|MODULE|all", help=LAYER_HELP)] = None,
    baseline: Annotated[
        str,
        typer.Option("--baseline", metavar="blur|grey|noise", help="What methods compare images with."),
    ] = "blur",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="Option of methods, as in samples=50; repeatable."),
    ] = None,
    dataset: options.DatasetName = None,
    dataset_path: options.DatasetPath = None,
    class_map: options.ClassMap = None,
    image_indices: options.ImageIndices = None,
    image: options.Images = None,
    right_and_wrong: Annotated[
        int | None,
        typer.Option("--right-and-wrong", min=1, metavar="N", help="N right and N wrong predictions on test images."),
    ] = None,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoints", metavar="MODEL", help="States of a classifier, one row each: files, or a run; repeatable."
        ),
    ] = None,
    epochs: Annotated[
        list[str] | None,
        typer.Option("--epochs", metavar="I,J,…", help="Of a run that kept its models; default: all kept."),
    ] = None,
    demo: Annotated[
        str | None,
        typer.Option("--demo", metavar="shift|randomise", help="Test the maps: move the input, or redraw weights."),
    ] = None,
    diffmask: options.DiffMaskModel = None,
    plugin: options.Plugins = None,
    batch_size: options.TestBatchSize = 32,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    out: options.Out = None,
    show: options.Show = False,
    skip_bad_files: options.SkipBadFiles = False,
) -> None:
    """Show where a classifier looks, by any method.

    One method or several on the same images, for one class or one against another; maps as arrays, figures and a page.
    """
    _check_together(
        of, demo, classifier=classifier, viscoin=viscoin, target=target, against=against, epochs=epochs,
        concept_indices=concept_indices, checkpoints=checkpoints,
    )  # fmt: skip
    from viscoin.analysis.attribution import Settings
    from viscoin.analysis.attribution_images import ImageChoice
    from viscoin.analysis.questions import Asked
    from viscoin.attribution.plugins import load_plugins

    load_plugins(plugin or ())
    methods = options.split_list(method) if method else None
    own = _parse_options(option or [])
    if diffmask is not None:
        methods, own = ["diffmask", *(methods or [])], own | {"diffmask": _load_diffmask(diffmask)}
    asked = Asked(tuple(target or ("predicted",)), against, options.parse_indices(concept_indices, "concept_indices"))
    settings = Settings(layer, baseline, own, seed, batch_size)
    images = ImageChoice(
        image, dataset, dataset_path, options.parse_indices(image_indices, "image_indices"), right_and_wrong, device,
        seed, skip_bad_files, batch_size, class_map,
    )  # fmt: skip
    if checkpoints:
        chosen = options.parse_indices(epochs, "epochs")
        _checkpoints(images, checkpoints, chosen, methods or ["gradcam"], asked, settings, out, show)
    elif demo:
        _demo(demo, images, classifier, viscoin, methods, asked, settings, out, show)
    else:
        _explain(of, images, classifier, viscoin, methods or ["gradcam"], asked, settings, out, show)


def _explain(
    of: str, images: "ImageChoice", classifier: Path | None, viscoin: Path | None, methods: list[str], asked: "Asked",
    settings: "Settings", out: Path | None, show: bool,
) -> None:  # fmt: skip
    """Maps of some images: figures, page, numbers and arrays."""
    from viscoin.analysis.attribution import save_maps, study_attribution
    from viscoin.analysis.questions import target_of
    from viscoin.plotting.attribution import attribution_figures, check_views
    from viscoin.reports.attribution_page import write_attribution_page

    kind = "classifier" if of == "f" and viscoin is None else "viscoin"
    subject, pictures, groups = images.load(kind, viscoin or classifier, USUAL, of, parameter=kind)
    check_views(len(pictures.images), len(asked.concepts or asked.targets))
    target = target_of(subject.model, of)
    with results_folder("attribute", subject.config.name, out) as results:
        study = study_attribution(target, pictures, subject.class_names, methods, asked, settings, subject.device)
        for name, overlay in (("attribution", True), ("maps", False)):
            figures = attribution_figures(study, overlay, groups)
            results.figures({_page(name, number): figure for number, figure in enumerate(figures)}, show and overlay)
        source = subject.config.name if pictures.indices else None  # files are of no dataset
        header = {"model": str(subject.path), "dataset": source, "of": of}
        results.json("results.json", {**header, **study.to_dict(), **({"groups": groups} if groups else {})})
        echo(save_maps(results.folder / "maps.npz", study))
        about = {**header, "model": subject.path.name, "dataset": source and Path(source).name}
        echo(write_attribution_page(results.folder / "index.html", study, about, groups))


def _page(name: str, number: int) -> str:
    return f"{name}-{number + 1}" if number else name


def _checkpoints(
    images: "ImageChoice", paths: Sequence[Path], epochs: list[int] | None, methods: list[str], asked: "Asked",
    settings: "Settings", out: Path | None, show: bool,
) -> None:  # fmt: skip
    """Maps of the same images for states of a classifier: a figure for each image, and numbers."""
    from viscoin.analysis.attribution import expand_methods, save_maps
    from viscoin.analysis.attribution_checkpoints import expand_checkpoints, study_checkpoints
    from viscoin.plotting.attribution import check_methods, checkpoint_figure

    files = expand_checkpoints(paths, epochs, images.dataset or "birds")
    check_methods(len(expand_methods(methods)))
    last = list(files.values())[-1]
    subject, pictures, _ = images.load("classifier", last, USUAL, parameter="checkpoints")
    with results_folder("attribute", subject.config.name, out) as results:
        study = study_checkpoints(files, subject, pictures, methods, asked, settings)
        views = range(len(study.studies[0].views))
        results.figures({f"checkpoints-{view + 1}": checkpoint_figure(study, view) for view in views}, show)
        for number, one in enumerate(study.studies, 1):
            echo(save_maps(results.folder / f"maps-{number}.npz", one))
        results.json("results.json", {"dataset": subject.config.name, **study.to_dict()})


def _demo(
    demo: str, images: "ImageChoice", classifier: Path | None, viscoin: Path | None, methods: list[str] | None,
    asked: "Asked", settings: "Settings", out: Path | None, show: bool,
) -> None:  # fmt: skip
    """One of the two tests of maps: figures and numbers."""
    from viscoin.analysis.attribution_demos import study_demo
    from viscoin.plotting.attribution_demos import demo_figures

    kind = "classifier" if viscoin is None else "viscoin"
    subject, pictures, _ = images.load(kind, viscoin or classifier, IMAGES[demo], parameter=kind)
    with results_folder("attribute", subject.config.name, out) as results:
        found = study_demo(demo, subject, pictures, methods, asked, settings)
        results.figures(demo_figures(found), show)
        echo(found.summary)
        results.json("results.json", {"model": str(subject.path), "dataset": subject.config.name, **found.to_dict()})


def _check_together(of: str, demo: str | None, **given: Any) -> None:
    """Raise Refused for options that say nothing where others are as they are."""
    if demo is not None and demo not in IMAGES:
        raise Refused("demo", demo, "unknown", f"choose {' or '.join(IMAGES)}")
    alone = "is for one model and its maps"
    for name, applies, reason in (
        ("demo", demo is None or not given["checkpoints"], alone),
        ("of", of == "f" or not (demo or given["checkpoints"]), "is always f here"),
        ("classifier", not given["checkpoints"], "is one of the `checkpoints` here"),
        ("viscoin", not given["checkpoints"], "has no `checkpoints`"),
        ("epochs", bool(given["checkpoints"]), "are of `checkpoints`"),
        ("classifier", of == "f" and given["viscoin"] is None, "has nothing to do with an ensemble"),
        ("target", of != "concepts", "is for classes; concepts have `concept_indices`"),
        ("against", of != "concepts", "is for classes"),
        ("concept_indices", of == "concepts", "are for `of` concepts"),
    ):
        if not applies and {**given, "of": of, "demo": demo}[name]:
            raise Refused(name, None, reason, "leave it out")


def _load_diffmask(path: Path) -> Any:
    from viscoin.models.files import find_model, load_model

    return load_model(find_model("diffmask", path, ""), "diffmask").model


def _parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE, values as YAML reads them: numbers, true, null, words."""
    import yaml

    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise Refused("option", text, "expected a name and a value, as in samples=50")
        try:
            found[name.strip().replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise Refused("option", text, "the value cannot be read", "give a number or a word") from error
    return found
