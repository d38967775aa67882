"""`data NAME info|show|split|export|prepare`: inspect a dataset, split it, write it for training or other tools."""

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viscoin.cli import options
from viscoin.cli.output import echo
from viscoin.cli.results import print_table, results_folder
from viscoin.errors import Refused, renamed
from viscoin.files import without_nan

if TYPE_CHECKING:
    from viscoin.config import DatasetConfig

ACTIONS = ("info", "show", "split", "export", "prepare")
# Actions that an option belongs to; those that are not named here belong to all.
BELONGS = {
    "--dataset-path": ("info", "show", "split", "export"),
    "--set": ("info", "show", "split", "export"),
    "--json": ("info",),
    "--show": ("info", "show"),
    "--split": ("show", "export", "prepare"),
    "--resolution": ("show", "export", "prepare"),
    "--fit": ("info", "show", "export"),
    "--crop-share": ("info", "show", "export"),
    "--interpolation": ("info", "show", "export"),
    "--classes": ("show",),
    "--count": ("show",),
    "--parts": ("show",),
    "--shares": ("split",),
    "--from": ("split",),
    "--tree": ("split",),
    "--format": ("export",),
    "--limit": ("export",),
    "--attributes": ("export",),
    "--crop": ("prepare",),
    "--labels": ("prepare",),
    "--max-images": ("prepare",),
    "--preview": ("prepare",),
    "--force": ("split", "export", "prepare"),
}
MOST_IN_ROW = 12
PREVIEW = 28  # images

# How images become square; recipe keys of the same names.
Fit = Annotated[
    str | None,
    typer.Option(
        "--fit",
        metavar="crop|pad|squash|object",
        help="info, show, export: central square, white borders, squashed, or around what is opaque or masked.",
    ),
]
CropShare = Annotated[
    float | None,
    typer.Option(
        "--crop-share",
        metavar="SHARE",
        help="info, show, export: share of the side that crop and squash show, above 0, at most 1.",
    ),
]
Interpolation = Annotated[
    str | None,
    typer.Option(
        "--interpolation",
        metavar="bicubic|bilinear|lanczos|nearest",
        help="info, show, export: how images are resampled.",
    ),
]
# Options of `prepare`; the older command `dataset` has them, too.
Crop = Annotated[
    str,
    typer.Option(
        "--crop",
        metavar="center|center-wide|none",
        help="prepare: central square, central 4:3 with black bars, or none (square images only).",
    ),
]
Labels = Annotated[
    str,
    typer.Option(
        "--labels",
        metavar="auto|none|FILE",
        help="prepare: classes if there are any, no labels, or labels from a file like dataset.json.",
    ),
]
MaxImages = Annotated[
    int | None,
    typer.Option("--max-images", min=1, metavar="N", help="prepare: at most N images, sampled by --seed."),
]
Preview = Annotated[
    Path | None, typer.Option("--preview", metavar="FILE.png", help="prepare: save a figure of some of the images.")
]


