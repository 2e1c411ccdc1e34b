# What is built: one closure a service, the database server, and the release that names them all.
{
  nixpkgs,
  system,
  revision,
}:
let
  pkgs = nixpkgs.legacyPackages.${system};
  lock = builtins.fromJSON (builtins.readFile ./wheels.json);
  project = (builtins.fromTOML (builtins.readFile ../pyproject.toml)).project;
  python = pkgs.${"python" + builtins.replaceStrings [ "." ] [ "" ] lock.python};
  closure = import ./python-closure.nix {
    inherit (pkgs)
      fetchPypi
      runCommand
      autoPatchelfHook
      stdenv
      zlib
      ;
    inherit python;
    pythonVersion = lock.python;
  };
  unitFiles = import ./unit-files.nix;
  service =
    name:
    closure {
      inherit name;
      inherit (project) version;
      inherit (lock.services.${name}) members;
      wheels = lock.services.${name}.wheels.${system};
      install = if name == "tape" then "" else unitFiles.installFor name;
    };
  closures = {
    gatherer = service "gatherer";
    deduplicator = service "deduplicator";
    cloudwatch = service "cloudwatch";
    tape = service "tape";
    postgres = pkgs.runCommand "kalshi-postgres-${project.version}" { } ''
      mkdir "$out"
      ln -s ${import ./postgres.nix { inherit nixpkgs system; }}/bin "$out/bin"
      ${unitFiles.installFor "postgres"}
    '';
  };
in
closures
// {
  default = closures.tape;
  release = import ./release.nix {
    inherit (pkgs) runCommand;
    inherit (project) version;
    inherit system revision closures;
  };
}
