"""recipe.yaml of a run: its kind, when it was made, all values of its recipe, and facts about it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from viscoin.config import Recipe, parse_recipe, parse_yaml
from viscoin.errors import Refused
from viscoin.files import atomic_path, is_whole, sealed

SWEEP: dict[str, Any] = {"study": "", "trial": 0, "varied": []}  # what a trial of a sweep says of it at least
REMEDY = "restore it from a copy, or start a new run in another folder (`out`)"


def write_header(path: Path, header: Mapping[str, Any]) -> None:
    """Write kind, created, recipe and what else is known of a run, with a check sum of all but `created`."""
    values = {key: value for key, value in header.items() if key != "digest"}
    with atomic_path(path) as partial:
        partial.write_text(sealed(yaml.safe_dump(values, sort_keys=False)), encoding="utf-8")


def read_header(path: Path) -> dict[str, Any]:
    """What `write_header` wrote: at least `kind`, `created` and `recipe` with the name of its dataset.

    Raises:
        Refused: the file cannot be read, or is not as it was written.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        header = parse_yaml(text)
    except OSError as error:
        raise Refused(None, None, f"cannot read {path} ({error.strerror})") from error
    except UnicodeDecodeError:
        raise damaged(path, "it is no UTF-8 text") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise damaged(path, f"it is no YAML: {reason}") from None
    if not is_whole(text):
        raise Refused(
            None, None, f"{path} is damaged: it is not as it was written",
            "restore it from a copy, or start a new run in another folder (`out`); if you changed it yourself, delete "
            "its first line, the check sum",
        )  # fmt: skip
    if reason := _fault(header):
        raise damaged(path, reason)
    return header


def damaged(path: Path, reason: str) -> Refused:
    """The error for a recipe.yaml that is not what was written."""
    return Refused(None, None, f"{path} is damaged: {reason}", REMEDY)


def _fault(header: Any) -> str:
    """What is wrong with the header of a run; empty if nothing is."""
    if not isinstance(header, dict):
        return "it holds no keys"
    for key, kind in (("kind", str), ("created", str), ("recipe", dict)):
        if not isinstance(header.get(key), kind):
            return f"`{key}` is missing" if header.get(key) is None else f"`{key}` is {header[key]!r:.60}"
    dataset = header["recipe"].get("dataset")
    if not isinstance(dataset, dict) or not isinstance(dataset.get("name"), str):
        return "it does not say of which dataset the run is"
    sweep = header.get("sweep", SWEEP)
    if not isinstance(sweep, dict) or not sweep.keys() >= SWEEP.keys() or not isinstance(sweep["varied"], list):
        return f"`sweep` is {sweep!r:.60}"
    return ""


def recipe_of_header(header: Mapping[str, Any], path: Path) -> Recipe:
    """The recipe of a run, all of whose values must be there: a default in the place of one would be another training.

    Of a header with a check sum nothing is lost; what it lacks is newer than the run.

    Raises:
        Refused: keys are missing, or values are none.
    """
    lost = [] if "digest" in header else _lost(header["recipe"])
    if lost:
        more = f" and {len(lost) - 3} more keys" if len(lost) > 3 else ""
        raise damaged(path, f"it lacks {', '.join(lost[:3])}{more}")
    return parse_recipe(header["recipe"], str(path))


def _lost(recipe: Mapping[str, Any]) -> list[str]:
    """Keys that a recipe has and this one has not."""
    lost: list[str] = []
    for section, values in Recipe().model_dump(exclude={"expected"}).items():
        given = recipe.get(section)
        if section not in recipe:
            lost.append(section)
        elif isinstance(values, dict) and isinstance(given, dict):
            lost += [f"{section}.{key}" for key in values if key not in given]
    return lost
