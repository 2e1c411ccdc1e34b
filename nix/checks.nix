# nix flake check: every module of every closure imports with nothing but the closure; the unit files are the units.
pkgs: packages:
let
  lock = builtins.fromJSON (builtins.readFile ./wheels.json);
  # pyarrow and boto3 are 165 MB that the recorder has no use for.
  forbidden = {
    gatherer = [
      "pyarrow"
      "boto3"
      "botocore"
      "duckdb"
    ];
  };
  imports =
    name:
    pkgs.runCommand "check-${name}"
      {
        MEMBERS = builtins.concatStringsSep " " lock.services.${name}.members;
        FORBIDDEN = builtins.concatStringsSep " " (forbidden.${name} or [ ]);
      }
      ''
        ${packages.${name}}/bin/python3 -I ${./closure_check.py} ${packages.${name}} "$out"
      '';
  units = (import ./unit-files.nix).files;
  file = name: ../systemd + "/${name}";
  differs =
    name: !builtins.pathExists (file name) || builtins.readFile (file name) != units.${name};
  different = builtins.filter differs (builtins.attrNames units);
in
{
  gatherer = imports "gatherer";
  deduplicator = imports "deduplicator";
  cloudwatch = imports "cloudwatch";
  tape = imports "tape";
  units =
    if different == [ ] then
      pkgs.runCommand "check-units" { } ''mkdir "$out"''
    else
      throw "systemd/ is not what nix/units.nix says: ${builtins.concatStringsSep " " different}";
}
