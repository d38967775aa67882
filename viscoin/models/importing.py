"""Model files from published StyleGAN2-ADA pickles, without running anything in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylegan2_ada.nvidia_pickle import SECTIONS, PickledNetwork, read_network_pickle
from viscoin.config import GanConfig, Recipe, parse_recipe
from viscoin.errors import Refused
from viscoin.models.files import save_model
from viscoin.models.published import LICENCE, PUBLISHED, check_sha256, fetch, find_published, is_address

NETWORKS = ("G_ema", "G")


@dataclass(frozen=True)
class Imported:
    """A model file that was written, of what kind, what it was made from, and facts about it for people."""

    path: Path
    kind: str
    source: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Pickle:
    """A network pickle on disk, where it comes from, and names for its dataset and classes."""

    path: Path
    origin: str
    dataset: str
    classes: Sequence[str]


def import_generator(
    source: str,
    output: Path,
    network: str = "G_ema",
    discriminator: Path | None = None,
    dataset: str | None = None,
    sha256: str | None = None,
    force: bool = False,
) -> list[Imported]:
    """Convert a network pickle to a model file, and its discriminator to another one.

    Args:
        source: a file, a published name (see `viscoin.models.published`) or an address, which are downloaded.
        output: the model file of the generator.
        network: "G_ema", the averaged generator, or "G", the one in training.
        discriminator: the model file of the discriminator; None writes none.
        dataset: the dataset to note in the files; None means the name of the source.
        sha256: the checksum that the pickle must have.
        force: overwrite files that exist.

    Raises:
        ValueError: arguments or files that cannot be used, a failed download, or weights that do not fit.
    """
    if network not in NETWORKS:
        raise Refused("network", network, "unknown", f"choose {' or '.join(NETWORKS)}")
    check_model_output("output", output, force)
    wanted = [("gan", network, output)]
    if discriminator is not None:
        check_model_output("discriminator", discriminator, force)
        if discriminator == output:
            raise Refused("discriminator", discriminator, "this is the file of `output`", "choose another name")
        wanted.append(("discriminator", "D", discriminator))
    found = _find(source, sha256)
    pickled = read_network_pickle(found.path)
    networks = {"G": pickled.G, "D": pickled.D, "G_ema": pickled.G_ema}
    models = [_build(networks, role, found.path) for _, role, _ in wanted]
    recipe = _recipe(models[0], dataset or found.dataset)
    imported = []
    for (kind, role, file), model in zip(wanted, models, strict=True):
        names = _class_names(model.c_dim, found.classes)
        save_model(file, model, kind, recipe=recipe, class_names=names, origin=found.origin)
        imported.append(Imported(file, kind, f"{role} of {found.path}", _facts(model, networks[role])))
    return imported


def check_model_output(parameter: str, path: Path, force: bool) -> None:
    """Raise Refused unless a model file may be written there."""
    if path.suffix != ".safetensors":
        raise Refused(parameter, path, "a model file must end in .safetensors")
    if path.exists() and not force:
        raise Refused(parameter, path, "exists", "pass `force` to overwrite it or choose another name")


def _find(source: str, sha256: str | None) -> Pickle:
    local = Path(source)
    key = find_published(local.name if local.is_file() else source)
    if local.is_file():
        path = local
    elif key is not None or is_address(source):
        path = fetch(source, sha256)
    else:
        raise Refused(
            "source", source, "there is neither such a file nor a published network of that name",
            f"known are {', '.join(PUBLISHED)}",
        )  # fmt: skip
    checksum = check_sha256(path, sha256)
    origin = f"{local.name if local.is_file() or key is None else PUBLISHED[key].address} (SHA-256 {checksum})"
    if key is not None:
        origin += f"; {LICENCE}"
    return Pickle(path, origin, key or path.stem, PUBLISHED[key].classes if key else ())


def _build(networks: Mapping[str, PickledNetwork | None], role: str, path: Path) -> Any:
    found = networks[role]
    if found is None:
        held = ", ".join(name for name, network in networks.items() if network)
        raise Refused("discriminator" if role == "D" else "network", None, f"{path} holds no {role}, only {held}")
    if found.kind != ("Discriminator" if role == "D" else "Generator"):
        raise ValueError(f"{path}: {role} is a {found.kind}")
    try:
        return found.build()
    except ValueError as error:
        raise ValueError(f"{path}: {role}: {error}") from None


def _recipe(generator: Any, dataset: str) -> Recipe:
    """A recipe with the generator's own settings, as far as recipes know them, and the defaults for the rest."""
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


def _class_names(c_dim: int, known: Sequence[str]) -> list[str]:
    if c_dim == 0:
        return ["image"]
    return list(known) if len(known) == c_dim else [f"class {i}" for i in range(c_dim)]


def _facts(model: Any, pickled: PickledNetwork | None) -> dict[str, Any]:
    count = sum(parameter.numel() for parameter in model.parameters())
    return {
        "resolution": f"{model.img_resolution} px, {model.img_channels} channels",
        "parameters": f"{count / 1e6:.1f} million",
        "classes (c_dim)": model.c_dim or "none",
        "keywords left out": ", ".join(pickled.dropped if pickled else ()) or "none",
    }
