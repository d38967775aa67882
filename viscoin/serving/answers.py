"""What the service says of images: predictions, edits by concepts, and maps; plain values, ready for JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viscoin.analysis.amplification_curve import Reference, edits_reliable, kept_reconstructions
from viscoin.attribution import METHODS, attribute
from viscoin.attribution.targets import ClassifierLogit, ConceptActivation, Target
from viscoin.datasets.base import to_images, to_pixels
from viscoin.inference.batches import evaluation
from viscoin.models.editing import drawn_images, found_activations, switched_on
from viscoin.models.ensemble import Encoding
from viscoin.plotting.attribution import palette
from viscoin.serving.models import ServedModel, once, top
from viscoin.serving.pictures import Picture, data_url
from viscoin.serving.problems import Problem

CHANGED = 1e-6
LARGEST_FACTOR, LARGEST_VALUE = 16.0, 2.0
QUICK = ("activation", "attention", "control")  # families whose maps take a pass or two
QUICK_GRADIENTS = ("saliency", "input-x-gradient", "guided-backprop")
MANY_PASSES = ("scorecam", "sscam", "smoothgradcampp")


@dataclass(frozen=True)
class Edit:
    """One wish: concepts of a picture multiplied by factors, or set to values in units of their 90 % quantile."""

    picture: Picture
    factors: Mapping[int, float]
    values: Mapping[int, float]


@dataclass(frozen=True)
class Known:
    """What is kept of an image that was looked at: its code, its reconstruction and what is read from that."""

    code: Encoding
    rebuilt: Tensor
    activations: Tensor
    error: float


# --- predictions ---------------------------------------------------------------------------------------------------


def predict(model: ServedModel, pictures: Sequence[Picture], count: int) -> list[dict[str, Any]]:
    """Classes of f and g and the most relevant concepts of each image; for the engine's thread."""
    images = to_images(np.stack([picture.pixels for picture in pictures])).to(model.device)
    if model.ensemble is None:
        with evaluation(model.classifier, model.device):
            found = model.classifier(images).float().softmax(1).cpu().numpy()
        return [_prediction(model, picture, row, None, [], count) for picture, row in zip(pictures, found)]
    with evaluation(model.ensemble, model.device):
        logits, maps = model.ensemble.concept_maps(images)
        g, phi = model.ensemble.explain(maps), model.ensemble.activations(maps)
        relevance = model.ensemble.relevance(phi, g.argmax(1))
        arrays = [values.float().cpu().numpy() for values in (logits.softmax(1), g.softmax(1), phi, relevance)]
    return [
        _prediction(model, picture, f, of_g, _concepts(model, phi, relevance, count), count)
        for picture, f, of_g, phi, relevance in zip(pictures, *arrays)
    ]


def _prediction(
    model: ServedModel, picture: Picture, f: np.ndarray, g: np.ndarray | None, concepts: list[Any], count: int
) -> dict[str, Any]:
    label = picture.label
    return {
        "image": picture.id, "model": model.id,
        "label": None if label is None else {"class": label, "name": model.class_names[label]},
        "f": top(f, model.class_names, count), "g": None if g is None else top(g, model.class_names, count),
        "agree": None if g is None else bool(f.argmax() == g.argmax()), "concepts": concepts,
    }  # fmt: skip


def _concepts(model: ServedModel, phi: np.ndarray, relevance: np.ndarray, count: int) -> list[dict[str, Any]]:
    """The concepts that matter most for the class that g predicts, for or against it."""
    order = np.argsort(-np.abs(relevance), kind="stable")[:count]
    return [
        {
            "concept": int(k), "name": model.name_of(k), "grade": model.grades.get(int(k)), "activation": float(phi[k]),
            "relevance": float(relevance[k]), "opposite": model.opposites[k],
        }
        for k in order
    ]  # fmt: skip


# --- edits -----------------------------------------------------------------------------------------------------------


def reference_of(model: ServedModel) -> Reference:
    """What is usual of the reconstructions of an ensemble; takes some seconds the first time."""
    ensemble = model.drawing_ensemble()
    return once(model, "reference", lambda: kept_reconstructions(ensemble, model.images("validation"), model.device))


