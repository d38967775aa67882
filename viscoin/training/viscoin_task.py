"""One step of the training of Psi, Theta and Omega, its losses and rates, and what is measured of them."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from stylegan2_ada.distributed import average_gradients, gather, gather_objects, rank, world_size
from stylegan2_ada.networks import Generator
from stylegan2_ada.optimizer import load_optimizer
from viscoin.config import ViscoinConfig
from viscoin.datasets import ImageDataset
from viscoin.errors import Refused
from viscoin.inference.batches import choose_images
from viscoin.models.classifier import Classifier
from viscoin.models.digests import digest
from viscoin.models.directions import ConceptDirections
from viscoin.models.ensemble import Encoding, VisCoIN
from viscoin.models.explainer import activations
from viscoin.models.perceptual import Perceptual, find_perceptual
from viscoin.training import losses
from viscoin.training.concept_penalties import OfConcepts
from viscoin.training.directions import random_edits, readback_terms
from viscoin.training.loop import check_finite
from viscoin.training.runtime import fast_layout, load_scaler, scaler_state, setup_optimizer
from viscoin.training.single import changed

logger = logging.getLogger(__name__)

VALIDATION_IMAGES = 1000
RISE = 20  # steps in which rates of the cosine schedule rise


def compile_networks(ensemble: VisCoIN) -> None:
    """Compile f's features, Psi and G with `torch.compile`; weights and their names remain as they are."""
    classifier, extractor, generator = ensemble.classifier, ensemble.concept_extractor, ensemble.generator
    classifier.features = torch.compile(classifier.features)  # type: ignore[method-assign]
    extractor.compile()
    if ensemble.draws:
        generator.synthesis.compile()


def perceptual_distance(kind: str, classifier: Classifier) -> tuple[Perceptual, str]:
    """The distance of a recipe and its name, "lpips" or "classifier"; "auto" downloads LPIPS where that is possible."""
    device = next(classifier.parameters()).device
    found = find_perceptual(kind, classifier, device, download=True, parameter="viscoin.perceptual_loss")
    if found is None:
        raise RuntimeError("with a classifier there is always a perceptual distance")
    logger.info(
        "perceptual distance: %s", "LPIPS on VGG-16" if found[1] == "lpips" else "feature maps of the classifier"
    )
    return found


