# One path that stands for a version: manifest.json with the store path of every closure, and all files of units.nix.
# A host is given the paths that its role needs; copying the release itself copies everything.
{
  runCommand,
  version,
  system,
  revision,
  closures,
}:
let
  unitFiles = import ./unit-files.nix;
in
runCommand "kalshi-release-${version}"
  {
    manifest = builtins.toJSON {
      format = 2;
      inherit version system revision;
      # Units are rendered from it: a release goes only to hosts that were made from the same one.
      topology = builtins.hashFile "sha256" ../topology.toml;
      closures = builtins.mapAttrs (_: closure: "${closure}") closures;
    };
  }
  ''
    mkdir "$out"
    printf '%s\n' "$manifest" > "$out/manifest.json"
    ${unitFiles.installAll}
  ''
