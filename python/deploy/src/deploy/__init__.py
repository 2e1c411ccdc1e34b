"""Bringing a release to the hosts, one by one, while the others record (docs/deploy.md)."""
