"""`data NAME info|show|split|export`: look at a dataset, split it anew, write it for other tools."""

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viscoin.cli import options
from viscoin.cli.results import print_table, results_folder
from viscoin.files import without_nan

if TYPE_CHECKING:
    import numpy as np

    from viscoin.config import DatasetConfig
    from viscoin.datasets import ImageDataset
    from viscoin.datasets.inspection import Copies, Inspection
    from viscoin.datasets.splitting import Split

ACTIONS = ("info", "show", "split", "export")
# Actions that an option belongs to; those that are not named here belong to all.
BELONGS = {
    "--json": ("info",),
    "--show": ("info", "show"),
    "--split": ("show", "export"),
    "--resolution": ("show", "export"),
    "--classes": ("show",),
    "--count": ("show",),
    "--parts": ("show",),
    "--shares": ("split",),
    "--from": ("split",),
    "--tree": ("split",),
    "--format": ("export",),
    "--limit": ("export",),
    "--attributes": ("export",),
    "--force": ("split", "export"),
}
TREES = ("none", "link", "copy")
IN_ROW, FEW_CLASSES = 7, 40  # images of each class that are shown by default, of up to so many classes; else one
MOST_IN_ROW = 12


def data(
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
            help="show, export: which images; default: train to show, all to export.",
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--classes", metavar="NAME|INDEX,…", help="show: classes, by name or number from 0; repeatable."),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--count", min=1, max=MOST_IN_ROW, metavar="N", help="show: images of each class."),
    ] = None,
    parts: Annotated[bool, typer.Option("--parts", help="show: parts in colour, where the masks are known.")] = False,
    shares: Annotated[
        str | None,
        typer.Option("--shares", metavar="A:B:C", help="split: anew into train, validation, test, as in 80:10:10."),
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="split: as a split.csv says, also an edited one.")
    ] = None,
    tree: Annotated[
        str | None,
        typer.Option(
            "--tree",
            metavar="|".join(TREES),
            help="split: write train/CLASS/… of links or copies; default: link with --shares or --from.",
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--format", metavar="folder|zip|fiftyone", help="export: layout; default: folder.")
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option("--resolution", min=16, metavar="N", help="show, export: side in pixels; default: the recipe's."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="export: at most so many images of each split.")
    ] = None,
    attributes: Annotated[
        bool, typer.Option("--attributes", help="export: attributes too, in labels.json or attributes.csv.")
    ] = False,
    seed: options.Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER|FILE.zip", help="Where results go; default: a new folder in runs/, not for export."
        ),
    ] = None,
    show: options.Show = False,
    skip_bad_files: options.SkipBadFiles = False,
    force: Annotated[bool, typer.Option("--force", help="split, export: replace an output that exists.")] = False,
) -> None:
    """Look at a dataset (info, show), write its split or a new one (split), or write it for other tools (export).

    Every action reads the images as a training does, and keeps their squares in the user's cache folder.

    --seed draws the images that are shown or exported, and the split of --shares; the images of a dataset and its own
    split depend on dataset.seed (--set dataset.seed=1).
    """
    given = {
        "--json": as_json, "--show": show, "--split": split, "--resolution": resolution, "--classes": classes,
        "--count": count, "--parts": parts, "--shares": shares, "--from": source, "--tree": tree, "--format": kind,
        "--limit": limit, "--attributes": attributes, "--force": force,
    }  # fmt: skip
    _check_action(name, action, given)
    from viscoin.training.pipeline import RunOptions, resolve_recipe

    given_data = RunOptions(name, dataset_path, settings=settings, skip_bad_files=skip_bad_files)
    config = resolve_recipe("data", given_data, {"dataset.resolution": resolution}).dataset
    if action == "info":
        _info(config, as_json, out, show)
    elif action == "show":
        _show(config, split or "train", classes, count, parts, seed, out, show)
    elif action == "split":
        _split(config, shares, source, tree, seed, out, force)
    else:
        _export(config, kind or "folder", split or "all", limit, attributes, seed, out, force)


def _check_action(name: str, action: str, given: Mapping[str, Any]) -> None:
    if action not in ACTIONS:
        if name in ACTIONS:
            raise ValueError(f"{name!r} stands before the dataset; write: data {action} {name}")
        raise ValueError(f"{action!r} is nothing that data does; choose {', '.join(ACTIONS)}")
    for option, value in given.items():
        if value not in (None, False, []) and action not in BELONGS[option]:
            raise ValueError(f"{option} belongs to data {name} {' or '.join(BELONGS[option])}, not to {action}")


# --- info --------------------------------------------------------------------------------------------------------


