"""What clients ask for: subscribe, update_subscription, unsubscribe, list_subscriptions.

Purpose: the command half of the protocol (kalshi reference sections 4.2 to 4.4 and 4.11): replies,
error codes, sid and seq rules. Works on the venue's connections; pure like the venue.

Invariants: EXCH-13 the answer to a command precedes the snapshots of that command; EXCH-14 a
market's snapshot precedes its first delta on that sid, except under the late-snapshot fault;
EXCH-15 commands of one batch may be carried out out of order only under a fault plan.

Does not do: events and time (venue), reading sockets (server).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson

from exchange.connection import Connection, Deferred, Subscription
from exchange.faults import FaultLevel
from exchange.frames import frame_head
from exchange.truth import SEND_REPLY
from exchange.venue import CHANNELS, LIFECYCLE, Venue

ERROR_TEXTS: Final = {
    1: "Unable to process message",
    2: "Params required",
    3: "Channels required",
    4: "Subscription IDs required",
    5: "Unknown command",
    7: "Unknown subscription ID",
    8: "Unknown channel name",
    11: "Invalid parameter",
    12: "Exactly one subscription ID is required",
    13: "Unsupported action",
    14: "Market Ticker required",
    15: "Action required",
    27: "Too many requests",
}
LATE_ALL_UP_TO: Final = 3  # markets; of a longer list only some come late
LATE_SHARE: Final = 0.02
DEFERRED_MAX: Final = 1_000  # channels that one connection waits for


class CommandFault(Exception):  # noqa: N818 (the exchange's answer, not a failure of ours)
    """A command that is answered with an error frame."""

    def __init__(self, code: int) -> None:
        super().__init__(ERROR_TEXTS[code])
        self.code = code


@dataclass(frozen=True, slots=True)
class Command:
    """A command as read from the wire. `id` 0 means none."""

    id: int
    name: str
    params: dict[str, Any] | None


def carry_out(venue: Venue, connection: Connection) -> None:
    """Carries out all commands that wait on a connection; shuffled under a fault plan."""
    waiting, connection.deferred = connection.deferred, []
    for held in waiting:
        _subscribe_when_there(venue, connection, held)
    texts, connection.commands = connection.commands, []
    if len(texts) > 1 and venue.plan.level != FaultLevel.NONE:
        connection.rng.shuffle(texts)
        venue.tell("shuffled", connection, commands=len(texts))
    for text in texts:
        if connection.closing is None:
            _carry_out_one(venue, connection, text)


def _carry_out_one(venue: Venue, connection: Connection, text: bytes) -> None:
    command_id = 0
    try:
        command = _read(text)
        command_id = command.id
        _ACTS.get(command.name, _unknown)(venue, connection, command)
    except CommandFault as fault:
        _refuse(connection, command_id, fault.code)


def _reply(connection: Connection, command_id: int, **row: Any) -> None:
    """An answer without seq. Id 0 means that the command had none."""
    connection.reply({"id": command_id, **row} if command_id else row)


def _refuse(connection: Connection, command_id: int, code: int) -> None:
    _reply(connection, command_id, type="error", msg={"code": code, "msg": ERROR_TEXTS[code]})


def _read(text: bytes) -> Command:
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise CommandFault(1) from None
    match row:
        case {"cmd": str(name)}:
            command_id, params = row.get("id", 0), row.get("params")
            if not isinstance(command_id, int) or command_id < 0:
                raise CommandFault(1)
            return Command(command_id, name, params if isinstance(params, dict) else None)
        case _:
            raise CommandFault(1)


def _params(command: Command) -> dict[str, Any]:
    if not command.params:
        raise CommandFault(2)
    return command.params


def _tickers(params: dict[str, Any]) -> list[str] | None:
    """The markets named by the parameters; None if none are. One form, not both."""
    one, many = params.get("market_ticker"), params.get("market_tickers")
    if one is not None and many is not None:
        raise CommandFault(11)
    named = [one] if one is not None else many
    if named is None:
        return None
    if not isinstance(named, list) or not all(isinstance(ticker, str) for ticker in named):
        raise CommandFault(11)
    return named


def _known(venue: Venue, tickers: list[str]) -> list[int]:
    """Numbers of the tickers that exist, each once, in the order asked for."""
    numbers = (venue.numbers.get(ticker) for ticker in tickers)
    return list(dict.fromkeys(number for number in numbers if number is not None))


def _unknown(venue: Venue, connection: Connection, command: Command) -> None:  # noqa: ARG001
    raise CommandFault(5)


def _check_channel(channel: object, tickers: list[str] | None) -> None:
    if channel not in CHANNELS:
        raise CommandFault(8)
    if channel == "orderbook_delta" and not tickers:
        raise CommandFault(14)


def _subscribe(venue: Venue, connection: Connection, command: Command) -> None:
    params = _params(command)
    channels = params.get("channels")
    if not isinstance(channels, list) or not channels:
        raise CommandFault(3)
    tickers = _tickers(params)
    for channel in channels:
        try:
            _check_channel(channel, tickers)
            asked = Deferred(command.id, params, channel, tickers)
            _subscribe_when_there(venue, connection, asked)
        except CommandFault as fault:
            _refuse(connection, command.id, fault.code)


def _subscribe_when_there(venue: Venue, connection: Connection, asked: Deferred) -> None:
    """Now, or once the venue has the channel again."""
    if asked.channel not in venue.lost:
        _subscribe_one(venue, connection, asked)
    elif len(connection.deferred) < DEFERRED_MAX:
        connection.deferred.append(asked)
    else:
        _refuse(connection, asked.command_id, 27)


def _subscribe_one(venue: Venue, connection: Connection, asked: Deferred) -> None:
    command_id, params, channel, tickers = asked
    wanted = None if channel == LIFECYCLE or not tickers else _known(venue, tickers)
    subscription = connection.by_channel.get(channel)
    if subscription is None:
        connection.sids_given += 1
        subscription = Subscription(
            connection=connection,
            channel=channel,
            sid=connection.sids_given,
            sequenced=channel != "ticker",
            markets=None if wanted is None else set(),
            skip_ack=bool(params.get("skip_ticker_ack")),
            yes_price=channel == "orderbook_delta" and bool(params.get("use_yes_price")),
        )
        connection.by_sid[subscription.sid] = subscription
        connection.by_channel[channel] = subscription
        msg = {"channel": channel, "sid": subscription.sid}
        _reply(connection, command_id, type="subscribed", msg=msg)
        if wanted is None:
            venue.attach(subscription, None)
        else:
            _add(venue, subscription, wanted, lambda: None)
        return
    subscription.skip_ack = subscription.skip_ack or bool(params.get("skip_ticker_ack"))
    _add(venue, subscription, wanted or [], lambda: _ok(venue, subscription, command_id))


def _add(
    venue: Venue, subscription: Subscription, numbers: list[int], answer: Callable[[], None]
) -> None:
    """Adds markets, answers, then sends the snapshots of those that are new."""
    subscription.seal()
    held = subscription.markets
    new = [] if held is None else [number for number in numbers if number not in held]
    if held is not None:
        held.update(new)
        venue.attach(subscription, new)
    answer()
    if subscription.channel != "orderbook_delta":
        return
    late = _late(venue, subscription.connection, new)
    for number in new:
        if number in late:
            subscription.late.add(number)
            at_us = venue.now_us + venue.plan.late_us(subscription.connection.rng)
            venue.set_timer(at_us, "late", subscription.connection, subscription, number)
        else:
            venue.send_snapshot(subscription, number)


def _late(venue: Venue, connection: Connection, new: list[int]) -> set[int]:
    rng = connection.rng
    if not new or venue.done or rng.random() >= venue.plan.rates.late_snapshot:
        return set()
    share = 1.0 if len(new) <= LATE_ALL_UP_TO else LATE_SHARE
    late = {number for number in new if rng.random() < share}
    if late:
        venue.tell("late_snapshot", connection, markets=len(late))
    return late


def _ok(venue: Venue, subscription: Subscription, command_id: int) -> None:
    """An `ok` of a subscription: sequenced unless the channel is not; lists all its markets."""
    row: dict[str, Any] = {}
    if not subscription.skip_ack and subscription.markets is not None:
        tickers = sorted(venue.markets[number].spec.ticker for number in subscription.markets)
        row = {"market_tickers": tickers}
    if subscription.sequenced:
        head = frame_head("ok", subscription.sid, command_id=command_id)
        tail = b',"msg":%b}' % orjson.dumps(row)
        subscription.emit(head, tail, -1, -1, SEND_REPLY)
    else:
        _reply(subscription.connection, command_id, sid=subscription.sid, type="ok", msg=row)


def _update(venue: Venue, connection: Connection, command: Command) -> None:
    params = _params(command)
    subscription = _one_sid(connection, params)
    action = params.get("action")
    if not action:
        raise CommandFault(15)
    if action not in ("add_markets", "delete_markets", "get_snapshot"):
        raise CommandFault(13)
    tickers = _tickers(params)
    if not tickers:
        raise CommandFault(14)
    numbers = _known(venue, tickers)
    if action == "add_markets":
        _add(venue, subscription, numbers, lambda: _ok(venue, subscription, command.id))
    elif action == "delete_markets":
        _delete(venue, subscription, numbers, command.id)
    elif subscription.channel != "orderbook_delta":
        raise CommandFault(13)
    else:
        held = subscription.markets or set()
        for number in numbers:
            if number in held:
                venue.send_snapshot(subscription, number, command_id=command.id)


def _delete(venue: Venue, subscription: Subscription, numbers: list[int], command_id: int) -> None:
    subscription.seal()
    held = subscription.markets
    if held is not None:
        leaving = [number for number in numbers if number in held]
        held.difference_update(leaving)
        subscription.late.difference_update(leaving)
        venue.detach(subscription, leaving)
    _ok(venue, subscription, command_id)


def _one_sid(connection: Connection, params: dict[str, Any]) -> Subscription:
    sid, sids = params.get("sid"), params.get("sids")
    named = [sid] if sid is not None else sids
    if not named or not isinstance(named, list):
        raise CommandFault(4)
    if len(named) != 1 or (sid is not None and sids is not None):
        raise CommandFault(12)
    subscription = connection.by_sid.get(named[0]) if isinstance(named[0], int) else None
    if subscription is None:
        raise CommandFault(7)
    return subscription


def _unsubscribe(venue: Venue, connection: Connection, command: Command) -> None:
    sids = _params(command).get("sids")
    if not isinstance(sids, list) or not sids:
        raise CommandFault(4)
    for sid in sids:
        subscription = connection.by_sid.get(sid) if isinstance(sid, int) else None
        if subscription is None:
            _refuse(connection, command.id, 7)
            continue
        subscription.seal()
        if subscription.sequenced:
            head = frame_head("unsubscribed", sid, command_id=command.id)
            subscription.emit(head, b"}", -1, -1, SEND_REPLY)
        else:
            _reply(connection, command.id, sid=sid, type="unsubscribed")
        venue.unsubscribe(subscription)


def _list(venue: Venue, connection: Connection, command: Command) -> None:  # noqa: ARG001
    subscriptions = sorted(connection.by_sid.items())
    msg = [{"channel": held.channel, "sid": sid} for sid, held in subscriptions]
    _reply(connection, command.id, type="ok", msg=msg)


_ACTS: Final[dict[str, Callable[[Venue, Connection, Command], None]]] = {
    "subscribe": _subscribe,
    "update_subscription": _update,
    "unsubscribe": _unsubscribe,
    "list_subscriptions": _list,
}
