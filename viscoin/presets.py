"""Ready settings of the generator's training: the published ones, and those of the birds."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from viscoin.config import GanConfig, load_recipe
from viscoin.errors import Refused

TABLE = Path(__file__).with_suffix(".yaml")


def gan_presets() -> list[str]:
    """Names that `gan_preset` knows."""
    return [*_table()["rows"], "birds64"]


def gan_preset(name: str, resolution: int, devices: int = 1) -> dict[str, Any]:
    """Every key of GanConfig with the value of a preset.

    Args:
        resolution, devices: side of the images in pixels and number of devices; `auto` depends on both.

    Raises:
        ValueError: unknown name, or `auto` for more devices than the batch can be split over.
    """
    if name == "birds64":
        return load_recipe("birds").gan.model_dump()
    rows = _table()["rows"]
    if name not in rows:
        raise Refused("preset", name, "unknown", f"choose {', '.join(gan_presets())}")
    found = _automatic(resolution, devices) if name == "auto" else {}
    return GanConfig.model_validate(_table()["published"] | found | rows[name]).model_dump()


def _automatic(resolution: int, devices: int) -> dict[str, Any]:
    """What `auto` derives (ADA paper, Appendix C, hyperparameter table, and the public configuration of that name)."""
    batch = max(min(devices * min(4096 // resolution, 32), 64), devices)
    return {
        "batch_size": batch,
        "mbstd_group": max(1, min(batch // devices, 4)),
        "channel_base": 32768 if resolution >= 512 else 16384,
        "learning_rate": 0.002 if resolution >= 1024 else 0.0025,
        "r1_gamma": 0.0002 * resolution**2 / batch,
        "ema_kimg": batch * 10 / 32,
    }


@cache
def _table() -> dict[str, Any]:
    return yaml.safe_load(TABLE.read_text())
