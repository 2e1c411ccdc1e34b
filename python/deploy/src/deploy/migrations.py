"""Whether the former release can go on while the schema of the next one is there already.

Purpose: from the migration files of the running release and of the coming one: which are new, and
of each statement whether it only adds, with the reason; the files themselves out of a closure, here
or on a host. Pure, but for the two readers at the end.

What holds:
- A rollout has both releases at work at once, and a rollback leaves the newer schema behind. So
  what is new may add tables, columns, indexes, rights, and rows in tables of its own; whatever
  touches what an earlier program uses is refused, and so is a statement that is not known.
- A file that was applied is the same in both releases, or nothing goes out.
- Of a release that is behind, what it does not know is judged in the same way.
- On tables that a new file makes itself everything is allowed: no earlier program knows them.

Does not do: applying (runtime.postgres.migrate), deciding about a rollout (plan).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlglot import exp, parse_one
from sqlglot.dialects import Postgres
from sqlglot.errors import SqlglotError

from deploy.errors import HostRefusedError, PlanError
from deploy.shell import Shell

FOLDERS: Final[Mapping[str, tuple[str, ...]]] = {
    "gatherer": ("gatherer_hot", "gatherer_meta"),
    "deduplicator": ("production",),
}
"""Which folders a role's service applies when it starts."""
BREAKS_OLDER: Final = "-- breaks older programs"  # runtime.postgres; a test holds them equal
SHOWN_CHARS: Final = 100
FILES_MAX: Final = 1_000
PLACE: Final = "lib/python3*/site-packages/runtime/migrations"
_NAME: Final = re.compile(r"(\d{4})_(\w+)\.sql")


