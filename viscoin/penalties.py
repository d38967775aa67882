"""What a training can be told not to do: the words of penalties, as recipes, commands and pages write them.

`swap region=0,0,0.25,0.25 share=0.5` is one penalty as text; a recipe may also hold it as keys and values. What they do
to a training is in `viscoin.training.penalties`.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from viscoin.errors import Refused

BACKGROUND = "background"
FILES = (".json", ".png")  # of marked images, and of a mask
DO = ("add", "change", "remove")
KINDS: Mapping[str, tuple[str, ...]] = {
    "classifier": ("swap", "attention", "confusion"), "viscoin": ("not_for", "not_in"),
}  # fmt: skip
MOST = 16  # penalties of one training
FORM = "give boxes as 0,0,0.25,0.25 (left, top, right and bottom in shares of the side; several joined by +), "
FORM += f"{BACKGROUND}, a part of the dataset, or a {' or '.join(FILES)} file"

Box = tuple[float, float, float, float]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$", description="what metrics and commands call it")]
Region = Annotated[str, Field(min_length=1, max_length=400, description=f"where: {FORM.removeprefix('give ')}")]
Weight = Annotated[float, Field(ge=0, le=1e6, description="factor in the loss; 0 measures only")]
Label = Annotated[str, Field(min_length=1, max_length=200)]
Concept = Annotated[int, Field(ge=0, le=9999, description="number of the concept")]


class Penalty(BaseModel):
    """One behaviour that is not wanted."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    penalty: str
    name: Name | None = None

    @field_validator("region", mode="before", check_fields=False)
    @classmethod
    def _region_as_text(cls, value: Any) -> Any:
        """Boxes as text, checked; other regions as they are."""
        text = _boxes_as_text(value) if isinstance(value, list | tuple) else value
        if isinstance(text, str) and _is_boxes(text):
            read_boxes(text)
        return text.strip() if isinstance(text, str) else text


class Swap(Penalty):
    """A region that must not matter: it is taken from another image, and the label stays."""

    penalty: Literal["swap"] = "swap"
    region: Region
    share: float = Field(0.5, ge=0, le=1, description="of the images of a batch; 0 measures only")


class Attention(Penalty):
    """A region that the class activation map of the true class should leave."""

    penalty: Literal["attention"] = "attention"
    region: Region
    weight: Weight = 1.0


class Confusion(Penalty):
    """A class that images of another one must not be called.

    A cost of one pair of classes, as of cost-sensitive learning (Elkan, The foundations of cost-sensitive learning,
    IJCAI 2001): saying b where a is true costs `weight`, so an image x of class a is expected to cost weight P(b | x).
    """

    penalty: Literal["confusion"] = "confusion"
    label: Label = Field(description="the true class, by its name or number", coerce_numbers_to_str=True)
    predicted: Label = Field(description="what it must not be called, by name or number", coerce_numbers_to_str=True)
    weight: Weight = 1.0

    @model_validator(mode="after")
    def _two_classes(self) -> "Confusion":
        if self.label == self.predicted:
            raise ValueError(f"label and predicted are both {self.label!r:.60}; give two classes")
        return self


class NotFor(Penalty):
    """A concept that must not speak for a class."""

    penalty: Literal["not_for"] = "not_for"
    concept: Concept
    label: str = Field(description="the class, by its name or number", coerce_numbers_to_str=True, max_length=200)
    weight: Weight = 1.0


class NotIn(Penalty):
    """A concept that must not fire in a region."""

    penalty: Literal["not_in"] = "not_in"
    concept: Concept
    region: Region
    weight: Weight = 1.0


# --- regions ------------------------------------------------------------------------------------------------------


def _is_boxes(region: str) -> bool:
    """Whether a region means boxes, right or wrong, and not a name."""
    return "," in region or all(c in "0123456789.+- " for c in region)


def is_file(region: str) -> bool:
    """Whether a region names a file."""
    return not _is_boxes(region) and PurePosixPath(region.lower()).suffix in FILES


def _boxes_as_text(value: Sequence[Any]) -> str:
    """[0, 0, 1, 0.5], or several of these, as text."""
    boxes = [value] if not any(isinstance(box, list | tuple) for box in value) else value
    if any(not isinstance(box, list | tuple) or len(box) != 4 for box in boxes):
        raise ValueError(f"the region {value!r:.60} is no box, nor a list of boxes; {FORM}")
    return "+".join(",".join(str(side) for side in box) for box in boxes)


def read_boxes(region: str) -> tuple[Box, ...]:
    """The boxes (left, top, right, bottom), in shares of the side, of a region; none where it is something else.

    Raises:
        ValueError: they are no boxes within the image.
    """
    return tuple(_box(text) for text in region.split("+")) if _is_boxes(region) else ()


def _box(text: str) -> Box:
    try:
        left, top, right, bottom = (float(side) for side in text.split(","))
    except ValueError:
        raise ValueError(f"the region {text!r:.60} is no box; {FORM}") from None
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(
            f"the region {text!r:.60} is no box within the image; give left, top, right and bottom from 0 to 1, "
            "left below right and top below bottom"
        )
    return left, top, right, bottom


# --- lists of penalties --------------------------------------------------------------------------------------------


def _read(value: Any) -> Any:
    """A list of penalties, of which each, or the whole, may be text."""
    if isinstance(value, str):
        value = [text for text in value.split(";") if text.strip()]
    return [parse(one) if isinstance(one, str) else one for one in value] if isinstance(value, list | tuple) else value


