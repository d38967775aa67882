"""Published weights: those of timm's hub by name, and whether there is a way to them."""

import logging
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import get_session

from viscoin.errors import Refused, reason_of
from viscoin.models.foreign.reading import Checkpoint

logger = logging.getLogger(__name__)

HUB = ("hf_hub:", "hf-hub:")
PATIENCE = 5  # seconds for the first answer
FILES = ("model.safetensors", "pytorch_model.bin")
REMEDY = "download the file elsewhere and name it"


def is_hub_name(checkpoint: str) -> bool:
    """Whether this names published weights, as "hf_hub:timm/resnet18.a1_in1k" or "resnet18.a1_in1k", and no file."""
    if checkpoint.startswith(HUB):
        return True
    return not Path(checkpoint).exists() and timm.is_model(checkpoint.partition(".")[0])


def fetch_checkpoint(name: str) -> Checkpoint:
    """The weights of a name of timm's hub, downloaded unless they are cached, with their configuration.

    Raises:
        Refused: no such weights, or no way to them.
    """
    if not name.startswith(HUB):
        config = timm.get_pretrained_cfg(name)
        if config is None or not config.has_weights:
            raise Refused("checkpoint", name, "timm has this network, but no published weights for it", REMEDY)
        check_reachable("checkpoint", name)
    elif not _is_cached(name.partition(":")[2].partition("@")[0]):
        _check_network("checkpoint", name)
    try:
        model: Any = timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever stands between here and the hub
        raise Refused("checkpoint", name, f"could not be downloaded ({reason_of(error)})", REMEDY) from error
    own = dict(model.pretrained_cfg)
    return Checkpoint(
        Path(name), model.state_dict(), config={"architecture": own.get("architecture"), "pretrained_cfg": own}
    )


def check_reachable(parameter: str, backbone: str, remedy: str = REMEDY) -> None:
    """Raise Refused at once unless the published weights of a backbone are cached or there is a network."""
    config = timm.get_pretrained_cfg(backbone)
    if config is None or not (config.hf_hub_id and _is_cached(config.hf_hub_id)):
        _check_network(parameter, backbone, remedy)


def _is_cached(repository: str) -> bool:
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in FILES)


def _check_network(parameter: str, name: str, remedy: str = REMEDY) -> None:
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # of whichever client it uses
        reason = reason_of(error)
        raise Refused(
            parameter, name, f"its published weights are not here, and there is no way to the hub ({reason})", remedy
        ) from error
