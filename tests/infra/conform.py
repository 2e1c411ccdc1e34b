"""Conformance: the specification's own cells against the three places, row by row.

A cell is right if every place that knows it says exactly what the specification says, or if
cdk/kalshi_infra/deviations.py lists it and every place says exactly what is listed there. A row
that a place has and the specification has not is wrong too."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import spec_tables
from facts import Facts, Tables, tables
from kalshi_infra import assembly, cost, site, topology
from kalshi_infra.build import build, new_app
from kalshi_infra.deviations import DEVIATIONS
from kalshi_infra.site import Site
from kalshi_infra.topology import Topology

PLACES = ("configuration", "template", "account")
EXAMPLE_SITE = Path(site.__file__).resolve().parents[1] / "site.example.toml"

# Cells that a place cannot know, with the reason. Everything else must be known everywhere.
UNKNOWN = {
    ("Database / Local Databases (per Gatherer)", "Purpose", "template"): "what a table is for",
    ("Database / Local Databases (per Gatherer)", "Purpose", "account"): "what a table is for",
    ("Storage / S3 Bucket / Structure", "Prefix", "template"): "S3 has no directories",
    ("Storage / S3 Bucket / Structure", "Prefix", "account"): "S3 has no directories",
    ("Cost Estimate", "Monthly", "configuration"): "reckoned from the template",
    ("Cost Estimate", "Monthly", "account"): "reckoned from the template",
}
_ROW_NAMES = {"Storage / S3 Bucket / Structure": ("Prefix",), "Overview": ("Node",)}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One cell. `seen` is in the order of PLACES, None where the place cannot know it."""

    path: str
    row: str
    column: str
    specified: str
    seen: tuple[str | None, ...]
    verdict: str

    @property
    def right(self) -> bool:
        return self.verdict == "equal" or self.verdict.startswith("deviation ")


def specified_tables() -> list[spec_tables.Table]:
    """The specification's tables; its prefix tree, diagram and JSON documents as tables too."""
    found, documents = spec_tables.specification()
    prefixes = spec_tables.bucket_prefixes(documents)
    found.append(
        spec_tables.Table(
            "Storage / S3 Bucket / Structure",
            ("Prefix",),
            tuple({"Prefix": prefix} for prefix in prefixes),
        )
    )
    placed = spec_tables.diagram_placement(documents)
    found.append(
        spec_tables.Table(
            "Overview",
            ("Node", "Place"),
            tuple({"Node": node, "Place": place} for node, place in placed.items()),
        )
    )
    for role, document in spec_tables.policy_documents(documents).items():
        statements = document["Statement"]
        assert isinstance(statements, list)
        rows = [{"Statement": "Version", "JSON": str(document["Version"])}]
        rows += [
            {"Statement": str(index), "JSON": json.dumps(statement)}
            for index, statement in enumerate(statements, start=1)
        ]
        found.append(spec_tables.Table(f"IAM / {role}", ("Statement", "JSON"), tuple(rows)))
    return found


def compare(places: Sequence[Facts]) -> list[Verdict]:
    """A verdict for every cell of the specification and every row beyond it."""
    printed = [tables(facts) for facts in places]
    accepted = {cell: (d.key, ours) for d in DEVIATIONS for cell, ours in d.cells.items()}
    verdicts: list[Verdict] = []
    for table in specified_tables():
        seen_rows = [_rows(table, place) for place in printed]
        for row in table.rows:
            name = table.row_key(row)
            for column in table.columns:
                if len(table.columns) > 1 and column == table.columns[0] and name == row[column]:
                    # The row's own name: that the row exists at all is told by its other cells.
                    continue
                verdicts.append(_cell(table, name, column, row[column], seen_rows, accepted))
        wanted = {table.row_key(row) for row in table.rows}
        verdicts += _beyond(table, wanted, seen_rows)
    known = {table.path for table in specified_tables()}
    for place, found in zip(PLACES, printed, strict=True):
        for path in found:
            if path not in known:
                verdicts.append(Verdict(path, "*", "*", "-", (place,), "not in the specification"))
    return verdicts


def _rows(table: spec_tables.Table, place: Tables) -> dict[str, dict[str, str | None]] | None:
    if table.path not in place:
        return None
    rows: dict[str, dict[str, str | None]] = {}
    for row in place[table.path]:
        texts = {key: value or "" for key, value in row.items()}
        name = table.row_key(texts)
        # Two rows with one name: both must show, or the second would hide the first.
        rows[name if name not in rows else f"{name} (again)"] = row
    return rows