def _info(config: "DatasetConfig", as_json: bool, out: Path | None, show: bool) -> None:
    import numpy as np

    from viscoin.datasets.inspection import inspect_dataset
    from viscoin.plotting import data as figures

    found = inspect_dataset(config.name, config)
    text = json.dumps(without_nan(found.to_dict()), indent=2) + "\n"
    if as_json:
        typer.echo(text, nl=False)
    else:
        _print_inspection(found)
    if as_json and out is None and not show:
        return
    pages = {"class-counts": figures.class_counts(found.counts, found.class_names)}
    if found.attribute_names:
        pages["attribute-frequencies"] = figures.attribute_frequencies(found.attributes, found.attribute_names)
    if found.sizes is not None and len(np.unique(found.sizes, axis=0)) > 1:
        pages["image-sizes"] = [figures.image_sizes(found.sizes, found.resolution)]
    elsewhere = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    with elsewhere, results_folder("data-info", config.name, out) as results:
        results.text("info.json", text)
        results.figures(_numbered(pages), show)


def _numbered(pages: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Figures by name, with the number of the page where there are several."""
    return {
        name if len(figures) == 1 else f"{name}-{i}": figure
        for name, figures in pages.items()
        for i, figure in enumerate(figures, 1)
    }


def _print_inspection(found: "Inspection") -> None:
    splits = list(found.counts)
    _print_counts(found.class_names, found.counts)
    if found.attribute_names:
        typer.echo()
        _print_columns(
            ["attribute, share of images", *splits],
            [
                [name, *(f"{found.attributes[split][i]:.3f}" for split in splits)]
                for i, name in enumerate(found.attribute_names)
            ],
        )
    typer.echo()
    balance = {split: found.balance(split) for split in splits}
    rows = [["images", *(str(int(found.counts[split].sum())) for split in splits)]]
    titles = {
        "smallest": "images of the smallest class", "median": "images of the median class",
        "largest": "images of the largest class", "largest_share": "share of the largest class",
        "imbalance": "largest / smallest class",
    }  # fmt: skip
    rows += [[title, *(f"{balance[split][key]:.4g}" for split in splits)] for key, title in titles.items()]
    _print_columns([f"{found.name}: {len(found.class_names)} classes", *splits], rows)
    typer.echo(f"image sizes as stored   {_sizes_in_words(found)}")
    typer.echo(f"models are given        {found.resolution}x{found.resolution} px")
    typer.echo(f"broken files            {len(found.broken)}")
    for file, reason in list(found.broken.items())[:5]:
        typer.echo(f"  {file}: {reason}")
    across = found.across_splits
    typer.echo(
        f"duplicates              {len(found.duplicates) - len(across)} within splits, {len(across)} across splits"
    )
    for group in (across + [group for group in found.duplicates if group not in across])[:5]:
        typer.echo(f"  {_copies_in_words(group)}")
    if found.part_names:
        typer.echo(f"part masks              {', '.join(found.part_names)}")


def _copies_in_words(group: "Copies", most: int = 4) -> str:
    """Some of the copies of an image, one of each split before any other."""
    of_each = [
        next(place for place in group if place[0] == split) for split in dict.fromkeys(split for split, _ in group)
    ]
    shown = [*of_each, *(place for place in group if place not in of_each)][:most]
    more = f" and {len(group) - most} more" if len(group) > most else ""
    return " = ".join(f"{image} ({split})" for split, image in shown) + more


def _sizes_in_words(found: "Inspection") -> str:
    if found.sizes is None:
        return "the images have no files of their own"
    from viscoin.datasets.inspection import size_summary

    summary = size_summary(found.sizes)
    sides = (summary[side] for side in ("width", "height"))
    low, middle, high = zip(*((side["smallest"], side["median"], side["largest"]) for side in sides))
    smallest, median, largest = ("x".join(f"{value:g}" for value in pair) for pair in (low, middle, high))
    common_size, count = next(iter(summary["most_common"].items()))
    if smallest == largest:
        return f"all {smallest} px"
    return f"{smallest} to {largest} px, median {median}; most common {common_size} ({count} of {len(found.sizes)})"


def _print_counts(class_names: Sequence[str], counts: "Mapping[str, np.ndarray]") -> None:
    rows = [[str(i), name, *(str(values[i]) for values in counts.values())] for i, name in enumerate(class_names)]
    _print_columns(["", "class", *counts], rows, texts=2)


def _print_columns(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> None:
    """Aligned columns: the first ones are texts, the others numbers."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        cells = [f"{cell:<{w}}" if i < texts else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths))]
        typer.echo("  ".join(cells).rstrip())


# --- show --------------------------------------------------------------------------------------------------------


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
    import numpy as np

    from viscoin.datasets import load_dataset
    from viscoin.plotting.data import class_sheets

    images = load_dataset(config.name, split, config)
    if parts and not images.part_names:
        raise ValueError(f"--parts: dataset {images.name!r} has no part masks; leave the option out")
    numbers = _parse_classes(classes, images.class_names)
    per_class = count or (IN_ROW if len(numbers) <= FEW_CLASSES else 1)
    drawn = {number: _draw(images, number, per_class, seed) for number in numbers}
    shown = [number for number in numbers if len(drawn[number])]
    for number in set(numbers) - set(shown):
        typer.echo(f"class {images.class_names[number]!r} has no {split} images", err=True)
    if not shown:
        raise ValueError(f"--classes: none of them has {split} images; choose others or another --split")
    masks = [np.stack([images.part_masks(i) for i in drawn[number]]) for number in shown] if parts else None
    sheets = class_sheets(
        [images.pixels[drawn[number]] for number in shown],
        [images.class_names[number] for number in shown],
        masks,
        images.part_names if parts else (),
    )
    with results_folder("data-show", config.name, out) as results:
        results.figures(_numbered({f"contact-sheet-{split}": sheets}), show)


def _draw(images: "ImageDataset", label: int, count: int, seed: int) -> "np.ndarray":
    """Some images of a class, the same for each seed."""
    import numpy as np

    of_class = np.flatnonzero(images.labels == label)
    return np.sort(np.random.default_rng([seed, label]).permutation(of_class)[:count])


def _parse_classes(values: Sequence[str] | None, names: Sequence[str]) -> list[int]:
    """Classes by name (which may hold commas) or number; all when none are given."""
    if not values:
        return list(range(len(names)))
    numbers = []
    for value in values:
        for text in [value] if value in names else [part.strip() for part in value.split(",")]:
            if text in names:
                numbers.append(list(names).index(text))
            elif text.isdigit() and int(text) < len(names):
                numbers.append(int(text))
            else:
                raise ValueError(f"--classes {text!r}: {_nearest(text, names)}")
    return list(dict.fromkeys(numbers))


def _nearest(text: str, names: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(text, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return (
        f"{hint}There are {len(names)} classes, by number from 0 to {len(names) - 1}, or by the names that info lists"
    )


# --- split -------------------------------------------------------------------------------------------------------


def _split(
    config: "DatasetConfig",
    shares: str | None,
    source: Path | None,
    tree: str | None,
    seed: int,
    out: Path | None,
    force: bool,
) -> None:
    from viscoin.datasets import splitting
    from viscoin.datasets.output import check_output

    if shares and source:
        raise ValueError("give one of --shares and --from, not both")
    if tree is not None and tree not in TREES:
        raise ValueError(f"--tree {tree!r}: choose {', '.join(TREES)}")
    parsed = splitting.parse_shares(shares) if shares else None
    if out is not None:
        check_output(out, _place_of_images(config), force, splitting.CSV_NAME, "out")
        if out.suffix.lower() == ".zip":
            raise ValueError(f"--out {out}: a split is written as a folder; give a name without .zip")
    found = splitting.own_split(config.name, config)
    if parsed:
        found = splitting.drawn_split(found, parsed, seed)
    elif source:
        found = splitting.read_split(source, found)
    on_disk = all(row.path for row in found.rows)
    kind = tree or ("link" if (shares or source) and on_disk else "none")
    with results_folder("data-split", config.name, out) as results:
        _write_split(found, results.folder, kind)
        _print_split(found)
        typer.echo(results.folder / splitting.CSV_NAME)
        if kind != "none":
            typer.echo(f"train on it with --dataset {results.folder}")


def _write_split(found: "Split", folder: Path, kind: str) -> None:
    from viscoin.datasets import splitting
    from viscoin.datasets.output import new_folder

    if kind != "none":
        splitting.write_tree(found, folder, kind)
        return
    with new_folder(folder) as partial:
        splitting.write_csv(found, partial / splitting.CSV_NAME)


def _place_of_images(config: "DatasetConfig") -> Path | None:
    from viscoin.datasets import dataset_names

    place = config.path if config.name in dataset_names() else config.name
    return None if place is None else Path(place)


def _print_split(found: "Split") -> None:
    counts = found.counts()
    _print_counts(found.class_names, counts)
    total = sum(int(values.sum()) for values in counts.values())
    sums = [int(values.sum()) for values in counts.values()]
    typer.echo(f"{total} images: " + ", ".join(f"{split} {n} ({n / total:.1%})" for split, n in zip(counts, sums)))


# --- export ------------------------------------------------------------------------------------------------------


def _export(
    config: "DatasetConfig",
    kind: str,
    split: str,
    limit: int | None,
    attributes: bool,
    seed: int,
    out: Path | None,
    force: bool,
) -> None:
    from viscoin.datasets.export import export_dataset

    if out is None:
        raise ValueError("--out: say where to write, as in --out birds-images, or --out birds.zip with --format zip")
    done = export_dataset(config.name, config, out, kind, split, limit, attributes, seed, force)
    print_table(
        str(done.path),
        {
            **{f"{part} images": number for part, number in done.counts.items()},
            "classes": len(done.class_names),
            "resolution": f"{done.resolution}x{done.resolution}",
        },
    )
    if kind == "zip" and len(done.counts) > 1:
        typer.echo("a zip holds no splits: whoever reads it splits it anew; export one --split, or --format folder")
