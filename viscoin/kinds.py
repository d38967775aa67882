"""The one table of kinds of models: what each is built from, trained by, measured by, and made of.

Every list of kinds, in the command line, in model files, sweeps, exports and jobs, is read from here. Networks and
training functions are named as "module:object" and imported when they are needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Kind:
    """One kind of model; its name is also that of its section in a recipe.

    Attributes:
        title: for people.
        network: what rebuilds the model from the architecture that its file holds.
        settings: types and bounds of that architecture, by which it is checked before.
        named_classes: whether that takes the class names as well.
        architecture: attribute of the model that holds its architecture.
        train: trains it: (recipe, run, *models that it needs, runtime) -> path of the model; None where nothing does.
        needs: kinds of the models that its training builds on, in that order.
        optional: those of them without which it trains as well.
        metrics: what trainings log of held-out images, and which way is better; the first one is the default.
        parts: what `export` writes of it, the usual part first.
    """

    title: str
    network: str
    settings: str
    named_classes: bool = False
    architecture: str = "architecture"
    train: str | None = None
    needs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()

    def build(self, architecture: Mapping[str, Any], class_names: Sequence[str]) -> Any:
        """The model, with random weights."""
        network = load(self.network)
        return network(architecture, class_names) if self.named_classes else network(**architecture)


KINDS: Mapping[str, Kind] = {
    "classifier": Kind(
        "the classifier f",
        "viscoin.models.classifier:Classifier",
        "viscoin.models.architecture:ClassifierArchitecture",
        train="viscoin.training.classifier:train_classifier",
        metrics={
            "validation.accuracy": "maximize",
            "validation.loss": "minimize",
            "validation.balanced_accuracy": "maximize",
            "validation.f1": "maximize",
        },
        parts=("classifier",),
    ),
    "gan": Kind(
        "the generator G",
        "stylegan2_ada.networks:Generator",
        "stylegan2_ada.settings:GeneratorSettings",
        architecture="config",
        train="viscoin.training.gan:train_gan",
        needs=("classifier",),
        optional=("classifier",),
        metrics={"validation.fid": "minimize"},
        parts=("generator", "synthesis"),
    ),
    "viscoin": Kind(
        "the ensemble",
        "viscoin.models.ensemble:VisCoIN.from_architecture",
        "viscoin.models.architecture:EnsembleArchitecture",
        named_classes=True,
        train="viscoin.training.viscoin:train_viscoin",
        needs=("classifier", "gan"),
        metrics={
            "validation.accuracy_on_reconstructions": "maximize",
            "validation.agreement": "maximize",
            "validation.accuracy": "maximize",
            "validation.l1": "minimize",
            "validation.mse": "minimize",
        },
        parts=("concepts", "classifier", "decoder", "synthesis"),
    ),
    "concept2clip": Kind(
        "the adapter to CLIP",
        "viscoin.models.concept2clip:Concept2Clip",
        "viscoin.models.architecture:Concept2ClipArchitecture",
        train="viscoin.naming.adapter:train_concept2clip",
        needs=("viscoin",),
    ),
    "judge": Kind(
        "the judge of attributes",
        "viscoin.models.judge:Judge",
        "viscoin.models.architecture:JudgeArchitecture",
        train="viscoin.training.judge:train_judge",
        metrics={"validation.auroc": "maximize", "validation.loss": "minimize"},
    ),
    "diffmask": Kind(
        "the masks of patches that f needs",
        "viscoin.models.diffmask:DiffMask",
        "viscoin.models.architecture:DiffMaskArchitecture",
        train="viscoin.training.diffmask:train_diffmask",
        needs=("classifier",),
        metrics={
            "validation.kept": "minimize",
            "validation.kl": "minimize",
            "validation.agreement": "maximize",
            "validation.accuracy": "maximize",
        },
    ),
    "discriminator": Kind(
        "a discriminator, only to continue training with",
        "stylegan2_ada.networks:Discriminator",
        "stylegan2_ada.settings:DiscriminatorSettings",
        architecture="config",
    ),
    "parts": Kind(
        "an imported ensemble without its classifier",
        "viscoin.models.parts:EnsembleParts",
        "viscoin.models.architecture:PartsArchitecture",
    ),
}

TRAINED = tuple(name for name, kind in KINDS.items() if kind.train)
# What `train all` trains, in its order, and what a sweep can search recipes for: an ensemble and all that it needs.
CHAIN = (*KINDS["viscoin"].needs, "viscoin")


def load(place: str) -> Any:
    """What "module:object.attribute" names."""
    module, _, name = place.partition(":")
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found
