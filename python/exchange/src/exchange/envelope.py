"""A recorded frame with room for another `sid` and `seq`: everything else stays byte for byte.

Purpose: a frame was sent to the gatherer that recorded it, under the numbers of that connection. To
send it to somebody else only those numbers change, and the `id` of a command that he did not give
is left out.

Invariants: EXCH-16 with its own numbers put back, a frame without an `id` has the bytes it came
with; whatever its key order, spaces, unknown members and number texts.

Does not do: judging what is in a frame (marketdata.wire), numbering (recording).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Final, NamedTuple

import orjson

# The form in use; nearly every frame. What stands behind it was decoded, or `cut_any` looks at it.
_IN_USE: Final = re.compile(rb'(\{"type":"\w+","sid":)\d+(?:(,"seq":)\d+)?(,"msg":\{.*)', re.DOTALL)
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)
_MSG: Final = b',"msg":'
_SID: Final = b'"sid"'
_SEQ: Final = b'"seq"'
_ID: Final = b'"id"'
PRICE_WHOLE_CENTS: Final = 100


class Numbers(IntEnum):
    """Which numbers stand in a frame's envelope, and in which order."""

    NONE = 0
    SID = 1
    SID_SEQ = 2
    SEQ_SID = 3
    SEQ = 4


_ORDERS: Final = {
    "": Numbers.NONE,
    "i": Numbers.SID,
    "ie": Numbers.SID_SEQ,
    "ei": Numbers.SEQ_SID,
    "e": Numbers.SEQ,
}


# Names of their own: looking a member up in its class costs more than the whole of the cut.
_WITH_SID: Final = Numbers.SID
_WITH_BOTH: Final = Numbers.SID_SEQ
_TURNED: Final = Numbers.SEQ_SID
_WITH_SEQ: Final = Numbers.SEQ


class Cut(NamedTuple):
    """A frame without its numbers: they belong between the parts."""

    numbers: Numbers
    first: bytes
    second: bytes
    third: bytes

    @property
    def has_seq(self) -> bool:
        """Whether the frame takes a number of its subscription."""
        return self.numbers >= _WITH_BOTH

    def frame(self, sid: int, seq: int) -> bytes:
        """The frame under other numbers; a number for which it has no room is left out."""
        numbers, first, second, third = self
        if numbers is _WITH_BOTH:
            return b"%b%d%b%d%b" % (first, sid, second, seq, third)
        if numbers is _WITH_SID:
            return b"%b%d%b" % (first, sid, second)
        if numbers is _TURNED:
            return b"%b%d%b%d%b" % (first, seq, second, sid, third)
        if numbers is _WITH_SEQ:
            return b"%b%d%b" % (first, seq, second)
        return first

    def answering(self, command_id: int) -> Cut:
        """The same as the answer to a command."""
        at = self.first.index(b"{") + 1
        head = b'%b"id":%d,%b' % (self.first[:at], command_id, self.first[at:])
        return self._replace(first=head)

    def msg(self) -> bytes:
        """JSON text of the frame's `msg`."""
        last = self.third or self.second
        if last.startswith(_MSG) and last.endswith(b"}"):
            return last[len(_MSG) : -1]
        return orjson.dumps(orjson.loads(self.frame(0, 0))["msg"])


def cut(frame: bytes) -> Cut | None:
    """A frame that was decoded, without its numbers; None where that cannot be done."""
    if frame.endswith(b"}}"):
        found = _IN_USE.fullmatch(frame)
        if found is not None:
            first, second, third = found.groups()
            if b'"id"' not in third:
                if second is None:
                    return Cut(_WITH_SID, first, third, b"")
                return Cut(_WITH_BOTH, first, second, third)
    return cut_any(frame)


def cut_any(frame: bytes) -> Cut | None:
    """Any JSON object, without its numbers and `id`. None: not JSON, or a number stands twice."""
    try:
        if not isinstance(orjson.loads(frame), dict):
            return None
    except orjson.JSONDecodeError:
        return None
    members = list(_members(frame))
    names = [member.name for member in members]
    if any(names.count(name) > 1 for name in (_SID, _SEQ, _ID)):
        return None
    removed = _id_span(members)
    at, parts, order = 0, [], ""
    for member in members:
        if member.name in (_SID, _SEQ):
            parts.append(_without(frame, at, member.value_start, removed))
            at, order = member.value_end, order + ("i" if member.name == _SID else "e")
    parts.append(_without(frame, at, len(frame), removed))
    first, second, third = (*parts, b"", b"")[:3]
    return Cut(_ORDERS[order], first, second, third)


class _Member(NamedTuple):
    """A member of the frame's object: its quoted name, and where name and value stand."""

    name: bytes
    start: int
    value_start: int
    value_end: int


def _members(frame: bytes) -> Iterator[_Member]:
    """The members of a JSON object (`frame` is one)."""
    depth, name, start, value_start, end = 0, b"", 0, -1, 0
    for token in _TOKEN.finditer(frame):
        text = token[0]
        if depth == 1 and not name and text[:1] == b'"':
            name, start = text, token.start()
            continue
        if depth == 1 and name and value_start < 0 and text != b":":
            value_start = token.start()
        if depth == 1 and name and text in (b",", b"}"):
            yield _Member(name, start, value_start, end)
            name, value_start = b"", -1
        depth += (text in (b"{", b"[")) - (text in (b"}", b"]"))
        end = token.end()


def _id_span(members: list[_Member]) -> tuple[int, int]:
    """From where to where a frame is left out so that it has no `id`; (0, 0) where it has none."""
    for place, member in enumerate(members):
        if member.name == _ID and place:
            return members[place - 1].value_end, member.value_end
        if member.name == _ID:
            return member.start, members[1].start if len(members) > 1 else member.value_end
    return 0, 0


def _without(text: bytes, start: int, end: int, removed: tuple[int, int]) -> bytes:
    low, high = removed
    return text[start : max(start, min(end, low))] + text[min(end, max(start, high)) : end]


def on_yes_scale(frame: bytes) -> bytes:
    """A delta of the no side, or a snapshot, with the no side's prices on the yes scale. What else
    is in the frame keeps its value. Raises ValueError, KeyError or TypeError where it cannot be
    read so."""
    row: dict[str, Any] = orjson.loads(frame)
    msg = row["msg"]
    for key in ("no_dollars_fp", "no_dollars", "no"):
        if key in msg:
            turned = [[_turned(price), *rest] for price, *rest in msg[key] or []]
            msg[key] = turned[::-1]
    for key in ("price_dollars", "price"):
        if key in msg and msg.get("side") == "no":
            msg[key] = _turned(msg[key])
    return orjson.dumps(row)


def _turned(price: object) -> str | int:
    """One dollar less the price, in the form it has: text of dollars, or whole cents."""
    if isinstance(price, int):
        return PRICE_WHOLE_CENTS - price
    if not isinstance(price, str):
        raise TypeError(f"{price!r} is no price")
    whole, _, decimals = price.partition(".")
    places = len(decimals)
    left = 10**places - int(whole + decimals)
    digits = f"{left:0{places + 1}d}"
    return f"{digits[:-places]}.{digits[-places:]}" if places else digits
