"""Faults that somebody switches on and off while the play goes on: `POST /sim/switch`.

Purpose: what a fault plan cannot place because a test has to see it begin and end: REST down, an
expired key and its successor, a storm of error 25, frames that no exchange should send, and the
patience with a client that does not read. The body is a JSON object of any of

    {"rest": "up" | "down" | "drop"}           503 for every call, or the connection dropped
    {"key": "expired"}                         everybody is cut off; 401 for every request
    {"key": {"pem": "...", "id": "..."}}       only this public key (and key id) is accepted
    {"storm": {"channel": "...", "seconds": 5, "every_s": 0.2}}   error 25 on each living sid
    {"poison": ["no_price", ...]}              names of `poison`; strays now, mangled with the next
                                               frames of every book subscription
    {"slow_client_s": 2}                       who does not read for so long is cut off; null: waits

Every change is a line of faults.jsonl. Time comes in (`attend`), so that a play stays the play of
its seed: switches add to it, they draw nothing.

Does not do: HTTP (main), waiting (conductor).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from exchange import poison
from exchange.auth import Verifier, read_public_key
from exchange.connection import Connection
from exchange.frames import frame_head
from exchange.truth import SEND_REPLY
from exchange.venue import CHANNELS, OVERFLOW_CODE, Venue
from marketdata.errors import ConfigError

BOOKS: Final = "orderbook_delta"
EXPIRED: Final = ("key_expired", "the API key has expired")
REST_STATES: Final = ("up", "down", "drop")


@dataclass(slots=True)
class Storm:
    """Error 25 again and again. `until_s` is set when the storm is first attended to."""

    channel: str
    seconds: float
    every_s: float
    until_s: float = 0.0
    due_s: float = 0.0


class Switches:
    """The switches of one exchange."""

    def __init__(self, venue: Venue, verifier: Verifier) -> None:
        self._venue = venue
        self._verifier = verifier
        self._storm: Storm | None = None
        self.rest = "up"
        self.slow_client_s: float | None = None

    def turn(self, body: Any) -> None:
        """Carry out a request; ConfigError names what is not understood, and nothing was done."""
        if not isinstance(body, dict) or not body:
            raise ConfigError("a switch is a JSON object with at least one member")
        turns = {
            "rest": self._rest,
            "key": self._key,
            "storm": self._begin_storm,
            "poison": self._poison,
            "slow_client_s": self._patience,
        }
        unknown = sorted(set(body) - set(turns))
        if unknown:
            raise ConfigError(f"there is no switch {', '.join(unknown)}")
        for name, value in body.items():
            turns[name](value)

    def attend(self, now_s: float) -> None:
        """What is due at a monotonic time."""
        storm = self._storm
        if storm is None:
            return
        if not storm.until_s:
            storm.until_s = now_s + storm.seconds
        if now_s >= storm.until_s:
            self._storm = None
            self._venue.tell("storm_ends", None, channel=storm.channel)
        elif now_s >= storm.due_s:
            storm.due_s = now_s + storm.every_s
            for connection in list(self._venue.connections.values()):
                overflow(self._venue, connection, storm.channel)

    def too_slow(self, connection: Connection) -> None:
        """The client has not read for longer than `slow_client_s`."""
        self._venue.cut(connection, "reset", "slow_client")

    # --- the switches

    def _rest(self, value: Any) -> None:
        if value not in REST_STATES:
            raise ConfigError(f"rest is one of {', '.join(REST_STATES)}, not {value!r}")
        self.rest = value
        self._venue.tell(f"rest_is_{value}", None)

    def _key(self, value: Any) -> None:
        if value == "expired":
            self._verifier.refusal = EXPIRED
            self._venue.tell("key_expired", None)
            for connection in list(self._venue.connections.values()):
                self._venue.cut(connection, "close", "key_cut")
            return
        if not isinstance(value, dict) or set(value) != {"pem", "id"}:
            raise ConfigError('key is "expired" or an object with pem and id')
        key: RSAPublicKey = read_public_key(str(value["pem"]).encode(), "key.pem")
        self._verifier.replace(key, str(value["id"]))
        self._venue.tell("key_replaced", None)

    def _begin_storm(self, value: Any) -> None:
        try:
            storm = Storm(
                str(value["channel"]), float(value["seconds"]), float(value.get("every_s", 0.2))
            )
        except (TypeError, KeyError, ValueError) as fault:
            raise ConfigError(f"a storm has a channel, seconds and every_s: {fault}") from None
        if storm.channel not in CHANNELS or storm.seconds <= 0 or storm.every_s <= 0:
            raise ConfigError(f"there is no such storm: {value}")
        self._storm = storm
        self._venue.tell("storm_begins", None, channel=storm.channel)

    def _poison(self, names: Any) -> None:
        if not isinstance(names, list):
            raise ConfigError("poison is a list of names")
        unknown = [n for n in names if n not in poison.STRAYS and n not in poison.MANGLED]
        if unknown:
            raise ConfigError(f"there is no poison {unknown[0]!r}")
        for connection in self._venue.connections.values():
            held = connection.by_channel.get(BOOKS)
            if held is None or connection.closing is not None:
                continue
            for name in names:
                self._venue.tell("poison", connection, name=name)
                if name in poison.STRAYS:
                    connection.put(poison.stray(name, held.sid), None)
                else:
                    held.poison.append(name)

    def _patience(self, value: Any) -> None:
        if value is not None and (not isinstance(value, int | float) or value < 0):
            raise ConfigError(f"slow_client_s is a number of seconds or null, not {value!r}")
        self.slow_client_s = value


def overflow(venue: Venue, connection: Connection, channel: str) -> None:
    """Error 25 on the sid of a channel, then silence on it."""
    subscription = connection.by_channel.get(channel)
    if subscription is None or connection.closing is not None:
        return
    venue.tell("overflow", connection, sid=subscription.sid, channel=channel)
    subscription.seal()
    msg = orjson.dumps({"code": OVERFLOW_CODE, "msg": "Subscription buffer overflow"})
    if subscription.sequenced:
        head = frame_head("error", subscription.sid)
        subscription.emit(head, b',"msg":%b}' % msg, -1, -1, SEND_REPLY)
    else:
        head = frame_head("error", subscription.sid, sequenced=False)
        connection.put(head + b',"msg":%b}' % msg, None)
    venue.unsubscribe(subscription)
