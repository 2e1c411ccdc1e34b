{
  description = "Kalshi Tape: records the Kalshi exchange three times over and proves the merged tape";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      each = import ./nix/systems.nix;
      pkgs = system: nixpkgs.legacyPackages.${system};
      revision = self.rev or "uncommitted";
    in
    {
      packages = each (system: import ./nix/packages.nix { inherit nixpkgs system revision; });
      apps = each (system: import ./nix/apps.nix (pkgs system) self.packages.${system});
      checks = each (system: import ./nix/checks.nix (pkgs system) self.packages.${system});
      devShells = each (system: import ./nix/shell.nix (pkgs system));
      formatter = each (system: (pkgs system).nixfmt-tree);
      nixosModules.default = import ./nix/module.nix;
    };
}
