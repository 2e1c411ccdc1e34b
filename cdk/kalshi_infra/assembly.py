"""Assembly: synthesized templates as resources with resolved references.

Invariants:
- Stacks come in an order in which each follows what it depends on.
- A reference across stacks is followed through its export, so both ends have the same name.
- An intrinsic function that is not known here is an error, never passed on.

References become `Stack.LogicalId` or `Stack.LogicalId!Attribute`; pseudo parameters become
`${AWS::AccountId}`."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kalshi_infra.errors import TemplateError

Template = dict[str, Any]
# (stack, logical id, attribute or empty) -> value
Lookup = Callable[[str, str, str], str]


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource: `name` is `Stack.LogicalId`, `properties` are resolved, `raw` is the entry."""

    name: str
    stack: str
    logical_id: str
    type: str
    properties: Mapping[str, Any]
    raw: Mapping[str, Any]

    def tag(self, key: str = "Name") -> str:
        """The value of a tag, or an empty string."""
        for tag in self.properties.get("Tags", ()):
            if tag["Key"] == key:
                return str(tag["Value"])
        return ""


def read(directory: Path) -> dict[str, Template]:
    """Templates of a cloud assembly by stack name, in deployment order."""
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    artifacts = manifest["artifacts"]
    stacks = {name: a for name, a in artifacts.items() if a["type"] == "aws:cloudformation:stack"}
    ordered: dict[str, Template] = {}

    def visit(name: str) -> None:
        if name in ordered:
            return
        for dependency in stacks[name].get("dependencies", ()):
            if dependency in stacks:
                visit(dependency)
        path = directory / stacks[name]["properties"]["templateFile"]
        ordered[name] = json.loads(path.read_text(encoding="utf-8"))

    for name in stacks:
        visit(name)
    return ordered


def resources(templates: Mapping[str, Template]) -> list[Resource]:
    """Every resource of every stack, with symbolic references."""
    found = []
    for stack, template in templates.items():
        for logical_id, entry in template["Resources"].items():
            properties = resolve(entry.get("Properties", {}), stack, templates, symbol)
            found.append(
                Resource(
                    name=f"{stack}.{logical_id}",
                    stack=stack,
                    logical_id=logical_id,
                    type=entry["Type"],
                    properties=properties,
                    raw=entry,
                )
            )
    return found


def symbol(stack: str, logical_id: str, attribute: str) -> str:
    """The symbolic value of a reference."""
    return f"{stack}.{logical_id}!{attribute}" if attribute else f"{stack}.{logical_id}"


def target(reference: str) -> str:
    """`Stack.LogicalId` of a symbolic value."""
    return reference.split("!", 1)[0]


def resolve(value: Any, stack: str, templates: Mapping[str, Template], lookup: Lookup) -> Any:
    """`value` with every intrinsic function replaced.

    Raises TemplateError for a function that is not known.
    """
    if isinstance(value, list):
        return [resolve(item, stack, templates, lookup) for item in value]
    if not isinstance(value, dict):
        return value
    function = next(iter(value), "") if len(value) == 1 else ""
    if function != "Ref" and not function.startswith("Fn::"):
        return {key: resolve(item, stack, templates, lookup) for key, item in value.items()}
    argument = value[function]
    if function == "Ref":
        if argument.startswith("AWS::"):
            return lookup("", argument, "") if lookup is not symbol else "${" + argument + "}"
        _require(argument, stack, templates)
        return lookup(stack, argument, "")
    if function == "Fn::GetAtt":
        logical_id, attribute = argument if isinstance(argument, list) else argument.split(".", 1)
        _require(logical_id, stack, templates)
        return lookup(stack, logical_id, attribute)
    if function == "Fn::ImportValue":
        owner, exported = export(argument, templates)
        return resolve(exported, owner, templates, lookup)
    if function == "Fn::Join":
        separator, parts = argument
        return separator.join(resolve(part, stack, templates, lookup) for part in parts)
    if function == "Fn::Base64":
        return base64.b64encode(resolve(argument, stack, templates, lookup).encode()).decode()
    raise TemplateError(f"{stack}: the function {function} is not known to the reader of templates")


def export(name: str, templates: Mapping[str, Template]) -> tuple[str, Any]:
    """The stack that exports `name`, and the exported expression."""
    for stack, template in templates.items():
        for output in template.get("Outputs", {}).values():
            if output.get("Export", {}).get("Name") == name:
                return stack, output["Value"]
    raise TemplateError(f"no stack exports {name!r}")


def _require(logical_id: str, stack: str, templates: Mapping[str, Template]) -> None:
    if logical_id not in templates[stack]["Resources"]:
        raise TemplateError(f"{stack} refers to {logical_id!r}, which it does not have")