def data(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FOLDER|ZIP", help="A known dataset, a folder, or a zip of images.", show_default=False
        ),
    ],
    action: Annotated[str, typer.Argument(metavar="|".join(ACTIONS), help="What to do.", show_default=False)],
    dataset_path: options.DatasetPath = None,
    settings: options.Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="info: print JSON instead of tables.")] = False,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="train|validation|test|all",
            help="show, export, prepare: which images; default: train to show, else all.",
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--classes", metavar="NAME|INDEX,…", help="show: classes, by name or number from 0; repeatable."),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--count", min=1, max=MOST_IN_ROW, metavar="N", help="show: images per class."),
    ] = None,
    parts: Annotated[
        bool, typer.Option("--parts", help="show: colour the parts, if the dataset has part masks.")
    ] = False,
    shares: Annotated[
        str | None,
        typer.Option("--shares", metavar="A:B:C", help="split: new train, validation and test shares, as in 80:10:10."),
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="split: follow a split.csv, which may be edited.")
    ] = None,
    tree: Annotated[
        str | None,
        typer.Option(
            "--tree",
            metavar="none|link|copy",
            help="split: write train/CLASS/… as links or copies; default: link with --shares or --from.",
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option("--format", metavar="folder|zip|fiftyone", help="export: layout of the output.")
    ] = "folder",
    resolution: Annotated[
        int | None,
        typer.Option(
            "--resolution",
            min=1,
            metavar="N",
            help="show, export, prepare: side in pixels; default: the recipe's, or the images' to prepare.",
        ),
    ] = None,
    fit: Fit = None,
    crop_share: CropShare = None,
    interpolation: Interpolation = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="export: at most N images of each split.")
    ] = None,
    attributes: Annotated[
        bool, typer.Option("--attributes", help="export: include attributes, in labels.json or attributes.csv.")
    ] = False,
    crop: Crop = "center",
    labels: Labels = "auto",
    max_images: MaxImages = None,
    preview: Preview = None,
    seed: options.Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER|FILE.zip",
            help="Where to write; default: a new folder in runs/. Required to export or prepare.",
        ),
    ] = None,
    show: options.Show = False,
    skip_bad_files: options.SkipBadFiles = False,
    force: Annotated[
        bool, typer.Option("--force", help="split, export, prepare: replace an output that exists.")
    ] = False,
) -> None:
    """Inspect, show, split, export or prepare a dataset.

    info prints tables, show draws contact sheets, split writes the dataset's own split or a new one. export writes the
    dataset for other tools; prepare writes any images as square PNGs of one size with labels, in the format that
    StyleGAN tools read.

    All but prepare read the images as training does, and cache the resized squares in the user's cache folder.

    --seed samples the images that are shown, exported or prepared, and the split of --shares; the images of a generated
    dataset and a dataset's own split depend on dataset.seed (--set dataset.seed=1).
    """
    _check_action(context, name, action)
    if action == "prepare":
        out = out or _required(action, "photos.zip or --out photos")
        prepare(name, out, resolution, crop, labels, max_images, split or "all", seed, preview, skip_bad_files, force)
        return
    from viscoin.training.pipeline import RunOptions, resolve_recipe

    given_data = RunOptions(name, dataset_path, settings=settings, skip_bad_files=skip_bad_files)
    keys = {"resolution": resolution, "fit": fit, "crop_share": crop_share, "interpolation": interpolation}
    config = resolve_recipe("data", given_data, {f"dataset.{key}": value for key, value in keys.items()}).dataset
    if action == "info":
        _info(context.command, config, as_json, out, show)
    elif action == "show":
        _show(config, split or "train", classes, count, parts, seed, out, show)
    elif action == "split":
        _split(config, shares, source, tree, seed, out, force)
    else:
        out = out or _required(action, "birds-images, or --out birds.zip with --format zip")
        _export(config, out, kind, split or "all", limit, attributes, seed, force)


def _check_action(context: typer.Context, name: str, action: str) -> None:
    """Refuse an unknown action and options of another one."""
    if action not in ACTIONS:
        if name in ACTIONS:
            raise ValueError(f"{name!r} stands before the dataset; write: data {action} {name}")
        raise ValueError(f"unknown action {action!r}; choose {', '.join(ACTIONS)}")
    for parameter in context.command.params:
        option, given = parameter.opts[0], context.get_parameter_source(parameter.name or "")
        if given is not None and given.name == "COMMANDLINE" and action not in BELONGS.get(option, ACTIONS):
            *first, last = BELONGS[option]
            actions = f"{', '.join(first)} or {last}" if first else last
            raise ValueError(f"{option} belongs to data {name} {actions}, not to {action}")


def _required(action: str, example: str) -> Path:
    raise ValueError(f"--out: {action} needs a path to write to, as in --out {example}")


