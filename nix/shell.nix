# What `make` needs and does not bring itself: uv for `make lock`, Node.js for the CDK's command line.
pkgs: {
  default = pkgs.mkShell {
    packages = [
      pkgs.python313
      pkgs.gnumake
      pkgs.uv
      pkgs.nodejs
    ];
  };
}
