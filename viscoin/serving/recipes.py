"""The keys of a recipe for a form: values, types, bounds, help."""

from typing import Any

from viscoin.config import Recipe

BOUNDS = {"minimum": "least", "exclusiveMinimum": "above", "maximum": "most", "exclusiveMaximum": "below"}


def describe_recipe(recipe: Recipe) -> list[dict[str, Any]]:
    """Sections with their keys, as the JSON schema of the typed recipe tells them."""
    schema, sections = Recipe.model_json_schema(), []
    values = recipe.model_dump(mode="json")
    for section, found in schema["properties"].items():
        keys = _resolved(found, schema).get("properties")
        if keys:
            rows = [
                _key(f"{section}.{name}", _resolved(entry, schema), values[section][name])
                for name, entry in keys.items()
            ]
            sections.append({"section": section, "keys": rows})
    return sections


def _key(key: str, entry: dict[str, Any], value: Any) -> dict[str, Any]:
    options = [entry, *entry.get("anyOf", ())]
    kinds = [option["type"] for option in options if "type" in option and option["type"] != "null"]
    row: dict[str, Any] = {"key": key, "value": value, "type": kinds[0] if kinds else "string"}
    for option in options:
        row |= {BOUNDS[name]: option[name] for name in BOUNDS if name in option}
        if "enum" in option:
            row["choices"] = option["enum"]
    if len(options) > 1 and any(option.get("type") == "null" for option in options):
        row["optional"] = True
    return row | ({"help": entry["description"]} if "description" in entry else {})


def _resolved(entry: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """An entry with what it refers to."""
    reference = entry.get("$ref") or next((one["$ref"] for one in entry.get("allOf", ()) if "$ref" in one), None)
    if reference is None:
        return entry
    return {
        **schema["$defs"][reference.rpartition("/")[2]],
        **{k: v for k, v in entry.items() if k not in ("$ref", "allOf")},
    }
