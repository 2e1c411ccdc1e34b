{
  description = "A stand-in for nixpkgs, made of host tools and Debian packages: what docs/nix.md lists and nothing else";

  outputs =
    { self }:
    let
      each =
        f:
        builtins.listToAttrs (
          map (system: {
            name = system;
            value = f system;
          }) [ "aarch64-linux" "x86_64-linux" ]
        );
    in
    {
      legacyPackages = each (system: import ./. { inherit system; });
    };
}