@dataclass(frozen=True, slots=True)
class File:
    """One migration, `NNNN_name.sql`."""

    version: int
    name: str
    sql: str

    @property
    def title(self) -> str:
        """As the file is called, without its ending."""
        return f"{self.version:04d}_{self.name}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One statement of a file. `refused`: why an earlier program may suffer, "" where it does not.
    `waits`: who waits while it runs, "" where nobody does for longer than a moment."""

    file: str
    statement: str
    refused: str
    waits: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.refused or self.waits or 'adds'}: {self.statement}"


@dataclass(frozen=True, slots=True)
class Change:
    """What differs in one folder. `new`: files that the coming release brings; `unknown`: files
    that it does not know and that were applied (it is the older one)."""

    folder: str
    new: tuple[File, ...]
    unknown: tuple[File, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def refused(self) -> tuple[Verdict, ...]:
        """Statements after which both releases could not work side by side."""
        return tuple(verdict for verdict in self.verdicts if verdict.refused)


def compare(folder: str, running: Sequence[File], coming: Sequence[File]) -> Change:
    """What the coming release does to a database of the running one.

    Raises PlanError where they are no continuation of each other.
    """
    for whose, files in (("running", running), ("coming", coming)):
        versions = [file.version for file in files]
        if versions != list(range(1, len(files) + 1)):
            raise PlanError(f"{folder} of the {whose} release is numbered {versions}")
    for old, now in zip(running, coming, strict=False):
        if old != now:
            what = f"{old.title} became {now.title}" if old.name != now.name else old.title
            raise PlanError(
                f"{folder}: {what}, with other contents than were applied",
                hint="never edit an applied migration; add a new one",
            )
    both = min(len(running), len(coming))
    new, unknown = tuple(coming[both:]), tuple(running[both:])
    return Change(folder, new, unknown, classify(running[:both], new or unknown))


def insist(changes: Iterable[Change]) -> None:
    """Raises PlanError, with every statement, where one of the changes does more than add."""
    refused = [f"{c.folder}/{verdict}" for c in changes for verdict in c.refused]
    if refused:
        raise PlanError(
            "the former release cannot go on beside this schema:\n" + "\n".join(refused),
            hint="add first, let every program move, take away in a later release by hand",
        )


def classify(before: Sequence[File], new: Sequence[File]) -> tuple[Verdict, ...]:
    """Every statement of the new files, for a database in which those before were applied."""
    known = {name for file in before for name in _made(file)}
    judge = _Judge(known, set())
    verdicts = []
    for file in new:
        if known and any(line.startswith(BREAKS_OLDER) for line in file.sql.splitlines()):
            verdicts.append(Verdict(file.title, BREAKS_OLDER, "says itself that it breaks them"))
        for statement in statements(file.sql):
            refused, waits = judge.statement(statement)
            shown = " ".join(re.sub(r"--[^\n]*", "", statement).split())[:SHOWN_CHARS]
            verdicts.append(Verdict(file.title, shown, refused, waits))
    return tuple(verdicts)


def statements(sql: str) -> list[str]:
    """The statements of a file, without what stands between them.

    Semicolons within strings, dollar quotes, comments and the body of a SQL function end nothing.
    """
    found: list[str] = []
    begin, depth, before = -1, 0, ""
    for token in Postgres().tokenize(sql):
        word = token.text.upper() if token.token_type.name != "STRING" else ""
        begin = token.start if begin < 0 else begin
        if (word == "ATOMIC" and before == "BEGIN") or (depth and word == "CASE"):
            depth += 1
        elif depth and word == "END":
            depth -= 1
        elif word == ";" and not depth:
            found.append(sql[begin : token.start].strip())
            begin = -1
        before = word
    if begin >= 0:
        found.append(sql[begin:].strip())
    return [statement for statement in found if statement and statement != ";"]


def _made(file: File) -> Iterator[str]:
    """Names of what a file creates, in whatever form."""
    for statement in statements(file.sql):
        found = re.match(
            r"CREATE\s+(?:OR\s+REPLACE\s+)?(?:UNIQUE\s+|MATERIALIZED\s+)?"
            r"(?:TABLE|INDEX|VIEW|FUNCTION|SCHEMA|SEQUENCE|TYPE)\s+(?:IF\s+NOT\s+EXISTS\s+)?([\w.]+)",
            statement,
            re.IGNORECASE,
        )
        if found is not None:
            yield found[1].lower()


_FUNCTION: Final = re.compile(r"CREATE\s+(OR\s+REPLACE\s+)?FUNCTION\s+([\w.]+)\s*\(", re.IGNORECASE)
# A right for a role that not every server has: the one form of DO that is read.
_DO: Final = re.compile(
    r"DO\s+\$(?P<tag>\w*)\$\s*BEGIN\s+IF\s+to_regrole\('\w+'\)\s+IS\s+(?:NOT\s+)?NULL\s+THEN\s"
    r"(?P<body>.*?)END\s+IF\s*;\s*END\s*;?\s*\$(?P=tag)\$",
    re.IGNORECASE | re.DOTALL,
)
_REVOKE: Final = re.compile(
    r"REVOKE\s+[\w\s,]+\s+ON\s+(?:TABLE\s+|FUNCTION\s+|SCHEMA\s+)?([\w.]+)", re.IGNORECASE
)
_PLAIN_KINDS: Final = ("SCHEMA", "SEQUENCE", "TYPE")
_TYPE: Final = re.compile(
    r"(SMALLINT|INT|BIGINT|BOOLEAN|TEXT|BYTEA|UUID|JSONB?|DATE|TIMESTAMPTZ|DOUBLE PRECISION|REAL"
    r"|VARCHAR(\(\d+\))?|DECIMAL(\([\d, ]+\))?)(\[\])?"
)  # others, as serial or a domain, may rewrite the table or refuse rows
_CONSTANT: Final = (exp.Literal, exp.Boolean, exp.Null, exp.CurrentTimestamp)
_WRITES: Final = (exp.Insert, exp.Update, exp.Delete, exp.Merge)


class _Judge:
    """One pass over new files. `known`: names made before; `own`: names made by the new files."""

    def __init__(self, known: set[str], own: set[str]) -> None:
        self._known, self._own = known, own

    def statement(self, sql: str) -> tuple[str, str]:
        """Why it is refused, and who waits; "" each."""
        if (function := _FUNCTION.match(sql)) is not None:
            return self._function(function), ""
        if (block := _DO.fullmatch(sql)) is not None:
            inner = [self.statement(each) for each in statements(block["body"])]
            return next((why for why, _ in inner if why), ""), ""
        if (revoke := _REVOKE.match(sql)) is not None:
            if revoke[1].lower() in self._own:
                return "", ""
            return f"takes away a right on {revoke[1]}", ""
        try:
            read = parse_one(sql, read="postgres")
        except SqlglotError:
            return "is not understood", ""
        if isinstance(read, exp.Create):
            return self._create(read)
        if isinstance(read, exp.Alter):
            return self._alter(read), ""
        if isinstance(read, (exp.Grant, exp.Comment)):
            return "", ""
        if isinstance(read, _WRITES):
            return self._rows(read), ""
        if isinstance(read, exp.Drop):
            return self._on(read, f"drops a {str(read.args.get('kind')).lower()}"), ""
        if isinstance(read, exp.TruncateTable):
            return "removes rows", ""
        return f"is not known here ({sql.split(maxsplit=1)[0].upper()})", ""

    def _function(self, found: re.Match[str]) -> str:
        name = found[2].lower()
        if name in self._known:  # another one of that name may make a call ambiguous
            return f"changes what calls of {name} reach"
        self._own.add(name)
        return ""

    def _create(self, read: exp.Create) -> tuple[str, str]:
        kind = str(read.args.get("kind")).upper()
        if kind == "INDEX":
            return self._index(read)
        if read.args.get("replace") and self._name_of(read) not in self._own:
            return f"replaces {self._name_of(read)}", ""
        if kind in _PLAIN_KINDS:
            return "", ""
        if kind == "VIEW":
            if read.find(exp.MaterializedProperty):
                return "is not known here (MATERIALIZED VIEW)", ""
            return self._makes(self._name_of(read)), ""
        if kind != "TABLE":
            return f"is not known here (CREATE {kind})", ""
        return self._table(read), ""

    @staticmethod
    def _name_of(read: exp.Expression) -> str:
        target = read.this.this if isinstance(read.this, exp.Schema) else read.this
        if not isinstance(target, exp.Table):
            return ""
        return ".".join(part.name for part in target.parts).lower()

    def _makes(self, name: str) -> str:
        if name in self._known:
            return f"makes {name}, which is there already"
        self._own.add(name)
        return ""

    def _table(self, read: exp.Create) -> str:
        name = self._name_of(read)
        if read.find(exp.TemporaryProperty):
            return f"hides {name} behind a temporary table"
        if read.find(exp.InheritsProperty):
            return "adds its rows to those of another table"
        for reference in read.find_all(exp.Reference):
            inner = reference.this.find(exp.Table) if reference.this is not None else None
            aim = inner.name.lower() if inner is not None else ""
            if aim not in self._own:
                return f"forbids programs to remove rows of {aim}"
        if read.expression is not None and (why := self._calls(read.expression)):
            return why
        return self._makes(name)

    def _index(self, read: exp.Create) -> tuple[str, str]:
        table = next((t.name.lower() for t in read.find_all(exp.Table) if t.name), "")
        on = read.this.args.get("table") if isinstance(read.this, exp.Index) else None
        table = on.name.lower() if isinstance(on, exp.Table) else table
        if table in self._own:
            return "", ""
        if read.args.get("unique"):
            return f"makes rows of {table} refusable", ""
        if read.args.get("concurrently"):
            return "runs in no transaction, as migrations do", ""
        return "", f"writers of {table} wait while it is built"

    def _alter(self, read: exp.Alter) -> str:
        kind = str(read.args.get("kind")).upper()
        name = self._name_of(read)
        if kind != "TABLE":
            return f"is not known here (ALTER {kind})"
        actions = read.args.get("actions") or []
        if name in self._own and not any(isinstance(a, exp.AlterRename) for a in actions):
            return ""
        for action in actions:
            if isinstance(action, exp.ColumnDef):
                why = _column(action)
            else:
                why = _REASONS.get(type(action), "changes a table in a way that is not known here")
            if why:
                return f"{name}: {why}"
        return "" if actions else f"{name}: changes nothing that is known here"

    def _rows(self, read: exp.Expression) -> str:
        for each in read.find_all(*_WRITES):
            target = self._name_of(each)
            if target not in self._own:
                return f"changes rows of {target or 'a table'}, which earlier programs use"
        return self._calls(read)

    @staticmethod
    def _calls(read: exp.Expression) -> str:
        """A function that is called now may do anything."""
        called = read.find(exp.Anonymous)
        if called is None:
            writes = read.find(*_WRITES) if not isinstance(read, _WRITES) else None
            return "" if writes is None else "writes within a query"
        return f"calls {called.name}, which may do anything"

    def _on(self, read: exp.Expression, what: str) -> str:
        dropped = {table.name.lower() for table in read.args.get("tables") or []}
        own = str(read.args.get("kind")).upper() == "TABLE" and dropped <= self._own
        return "" if own and dropped else what


_REASONS: Final[Mapping[type[exp.Expression], str]] = {
    exp.Drop: "drops what earlier programs may use",
    exp.AlterColumn: "changes a column that earlier programs use",
    exp.RenameColumn: "renames a column",
    exp.AlterRename: "renames it",
    exp.AddConstraint: "a constraint may refuse what earlier programs write",
}


def _column(column: exp.ColumnDef) -> str:
    """Why adding this column is refused; "" where rows of earlier programs do without it."""
    kind = column.args.get("kind")
    named = "" if kind is None else kind.sql(dialect="postgres").upper()
    if not _TYPE.fullmatch(named):
        return f"column {column.name} of type {named.lower()} may rewrite or refuse rows"
    must, default = False, None
    for constraint in column.args.get("constraints") or []:
        each = constraint.args.get("kind")
        if isinstance(each, exp.NotNullColumnConstraint):
            must = not each.args.get("allow_null")
        elif isinstance(each, exp.DefaultColumnConstraint):
            default = each.this
            if not _constant(default):
                return f"column {column.name} has a default that rewrites the table"
        else:
            return f"column {column.name} has a constraint that may refuse what is written"
    if must and (default is None or isinstance(default, exp.Null)):
        return f"column {column.name} is not null without a default"
    return ""


def _constant(value: exp.Expression) -> bool:
    """Whether a default is one value for all rows, so that adding it rewrites nothing."""
    if isinstance(value, (exp.Neg, exp.Paren, exp.Cast)):
        return _constant(value.this)
    if isinstance(value, exp.Array):
        return all(_constant(each) for each in value.expressions)
    return isinstance(value, _CONSTANT)


# --- the files of a release


def parse_name(name: str) -> tuple[int, str] | None:
    """Version and name of a migration's file; None for another file."""
    found = _NAME.fullmatch(name)
    return None if found is None else (int(found[1]), found[2])


