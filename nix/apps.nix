# nix run .#demo, .#test, .#deploy: each is a script of the closure's own Python, so no shell is needed.
pkgs: packages:
let
  script = name: text: {
    type = "app";
    program = "${
      pkgs.runCommand "kalshi-${name}"
        {
          inherit text;
        }
        ''
          mkdir -p "$out/bin"
          printf '%s\n' "#!${packages.tape}/bin/python3 -sP" "$text" > "$out/bin/kalshi-${name}"
          chmod 0755 "$out/bin/kalshi-${name}"
        ''
    }/bin/kalshi-${name}";
  };
in
{
  default = script "demo" ''
    import sys
    from tape.main import main
    main(["demo", *sys.argv[1:]])'';
  demo = script "demo" ''
    import sys
    from tape.main import main
    main(["demo", *sys.argv[1:]])'';
  # The tests need the checkout and its development dependencies, which no closure holds.
  test = script "test" ''
    import os
    import sys
    os.environ["PATH"] = "${pkgs.python313}/bin:" + os.environ.get("PATH", os.defpath)
    make = "${pkgs.gnumake}/bin/make"
    os.execv(make, [make, "test", "PYTHON=${pkgs.python313}/bin/python3.13", *sys.argv[1:]])'';
  # In a checkout: it builds this flake's release and deploys cdk/ (docs/deploy.md).
  deploy = script "deploy" ''
    import sys
    from tape.main import main
    main(["deploy", *sys.argv[1:]])'';
}
