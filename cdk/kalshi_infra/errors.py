"""Exceptions of the AWS side.

InfraError
├── SettingsError      topology, site or option values that cannot be used; lists every fault found
├── TemplateError      a template holds something that a reader of ours does not know
├── PriceError         a billable resource without a price
└── DisruptionError    a deploy would stop or replace a host that nobody named
"""


class InfraError(Exception):
    """Base of everything that this package raises on purpose."""


class SettingsError(InfraError):
    """Values that cannot be used. All faults are reported together, one a line."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(faults))


class TemplateError(InfraError):
    """A template holds a type, property or reference that its reader does not know."""


class PriceError(InfraError):
    """A billable resource type, instance type or quantity has no price."""


class DisruptionError(InfraError):
    """A deploy would stop or replace hosts that were not named."""
