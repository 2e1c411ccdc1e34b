# For hosts that run NixOS: the same unit texts as on Debian, under NixOS's own names. Importing it is enabling it.
# The units name programs by profile, so closures arrive there as on any host.
{ ... }:
let
  unitFiles = import ./unit-files.nix;
  inherit (unitFiles) files;
  units = builtins.filter unitFiles.isUnit (builtins.attrNames files);
  etc = builtins.filter (name: builtins.hasAttr name files) [
    "kalshi-sysusers.conf"
    "kalshi-tmpfiles.conf"
  ];
  named =
    value: names:
    builtins.listToAttrs (map value names);
in
{
  systemd.units = named (name: {
    inherit name;
    value = {
      text = files.${name};
      wantedBy = if name == "kalshi.target" then [ "multi-user.target" ] else [ ];
    };
  }) units;
  environment.etc = named (name: {
    name = builtins.replaceStrings [ "lib/" ] [ "" ] (unitFiles.place name);
    value.text = files.${name};
  }) etc;
}