class ViscoinTask:
    """All losses of the method; the score rewards agreement with f on images and on their reconstructions."""

    def __init__(
        self, ensemble: VisCoIN, generator: Generator | None, config: ViscoinConfig, fabric: Fabric,
        validation: ImageDataset, compiled: bool = False, dimensions: int | None = None,
        penalties: OfConcepts | None = None,
    ) -> None:  # fmt: skip
        self.penalties = penalties
        self.config, self.fabric, self.validation, self.dimensions = config, fabric, validation, dimensions
        self.ensemble = fast_layout(ensemble).to(fabric.device)
        self.opposites = self.ensemble.concept_extractor.opposites()
        groups: dict[str, list[nn.Parameter]] = {"explaining": self._explaining()}
        frozen: dict[str, nn.Module] = {"classifier": ensemble.classifier}
        if generator is not None:
            frozen["generator"] = generator
            self.sampler = fast_layout(generator).to(fabric.device).eval().requires_grad_(False)
            self.perceptual, self.perceptual_name = perceptual_distance(config.perceptual_loss, ensemble.classifier)
            groups["translator"] = list(self.ensemble.generator.mapping.parameters())
            if self.ensemble.generator.directions is not None:
                groups["directions"] = [self.ensemble.generator.directions.vectors]
            if config.generator_rate:
                groups["synthesis"] = list(self.ensemble.generator.synthesis.requires_grad_().parameters())
        self.groups = list(groups)
        self.trained = [weight for weights in groups.values() for weight in weights]
        if self.trained:
            rates = self._rates()
            parts = [{"params": weights, "lr": rates[name]} for name, weights in groups.items()]
            self.optimizer = setup_optimizer(fabric, torch.optim.Adam(parts, config.learning_rate, fused=True))
        self.frozen = digest(**frozen)
        if compiled:
            compile_networks(self.ensemble)

    @property
    def steerable(self) -> tuple[str, ...]:
        """Keys of `viscoin` that may change while it trains."""
        config = self.config
        rates = ("learning_rate", "translator_rate", *("direction_rate",) * (config.directions > 0))
        rates += ("generator_rate",) * ("synthesis" in self.groups)
        drops = ("decay_every", "decay_factor") * (config.schedule == "step")
        of_concepts = ("output_fidelity", "sparsity", "orthogonality", "bimodality") * (config.hold_concepts < 1)
        return (*rates, *drops, *of_concepts, "perceptual", "reconstruction_class", "style", "early_stopping")

    def apply(self, values: Mapping[str, Any]) -> None:
        """Train by these values from the next step on."""
        self.config = changed(self.config, values)
        if self.penalties is not None and "penalties" in values:
            self.penalties.use(values["penalties"])

    def step(self, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        self.ensemble.train()
        rates = self._rates(step)
        for name, group in zip(self.groups, self.optimizer.param_groups, strict=True):
            group["lr"] = rates[name]
        self._draw_by_training(step)
        self.optimizer.zero_grad(set_to_none=True)
        count, means = self.config.accumulate, dict[str, Tensor]()
        # The samples of all processes together, so that the step is the same on any number of them.
        z = self._latents()
        for some_z, real in zip(z.tensor_split(count), images.tensor_split(count), strict=True):
            with self.fabric.autocast():
                real, regions = real[:, :3], real[:, 3:]
                both = torch.cat([self._samples(some_z), real]) if len(z) else real
                terms = self._terms(both, len(some_z), step, regions)
            check_finite(terms, step)
            terms = {"total": torch.stack(list(terms.values())).sum(), **terms}
            self.fabric.backward(terms["total"] / count)
            means = {key: means.get(key, 0) + value.detach() / count for key, value in terms.items()}
        average_gradients(self.trained)
        self._hold(step)
        self.optimizer.step()
        return means

    def _explaining(self) -> list[nn.Parameter]:
        """What of Psi and Theta ever trains."""
        if self.config.hold_concepts < 1:
            return [*self.ensemble.concept_extractor.parameters(), *self.ensemble.explainer.parameters()]
        self.ensemble.explainer.requires_grad_(False)
        # A support of components reads nothing that trains.
        trains = self.ensemble.concept_extractor.support_kind == "learned"
        return list(self.ensemble.concept_extractor.requires_grad_(trains).parameters()) if trains else []

    def _hold(self, step: int) -> None:
        """Leave no gradient to what concepts and Theta depend on, while they are held."""
        if self.dimensions is None or step >= self.config.hold_concepts * self.config.steps:
            return
        for weight, rows in self.ensemble.concept_extractor.concept_path(self.dimensions):
            if weight.grad is not None:
                weight.grad[rows] = 0
        for weight in self.ensemble.explainer.parameters():
            weight.grad = None

    def _latents(self) -> Tensor:
        """Of this process's samples of G, (N, z_dim); none without G."""
        if not self.ensemble.draws:
            return torch.zeros(0, 1, device=self.fabric.device)
        drawn = torch.randn(self.config.generated, self.sampler.z_dim, device=self.fabric.device)
        return drawn[rank() :: world_size()]

    @torch.no_grad()
    def _samples(self, z: Tensor) -> Tensor:
        return self.sampler(z, None, noise_mode="const").float().clamp(-1, 1)

    def _terms(self, images: Tensor, generated: int, step: int, regions: Tensor | None = None) -> dict[str, Tensor]:
        """The weighted terms of docs/method.md's table; the first `generated` images are samples of G.

        Args:
            regions: of the others, as penalties ask for them, (B, R, H, W).
        """
        config, ensemble, draws = self.config, self.ensemble, self.ensemble.draws
        count = len(images)  # number of leading images that G reconstructs
        if draws and config.reconstructed is not None:
            count = generated + config.reconstructed // (world_size() * config.accumulate)
        held = config.hold_concepts == 1
        code = ensemble.encode(images, count, exact=held)
        terms = self._reconstruction_terms(images[:count], code, step) if draws else {}
        if held:
            return terms
        terms["orthogonality"] = config.orthogonality * losses.concept_orthogonality(
            ensemble.concept_extractor.conv5.weight
        )
        if step >= config.warmup_steps or not draws:
            # Of the images of all processes: dropout and the moments of bimodality are those of the whole batch.
            maps, targets = gather(code.concept_maps), ensemble.explainer.known(gather(code.logits))
            logits = ensemble.explainer.known(ensemble.explain(maps))
            terms["output_fidelity"] = config.output_fidelity * losses.output_fidelity(logits, targets)
            phi = activations(maps.float())
            terms["sparsity"] = config.sparsity * losses.sparsity(maps, phi)
            if config.bimodality:
                terms["bimodality"] = config.bimodality * losses.bimodality(phi)
        if self.penalties is not None and regions is not None:
            terms |= self.penalties.terms(code, regions, generated)
        return terms

    def _reconstruction_terms(self, images: Tensor, code: Encoding, step: int) -> dict[str, Tensor]:
        """The terms of the images that G reconstructs, the first ones of the code."""
        config, ensemble, count = self.config, self.ensemble, len(images)
        logits, maps = code.logits[:count], [part[:count] for part in code.maps]
        ws = ensemble.generator.mapping(code.concept_maps[:count], code.support)
        rebuilt = ensemble.generator.synthesis(ws, noise_mode="const").float()
        again = ensemble.classifier.features(rebuilt)
        terms = {
            "l1": losses.reconstruction_l1(rebuilt, images),
            "l2": losses.reconstruction_l2(rebuilt, images),
            "perceptual": config.perceptual * self.perceptual(rebuilt, images, again.maps, maps).mean(),
            "reconstruction_class": config.reconstruction_class * losses.reconstruction_class(again.logits, logits),
            "style": config.style * losses.style_regularization(ws, ensemble.generator.mapping.fixed_w_avg),
        }
        directions = ensemble.generator.directions
        if directions is not None and step >= self._first_of_directions:
            # the last ones, which are real images where there are enough of these
            chosen = slice(max(0, count - self._share(config.direction_images)), count)
            terms |= self._direction_terms(
                directions, code.concept_maps[:count][chosen], code.support[chosen], rebuilt.detach()[chosen],
                [part.detach()[chosen] for part in again.maps],
            )  # fmt: skip
        return terms

    def _direction_terms(
        self, directions: ConceptDirections, concept_maps: Tensor, support: Tensor, unedited: Tensor, maps: list[Tensor]
    ) -> dict[str, Tensor]:
        """Those of random edits, by which directions learn and nothing else.

        Args:
            unedited, maps: reconstructions, and what f makes of them.
        """
        generator = self.ensemble.generator
        with torch.no_grad():
            phi = activations(concept_maps)
            edits = random_edits(phi, directions, self.opposites)
            edited = edits.apply(concept_maps, directions.templates)
            ws, plain = generator.mapping(edited, support), self._read(maps)
        moved = directions(ws, activations(edited) - phi)
        images = generator.synthesis(moved, noise_mode="const").float()
        seen = self._read(self.ensemble.classifier.features(images).maps)
        return readback_terms(seen, plain, edits, directions, images, unedited)

    def _read(self, maps: Sequence[Tensor]) -> Tensor:
        """Activations (B, K) of maps of f, in float32: the pursuit's lifted scores lose too much in half precision."""
        extractor = self.ensemble.concept_extractor
        with torch.autocast(self.fabric.device.type, enabled=False):
            return activations(extractor.concept_maps(extractor.latent([part.float() for part in maps])))

    def _share(self, images: int) -> int:
        return max(1, images // (world_size() * self.config.accumulate))

    @torch.no_grad()
    def evaluate(self, step: int) -> tuple[dict[str, float], float | None]:
        """Measures on validation images, and the score; where f says a class that g does not know, they disagree."""
        self.ensemble.eval()
        draws = self.ensemble.draws
        drawn = ("accuracy_on_reconstructions", "l1", "mse") if draws else ()
        totals = dict.fromkeys(("accuracy", "agreement", *drawn), 0.0)
        n = 0
        chosen = choose_images(len(self.validation), VALIDATION_IMAGES, seed=0)[rank() :: world_size()]
        for images, labels in self.validation.batches(125, chosen):
            images, labels = images.to(self.fabric.device), labels.to(self.fabric.device)
            with self.fabric.autocast():
                code = self.ensemble.encode(images)
                answers = self.ensemble.explain(code.concept_maps).argmax(1)
            labels = labels if self.validation.labelled else code.logits.argmax(1)
            totals["accuracy"] += float((answers == labels).sum())
            totals["agreement"] += float((answers == code.logits.argmax(1)).sum())
            n += len(labels)
            for key, value in self._compare(images, labels, code).items() if draws else ():
                totals[key] += value
        *sums, n = map(sum, zip(*gather_objects([*totals.values(), n])))
        results = {key: value / n for key, value in zip(totals, sums)}
        if not self.validation.labelled:
            del results["accuracy"]
        if self.penalties is not None and self.penalties.wanted:
            results |= self.penalties.measure(self.fabric)
        if not draws:
            return results, results["agreement"]
        score = results["agreement"] + results["accuracy_on_reconstructions"] - results["mse"]
        # It says nothing of directions, which are best in the end.
        unfinished = self.config.directions > 0 and step < self.config.steps
        return results, None if unfinished else score

    def _compare(self, images: Tensor, labels: Tensor, code: Encoding) -> dict[str, float]:
        """Sums over images, of their reconstructions."""
        with self.fabric.autocast():
            rebuilt = self.ensemble.decode(code.concept_maps, code.support).float().clamp(-1, 1)
            again = self.ensemble.explain(self.ensemble.encode(rebuilt).concept_maps).argmax(1)
        return {
            "accuracy_on_reconstructions": float((again == labels).sum()),
            "l1": float(F.l1_loss(rebuilt, images, reduction="none").mean([1, 2, 3]).sum()),
            "mse": float(F.mse_loss(rebuilt, images, reduction="none").mean([1, 2, 3]).sum()),
        }

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        self.ensemble.eval()
        with self.fabric.autocast():
            code = self.ensemble.encode(images.to(self.fabric.device))
            return self.ensemble.decode(code.concept_maps, code.support).float().cpu()

    @property
    def _first_of_directions(self) -> int:
        return self.config.steps - round(self.config.directions * self.config.steps)

    def _draw_by_training(self, step: int) -> None:
        """Let G's synthesis network train, if it does, until directions begin, which are those of a G that stays."""
        if "synthesis" in self.groups:
            self.ensemble.generator.synthesis.requires_grad_(step < self._first_of_directions)

    def _rates(self, step: int = 0) -> dict[str, float]:
        """Learning rates of Psi and Theta, of Omega, of G's synthesis network, and of the directions."""
        config, first = self.config, self._first_of_directions
        rate = config.learning_rate * self._rate(step, config.steps)
        return {
            "explaining": rate,
            "translator": rate * config.translator_rate,
            "synthesis": config.learning_rate * config.generator_rate * self._rate(step, first),
            "directions": config.direction_rate * self._rate(max(0, step - first), config.steps - first),
        }

    def _rate(self, step: int, steps: int) -> float:
        """A cosine to 0 after a short rise, or x decay_factor every decay_every steps of the second half."""
        if self.config.schedule == "cosine":
            return min(1.0, (step + 1) / RISE) * (0.5 + 0.5 * math.cos(math.pi * step / max(1, steps)))
        late = step - steps // 2
        return self.config.decay_factor ** (late // self.config.decay_every) if late > 0 else 1.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "ensemble": self._trained_state(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler_state(self.fabric),
            "frozen": self.frozen,
            "dimensions": self.dimensions,
        }

    def _trained_state(self) -> dict[str, Tensor]:
        frozen = ("classifier.", *("generator.synthesis.",) * ("synthesis" not in self.groups))
        return {key: value for key, value in self.ensemble.state_dict().items() if not key.startswith(frozen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        other = [name for name, digest in self.frozen.items() if digest != state["frozen"][name]]
        if other:
            raise Refused(
                None, None, f"this run was started with another {' and '.join(other)}",
                f"give the same one ({', '.join(f'`{name}`' for name in other)}), or start a new run",
            )  # fmt: skip
        self.ensemble.load_state_dict(self.ensemble.state_dict() | state["ensemble"])
        self.dimensions = state.get("dimensions")
        self.opposites = self.ensemble.concept_extractor.opposites()
        load_optimizer(self.optimizer, state["optimizer"])
        load_scaler(self.fabric, state.get("scaler", {}))
