"""Clients that others wrote, unmodified, against the simulated exchange: `make thirdparty`."""
