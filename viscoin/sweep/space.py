"""The space of a sweep: keys of the recipe, and the values that each may take."""

import difflib
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from viscoin.config import Recipe, override_recipe, read_yaml

Value = bool | int | float | str | None

WORDS = ("low", "high", "log", "step", "choices")
COMBINATIONS = 256  # of ends and choices that are checked before anything runs
FIXED = ("dataset.name", "dataset.path", "dataset.attribute")  # trials of different tasks cannot be compared


@dataclass(frozen=True)
class Parameter:
    """What a key of the recipe may be: one of `choices`, or a number from `low` to `high`, both included.

    Attributes:
        log: sample the logarithm of the number uniformly.
        step: distance of the numbers; None means every float in between.
    """

    choices: tuple[Value, ...] = ()
    low: int | float = 0
    high: int | float = 0
    log: bool = False
    step: int | float | None = None

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values that a check must look at: all choices, or both ends."""
        return self.choices or (self.low, self.high)

    @property
    def grid(self) -> list[Value] | None:
        """All values, or None of a range without steps."""
        if self.choices:
            return list(self.choices)
        if self.step is None:
            return None
        count = round((self.high - self.low) / self.step) + 1
        values = [self.low + i * self.step for i in range(count)]
        return [value if isinstance(value, int) else float(f"{value:.12g}") for value in values]

    def __str__(self) -> str:
        if self.choices:
            return ", ".join(map(show, self.choices))
        step = f", step {self.step:g}" if self.step not in (None, 1) else ""
        return f"{self.low:g} to {self.high:g}{', log' if self.log else ''}{step}"


Space = Mapping[str, Parameter]


def show(value: Value) -> str:
    """A value as a recipe writes it, numbers to four digits."""
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_space(path: Path, kind: str, recipe: Recipe) -> dict[str, Parameter]:
    """Read a space: a YAML file with a line for each key, `KEY: {low: A, high: B, log: true}` or `KEY: [A, B, C]`.

    Args:
        kind: what is trained, "classifier", "gan" or "viscoin": its own keys, `dataset` and `seed` may vary.
        recipe: holds all other values; ends and choices must make valid recipes with it and with each other.

    Raises:
        ValueError: no such file, a key that the recipe does not know (the nearest one is named) or that has no effect
            on this kind, ends in the wrong order, a logarithm of what is not above zero, values of the wrong type.
    """
    name = f"--space {path}"
    if not path.is_file():
        raise ValueError(f"{name}: there is no such file; write one such as: {kind}.learning_rate: [0.001, 0.01]")
    values = read_yaml(path, name)
    if not isinstance(values, dict) or not values:
        raise ValueError(f"{name} must hold lines such as {kind}.learning_rate: {{low: 0.0001, high: 0.1, log: true}}")
    space = {key: _parameter(f"{name}: {key}", key, value, kind, recipe) for key, value in values.items()}
    _check_combinations(space, recipe, f"with {name}")
    return space


def recipe_of(recipe: Recipe, values: Mapping[str, Value], source: str = "of the trial") -> Recipe:
    """The recipe with the values of a trial; ValueError, which names `source`, where they do not go together."""
    return override_recipe(recipe, values, source)


def _parameter(name: str, key: str, value: Any, kind: str, recipe: Recipe) -> Parameter:
    _check_key(name, key, kind, recipe)
    if isinstance(value, list):
        value = {"choices": value}
    if not isinstance(value, dict):
        raise ValueError(
            f"{name} = {value}: give a range {{low: A, high: B}} or choices [A, B]; a fixed value goes into --set"
        )
    for word in value:
        if word not in WORDS:
            near = difflib.get_close_matches(word, WORDS, n=1)
            raise ValueError(f"{name}: unknown word {word!r}; {f'did you mean {near[0]!r}?' if near else WORDS}")
    if "choices" in value:
        if len(value) > 1:
            raise ValueError(f"{name}: choices have no {' or '.join(set(value) - {'choices'})}; leave one of them out")
        return _choices(name, key, value["choices"])
    return _range(name, key, value)


def _check_key(name: str, key: str, kind: str, recipe: Recipe) -> None:
    section, _, field = key.partition(".")
    nested = getattr(Recipe.model_fields.get(section), "annotation", None)
    if hasattr(nested, "model_fields") and not field:
        raise ValueError(f"{name}: this is a section; write its keys with a dot, as in {section}.KEY")
    if section not in Recipe.model_fields or section in (kind, "dataset"):
        override_recipe(recipe, {key: _now(key, recipe)}, f"with {name.removesuffix(f': {key}')}")
    if section not in (kind, "dataset", "seed") or key in FIXED:
        raise ValueError(f"{name}: a sweep of {kind} varies keys of {kind} and dataset, and seed, but not this one")


def _now(key: str, recipe: Recipe) -> Any:
    """The recipe's own value of a key, None of one that it does not know."""
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part, None)
    return value


