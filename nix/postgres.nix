# PostgreSQL 16 with TimescaleDB, for both servers of a gatherer.
# edition "apache" has hypertables, which is all that the schema uses. "community" adds compression, continuous
# aggregates and policies under a licence that nixpkgs calls unfree, so that package, and no other, is let in.
{
  nixpkgs,
  system,
  edition ? "apache",
}:
let
  editions = {
    apache = nixpkgs.legacyPackages.${system}.postgresql_16.withPackages (packages: [
      packages.timescaledb-apache
    ]);
    community = licensed.postgresql_16.withPackages (packages: [ packages.timescaledb ]);
  };
  licensed = import nixpkgs {
    inherit system;
    config.allowUnfreePredicate = package: (package.pname or "") == "timescaledb";
  };
in
editions.${edition}
