"""What our gatherer sends is what the exchange documents: commands, their limits, the signature.

The signature is verified here with `cryptography` alone, in the way the exchange does it: salt
length found out, standard base64, path with its prefix and without the query.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from gatherer.auth import Signer
from marketdata import commands, events, plan, wire
from marketdata.effects import SendCommand, SessionSettings
from marketdata.session import Effects, Session
from tests.unit.protocol import facts
from tests.unit.protocol.shapes import code_known, command_faults

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
WALL_NS = 1_786_085_188_123_456_789
STAMP = "1786085188123"
CHANNELS = tuple(name for own in plan.OWN_CONNECTIONS.values() for name in own)
BOOKS = [f"KXTEST-26-T{n}" for n in range(5)]


def sent(effects: Effects) -> list[dict[str, Any]]:
    return [json.loads(e.payload) for e in effects if isinstance(e, SendCommand)]


class Exchange:
    """Answers every command of a session at once, and keeps what it was told."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.told: list[dict[str, Any]] = []
        self._sids: dict[str, int] = {}

    def hear(self, effects: Effects, now_ns: int) -> None:
        """Answers until nothing more is asked."""
        waiting = sent(effects)
        while waiting:
            command = waiting.pop(0)
            self.told.append(command)
            for event in self._answers(command):
                waiting += sent(self.session.on_event(event, now_ns))

    def wait(self, now_ns: int) -> int:
        """Silence but for answers: probes and audit rounds. Returns the time after it."""
        for _ in range(40):
            now_ns = max(now_ns, self.session.next_due() or now_ns) + 1
            self.hear(self.session.on_timer(now_ns), now_ns)
        return now_ns

    def _answers(self, command: dict[str, Any]) -> Iterator[events.Decoded]:
        number, params = command["id"], command.get("params", {})
        if command["cmd"] == "list_subscriptions":
            yield events.Ok(number, None, None, None, list(self._sids.items()))
            return
        if command["cmd"] == "subscribe":
            (channel,) = params["channels"]
            sid = self._sids[channel] = len(self.told)
            yield events.Subscribed(number, channel, sid)
        else:
            (sid,) = params["sids"]
            if params["action"] != "get_snapshot":
                yield events.Ok(number, sid, 1, None, None)
        if params.get("action") != "delete_markets":
            for ticker in params.get("market_tickers", ()):
                yield events.Snapshot(ticker, [], [], sid, 1, number)


def life_of_a_session() -> list[dict[str, Any]]:
    """Subscribe, add, drop, repair a gap, audit, probe a silence, subscribe anew after error 25."""
    session = Session(SessionSettings(channels=CHANNELS, tickers_per_command=3))
    exchange = Exchange(session)
    now_ns = 1
    session.want(BOOKS[:4], now_ns)
    exchange.hear(session.on_open(now_ns), now_ns)
    exchange.hear(session.want(BOOKS[1:], now_ns), now_ns)
    book_sid = session.sid_of("orderbook_delta")
    assert book_sid is not None
    exchange.hear(session.on_gap(book_sid, now_ns), now_ns)
    now_ns = exchange.wait(now_ns)
    overflow = events.Error(25, "Subscription buffer overflow", [], None, book_sid, 9)
    exchange.hear(session.on_event(overflow, now_ns), now_ns)
    assert session.sid_of("orderbook_delta") not in (None, book_sid)
    return exchange.told


def life_without_books() -> list[dict[str, Any]]:
    """The connection of the channels without markets; a silence is probed by another command."""
    exchange = Exchange(Session(SessionSettings(channels=CHANNELS)))
    exchange.hear(exchange.session.on_open(1), 1)
    exchange.wait(1)
    return exchange.told


def test_every_command_of_a_session_is_documented() -> None:
    """Whatever happens to a connection, no command has a name or parameter of our own."""
    told = life_of_a_session()
    quiet = life_without_books()
    assert [fault for command in quiet for fault in command_faults(command)] == []
    assert [fault for command in told for fault in command_faults(command)] == []
    names = {command["cmd"] for command in told + quiet}
    assert names == {"subscribe", "update_subscription", "list_subscriptions"}
    actions = {c["params"]["action"] for c in told if c["cmd"] == "update_subscription"}
    assert actions == facts.ACTIONS
    ids = [command["id"] for command in told]
    assert len(set(ids)) == len(ids)
    books = [c for c in told if "orderbook_delta" in c.get("params", {}).get("channels", ())]
    assert books
    assert all(c["params"]["use_yes_price"] is False for c in books)  # its default will flip


