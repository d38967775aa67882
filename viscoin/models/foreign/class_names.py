"""Names for the classes of a network: from a file, from its own configuration, or ImageNet's."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo

from viscoin.errors import Refused
from viscoin.texts import read_lines

IMAGENET = "imagenet"


def find_class_names(classes: str | None, config: Mapping[str, Any], count: int) -> list[str]:
    """Names of the classes, one for each logit.

    Args:
        classes: "imagenet"; or a file with a name a line, or JSON with a list of names, or with names by their number.
            None takes those of the checkpoint's own configuration.
        config: that configuration; `label_names` or `id2label` hold names.
        count: of logits.

    Raises:
        Refused: none are given, or not as many as there are logits, empty ones, or one twice.
    """
    if classes is None:
        names = _configured(config)
        if names is None:
            usual = " (`classes` imagenet, if they are ImageNet's)" if count == 1000 else ""
            raise Refused(
                "classes", None, f"the checkpoint does not name its {count} classes",
                f"give a file with a name a line, in the order of the logits{usual}",
            )  # fmt: skip
        source = "config.json"
    elif classes == IMAGENET:
        names, source = imagenet_names(), classes
    else:
        names, source = _of_file(Path(classes)), classes
    if len(names) != count:
        raise Refused("classes", source, f"names {len(names)} classes, the last layer has {count}",
                      "give a name for each logit, in their order")  # fmt: skip
    if "" in names:
        raise Refused("classes", source, f"class {names.index('')} has no name", "give a name for each logit")
    doubled = [name for name, times in Counter(names).items() if times > 1]
    if doubled:
        where = ", ".join(str(i) for i, name in enumerate(names) if name == doubled[0])
        raise Refused("classes", source, f"{len(doubled)} names occur twice, first {doubled[0]!r} (classes {where})",
                      "number them")  # fmt: skip
    return names


def imagenet_names() -> list[str]:
    """The first names of ImageNet's 1000 classes, in WordNet's order; those that occur twice are numbered."""
    known = ImageNetInfo()
    names = [known.index_to_description(index).split(", ")[0] for index in range(known.num_classes())]
    times, seen = Counter(names), Counter[str]()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(f"{name} ({seen[name]})" if times[name] > 1 else name)
    return numbered


def _configured(config: Mapping[str, Any]) -> list[str] | None:
    listed = config.get("label_names") or (config.get("pretrained_cfg") or {}).get("label_names")
    if isinstance(listed, list):
        return [str(name) for name in listed]
    by_number = config.get("id2label")
    return _ordered(by_number) if isinstance(by_number, dict) else None


def _ordered(by_number: Mapping[str, Any]) -> list[str] | None:
    """Names by their numbers, where these are 0, 1, 2, …"""
    numbers = [str(number) for number in range(len(by_number))]
    if set(map(str, by_number)) != set(numbers):
        return None
    named = {str(number): str(name) for number, name in by_number.items()}
    return [named[number] for number in numbers]


def _of_file(path: Path) -> list[str]:
    lines = read_lines(path, "classes")
    text = "\n".join(lines)
    if text.lstrip()[:1] not in ("[", "{"):
        while lines and not lines[-1]:
            lines.pop()
        return lines
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused("classes", path, f"is no JSON ({error})", "give a file with a name a line") from error
    if isinstance(content, dict):
        named = _ordered(content)
        if named is None and all(isinstance(number, int) for number in content.values()):
            named = _ordered({str(number): name for name, number in content.items()})  # as class_to_idx has it
        if named is None:
            raise Refused("classes", path, "its names are not numbered from 0 on", "give a list of names")
        return named
    if not _texts(content):
        raise Refused("classes", path, "is no list of names", "give a list of names, or a file with a name a line")
    return [name.strip() for name in content]


def _texts(content: Sequence[Any]) -> bool:
    return all(isinstance(name, str) for name in content)
