"""Fixtures of the integration tests: one real server a session."""

from __future__ import annotations

from tests.databases import postgres_server

__all__ = ["postgres_server"]
