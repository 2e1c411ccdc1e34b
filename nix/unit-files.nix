# Where the files of units.nix lie in which closure (docs/units.md). Without units.nix there are none.
let
  files = if builtins.pathExists ./units.nix then import ./units.nix else { };
  starts = prefix: name: builtins.substring 0 (builtins.stringLength prefix) name == prefix;
  isUnit = name: builtins.match ".*\\.(service|target|timer|socket)" name != null;
  isExample = name: builtins.match ".*\\.example" name != null;

  # First match wins; what belongs to no one closure is in each of them.
  owner =
    name:
    if isExample name then
      "release"
    else if starts "kalshi-gatherer" name then
      "gatherer"
    else if starts "kalshi-deduplicator" name || starts "kalshi-backup" name then
      "deduplicator"
    else if starts "kalshi-cloudwatch" name then
      "cloudwatch"
    else if starts "kalshi-postgres" name || starts "kalshi-timescaledb" name || name == "kalshi-reader.sql" then
      "postgres"
    else
      "all";

  place =
    name:
    if isUnit name then
      "lib/systemd/system/${name}"
    else if name == "kalshi-sysusers.conf" then
      "lib/sysusers.d/kalshi.conf"
    else if name == "kalshi-tmpfiles.conf" then
      "lib/tmpfiles.d/kalshi.conf"
    else
      "share/kalshi/${name}";

  copy = name: ''
    mkdir -p "$out/${dirOf (place name)}"
    cp ${builtins.toFile name files.${name}} "$out/${place name}"
  '';
  install = names: builtins.concatStringsSep "" (map copy names);
  owned = wanted: name: owner name == wanted || owner name == "all";
in
{
  inherit files place isUnit;
  # Builder text that puts a closure's own files into it, or all of them.
  installFor = closure: install (builtins.filter (owned closure) (builtins.attrNames files));
  installAll = install (builtins.attrNames files);
}
