"""One look at a host is read whatever is missing, and each question is answered with its reason."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from deploy import seen as judge
from deploy.seen import Seen, parse

PATH = f"/nix/store/{'a' * 32}-kalshi-gatherer-1"
NOW_NS = 1_760_000_000_000_000_000
HEALTH = {
    "components": {"capture": {"state": "ok", "reason": ""}, "clock": {"state": "ok"}},
    "detail": {"lag_ms": 120},
}
LOOK = f"""name gatherer-1
role gatherer
machine aarch64
time_ns {NOW_NS + 700_000_000}
nix_free  9000000000
var_free 8000000000
lock somebody since noon
profile gatherer {PATH}
profile cloudwatch /nix/var/nix/profiles/kalshi-cloudwatch
unit kalshi-gatherer.service ActiveState=active
unit kalshi-gatherer.service MainPID=812
unit kalshi-gatherer.service NRestarts=2
unit kalshi-gatherer.service InvocationID=abc
unit kalshi-gatherer.service Command={PATH}/bin/python3 -sP /nix/var/nix/profiles/x
unit kalshi-timescaledb.service ActiveState=active
unit kalshi-timescaledb.service Marked=/nix/store/{"p" * 32}-kalshi-postgres-1
missing /etc/kalshi/tls.pem
health {json.dumps(HEALTH)}
a line that nobody knows
"""


def seen(**more: Any) -> Seen:
    return replace(parse(LOOK, NOW_NS), missing=(), **more)


def test_a_look_is_read() -> None:
    found = parse(LOOK, NOW_NS)
    assert (found.name, found.role, found.machine) == ("gatherer-1", "gatherer", "aarch64")
    assert (found.nix_free_bytes, found.skew_ms) == (9_000_000_000, 700)
    assert found.lock == "somebody since noon"
    assert found.profiles == {"gatherer": PATH}  # a link to nowhere is no profile
    unit = found.units["kalshi-gatherer.service"]
    assert (unit.running, unit.restarts, unit.invocation) == (PATH, 2, "abc")
    assert unit.is_up
    database = found.units["kalshi-timescaledb.service"]
    assert database.running.endswith("kalshi-postgres-1")
    assert found.missing == ("/etc/kalshi/tls.pem",)
    assert found.status is None
    assert judge.not_capturing(found) == ""


def test_a_host_that_says_nothing_is_a_host_without_everything() -> None:
    found = parse("", NOW_NS)
    assert found == Seen("", "")
    assert len(judge.not_fit(found, "gatherer-1", "gatherer", "aarch64-linux")) == 5
    assert judge.not_capturing(found) == "does not answer on its health port"
    assert judge.not_merging(found) == "does not answer on its health port"
    assert judge.not_fresh(found) == "has closed no window yet"
    assert judge.gaps([found]) is None


def test_a_gatherer_records_when_it_says_so() -> None:
    trouble = {"components": {"capture": {"state": "failing", "reason": "3 markets"}}}
    assert judge.not_capturing(seen(health=trouble)) == "3 markets"
    assert "has not said" in judge.not_capturing(seen(health={}))
    assert judge.not_caught_up(seen()) == ""
    assert "16000 ms behind" in judge.not_caught_up(seen(health={"detail": {"lag_ms": 16_000}}))
    assert "does not say" in judge.not_caught_up(seen(health={"detail": {"lag_ms": None}}))
    began = {"lag_ms": 0, "batches": 0}
    assert "taken nothing" in judge.not_caught_up(seen(health={"detail": began}))
    assert judge.not_caught_up(seen(health={"detail": began | {"batches": 1}})) == ""


def test_the_deduplicator_merges_follows_and_hears() -> None:
    works = {"components": {"production": {"state": "ok"}, "merge": {"state": "ok"}}}
    closed = NOW_NS // 1_000 - 10_000_000
    told = {"closed_to_us": closed, "gaps": 4, "gatherers": [{"gatherer": 0, "lag_ms": 900}]}
    good = seen(health=works, status=told)
    assert judge.not_merging(good) == judge.not_fresh(good) == judge.not_heard(good, 0) == ""
    assert judge.gaps([seen(), good]) == 4
    assert judge.not_heard(good, 1) == "the deduplicator does not know it"
    late = told | {"closed_to_us": closed - 60_000_000, "gatherers": [{"gatherer": 0}]}
    assert "its tape ends 70 s ago" in judge.not_fresh(seen(health=works, status=late))
    assert "None ms behind it" in judge.not_heard(seen(health=works, status=late), 0)
    broken = {"components": {"production": {"state": "failing", "reason": "refused"}}}
    assert judge.not_merging(seen(health=broken, status=told)) == "production: refused"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"name": "ip-10-0-1-10"}, "is called ip-10-0-1-10"),
        ({"role": ""}, "first boot did not end"),
        ({"role": "deduplicator"}, "made it deduplicator"),
        ({"machine": "x86_64"}, "it is x86_64, the release is for aarch64"),
        ({"nix_free_bytes": 1 << 30}, "1024 MiB are free in /nix, 2048 are needed"),
        ({"var_free_bytes": 0}, "0 MiB are free in /var/lib"),
        ({"skew_ms": -2_001}, "-2001 ms off"),
        ({"health": {"components": {"clock": {"state": "failing"}}}}, "the clock is wrong"),
        ({"missing": ("/etc/x",)}, "/etc/x is not there"),
    ],
)
def test_what_keeps_a_host_from_a_release(more: dict[str, Any], said: str) -> None:
    fine = seen(skew_ms=0)
    assert judge.not_fit(fine, "gatherer-1", "gatherer", "aarch64-linux") == []
    missing = {"missing": more["missing"]} if "missing" in more else {}
    unfit = replace(replace(fine, **{k: v for k, v in more.items() if k != "missing"}), **missing)
    (why,) = judge.not_fit(unfit, "gatherer-1", "gatherer", "aarch64-linux")
    assert said in why
