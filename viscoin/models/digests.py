"""Fingerprints of weights, by which a model knows the one that it was made for."""

import hashlib

from torch import nn


def digest(**modules: nn.Module) -> dict[str, str]:
    """SHA-256 of the weights of each module."""
    digests = {}
    for name, module in modules.items():
        found = hashlib.sha256()
        for value in module.state_dict().values():
            found.update(value.detach().cpu().contiguous().numpy().tobytes())
        digests[name] = found.hexdigest()
    return digests
