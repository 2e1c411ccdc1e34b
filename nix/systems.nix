# The systems that closures exist for: the hosts (AWS Graviton) and the machines of those who work on them.
let
  systems = [
    "aarch64-linux"
    "x86_64-linux"
  ];
in
f:
builtins.listToAttrs (
  map (system: {
    name = system;
    value = f system;
  }) systems
)
