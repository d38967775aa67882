"""Where a training of G starts from: the networks of another one, or what somebody published."""

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from stylegan2_ada.training import GanTrainer
from stylegan2_ada.transfer import load_fitting
from viscoin.config import Recipe
from viscoin.errors import Refused
from viscoin.models.files import FORMAT, read_file, read_model, stored, write_file
from viscoin.runs.run import Run

logger = logging.getLogger(__name__)

PARTNERS = ("discriminator", "encoder")
PARTNERS_KIND = "partners of a gan"
WORDS = {"generator": "generator", "ema": "averaged generator", "discriminator": "discriminator", "encoder": "encoder"}


def take_over(trainer: GanTrainer, source: Path) -> None:
    """Start G, the averaged G, D and E from the weights of another training, as far as they fit; says what does not.

    Raises:
        ValueError: no usable model, or nothing in it fits.
    """
    found = read_transfer(source)
    for name, word in WORDS.items():
        part = getattr(trainer, name)
        if part is None:
            continue
        if name not in found:
            logger.info("%s holds no %s; it starts fresh", source, word)
            continue
        try:
            report = load_fitting(part, found[name])
        except ValueError as error:
            raise Refused("gan.transfer", source, f"{name}: {error}", "choose another model or its recipe") from error
        logger.info("transfer to the %s: %s", word, report.summary())


def read_transfer(source: Path) -> Mapping[str, Mapping[str, Tensor]]:
    """State dicts by part (generator, ema and, if there, discriminator and encoder) of a run folder, a model or a .pkl.

    Raises:
        ValueError: missing, damaged, or no generator.
    """
    if source.is_dir():
        state = Run(source).last_checkpoint() or {}
        parts = state.get("task", {})
        if {"generator", "discriminator", "ema"} <= set(parts):
            return {name: parts[name] for name in WORDS if name in parts}
        source = Run(source).model_path
    if not source.is_file():
        raise Refused("gan.transfer", source, "there is no such model file or gan run folder")
    if source.suffix == ".pkl" and not zipfile.is_zipfile(source):  # a zip is of `to-pickle`
        from stylegan2_ada.nvidia_pickle import read_network_pickle

        networks = read_network_pickle(source)
        generator, average = networks.G or networks.G_ema, networks.G_ema or networks.G
        if generator is None or average is None:
            raise Refused("gan.transfer", source, "it holds no generator")
        found = {"generator": generator.state, "ema": average.state}
        return found | ({"discriminator": networks.D.state} if networks.D is not None else {})
    tensors, metadata = read_model(source)
    if metadata["kind"] != "gan":
        raise Refused("gan.transfer", source, f"it is a {metadata['kind']} model", "a gan model is needed")
    return {"generator": tensors, "ema": tensors} | read_partners(partners_path(source))


# --- partners -----------------------------------------------------------------------------------------------------


def partners_path(model: Path) -> Path:
    """Where D and E lie beside a model file of G."""
    return model.with_name(f"{model.stem}-partners.safetensors")


def partners(trainer: GanTrainer) -> dict[str, dict[str, Tensor]]:
    """State dicts of D and, if there is one, E."""
    found = {name: getattr(trainer, name) for name in PARTNERS}
    return {name: part.state_dict() for name, part in found.items() if part is not None}


def save_partners(
    path: Path, parts: Mapping[str, Mapping[str, Tensor]], recipe: Recipe, dtype: torch.dtype | None = None
) -> None:
    """Write D and E, without which the training of a G cannot be gone on with elsewhere.

    Args:
        parts: their state dicts.
        dtype: see `save_model`.
    """
    tensors = {f"{name}.{key}": stored(x, dtype) for name, part in parts.items() for key, x in part.items()}
    write_file(path, tensors, {"format": FORMAT, "kind": PARTNERS_KIND, "recipe": recipe.model_dump()})


def read_partners(path: Path) -> dict[str, dict[str, Tensor]]:
    """State dicts by part, {} where there is no such file.

    Raises:
        ValueError: damaged, or another file.
    """
    if not path.is_file():
        return {}
    tensors, metadata = read_file(path)
    if metadata.get("kind") != PARTNERS_KIND:
        raise Refused("gan.transfer", path, "it holds no discriminator of a gan training", "move it away")
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, own = key.partition(".")
        if name in PARTNERS:
            found.setdefault(name, {})[own] = value
    return found