def amplify(model: ServedModel, edits: Sequence[Edit]) -> list[dict[str, Any]]:
    """The picture of each edit, what f and g say of it, and how far that can be believed; for the engine's thread."""
    ensemble = model.drawing_ensemble()
    with evaluation(ensemble, model.device):
        known = _known(model, [edit.picture for edit in edits])
        code = Encoding(*(_stacked([getattr(one.code, name) for one in known]) for name in Encoding._fields))
        maps, changed = _edited(model, code.concept_maps, edits)
        drawn = drawn_images(ensemble, code, maps)
        logits, found = ensemble.concept_maps(drawn)
        rebuilt = torch.cat([one.rebuilt for one in known])
        change = (drawn - rebuilt).abs().mean(1) / 2
        f, g = logits.float().softmax(1), ensemble.explain(found).float().softmax(1)
        reliable = _reliable(model, code, maps, known, ensemble.activations(found), changed)
        pixels, change_pixels = to_pixels(drawn), (change * 255).round().byte().cpu().numpy()
        f_rows, g_rows, changes = f.cpu().numpy(), g.cpu().numpy(), change.mean((1, 2)).cpu().tolist()
    return [
        {
            "image": edit.picture.id, "picture": data_url(pixels[i]),
            "change_map": data_url(_strong(change_pixels[i])), "change": changes[i],
            "f": top(f_rows[i], model.class_names, 3), "g": top(g_rows[i], model.class_names, 3),
            "reconstruction_error": known[i].error, "reliable": reliable[i],
        }
        for i, edit in enumerate(edits)
    ]  # fmt: skip


def _known(model: ServedModel, pictures: Sequence[Picture]) -> list[Known]:
    new = {picture.id: picture for picture in pictures if model.kept(picture.id) is None}
    if new:
        ensemble = model.needed_ensemble()
        images = to_images(np.stack([picture.pixels for picture in new.values()])).to(model.device)
        code = ensemble.encode(images)
        rebuilt = drawn_images(ensemble, code, code.concept_maps)
        phi, errors = found_activations(ensemble, rebuilt), (rebuilt - images).abs().mean((1, 2, 3)).tolist()
        for i, number in enumerate(new):
            one = Encoding(*(_row(part, i) for part in code))
            model.keep(number, Known(one, rebuilt[i : i + 1].clone(), phi[i : i + 1].clone(), errors[i]))
    found = [model.kept(picture.id) for picture in pictures]
    return [one for one in found if one is not None]


def _row(part: Any, i: int) -> Any:
    """One image of a part of a code, with memory of its own."""
    return tuple(_row(one, i) for one in part) if isinstance(part, tuple) else part[i : i + 1].clone()


def _stacked(parts: Sequence[Any]) -> Any:
    return tuple(map(_stacked, zip(*parts))) if isinstance(parts[0], tuple) else torch.cat(list(parts))


def _edited(model: ServedModel, maps: Tensor, edits: Sequence[Edit]) -> tuple[Tensor, Tensor]:
    """Concept maps (B, K, 3, 3) of edits, and which concepts (B, K) they change."""
    ensemble, before = model.needed_ensemble(), maps
    maps = maps.clone()
    for i, edit in enumerate(edits):
        for k, factor in edit.factors.items():
            maps[i, k] *= factor
        for k, value in edit.values.items():
            maps[i : i + 1] = switched_on(ensemble, maps[i : i + 1], k, value)
    return maps, (maps - before).abs().amax((2, 3)) > CHANGED


def _reliable(
    model: ServedModel, code: Encoding, maps: Tensor, known: Sequence[Known], after: Tensor, changed: Tensor
) -> list[bool | None]:
    """Of each edit; None as long as it is not known what is usual, or where nothing is changed."""
    reference = model.__dict__.get("_made_reference")
    if reference is None:
        return [None] * len(known)
    before = torch.cat([one.activations for one in known])
    found = edits_reliable(model.needed_ensemble(), code, maps, before, after, changed, reference).tolist()
    return [good if any_changed else None for good, any_changed in zip(found, changed.any(1).tolist())]