def _choices(name: str, key: str, values: Any) -> Parameter:
    if not isinstance(values, list) or not values:
        raise ValueError(f"{name}: choices must be a list, as in [A, B]")
    if any(isinstance(value, list | dict) for value in values):
        raise ValueError(f"{name}: every choice must be one value")
    choices = tuple(_typed(name, key, value) for value in values)
    twice = [value for i, value in enumerate(choices) if value in choices[:i]]
    if twice:
        raise ValueError(f"{name}: the choice {twice[0]} stands there twice; leave one out")
    return Parameter(choices)


def _range(name: str, key: str, value: Mapping[str, Any]) -> Parameter:
    missing = [word for word in ("low", "high") if value.get(word) is None]
    if missing:
        raise ValueError(f"{name}: {' and '.join(missing)} is missing; a range has low and high, choices are a list")
    low, high = _typed(name, key, value["low"]), _typed(name, key, value["high"])
    if isinstance(low, bool | str) or isinstance(high, bool | str) or low is None or high is None:
        raise ValueError(f"{name} is no number, so it has no low and high; give choices, as in [{low}, {high}]")
    if value.get("log", "false") not in ("true", "false"):
        raise ValueError(f"{name}: log = {value['log']}: write true or false")
    log = value.get("log") == "true"
    if low >= high:
        raise ValueError(f"{name}: low = {low:g} must be below high = {high:g}")
    if log and low <= 0:
        raise ValueError(f"{name}: log = true needs a low above 0, not {low:g}; raise it, or leave log out")
    step = _step(name, value.get("step"), low, high)
    if log and step is not None and (step != 1 or isinstance(low, float)):
        raise ValueError(f"{name}: log and step = {step:g} do not go together; leave one out")
    if isinstance(low, int):
        step = step or 1
    return Parameter((), low, high, log, step)


def _step(name: str, value: Any, low: int | float, high: int | float) -> int | float | None:
    if value is None:
        return None
    kind = type(low)
    try:
        step = TypeAdapter(kind).validate_python(value)
    except ValidationError:
        raise ValueError(f"{name}: step = {value} must be {'a whole' if kind is int else 'a'} number") from None
    steps = (high - low) / step if step > 0 else 0
    if steps < 1 or abs(steps - round(steps)) > 1e-6:
        raise ValueError(f"{name}: step = {step:g} must be above 0 and lead from low = {low:g} to high = {high:g}")
    return step


def _typed(name: str, key: str, value: Any) -> Value:
    """A value as the type of its key; ValueError where the recipe does not take it."""
    *parents, last = key.split(".")
    section: Any = Recipe
    for part in parents:
        section = section.model_fields[part].annotation
    field = section.model_fields[last]
    adapter: TypeAdapter[Value] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].lower()
        raise ValueError(f"{name} = {show(value)}: {reason}") from None


def _check_combinations(space: Space, recipe: Recipe, source: str) -> None:
    """Try all ends and choices together, or a sample that takes no time, so that no trial must fail by them."""
    ends: Sequence[tuple[Value, ...]] = [parameter.ends for parameter in space.values()]
    combinations = list(itertools.islice(itertools.product(*ends), COMBINATIONS + 1))
    if len(combinations) > COMBINATIONS:
        draw = random.Random(0)
        combinations = [tuple(map(draw.choice, ends)) for _ in range(COMBINATIONS)]
    for values in combinations:
        recipe_of(recipe, dict(zip(space, values)), source)
