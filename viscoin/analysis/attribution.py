"""Where scores of some images come from, by several methods side by side."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viscoin.analysis.questions import Asked, Views, ask
from viscoin.attribution import METHODS, AttributionResult, attribute
from viscoin.attribution.options import check_options
from viscoin.attribution.targets import Target
from viscoin.errors import Refused, reason_of
from viscoin.files import atomic_path
from viscoin.inference.batches import progress
from viscoin.inference.loading import Pictures
from viscoin.models.layers import backbone_of, resolve_layer

logger = logging.getLogger(__name__)
ALL = "all"
SCALED = 0.995  # share of the pixels that a colour scale tells apart; the strongest are drawn as its end


@dataclass(frozen=True)
class Settings:
    """How maps are made.

    Attributes:
        layer: for methods that look at one: 0 (finest) to 2, a module by its path, or "all".
        baseline: for methods that compare: "grey", "blur" or "noise".
        options: of methods, by name; each is for those that have it.
    """

    layer: str | None = None
    baseline: str | Tensor = "blur"
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    batch_size: int = 32


@dataclass(frozen=True)
class AttributionStudy:
    """Maps of N views by several methods.

    Attributes:
        results: by method, in the order that was asked for.
        left_out: why a method does not hold for the model, by method.
    """

    views: Views
    results: Mapping[str, AttributionResult]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def title(self, method: str) -> str:
        """The method as its paper writes it."""
        return METHODS[method].title

    def place(self, method: str) -> str:
        """The layer or the baseline of a method, for people; "" for methods with neither."""
        options = self.results[method].options
        if (layer := options.get("layer")) is not None:
            return "all layers, multiplied" if layer == ALL else str(layer)
        return f"against {options['baseline']}" if "baseline" in options else ""

    def limit(self, method: str) -> float:
        """End of the colour scale of a method, the same for all views; 1 where all maps are zero."""
        return scale_end(self.results[method].maps.numpy())

    def clipped(self, method: str) -> bool:
        """Whether some values lie beyond the end of the colour scale."""
        return float(self.results[method].maps.abs().max()) > self.limit(method)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers; the maps themselves are in `save_maps`."""
        return {
            "question": self.views.question,
            "views": self.views.to_dict(),
            "methods": {method: self._numbers(method, result) for method, result in self.results.items()},
            "left_out": dict(self.left_out),
        }

    def _numbers(self, method: str, result: AttributionResult) -> dict[str, Any]:
        about = METHODS[method]
        return {
            "title": about.title,
            "reference": about.reference,
            "signed": result.signed,
            "options": dict(result.options),
            "seconds": result.seconds,
            "forwards": result.forwards,
            "backwards": result.backwards,
            "gap": None if result.gap is None else result.gap.tolist(),
            "colour_limit": self.limit(method),
            "highest_points": [_highest(heat) for heat in result.maps.numpy()],
        }


def scale_end(maps: np.ndarray) -> float:
    """The absolute value that all pixels but the strongest few reach at most; 1 where all are zero."""
    strength = np.abs(maps)
    return float(np.quantile(strength, SCALED)) or float(strength.max()) or 1.0


def _highest(heat: np.ndarray) -> list[int] | None:
    """(x, y) of the largest value, pixels; None for a constant map."""
    y, x = np.unravel_index(int(heat.argmax()), heat.shape)
    return [int(x), int(y)] if heat.max() > heat.min() else None


def study_attribution(
    target: Target,
    pictures: Pictures,
    class_names: Sequence[str],
    methods: Sequence[str] = ("gradcam",),
    asked: Asked = Asked(),  # noqa: B008  it is frozen
    settings: Settings = Settings(),
    device: torch.device | str = "cpu",
) -> AttributionStudy:
    """Explain scores of some images by each of some methods.

    Args:
        methods: names of `METHODS`, or "all": all that hold for the model, but for the controls.

    Raises:
        Refused: as `attribute` and `ask`. A method that does not hold for the model or with an option is left out,
            which is logged, unless no other is left.
    """
    names = expand_methods(methods)
    check_settings(target, names, settings)
    views = ask(target, pictures, class_names, asked, device, settings.batch_size)
    images = repeated(pictures.images, len(views))
    return explain(target, images, views, names, settings, device)


