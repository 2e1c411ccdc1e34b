"""What can go wrong on the way to the hosts.

TapeError
└── DeployError       a deploy cannot go on as it was asked for
    ├── UnreachableError   a host does not answer, or the line to it broke
    ├── HostRefusedError   a host answered, and said no; its words are in the message
    └── PlanError     releases, fleet and wishes do not fit together; nothing was touched
"""

from __future__ import annotations

from marketdata.errors import TapeError


class DeployError(TapeError):
    """A deploy cannot go on as it was asked for."""

    reason = "deploy"


class UnreachableError(DeployError):
    """A host does not answer, or the line to it broke: what it was told may have happened."""

    reason = "unreachable"


class HostRefusedError(DeployError):
    """A host did not do what it was told."""

    reason = "host_refused"


class PlanError(DeployError):
    """What was asked for does not fit together. Nothing was touched."""

    reason = "plan"