def _strong(grey: np.ndarray) -> np.ndarray:
    """A change map (H, W) uint8 as RGB, its largest value white."""
    most = max(int(grey.max()), 16)
    return np.repeat((grey.astype(float) * (255 / most)).clip(0, 255).astype(np.uint8)[..., None], 3, 2)


def check_edit(model: ServedModel, factors: Mapping[int, float], values: Mapping[int, float]) -> None:
    """Raise a problem for concepts that are none, and for factors and values out of range."""
    count = model.drawing_ensemble().n_concepts
    for name, given, most in (("factors", factors, LARGEST_FACTOR), ("values", values, LARGEST_VALUE)):
        for k, number in given.items():
            if not 0 <= k < count:
                raise Problem(422, f"{name}: there is no concept {k}", f"concepts are 0 to {count - 1}")
            if not 0 <= number <= most:
                raise Problem(422, f"{name}: {number} for concept {k} is out of range", f"give 0 to {most:g}")
    if values and model.directions is None:
        raise Problem(422, f"model {model.id} does not know what is usual of its concepts", "use factors")


# --- maps ------------------------------------------------------------------------------------------------------------


def is_quick(method: str) -> bool:
    """Whether a method takes but a few passes, so that others need not wait."""
    return method in QUICK_GRADIENTS or (METHODS[method].family in QUICK and method not in MANY_PASSES)


def methods_of() -> list[dict[str, Any]]:
    """The methods that can be asked for."""
    return [
        {"method": name, "title": entry.title, "family": entry.family, "signed": entry.signed, "quick": is_quick(name)}
        for name, entry in METHODS.items()
        if "training" not in entry.needs
    ]  # fmt: skip


def maps(
    model: ServedModel, picture: Picture, method: str, classes: Sequence[int] | None, concepts: Sequence[int] | None,
    against: int | None,
) -> dict[str, Any]:  # fmt: skip
    """Where an image speaks for classes or concepts: a map for each, as a picture with opacity for strength."""
    target: Target
    if concepts is not None:
        target, chosen = ConceptActivation(model.needed_ensemble()), list(concepts)
    else:
        target, chosen = ClassifierLogit(model.classifier), list(classes or ())
    images = to_images(picture.pixels[None])
    if not chosen:
        with evaluation(model.classifier, model.device):
            chosen = [int(model.classifier(images.to(model.device)).argmax(1))]
    rivals = None if against is None else [against] * len(chosen)
    result = attribute(
        target, images.expand(len(chosen), -1, -1, -1), method, chosen, device=model.device, against=rivals
    )  # fmt: skip
    noun, rows = ("class" if concepts is None else "concept"), []
    for k, heat in zip(chosen, result.maps.numpy()):
        name = model.class_names[k] if noun == "class" else model.name_of(k)
        rows.append({noun: k, "name": name, **_map(picture, heat, result.signed)})
    return {
        "image": picture.id, "model": model.id, "method": method, "title": METHODS[method].title,
        "signed": result.signed, "maps": rows, "seconds": result.seconds,
    }  # fmt: skip


def _map(picture: Picture, heat: np.ndarray, signed: bool) -> dict[str, Any]:
    most = float(np.abs(heat).max())
    shown = heat / most if most > 0 else heat
    colours = palette(signed)((shown + 1) / 2 if signed else shown)
    colours[..., 3] = np.sqrt(np.abs(shown))  # or a map with one high point would look empty
    y, x = np.unravel_index(int(heat.argmax()), heat.shape)
    row = {"picture": data_url((colours * 255).round().astype(np.uint8)), "maximum": most, "point": [int(x), int(y)]}
    return {**row, "truth": _part_at(picture, int(y), int(x))}


def _part_at(picture: Picture, y: int, x: int) -> dict[str, Any] | None:
    """The part that the highest point lies on, where the data knows parts."""
    if picture.dataset is None or picture.index is None or not picture.dataset.part_names:
        return None
    masks = picture.dataset.part_masks(picture.index)[:, y, x]
    names = [name for name, hit in zip(picture.dataset.part_names, masks) if hit]
    return {"parts": names, "hit": bool(names)}