def test_every_encoder_is_documented() -> None:
    texts = [
        wire.subscribe(1, ["orderbook_delta"], BOOKS),
        wire.subscribe(2, ["orderbook_delta", "trade"], BOOKS, use_yes_price=True),
        wire.subscribe(3, ["trade"]),
        wire.subscribe(4, ["ticker"], BOOKS, send_initial_snapshot=True),
        *(wire.update_subscription(5, 1, action, BOOKS) for action in commands._ACTIONS.values()),
        wire.unsubscribe(6, [1, 2]),
        wire.list_subscriptions(7),
    ]
    assert [fault for text in texts for fault in command_faults(json.loads(text))] == []
    assert set(commands._ACTIONS.values()) == facts.ACTIONS
    assert {*CHANNELS, plan.COMBO_LIFECYCLE_CHANNEL} <= facts.CHANNELS


def test_codes_that_the_session_acts_on_mean_what_it_takes_them_for() -> None:
    assert facts.TERMINAL_CODES <= commands.TERMINAL_CODES
    acted_on = commands.TERMINAL_CODES | commands.RETRY_CODES | commands.TICKER_CODES
    assert all(code_known(code) for code in acted_on)
    assert not code_known(99)
    assert not code_known(0)
    known = facts.CODES | facts.RETIRED_CODES
    named = {
        commands.CODE_ALREADY_SUBSCRIBED: "already subscribed",
        commands.CODE_AUTHENTICATION: "authentication required",
        commands.CODE_UNSUPPORTED_ACTION: "unsupported action",
        commands.CODE_MARKET_LIMIT: "subscription market limit exceeded",
    }
    assert named == {code: known[code] for code in named}
    assert {known[code] for code in commands.RETRY_CODES} == {
        "command timeout",
        "too many requests",
    }
    settings = SessionSettings()
    assert settings.commands_per_s <= 10_000


def verify(headers: dict[str, str], signed: str) -> None:
    """As the exchange: PSS with SHA-256 and any salt, standard base64."""
    signature = base64.b64decode(headers["KALSHI-ACCESS-SIGNATURE"], validate=True)
    how = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO)
    KEY.public_key().verify(signature, signed.encode("utf-8"), how, hashes.SHA256())


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("wss://external-api-ws.kalshi.com/trade-api/ws/v2", "/trade-api/ws/v2"),
        ("https://external-api.kalshi.com/trade-api/v2/markets?limit=1", "/trade-api/v2/markets"),
        (
            "https://external-api.kalshi.com/trade-api/v2/markets/KX-26-T1.5/orderbook?depth=0",
            "/trade-api/v2/markets/KX-26-T1.5/orderbook",
        ),
    ],
)
def test_the_signature_is_what_the_exchange_verifies(url: str, path: str) -> None:
    headers = Signer("7f9b0c4e-0000-4000-8000-000000000001", KEY).headers("get", url, WALL_NS)
    assert set(headers) == facts.HEADERS
    assert headers["KALSHI-ACCESS-TIMESTAMP"] == STAMP
    assert path.startswith(facts.REST_PREFIX) or path == facts.WS_PATH
    verify(headers, f"{STAMP}GET{path}")
    salt = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    signature = base64.b64decode(headers["KALSHI-ACCESS-SIGNATURE"])
    KEY.public_key().verify(signature, f"{STAMP}GET{path}".encode(), salt, hashes.SHA256())
    query = "?" + url.partition("?")[2]
    for wrong in (
        f"{STAMP}GET{path}{query}x",  # with the query
        f"{STAMP}GET{path.removeprefix('/trade-api')}",  # without the prefix
        f"{STAMP[:-3]}GET{path}",  # seconds
        f"{STAMP}get{path}",
        f"{STAMP}POST{path}",
        f"{STAMP} GET {path}",
    ):
        with pytest.raises(InvalidSignature):
            verify(headers, wrong)


@pytest.mark.parametrize(
    "sign",
    [
        lambda text: KEY.sign(text, padding.PKCS1v15(), hashes.SHA256()),
        lambda text: KEY.sign(text, padding.PSS(padding.MGF1(hashes.SHA1()), 20), hashes.SHA256()),
        lambda text: KEY.sign(
            text, padding.PSS(padding.MGF1(hashes.SHA512()), 32), hashes.SHA512()
        ),
    ],
)
def test_another_kind_of_signature_is_found(sign: Callable[[bytes], bytes]) -> None:
    """Negative control of `verify`: padding, mask and digest."""
    text = f"{STAMP}GET{facts.WS_PATH}"
    headers = {"KALSHI-ACCESS-SIGNATURE": base64.b64encode(sign(text.encode())).decode()}
    with pytest.raises(InvalidSignature):
        verify(headers, text)


def test_the_largest_salt_is_accepted_as_the_exchange_accepts_it() -> None:
    text = f"{STAMP}GET{facts.WS_PATH}"
    how = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH)
    signature = KEY.sign(text.encode(), how, hashes.SHA256())
    verify({"KALSHI-ACCESS-SIGNATURE": base64.b64encode(signature).decode()}, text)