def _cell(
    table: spec_tables.Table,
    row: str,
    column: str,
    specified: str,
    seen_rows: Sequence[Mapping[str, Mapping[str, str | None]] | None],
    accepted: Mapping[tuple[str, str, str], tuple[str, str]],
) -> Verdict:
    seen: list[str | None] = []
    faults = []
    key, listed = accepted.get((table.path, row, column), ("", specified))
    for place, rows in zip(PLACES, seen_rows, strict=True):
        if (table.path, column, place) in UNKNOWN:
            seen.append(None)
            continue
        value = (rows or {}).get(row, {}).get(column)
        seen.append(value)
        if value is None:
            faults.append(f"missing in {place}")
        elif value != listed:
            faults.append(f"different in {place}")
    verdict = "; ".join(faults) or (f"deviation {key}" if key else "equal")
    return Verdict(table.path, row, column, specified, tuple(seen), verdict)


def _beyond(
    table: spec_tables.Table,
    wanted: set[str],
    seen_rows: Sequence[Mapping[str, Mapping[str, str | None]] | None],
) -> list[Verdict]:
    extra: dict[str, list[str]] = {}
    for place, rows in zip(PLACES, seen_rows, strict=True):
        for name in rows or ():
            if name not in wanted:
                extra.setdefault(name, []).append(place)
    return [
        Verdict(table.path, name, "*", "-", tuple(found), "not in the specification")
        for name, found in extra.items()
    ]


def example_site() -> Site:
    """The documented example values."""
    return site.load({"site": str(EXAMPLE_SITE)})


def synthesize(wanted: Topology, chosen: Site) -> tuple[dict[str, assembly.Template], str]:
    """Templates of a synthesis in a temporary directory, and the region of its manifest."""
    with tempfile.TemporaryDirectory() as directory:
        app = new_app(Path(directory))
        build(app, wanted, chosen)
        app.synth()
        templates = assembly.read(Path(directory))
        manifest = json.loads((Path(directory) / "manifest.json").read_text(encoding="utf-8"))
    regions = {
        artifact["environment"].rsplit("/", 1)[1]
        for artifact in manifest["artifacts"].values()
        if "environment" in artifact
    }
    (region,) = regions
    return templates, region


def conformance() -> list[Verdict]:
    """Everything from scratch: configuration, template, account."""
    import applier
    import moto_account
    import views

    wanted, chosen = topology.load(), example_site()
    templates, region = synthesize(wanted, chosen)
    lines = cost.bill(templates, cost.load_prices(), cost.load_usage("full"))
    configured = views.of_configuration(wanted, chosen.admin_cidr)
    synthesized = views.of_template(
        templates, chosen.admin_cidr, region, cost.monthly_by_line(lines)
    )
    with moto_account.account():
        applier.apply(templates)
        read_back = views.of_account(chosen.admin_cidr)
    return compare([configured, synthesized, read_back])


def report(verdicts: Sequence[Verdict]) -> str:
    """One line per cell, by section."""
    out = []
    path = ""
    for verdict in verdicts:
        if verdict.path != path:
            path = verdict.path
            out += ["", path]
        shown = list(verdict.seen)
        known = [value for value in shown if value is not None]
        values = " | ".join("-" if value is None else value for value in shown)
        if len(set(known)) == 1 and known == shown:
            values = f"{known[0]} (all three)"
        label = (
            verdict.row if verdict.column in ("Value", "*") else f"{verdict.row}: {verdict.column}"
        )
        out.append(f"  {verdict.verdict:<14} {label:<46} {verdict.specified}  ->  {values}")
    right = sum(verdict.right for verdict in verdicts)
    deviating = sum(verdict.verdict.startswith("deviation") for verdict in verdicts)
    rows = len({(verdict.path, verdict.row) for verdict in verdicts})
    equal, wrong = right - deviating, len(verdicts) - right
    summary = f"{rows} rows, {len(verdicts)} cells: {equal} equal, {deviating} listed deviations, "
    out += ["", summary + f"{wrong} wrong"]
    return "\n".join(out)


def main() -> int:
    """Prints the table; exit code 1 if a cell is wrong."""
    verdicts = conformance()
    print("columns: verdict, row, specification -> configuration | template | account read back")
    print(report(verdicts))
    return 0 if all(verdict.right for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