def _info(command: Any, config: "DatasetConfig", as_json: bool, out: Path | None, show: bool) -> None:
    from viscoin.datasets.description import describe_inspection
    from viscoin.datasets.diagnosis import describe_diagnosis
    from viscoin.datasets.inspection import inspect_dataset

    found = inspect_dataset(config.name, config)
    text = json.dumps(without_nan(found.to_dict()), indent=2)
    diagnosis = renamed(describe_diagnosis(found.problems, found.commands), command.option)
    echo(text if as_json else f"{describe_inspection(found)}\n{diagnosis}")
    if as_json and out is None and not show:
        return
    from viscoin.plotting.data import inspection_figures

    elsewhere = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    with elsewhere, results_folder("data-info", config.name, out) as results:
        results.text("info.json", text + "\n")
        results.figures(inspection_figures(found), show)


def _show(
    config: "DatasetConfig",
    split: str,
    classes: list[str] | None,
    count: int | None,
    parts: bool,
    seed: int,
    out: Path | None,
    show: bool,
) -> None:
    from viscoin.datasets.selection import select_images
    from viscoin.plotting.data import contact_sheets

    selection = select_images(config, split, classes, count, parts, seed)
    for name in selection.empty:
        echo(f"class {name!r} has no {split} images", err=True)
    with results_folder("data-show", config.name, out) as results:
        results.figures(contact_sheets(selection), show)


def _split(
    config: "DatasetConfig",
    shares: str | None,
    source: Path | None,
    tree: str | None,
    seed: int,
    out: Path | None,
    force: bool,
) -> None:
    from viscoin.datasets.description import describe_split
    from viscoin.datasets.splitting import CSV_NAME, split_dataset

    if out is None:
        with results_folder("data-split", config.name, None) as results:
            return _split(config, shares, source, tree, seed, results.folder, force)
    written = split_dataset(config, out, shares, source, tree, seed, force)
    echo(describe_split(written.split))
    echo(out / CSV_NAME)
    if written.tree != "none":
        echo(f"train on it with --dataset {out}")


def _export(
    config: "DatasetConfig",
    out: Path,
    kind: str,
    split: str,
    limit: int | None,
    attributes: bool,
    seed: int,
    force: bool,
) -> None:
    from viscoin.datasets.export import export_dataset

    done = export_dataset(config.name, config, out, kind, split, limit, attributes, seed, force)
    table: dict[str, Any] = {f"{part} images": number for part, number in done.counts.items()}
    table |= {"classes": len(done.class_names), "resolution": f"{done.resolution}x{done.resolution}"}
    print_table(str(done.path), table)
    if kind == "zip" and len(done.counts) > 1:
        echo("a zip holds no splits: whoever reads it splits it anew; export one --split, or --format folder")


def prepare(
    source: str,
    out: Path,
    resolution: int | None,
    crop: str,
    labels: str,
    max_images: int | None,
    split: str,
    seed: int,
    preview: Path | None,
    skip_bad_files: bool,
    force: bool,
) -> None:
    """Write images as a dataset of square PNGs, print what was written, and save a preview."""
    from viscoin.datasets.prepare import prepare_dataset, sample_images

    if preview is not None and preview.suffix.lower() != ".png":
        raise Refused("preview", preview, "must end in .png")
    done = prepare_dataset(source, out, resolution, crop, labels, max_images, split, seed, skip_bad_files, force)
    print_table(
        str(done.path),
        {
            "images": done.count,
            "classes": len(done.class_names) if done.class_names else "none",
            "resolution": f"{done.resolution}x{done.resolution}",
            "size": f"{done.bytes / 1e6:.1f} MB",
        },
    )
    if preview is not None:
        from viscoin.plotting.data import contact_sheet
        from viscoin.plotting.style import save_figure

        echo(save_figure(contact_sheet(*sample_images(done.path, PREVIEW, seed)), preview))