def explain(
    target: Target, images: Tensor, views: Views, methods: Sequence[str], settings: Settings, device: torch.device | str
) -> AttributionStudy:
    """Maps of views by methods whose names and settings are checked; images (N, 3, H, W) are those of the views."""
    results, left_out = dict[str, AttributionResult](), dict[str, Refused]()
    with progress(len(methods), "attribution", "method") as bar:
        for method in methods:
            try:
                results[method] = run_method(target, images, views, method, settings, device)
            except Refused as error:
                if error.parameter not in ("method", "option"):
                    raise
                left_out[method] = error
            bar.update()
    if not results:
        raise next(iter(left_out.values()))
    reasons = {method: _reason(refused) for method, refused in left_out.items()}
    for method, reason in reasons.items():
        logger.warning("left out: %s %s", method, reason)
    return AttributionStudy(views, results, reasons)


def _reason(refused: Refused) -> str:
    """Why a method is left out, to stand behind its name."""
    return refused.reason if refused.parameter == "method" else f"with {refused.value}: {refused.reason}"


def run_method(
    target: Target, images: Tensor, views: Views, method: str, settings: Settings, device: torch.device | str
) -> AttributionResult:
    """The maps of one method, given those of the settings that it knows."""
    about = METHODS[method]
    return attribute(
        target, images, method, torch.from_numpy(views.targets),
        layer=settings.layer if about.layered else None, baseline=settings.baseline, seed=settings.seed,
        batch_size=settings.batch_size, device=device, indices=views.indices,
        against=None if views.against is None else torch.from_numpy(views.against),
        **{name: value for name, value in settings.options.items() if name in about.options},
    )  # fmt: skip


def repeated(images: Tensor, count: int) -> Tensor:
    """Each image as often as it has views, beside one another."""
    return images.repeat_interleave(count // len(images), 0)


def expand_methods(methods: Sequence[str]) -> list[str]:
    """Names of methods once each; "all" stands for all but the controls.

    Raises:
        Refused: an unknown one.
    """
    every = [name for name, method in METHODS.items() if method.family != "control"]
    names = [name for given in methods for name in (every if given == ALL else [given])]
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise Refused("method", unknown[0], "unknown method", f"choose all, or some of: {', '.join(METHODS)}")
    return list(dict.fromkeys(names))


def check_settings(target: Target, methods: Sequence[str], settings: Settings) -> None:
    """Raise Refused for a layer that is none, and for what no chosen method looks at."""
    chosen, layer = [METHODS[name] for name in methods], settings.layer
    if layer is not None and not any(method.layered for method in chosen):
        layered = ", ".join(name for name, method in METHODS.items() if method.layered)
        raise Refused("layer", layer, f"does not go with {', '.join(methods)}", f"only with {layered}")
    if layer is not None and layer != ALL:
        resolve_layer(backbone_of(target.classifier), layer)
    for name, value in settings.options.items():
        if not any(name in method.options for method in chosen):
            known = list(dict.fromkeys(option for method in chosen for option in method.options))
            raise Refused(
                "option", f"{name}={value}", f"{', '.join(methods)} have no such option",
                f"they have {', '.join(known)}" if known else "leave it out",
            )  # fmt: skip
    for name, method in zip(methods, chosen, strict=True):
        try:
            check_options(
                name, method.options, {key: it for key, it in settings.options.items() if key in method.options}
            )
        except Refused as error:
            raise Refused("option", f"{error.parameter}={error.value}", error.reason, error.remedy) from error


def save_maps(path: Path, study: AttributionStudy) -> Path:
    """Write the maps as .npz, whole or not at all.

    It holds `images` (N, H, W, 3) uint8, `targets` (N,), `logits` (N, C), `against` (N,) where there is one, and of
    each method `METHOD.maps` (N, H, W) and `METHOD.native` (N, h, w), float32, not normalised.

    Raises:
        Refused: it cannot be written.
    """
    views = study.views
    arrays = {"images": views.images, "targets": views.targets, "logits": views.logits}
    if views.against is not None:
        arrays["against"] = views.against
    for method, result in study.results.items():
        arrays[f"{method}.maps"] = result.maps.float().numpy()
        arrays[f"{method}.native"] = result.native.float().numpy()
    try:
        with atomic_path(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy has no type for many named arrays
    except OSError as error:
        raise Refused("out", path, f"cannot write there ({reason_of(error)})", "choose another folder") from error
    return path
