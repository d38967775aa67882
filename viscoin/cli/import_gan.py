"""`import-gan`: a model file from a published network pickle, without running anything in it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viscoin.cli.results import print_table

if TYPE_CHECKING:
    from stylegan2_ada.nvidia_pickle import PickledNetwork
    from viscoin.config import Recipe

NETWORKS = ("G_ema", "G")


def import_gan(
    source: Annotated[
        str | None, typer.Argument(metavar="PICKLE|NAME|URL", help="A file, a known name (see --list) or an address.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="The model file to write (.safetensors).")
    ] = None,
    network: Annotated[
        str, typer.Option("--network", metavar="G_ema|G", help="The averaged generator, or the one in training.")
    ] = "G_ema",
    discriminator: Annotated[
        Path | None, typer.Option("--discriminator", metavar="FILE", help="Write the discriminator here as well.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="NAME", help="Dataset to note in the file; default: the source.")
    ] = None,
    sha256: Annotated[
        str | None, typer.Option("--sha256", metavar="HEX", help="Checksum that the pickle must have.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output files.")] = False,
    show_list: Annotated[bool, typer.Option("--list", help="List the published networks that have names.")] = False,
) -> None:
    """Convert a published StyleGAN2-ADA pickle to a model file; nothing in the pickle runs."""
    if show_list:
        return _print_list()
    if source is None or output is None:
        raise ValueError("give a network pickle and --output, as in: import-gan ffhq256 --output g.safetensors")
    if network not in NETWORKS:
        raise ValueError(f"--network {network!r}: choose one of {', '.join(NETWORKS)}")
    _check_outputs({"--output": output, "--discriminator": discriminator}, force)
    from stylegan2_ada.nvidia_pickle import read_network_pickle
    from viscoin.models.files import save_model

    path, origin, dataset_name, classes = _find(source, sha256)
    pickled = read_network_pickle(path)
    networks = {"G": pickled.G, "D": pickled.D, "G_ema": pickled.G_ema}
    wanted = [("gan", network, output)] + ([("discriminator", "D", discriminator)] if discriminator else [])
    models = [_build(networks, role, path) for _, role, _ in wanted]
    recipe = _recipe(models[0], dataset or dataset_name)
    for (kind, role, file), model in zip(wanted, models, strict=True):
        names = _class_names(model.c_dim, classes)
        save_model(file, model, kind, recipe=recipe, class_names=names, origin=origin)
        print_table(f"{role} of {path}", _facts(model, networks[role]))
        typer.echo(file)


def _print_list() -> None:
    from viscoin.models.published import LICENCE, PUBLISHED

    for name, network in PUBLISHED.items():
        typer.echo(f"{name:<12} {network.resolution:>4} px  {network.megabytes} MB  {network.training}")
        typer.echo(f"{'':<12} {network.address}")
        typer.echo(f"{'':<12} SHA-256: {network.sha256 or 'not published; that of the first download counts'}")
    typer.echo(f"All: {LICENCE}.")


def _check_outputs(files: dict[str, Path | None], force: bool) -> None:
    for option, file in files.items():
        if file is not None and file.suffix != ".safetensors":
            raise ValueError(f"{option} {file}: a model file must end in .safetensors")
        if file is not None and file.exists() and not force:
            raise ValueError(f"{option} {file} exists; pass --force to overwrite it or choose another name")
    if files["--output"] == files["--discriminator"]:
        raise ValueError(f"--discriminator {files['--discriminator']}: this is the file of --output; choose another")


def _find(source: str, sha256: str | None) -> tuple[Path, str, str, tuple[str, ...]]:
    """The pickle that the argument means; where it comes from; names for its dataset and its classes."""
    from viscoin.models.published import LICENCE, PUBLISHED, check_sha256, fetch, find_published, is_address

    local = Path(source)
    key = find_published(local.name if local.is_file() else source)
    if local.is_file():
        path = local
    elif key is not None or is_address(source):
        path = fetch(source, sha256)
    else:
        raise ValueError(
            f"there is no file {source}, and no published network of that name; known are {', '.join(PUBLISHED)}"
        )
    checksum = check_sha256(path, sha256)
    origin = f"{local.name if local.is_file() or key is None else PUBLISHED[key].address} (SHA-256 {checksum})"
    if key is not None:
        origin += f"; {LICENCE}"
    return path, origin, key or path.stem, PUBLISHED[key].classes if key else ()


def _build(networks: "dict[str, PickledNetwork | None]", role: str, path: Path) -> Any:
    found = networks[role]
    if found is None:
        held = ", ".join(name for name, network in networks.items() if network)
        raise ValueError(f"{path} holds no {role}, only {held}")
    if found.kind != ("Discriminator" if role == "D" else "Generator"):
        raise ValueError(f"{path}: {role} is a {found.kind}")
    try:
        return found.build()
    except ValueError as error:
        raise ValueError(f"{path}: {role}: {error}") from None


def _recipe(generator: Any, dataset: str) -> "Recipe":
    """A recipe with the generator's own settings, as far as recipes know them, and the defaults for the rest."""
    from stylegan2_ada.nvidia_pickle import SECTIONS
    from viscoin.config import GanConfig, parse_recipe

    config = generator.config
    settings = {
        **SECTIONS["Generator"]["synthesis_kwargs"],
        **config["synthesis_kwargs"],
        "z_dim": config["z_dim"],
        "w_dim": config["w_dim"],
        "conditional": config["c_dim"] > 0,
        "mapping_layers": generator.mapping.num_layers,
        "w_avg_beta": generator.mapping.w_avg_beta,
    }
    known = {key: value for key, value in settings.items() if key in GanConfig.model_fields}
    return parse_recipe({"dataset": {"name": dataset, "resolution": config["img_resolution"]}, "gan": known}, dataset)


def _class_names(c_dim: int, known: tuple[str, ...]) -> list[str]:
    if c_dim == 0:
        return ["image"]
    return list(known) if len(known) == c_dim else [f"class {i}" for i in range(c_dim)]


def _facts(model: Any, pickled: "PickledNetwork | None") -> dict[str, Any]:
    count = sum(parameter.numel() for parameter in model.parameters())
    return {
        "resolution": f"{model.img_resolution} px, {model.img_channels} channels",
        "parameters": f"{count / 1e6:.1f} million",
        "classes (c_dim)": model.c_dim or "none",
        "keywords left out": ", ".join(pickled.dropped if pickled else ()) or "none",
    }
