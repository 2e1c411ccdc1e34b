"""Ages of messages: a slow reader is told from a clock that is off and from a burst."""

from __future__ import annotations

import random

import pytest

from marketdata.message_age import SAMPLES_MAX, AgeTrack

S, MS = 1_000_000_000, 1_000_000
HOUR_NS = 3600 * S


def track_of(
    permille: int, *, start_ms: int = 200, seconds: int = 60, jitter_ms: int = 0, off_ns: int = 0
) -> AgeTrack:
    """Two looks a second at messages whose age grows by `permille` ms a second."""
    track, rng = AgeTrack(), random.Random(1)
    for n in range(2 * seconds):
        received_ns = 1_000 * S + n * S // 2
        age_ns = (start_ms + permille * n // 2 + rng.randrange(jitter_ms + 1)) * MS
        track.look(1, received_ns + off_ns, (received_ns - age_ns) // 1_000)
    return track


@pytest.mark.parametrize("permille", [0, 60, 300, 900, -40])
def test_the_slope_is_found_through_jitter(permille: int) -> None:
    age = track_of(permille, start_ms=5_000, jitter_ms=80).age()
    assert age is not None
    assert age.permille is not None
    assert abs(age.permille - permille) <= 3


def test_ageing_messages_mean_a_slow_reader() -> None:
    age = track_of(300).age()
    assert age is not None
    assert age.is_slow


@pytest.mark.parametrize(
    "track",
    [
        track_of(0, start_ms=9_000),  # a long way, or a clock that is off
        track_of(20, jitter_ms=50),
        track_of(0, off_ns=HOUR_NS),
        track_of(500, seconds=9),  # too short to tell
    ],
)
def test_old_but_steady_messages_do_not(track: AgeTrack) -> None:
    age = track.age()
    assert age is not None
    assert not age.is_slow


def test_a_quiet_connection_adds_no_sample() -> None:
    """Looking again at the same message must not make it older."""
    track = AgeTrack()
    for n in range(100):
        track.look(1, 1_000 * S + n * S, 999 * S // 1_000)
    age = track.age()
    assert age is not None
    assert (age.age_ms, age.permille) == (1_000, None)


def test_a_new_connection_begins_anew() -> None:
    track = track_of(300)
    track.look(2, 2_000 * S, 1_999 * S // 1_000)
    age = track.age()
    assert age is not None
    assert age.permille is None


def test_samples_are_bounded() -> None:
    track = AgeTrack()
    assert track.age() is None
    for n in range(10 * SAMPLES_MAX):
        track.look(1, 1_000 * S + n * MS, (1_000 * S + n * MS) // 1_000)
    assert len(track._samples) <= SAMPLES_MAX
