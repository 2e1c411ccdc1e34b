"""Tools beside the Nix files: they run at development time, never in a closure's service."""
