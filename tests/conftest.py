"""Settings of all tests: property tests are judged by what they find, never by their speed."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "tape",
    deadline=None,  # a loaded machine is no bug
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,  # a failure anywhere can be run again here
)
settings.load_profile("tape")
