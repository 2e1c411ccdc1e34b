# The package set. Evaluation needs nothing beside this folder. To build, tests/nix/host.py writes debs.json (names and
# hashes of Debian packages) into a copy of it and puts the files into the store.
# A stand-in shows structure, not packaging: it knows nothing of the real packages behind these names.
{
  system,
  config ? { },
}:
let
  debs = if builtins.pathExists ./debs.json then builtins.fromJSON (builtins.readFile ./debs.json) else { };

  # The builder's PATH is the host's: dpkg-deb, patchelf, coreutils. Nothing of it may end in an output.
  runCommand =
    name: attributes: text:
    derivation (
      attributes
      // {
        inherit name system text;
        builder = "/bin/bash";
        args = [
          "-euc"
          ''
            export PATH=/usr/bin:/bin
            for input in ''${nativeBuildInputs:-}; do
              if [ -d "$input/bin" ]; then PATH=$input/bin:$PATH; fi
              if [ -f "$input/nix-support/setup-hook" ]; then . "$input/nix-support/setup-hook"; fi
            done
            eval "$text"
          ''
        ];
      }
    );

  # Fixed by hash, so the store holds the file before anybody asks for it; there is no address to fall back on.
  fixed =
    name: sha256:
    derivation {
      inherit name system;
      builder = "/bin/bash";
      args = [
        "-c"
        "echo \"$name is not in the store\" >&2; exit 1"
      ];
      outputHashMode = "flat";
      outputHashAlgo = "sha256";
      outputHash = sha256;
    };

  unpacked =
    name: script:
    runCommand name { debs = map (deb: fixed deb.file deb.sha256) (debs.${name} or [ ]); } ''
      mkdir tree
      for deb in $debs; do dpkg-deb -x "$deb" tree; done
      ${script}
    '';

  glibc = unpacked "glibc" ''
    mkdir -p "$out"
    cp -r tree/usr/lib/*-linux-gnu "$out/lib"
    rm -rf "$out/lib/gconv"
  '';
  compilerLibraries = unpacked "gcc-lib" ''
    mkdir -p "$out/lib"
    cp -a tree/usr/lib/*-linux-gnu/*.so* "$out/lib/"
  '';
  zlib = unpacked "zlib" ''
    mkdir -p "$out/lib"
    cp -a tree/usr/lib/*-linux-gnu/*.so* "$out/lib/"
  '';

  # Sets interpreter and library path of every program and library, and fails on one that it cannot complete.
  autoPatchelfHook = runCommand "auto-patchelf-hook" { inherit glibc; } ''
    mkdir -p "$out/nix-support"
    cat ${./auto-patchelf.sh} > "$out/nix-support/setup-hook"
    sed -i "s|@glibc@|$glibc|" "$out/nix-support/setup-hook"
  '';

  python313 = unpacked "python313" ''
    mkdir -p "$out/bin" "$out/lib"
    cp tree/usr/bin/python3.13 "$out/bin/"
    ln -s python3.13 "$out/bin/python3"
    cp -r tree/usr/lib/python3.13 "$out/lib/"
    cp -a tree/usr/lib/*-linux-gnu/*.so* "$out/lib/"
    # As nixpkgs' Python, this one brings its time zones: pyarrow asks for UTC by name.
    mkdir "$out/share"
    cp -r tree/usr/share/zoneinfo "$out/share/"
    sed -i "s|'TZPATH': '[^']*'|'TZPATH': '$out/share/zoneinfo'|" "$out"/lib/python3.13/_sysconfigdata*.py
    grep -q "'TZPATH': '$out" "$out"/lib/python3.13/_sysconfigdata*.py
    rm -f "$out"/lib/python3.13/sitecustomize.py "$out"/lib/python3.13/EXTERNALLY-MANAGED
    buildInputs=${compilerLibraries}
    . ${autoPatchelfHook}/nix-support/setup-hook
    autoPatchelf "$out"
  '';

  program =
    name:
    runCommand name { } ''
      mkdir -p "$out/bin"
      printf '#!/bin/sh\necho "a stand-in for ${name}" >&2\nexit 1\n' > "$out/bin/${name}"
      chmod 0755 "$out/bin/${name}"
    '';
  timescaledb = (program "timescaledb") // {
    pname = "timescaledb";
  };
  # As nixpkgs does with an unfree package: evaluating it without permission is an error.
  permitted =
    package:
    if (config.allowUnfreePredicate or (_: false)) package then
      package
    else
      throw "${package.pname} has an unfree licence, refusing to evaluate";
in
{
  inherit
    autoPatchelfHook
    python313
    runCommand
    zlib
    ;

  fetchPypi =
    {
      format,
      pname,
      version,
      dist,
      python,
      abi,
      platform,
      sha256,
    }:
    assert format == "wheel" && dist == python;
    fixed "${pname}-${version}-${python}-${abi}-${platform}.whl" sha256;

  stdenv.cc.cc.lib = compilerLibraries;

  postgresql_16.withPackages =
    choose:
    runCommand "postgresql-and-plugins-16" {
      plugins = choose {
        timescaledb = permitted timescaledb;
        timescaledb-apache = program "timescaledb-apache";
      };
    } "mkdir -p \"$out/bin\"";

  mkShell = { packages }: runCommand "nix-shell" { nativeBuildInputs = packages; } "mkdir \"$out\"";

  gnumake = program "make";
  nodejs = program "node";
  uv = program "uv";
  nixfmt-tree = program "treefmt";
}