def _gathered(found: Iterable[tuple[str, str, str]], whence: str) -> dict[str, tuple[File, ...]]:
    made: dict[str, list[File]] = {}
    for count, (folder, name, sql) in enumerate(found):
        parsed = parse_name(name)
        if count >= FILES_MAX or parsed is None:
            raise PlanError(f"{whence} has {folder}/{name}, which is no migration")
        made.setdefault(folder, []).append(File(*parsed, sql))
    return {f: tuple(sorted(each, key=lambda file: file.version)) for f, each in made.items()}


def of_closure(closure: Path) -> dict[str, tuple[File, ...]]:
    """Files by folder of a closure that is on this machine. Raises PlanError where it has none."""
    places = sorted(closure.glob(PLACE))
    if len(places) != 1:
        raise PlanError(
            f"{closure} has {len(places)} places of migrations", hint="is it a closure of ours?"
        )
    files = sorted(places[0].glob("*/*.sql"))
    found = ((f.parent.name, f.name, f.read_text(encoding="utf-8")) for f in files)
    return _gathered(found, str(closure))


_READ: Final = r"""
set -- PROFILE/lib/python3*/site-packages/runtime/migrations
[ -e PROFILE ] || exit 0
[ $# -eq 1 ] && [ -d "$1" ] || { echo "PROFILE has no migrations" >&2; exit 1; }
cd "$1"
for file in */*.sql; do
    printf '\036%s %s\n' "$file" "$(sha256sum < "$file" | cut -c 1-64)"
    cat "$file"
done
"""


async def of_host(shell: Shell, host: str, profile: str) -> dict[str, tuple[File, ...]]:
    """Files by folder of what is installed under a profile of a host; none before the first.

    Raises:
        HostRefusedError: the profile is no closure of ours, or what came is not what lies there.
        UnreachableError: as Shell.run.
    """
    answer = await shell.run(host, _READ.replace("PROFILE", profile))
    if answer.code != 0:
        raise HostRefusedError(f"{host}: {answer.err.strip() or f'exit code {answer.code}'}")
    found = []
    for part in answer.out.split("\x1e")[1:]:
        head, _, sql = part.partition("\n")
        path, _, digest = head.rpartition(" ")
        folder, _, name = path.partition("/")
        if hashlib.sha256(sql.encode("utf-8")).hexdigest() != digest:
            raise HostRefusedError(f"{host}: {path} did not come whole", hint="try again")
        found.append((folder, name, sql))
    return _gathered(found, f"{host}:{profile}")