def parse(text: str) -> dict[str, Any]:
    """The keys and values of a penalty as text, as in "swap region='left wing' share=0.5".

    Raises:
        ValueError: a word that is no KEY=VALUE.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"the penalty {text!r:.100} cannot be read ({error})") from None
    return parse_words(words)


def parse_words(words: Sequence[str]) -> dict[str, Any]:
    """The same of words: the kind of the penalty, then KEY=VALUE; without a first word of that kind, those alone.

    Raises:
        ValueError: a word that is no KEY=VALUE.
    """
    kind = {"penalty": words[0]} if words and "=" not in words[0] else {}
    pairs = [word.partition("=") for word in words[len(kind) :]]
    for key, sign, value in pairs:
        if not key or not sign:
            raise ValueError(f"{key + sign + value!r:.60} is no KEY=VALUE, as in swap region=0,0,0.25,0.25 share=0.5")
    return {**kind, **{key: value for key, _, value in pairs}}


def named(penalties: Sequence[Any]) -> list[Any]:
    """The same with a name for each: that of its kind, with a number where it is taken.

    Raises:
        ValueError: a name that two have, or too many penalties.
    """
    if len(penalties) > MOST:
        raise ValueError(f"{len(penalties)} penalties, and at most {MOST} are taken")
    taken = [one.name for one in penalties if one.name is not None]
    if twice := next((name for i, name in enumerate(taken) if name in taken[:i]), None):
        raise ValueError(f"two penalties are called {twice!r}; give one of them another name")
    found = []
    for one in penalties:
        if one.name is None:
            names = (f"{one.penalty}-{i}" if i > 1 else one.penalty for i in range(1, MOST + 2))
            name = next(name for name in names if name not in taken)
            one, taken = one.model_copy(update={"name": name}), [*taken, name]
        found.append(one)
    return found


OfClassifier = Annotated[Swap | Attention | Confusion, Field(discriminator="penalty")]
OfEnsemble = Annotated[NotFor | NotIn, Field(discriminator="penalty")]
ClassifierPenalties = Annotated[list[OfClassifier], BeforeValidator(_read)]
EnsemblePenalties = Annotated[list[OfEnsemble], BeforeValidator(_read)]
_ONE: Mapping[str, type[Penalty]] = {
    "swap": Swap, "attention": Attention, "confusion": Confusion, "not_for": NotFor, "not_in": NotIn,
}  # fmt: skip


# --- commands ------------------------------------------------------------------------------------------------------


def checked(kind: str, values: Mapping[str, Any]) -> Penalty:
    """The penalty that some keys and values mean.

    Args:
        kind: of the training.

    Raises:
        Refused: not one of its penalties, or values that it does not take.
    """
    if kind not in KINDS:
        raise Refused(None, None, f"a training of kind {kind} has no penalties", f"{' and '.join(KINDS)} have")
    asked = values.get("penalty")
    if not isinstance(asked, str) or asked not in KINDS[kind]:
        raise Refused("penalty", asked, f"{kind} has no such penalty", f"choose {_either(KINDS[kind])}")
    try:
        return TypeAdapter(_ONE[asked]).validate_python(dict(values))
    except ValidationError as error:
        raise Refused(None, None, f"penalty {asked}: {'; '.join(_said(one) for one in error.errors())}") from None


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _said(item: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    if item["type"] == "extra_forbidden":
        return f"it takes no {key!r:.60}"
    if item["type"] == "missing":
        return f"{key} is missing" + (f"; {FORM}" if key == "region" else "")
    return f"{key} = {item['input']!r:.60}: {item['msg'].lower()}"


def edited(kind: str, penalties: Iterable[Any], values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """A list of penalties after a command, and the values of that command as they are recorded.

    Args:
        penalties: the present ones.
        values: `do`: add, change or remove; `name`, which `add` may leave out; keys of the penalty.

    Raises:
        Refused: no such penalty, or values that it does not take.
    """
    present, given = list(penalties), {key: value for key, value in values.items() if key != "do"}
    names = [one.name for one in present]
    if values["do"] == "add":
        try:
            after = named([*present, checked(kind, given)])
        except Refused:
            raise
        except ValueError as error:
            raise Refused(None, None, str(error)) from None
        return after, {"do": "add", **after[-1].model_dump()}
    name = given.pop("name")
    if name not in names:
        remedy = f"choose one of: {', '.join(names)}" if names else "it has none; add one"
        raise Refused("penalty", name, "this training has no such penalty", remedy)
    at = names.index(name)
    if values["do"] == "remove":
        return present[:at] + present[at + 1 :], {"do": "remove", "name": name}
    changed = checked(kind, {**present[at].model_dump(), **given})
    told = {key: value for key, value in changed.model_dump().items() if key in given}
    return [*present[:at], changed, *present[at + 1 :]], {"do": "change", "name": name, **told}


def check_wish(values: Mapping[str, Any]) -> None:
    """Raise Refused where no training could obey a command `penalty`."""
    do, name, rest = values.get("do"), values.get("name"), values.keys() - {"do", "name"}
    if do not in DO:
        raise Refused(None, None, "penalty needs add, change or remove", "write it as in penalty add swap region=...")
    if do != "add" and not (isinstance(name, str) and name):
        raise Refused(None, None, f"penalty {do} needs the name of a penalty", f"write it as in penalty {do} swap")
    if do == "change" and not rest:
        raise Refused(None, None, "penalty change needs a value", "write it as in penalty change swap share=0.3")
    if do == "remove" and rest:
        raise Refused(None, None, f"penalty remove takes no {', '.join(sorted(map(str, rest)))!r:.100}", "omit it")
