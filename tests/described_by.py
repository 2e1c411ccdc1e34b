"""Is a JSON value what a schema of our OpenAPI file says? The keywords it uses, and no other.

What holds: a keyword that is not known here is an error, so that nothing is described in vain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

TYPES: dict[str, Any] = {
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
}
KNOWN = {
    "$ref", "type", "description", "enum", "properties", "required", "additionalProperties",
    "items", "minItems", "maxItems", "anyOf", "pattern", "minimum", "maximum", "default",
}  # fmt: skip


def faults(
    value: Any, schema: dict[str, Any], whole: dict[str, Any], at: str = "$"
) -> Iterator[str]:
    """Everything in which `value` is not what `schema` says."""
    unknown = set(schema) - KNOWN
    assert not unknown, f"{at}: the check does not know {unknown}"
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield from faults(value, whole["components"]["schemas"][name], whole, at)
        return
    if "anyOf" in schema:
        if all(any(True for _ in faults(value, s, whole, at)) for s in schema["anyOf"]):
            yield f"{at}: is none of what it may be: {str(value)[:100]}"
        return
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(TYPES[kind](value) for kind in kinds):
        yield f"{at}: {str(value)[:60]!r} is no {' or '.join(kinds)}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is not among {schema['enum']}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{at}: {value!r} does not match"
    if isinstance(value, list):
        yield from _list(value, schema, whole, at)
    if isinstance(value, dict):
        yield from _object(value, schema, whole, at)


def _list(
    value: list[Any], schema: dict[str, Any], whole: dict[str, Any], at: str
) -> Iterator[str]:
    low, high = schema.get("minItems", 0), schema.get("maxItems", len(value))
    if not low <= len(value) <= high:
        yield f"{at}: {len(value)} items"
    for n, item in enumerate(value):
        yield from faults(item, schema.get("items", {}), whole, f"{at}[{n}]")


def _object(
    value: dict[str, Any], schema: dict[str, Any], whole: dict[str, Any], at: str
) -> Iterator[str]:
    properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name in schema.get("required", []):
        if name not in value:
            yield f"{at}: has no {name}"
    for name, item in value.items():
        if name in properties:
            yield from faults(item, properties[name], whole, f"{at}.{name}")
        elif more is False:
            yield f"{at}: {name} is not described"
        elif isinstance(more, dict):
            yield from faults(item, more, whole, f"{at}.{name}")
