# The units and what they need, rendered from nix/units.nix. Included by the root Makefile.
# nix-instantiate: Debian's nix-bin, or any Nix. The evaluation reads two files and touches no store.
UNITS_RENDER := nix-instantiate --eval --strict --json --readonly-mode nix/units.nix

.PHONY: units units-check

units:
	$(UNITS_RENDER) | $(PYTHON) systemd/write_units.py systemd

units-check:
	$(UNITS_RENDER) | $(PYTHON) systemd/write_units.py --check systemd
