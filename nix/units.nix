# Everything systemd/ holds, as text: an attribute set from file name to content.
#
# `import ./units.nix` takes no arguments and uses builtins only, so that a host's closure, `make units` and the
# tests get the same bytes. Facts about hosts come from topology.toml. What each file is for and where a
# closure puts it: docs/units.md.
let
  topology = builtins.fromTOML (builtins.readFile ../topology.toml);
  inherit (topology) ports;
  small = topology.profile.small;

  # --- facts

  hostsOf = role: builtins.filter (host: host.role == role) topology.host;
  onlyAddress = role:
    let found = hostsOf role; in
    assert builtins.length found == 1; (builtins.head found).address;
  deduplicator = onlyAddress "deduplicator";

  # GiB; tests/infra/instance_types.json is what a test compares this with.
  memoryGib = {
    "t4g.2xlarge" = 32;
    "t4g.xlarge" = 16;
    "t4g.large" = 8;
    "t4g.medium" = 4;
  };
  gathererHost = {
    memory = memoryGib.${topology.role.gatherer.instance_type};
    disk = topology.role.gatherer.disk.size_gib;
  };
  smallGathererHost = {
    memory = memoryGib.${small.role.gatherer.instance_type};
    disk = small.role.gatherer.disk.size_gib;
  };

  # Percent of a host's memory, so that one unit fits the specification's hosts and the small profile.
  memoryShare = { gatherer = 20; timescaledb = 50; postgres = 10; deduplicator = 75; };
  gib = share: memory:
    let tenths = share * memory / 10; in
    "${toString (tenths / 10)}.${toString (tenths - tenths / 10 * 10)} GiB";

  profile = name: "/nix/var/nix/profiles/kalshi-${name}";
  postgresBin = "${profile "postgres"}/bin";
  postgresShare = "${profile "postgres"}/share/kalshi";

  database = "kalshi";
  writer = "kalshi_gatherer";
  reader = "kalshi_deduplicator";

  # --- pieces that units share

  sandbox = ''
    NoNewPrivileges=yes
    ProtectSystem=strict
    ProtectHome=yes
    PrivateTmp=yes
    PrivateDevices=yes
    DevicePolicy=closed
    PrivateMounts=yes
    ProtectKernelTunables=yes
    ProtectKernelModules=yes
    ProtectKernelLogs=yes
    ProtectControlGroups=yes
    ProtectClock=yes
    ProtectHostname=yes
    ProtectProc=invisible
    ProcSubset=pid
    RestrictAddressFamilies=AF_INET AF_UNIX
    RestrictNamespaces=yes
    RestrictRealtime=yes
    RestrictSUIDSGID=yes
    LockPersonality=yes
    MemoryDenyWriteExecute=yes
    SystemCallArchitectures=native
    SystemCallFilter=@system-service
    SystemCallFilter=~@privileged @resources
    # Refused calls fail instead of killing: OpenBLAS asks for mbind when numpy is imported, and goes on without.
    SystemCallErrorNumber=EPERM
    CapabilityBoundingSet=
    AmbientCapabilities=
    KeyringMode=private
    UMask=0077
    LimitCORE=0
  '';

  serviceSandbox = ''
    ${sandbox}PrivateUsers=yes
    RemoveIPC=yes
  '';

  # No PrivateUsers: the server recognises local clients by their user id, which a user namespace would hide.
  # No RemoveIPC: it would take the shared memory of a server whose account a second unit also uses.
  # MemoryDenyWriteExecute goes with jit = off in the configuration; with jit on, queries would fail.
  databaseSandbox = ''
    ${sandbox}IPAddressDeny=any
    IPAddressAllow=localhost ${deduplicator}
  '';

  # Starting again is always right: the spool and the databases continue where they were. The start limit is
  # off, because a unit that hit it would stay down until a person comes.
  always = seconds: ''
    Restart=always
    RestartSec=${toString seconds}
  '';

  # A traceback of every thread goes to the journal when the watchdog aborts a hung process.
  python = ''
    Environment=PYTHONFAULTHANDLER=1
    # Certificate authorities are the host's, which its package system keeps current.
    Environment=SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
    # boto3, where it is, has its own and would never hear of a change.
    Environment=AWS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt
  '';

  listening = ''
    # Every interface: the deduplicator and Prometheus come from other hosts; the security groups say who may.
    Environment=KT_BIND=0.0.0.0
    Environment=KT_HEALTH_PORT=${toString ports.health}
    Environment=KT_METRICS_PORT=${toString ports.metrics}
  '';

  # --- the databases of a gatherer

  databases = {
    kalshi-timescaledb = {
      title = "time-series database (TimescaleDB)";
      port = ports.timescale;
      share = memoryShare.timescaledb;
      weight = 200;
    };
    kalshi-postgres = {
      title = "relational database (PostgreSQL)";
      port = ports.postgres;
      share = memoryShare.postgres;
      weight = 50;
    };
  };

  dsn = name: "postgresql://${writer}@/${database}?host=/run/${name}&port=${toString databases.${name}.port}";

  databaseUnit = name: db: ''
    [Unit]
    Description=Kalshi Tape: ${db.title}, port ${toString db.port}
    # Wants, not Requires: a required unit that fails once would leave this one down for good; a wanted one is
    # tried again with every restart.
    Wants=${name}-init.service ${name}-roles.service
    After=${name}-init.service network.target
    PartOf=kalshi.target
    StartLimitIntervalSec=0

    [Service]
    Type=notify
    NotifyAccess=main
    User=${name}
    Group=${name}
    StateDirectory=${name}
    StateDirectoryMode=0700
    # The gatherer is in the group: the socket's directory is the first door.
    RuntimeDirectory=${name}
    RuntimeDirectoryMode=0750
    LoadCredentialEncrypted=kalshi-tls-key
    ExecStart=${postgresBin}/postgres -D %S/${name}/data -c config_file=${postgresShare}/${name}.conf -c ssl_key_file=%d/kalshi-tls-key
    ExecReload=/bin/kill -HUP $MAINPID
    # SIGINT is PostgreSQL's fast shutdown; its children get nothing but the server's own word.
    KillMode=mixed
    KillSignal=SIGINT
    # Crash recovery says nothing until it is done, and killing it makes it begin again.
    TimeoutStartSec=infinity
    TimeoutStopSec=300
    ${always 2}
    # ${toString db.share} % of ${toString gathererHost.memory} GiB: ${gib db.share gathererHost.memory}. One killed backend is the server's to clean up, not systemd's.
    MemoryMax=${toString db.share}%
    OOMPolicy=continue
    OOMScoreAdjust=-500
    TasksMax=128
    LimitNOFILE=16384
    CPUWeight=${toString db.weight}
    IOWeight=${toString db.weight}
    SyslogIdentifier=${name}

    ${databaseSandbox}
    [Install]
    WantedBy=kalshi.target
  '';

  psql = socket: port: files:
    "${postgresBin}/psql -X -q -h ${socket} -p ${toString port} -U postgres -d postgres"
    + builtins.concatStringsSep "" (map (file: " -f ${postgresShare}/${file}") files);

  # The cluster is made beside its place and moved there whole, with its roles, so that a power cut in between
  # leaves nothing that looks like a cluster, and no client ever meets one without its roles.
  initUnit = name: db:
    let
      fresh = "%S/${name}/new";
      socket = "%t/${name}-init";
    in ''
      [Unit]
      Description=Kalshi Tape: make the ${db.title}, once
      ConditionPathExists=!/var/lib/${name}/data
      # Tried again with every restart of the database that wants it.
      StartLimitIntervalSec=0

      [Service]
      Type=oneshot
      User=${name}
      Group=${name}
      StateDirectory=${name}
      StateDirectoryMode=0700
      RuntimeDirectory=${name}-init
      RuntimeDirectoryMode=0700
      ExecStart=/bin/rm -rf ${fresh}
      ExecStart=${postgresBin}/initdb --pgdata=${fresh} --username=postgres --encoding=UTF8 --locale=C --data-checksums --auth=reject
      ExecStart=${postgresBin}/pg_ctl --pgdata=${fresh} --wait --timeout=240 -o "-c config_file=${postgresShare}/${name}.conf -c listen_addresses= -c ssl=off -c unix_socket_directories=${socket}" start
      ExecStart=${psql socket db.port [ "${name}-roles.sql" ]}
      ExecStart=${postgresBin}/pg_ctl --pgdata=${fresh} --wait --mode=fast stop
      ExecStart=/bin/mv -T ${fresh} %S/${name}/data
      TimeoutStartSec=600
      MemoryMax=${toString db.share}%
      TasksMax=128
      SyslogIdentifier=${name}-init

      ${databaseSandbox}'';

  rolesUnit = name: db: ''
    [Unit]
    Description=Kalshi Tape: roles of the ${db.title}
    # Started with the database, so that no cluster is without them. Nobody waits for it.
    After=${name}.service
    PartOf=${name}.service
    StartLimitIntervalSec=0

    [Service]
    Type=oneshot
    RemainAfterExit=yes
    User=${name}
    Group=${name}
    # What the server compares the deduplicator's password with; the password itself is never on this host.
    LoadCredentialEncrypted=kalshi-reader
    ExecStart=${psql "%t/${name}" db.port [ "${name}-roles.sql" "kalshi-reader.sql" ]}
    Restart=on-failure
    RestartSec=30
    TimeoutStartSec=120
    MemoryMax=256M
    TasksMax=16
    SyslogIdentifier=${name}-roles

    ${databaseSandbox}'';

  # --- PostgreSQL: settings, doors, roles

  mb = n: "${toString n}MB";

  # What depends on the host's size. A unit's memory limit counts shared buffers, sessions and cached pages together.
  sizes = {
    kalshi-timescaledb = host: ''
      # Half of what the unit may have. Rows are read by the deduplicator seconds after they were written: from here.
      shared_buffers = ${mb (host.memory * 1024 / 4)}
      # Shared buffers and the pages that the kernel keeps within the unit's limit.
      effective_cache_size = ${mb (host.memory * 1024 * 3 / 8)}
      # The deduplicator sorts batches of at most a few ten thousand rows.
      work_mem = ${mb host.memory}
      maintenance_work_mem = ${mb (host.memory * 1024 / 64)}
      # Few checkpoints write few full pages; a crash replays at most this much at the disk's ${toString topology.role.gatherer.disk.throughput_mbps} MB/s.
      max_wal_size = ${mb (host.disk * 1024 / 25)}
      min_wal_size = ${mb (host.disk * 1024 / 200)}
    '';
    kalshi-postgres = host: ''
      # Markets, events and series: the current ones fit into this many times over.
      shared_buffers = ${mb (host.memory * 1024 / 64)}
      effective_cache_size = ${mb (host.memory * 1024 / 16)}
      work_mem = ${mb (host.memory / 2)}
      maintenance_work_mem = ${mb (host.memory * 2)}
      max_wal_size = ${mb (host.disk * 1024 / 100)}
      min_wal_size = ${mb (host.disk * 1024 / 400)}
    '';
  };

  ownSettings = {
    kalshi-timescaledb = ''
      # --- TimescaleDB
      shared_preload_libraries = 'timescaledb'
      # Nothing is reported to anyone; outbound traffic is the exchange's.
      timescaledb.telemetry_level = off
      # A launcher, a scheduler a database and its own jobs; with fewer it complains every five seconds.
      timescaledb.max_background_workers = 8

      # --- append-only tables
      # A commit comes four times a second and holds thousands of rows: its log record waits for no buffer.
      wal_buffers = 64MB
      # BRIN summaries of new pages are made by autovacuum, so it looks often; inserted rows are frozen in time.
      autovacuum_naptime = 30s
      autovacuum_vacuum_insert_scale_factor = 0.05
    '';
    kalshi-postgres = "";
  };

  configuration = name: db: ''
    # ${db.title} of a gatherer host with ${toString gathererHost.memory} GiB (${topology.role.gatherer.instance_type}). The last line lets a smaller host
    # replace the sizes. No data directory here: the unit names it.
    ${sizes.${name} gathererHost}
    # --- who can connect
    # IPv4 only, as the network is; the unit's address filter and ${name}-hba.conf say who.
    listen_addresses = '0.0.0.0'
    port = ${toString db.port}
    unix_socket_directories = '/run/${name}'
    unix_socket_permissions = 0770
    hba_file = '${postgresShare}/${name}-hba.conf'
    ident_file = '${postgresShare}/${name}-ident.conf'
    # The gatherer, the deduplicator's reader and export, a person; a session costs memory.
    max_connections = 20
    superuser_reserved_connections = 3
    password_encryption = scram-sha-256
    ssl = on
    ssl_min_protocol_version = 'TLSv1.3'
    ssl_cert_file = '/etc/kalshi/tls.pem'
    # ssl_key_file is a credential of the unit, given on its command line.
    # A peer that vanished must not hold a session, nor the horizon of vacuum.
    tcp_keepalives_idle = 30
    tcp_keepalives_interval = 10
    tcp_keepalives_count = 3
    idle_in_transaction_session_timeout = 10min

    # --- durability
    # The cursor into the spool is committed with the rows: a commit that is told must be on the disk.
    fsync = on
    synchronous_commit = on
    # EBS does not promise to write 8 KiB in one piece.
    full_page_writes = on
    # No replica and no log archive: the spool is the copy, and it is on the same host.
    wal_level = minimal
    max_wal_senders = 0
    archive_mode = off
    wal_compression = on
    checkpoint_timeout = 15min
    checkpoint_completion_target = 0.9

    # --- processor and disk: eight processors that belong to capture first
    # Queries are short; compiled code would need memory that is writable and executable, which the unit forbids.
    jit = off
    # Room for an extension's workers besides the parallel ones.
    max_worker_processes = 16
    max_parallel_workers = 2
    max_parallel_workers_per_gather = 0
    autovacuum_max_workers = 2
    # gp3: ${toString topology.role.gatherer.disk.iops} operations a second, random reads cost about as much as sequential ones.
    random_page_cost = 1.1
    effective_io_concurrency = 64
    # Not below the kernel's default page size: huge pages are not reserved on these hosts.
    huge_pages = off

    ${ownSettings.${name}}
    # --- what it says
    # To the journal, which keeps time and unit itself.
    log_destination = stderr
    logging_collector = off
    log_line_prefix = '%q%u@%d %h: '
    # Who came in is worth a line: few should.
    log_connections = on
    log_checkpoints = on
    log_lock_waits = on
    log_autovacuum_min_duration = 10s
    timezone = 'UTC'
    log_timezone = 'UTC'

    # --- a smaller host, or an owner's own word, wins
    include_if_exists = '/etc/kalshi/${name}.conf'
  '';

  smallConfiguration = name: ''
    # Sizes for a gatherer host with ${toString smallGathererHost.memory} GiB (${small.role.gatherer.instance_type}, profile "small"): copy to /etc/kalshi/${name}.conf there.
    ${sizes.${name} smallGathererHost}'';

  hba = ''
    # Who may connect, first match wins. Nobody has a password that works without TLS, and nobody else enters.
    # TYPE   DATABASE  USER              ADDRESS         METHOD
    local    all       postgres                          peer map=kalshi
    local    ${database}    ${writer}                   peer map=kalshi
    hostssl  ${database}    ${reader} ${deduplicator}/32    scram-sha-256
    local    all       all                               reject
    host     all       all               0.0.0.0/0       reject
    host     all       all               ::/0            reject
  '';

  ident = name: ''
    # Which account of the host may be which role. The superuser is the server's own account.
    # MAP    ACCOUNT              ROLE
    kalshi   ${name}   postgres
    kalshi   kalshi-gatherer      ${writer}
  '';

  roles = name: ''
    -- Roles and rights of one cluster. Run at its making and at every start: repeating it changes nothing.
    -- ${writer} makes and writes the tables, ${reader} reads them, nobody else has a right.
    \set ON_ERROR_STOP on
    SET client_min_messages = warning;

    SELECT 'CREATE ROLE ${writer}' WHERE to_regrole('${writer}') IS NULL \gexec
    SELECT 'CREATE ROLE ${reader}' WHERE to_regrole('${reader}') IS NULL \gexec
    -- The writer has no password: it comes over the socket and is known by its account.
    ALTER ROLE ${writer} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 6 PASSWORD NULL;
    -- The reader's password is set by kalshi-reader.sql; without one it cannot log in.
    ALTER ROLE ${reader} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 6;
    -- No right depends on this; it turns a mistake into an error at the first statement.
    ALTER ROLE ${reader} SET default_transaction_read_only = on;

    SELECT 'CREATE DATABASE ${database}' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '${database}') \gexec
    -- PUBLIC may connect and make temporary tables by default.
    REVOKE ALL ON DATABASE ${database}, postgres, template1 FROM PUBLIC;
    GRANT CONNECT ON DATABASE ${database} TO ${writer}, ${reader};

    \connect ${database}
    SET client_min_messages = warning;
    ${if name == "kalshi-timescaledb" then ''
    -- Made here, so that the writer needs no right to make extensions. Only where the server has loaded it: an
    -- extension that is installed and not loaded ends the connection.
    SELECT 'CREATE EXTENSION IF NOT EXISTS timescaledb'
        WHERE current_setting('shared_preload_libraries') LIKE '%timescaledb%' \gexec

    '' else ""}REVOKE ALL ON SCHEMA public FROM PUBLIC;
    GRANT USAGE, CREATE ON SCHEMA public TO ${writer};
    GRANT USAGE ON SCHEMA public TO ${reader};
    GRANT SELECT ON ALL TABLES IN SCHEMA public TO ${reader};
    -- Partitions and later migrations too.
    ALTER DEFAULT PRIVILEGES FOR ROLE ${writer} IN SCHEMA public GRANT SELECT ON TABLES TO ${reader};
    -- Everybody may make large objects by default: the one way to write without a right on a table.
    REVOKE EXECUTE ON FUNCTION lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea) FROM PUBLIC;
  '';

  readerPassword = ''
    -- The reader's password, as the verifier that the server compares with (docs/units.md makes one).
    \set ON_ERROR_STOP on
    \set verifier `cat "$CREDENTIALS_DIRECTORY/kalshi-reader"`
    SELECT :'verifier' ~ '^SCRAM-SHA-256\$[0-9]+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+$' AS is_verifier \gset
    \if :is_verifier
    ALTER ROLE ${reader} PASSWORD :'verifier';
    \else
    -- A clear password would be taken as well, and would then be on this host.
    DO $$ BEGIN RAISE EXCEPTION 'the credential kalshi-reader holds no SCRAM-SHA-256 verifier'; END $$;
    \endif
  '';

  # --- the services

  gathererUnit = ''
    [Unit]
    Description=Kalshi Tape: gatherer
    # The databases are wanted and not waited for: capture begins at once, rows wait in the spool until a
    # database answers, and a database that fails never takes capture with it.
    Wants=network-online.target kalshi-timescaledb.service kalshi-postgres.service
    After=network-online.target time-sync.target
    PartOf=kalshi.target
    StartLimitIntervalSec=0

    [Service]
    Type=notify
    NotifyAccess=main
    User=kalshi-gatherer
    Group=kalshi-gatherer
    SupplementaryGroups=kalshi-timescaledb kalshi-postgres
    StateDirectory=kalshi-gatherer
    StateDirectoryMode=0700
    LoadCredentialEncrypted=kalshi-key
    ExecStart=${profile "gatherer"}/bin/kalshi-gatherer
    # Hosts are named as in topology.toml, and the gatherer as its host.
    Environment=KT_GATHERER_NAME=%l
    Environment=KT_WS_URL=wss://external-api-ws.kalshi.com/trade-api/ws/v2
    Environment=KT_REST_URL=https://external-api.kalshi.com/trade-api/v2
    Environment=KT_PRIVATE_KEY_FILE=%d/kalshi-key
    Environment=KT_SPOOL_DIR=%S/kalshi-gatherer/spool
    Environment=KT_TIMESCALE_DSN=${dsn "kalshi-timescaledb"}
    Environment=KT_POSTGRES_DSN=${dsn "kalshi-postgres"}
    ${listening}${python}# The owner's own settings, KT_KEY_ID at least; what it sets wins over the lines above.
    EnvironmentFile=/etc/kalshi/gatherer.env
    # Ready means that frames of the exchange reach the spool, and the exchange may be closed for hours.
    TimeoutStartSec=infinity
    # Fed while the event loop turns, the spool's durable end moves and frames come, or a trouble is known.
    WatchdogSec=30
    # Close records, the sink's drain and the spool have a deadline each; together less than this.
    KillMode=mixed
    TimeoutStopSec=90
    ${always 1}
    # ${toString memoryShare.gatherer} % of ${toString gathererHost.memory} GiB: ${gib memoryShare.gatherer gathererHost.memory}. The last to be killed, the first to get processor and disk:
    # what is not captured is lost, all else is late.
    MemoryMax=${toString memoryShare.gatherer}%
    OOMScoreAdjust=-800
    TasksMax=64
    LimitNOFILE=16384
    CPUWeight=800
    IOWeight=800
    SyslogIdentifier=kalshi-gatherer

    ${serviceSandbox}
    [Install]
    WantedBy=kalshi.target
  '';

  remote = port: host:
    "postgresql://${reader}@${host.address}:${toString port}/${database}?sslmode=verify-full&sslrootcert=/etc/kalshi/gatherers.pem";
  smallGatherers = builtins.filter (host: builtins.elem host.name small.hosts) (hostsOf "gatherer");
  remotes = port: builtins.toJSON (map (remote port) (hostsOf "gatherer"));

  deduplicatorUnit = ''
    [Unit]
    Description=Kalshi Tape: deduplicator
    Wants=network-online.target
    After=network-online.target time-sync.target
    PartOf=kalshi.target
    StartLimitIntervalSec=0

    [Service]
    Type=notify
    NotifyAccess=main
    User=kalshi-deduplicator
    Group=kalshi-deduplicator
    RuntimeDirectory=kalshi-deduplicator
    RuntimeDirectoryMode=0700
    LoadCredentialEncrypted=kalshi-pgpass
    # asyncpg ignores a password file that its group may read, and systemd 257 gives credentials mode 0440.
    ExecStartPre=/usr/bin/install -m 0600 %d/kalshi-pgpass %t/kalshi-deduplicator/pgpass
    ExecStart=${profile "deduplicator"}/bin/kalshi-deduplicator
    Environment=PGPASSFILE=%t/kalshi-deduplicator/pgpass
    Environment='KT_GATHERER_DSNS=${remotes ports.timescale}'
    Environment='KT_GATHERER_META_DSNS=${remotes ports.postgres}'
    Environment=KT_LAKE_URI=s3://${topology.bucket.name}
    Environment=KT_BACKUP_PREFIX=${topology.bucket.rds_backup_prefix}
    Environment=AWS_DEFAULT_REGION=${topology.region}
    ${listening}${python}# The owner's own settings, KT_PRODUCTION_DSN at least; what it sets wins over the lines above.
    EnvironmentFile=/etc/kalshi/deduplicator.env
    # Ready means that production was reached, and a database may take as long as it needs.
    TimeoutStartSec=infinity
    # Fed while windows are closed, or while what holds them up is known.
    WatchdogSec=60
    KillMode=mixed
    TimeoutStopSec=90
    ${always 5}
    # ${toString memoryShare.deduplicator} % of ${toString memoryGib.${topology.role.deduplicator.instance_type}} GiB: ${gib memoryShare.deduplicator memoryGib.${topology.role.deduplicator.instance_type}}. Nothing else of ours runs on its host.
    MemoryMax=${toString memoryShare.deduplicator}%
    TasksMax=128
    LimitNOFILE=16384
    SyslogIdentifier=kalshi-deduplicator

    ${serviceSandbox}
    [Install]
    WantedBy=kalshi.target
  '';

  # A dump that fails is tried again the next night and is missed by nobody in between: RDS keeps 7 days itself.
  backupUnit = ''
    [Unit]
    Description=Kalshi Tape: dump of production to the bucket
    Wants=network-online.target
    After=network-online.target
    StartLimitIntervalSec=0

    [Service]
    Type=oneshot
    User=kalshi-deduplicator
    Group=kalshi-deduplicator
    # Not the deduplicator's own: a directory that two units share goes when the first of them stops.
    RuntimeDirectory=kalshi-backup
    RuntimeDirectoryMode=0700
    LoadCredentialEncrypted=kalshi-pgpass
    # libpq ignores a password file that its group may read, and systemd 257 gives credentials mode 0440.
    ExecStartPre=/usr/bin/install -m 0600 %d/kalshi-pgpass %t/kalshi-backup/pgpass
    ExecStart=${profile "deduplicator"}/bin/kalshi-backup
    Environment=PGPASSFILE=%t/kalshi-backup/pgpass
    # pg_dump and pg_restore; no database runs on this host.
    Environment=KT_PG_BIN=${postgresBin}
    Environment=KT_LAKE_URI=s3://${topology.bucket.name}
    Environment=KT_BACKUP_PREFIX=${topology.bucket.rds_backup_prefix}
    Environment=AWS_DEFAULT_REGION=${topology.region}
    ${python}# The owner's own settings, KT_PRODUCTION_DSN at least; what it sets wins over the lines above.
    EnvironmentFile=/etc/kalshi/deduplicator.env
    TimeoutStartSec=12h
    # One part of the dump is in memory at a time; the merge goes first.
    MemoryMax=10%
    TasksMax=64
    LimitNOFILE=1024
    CPUWeight=20
    IOWeight=20
    SyslogIdentifier=kalshi-backup

    ${serviceSandbox}
  '';

  # Before the window in which RDS takes its own (topology.toml) and its Sunday maintenance.
  backupTimer = ''
    [Unit]
    Description=Kalshi Tape: nightly dump of production
    PartOf=kalshi.target

    [Timer]
    OnCalendar=*-*-* 01:00:00 UTC
    RandomizedDelaySec=10min
    Persistent=yes

    [Install]
    WantedBy=kalshi.target
  '';

  cloudwatchUnit = ''
    [Unit]
    Description=Kalshi Tape: metrics and journal to CloudWatch
    # Never required by anything: nothing else may notice when it or CloudWatch is away.
    Wants=network-online.target
    After=network-online.target
    PartOf=kalshi.target
    StartLimitIntervalSec=0

    [Service]
    Type=notify
    NotifyAccess=main
    User=kalshi-cloudwatch
    Group=kalshi-cloudwatch
    # The journal is read with the host's own journalctl.
    SupplementaryGroups=systemd-journal
    StateDirectory=kalshi-cloudwatch
    StateDirectoryMode=0700
    ExecStart=${profile "cloudwatch"}/bin/kalshi-cloudwatch
    # The role, and with it metrics and log group, follows from the host's name (gatherer-1, deduplicator).
    Environment=KT_HOST_NAME=%l
    Environment=KT_SERVICE_URL=http://127.0.0.1:${toString ports.health}
    Environment=KT_NAMESPACE=${topology.logs.metric_namespace}
    Environment=KT_LOG_PREFIX=${topology.logs.prefix}
    Environment='KT_LOG_UNITS=["kalshi-*"]'
    Environment=KT_STATE_DIR=%S/kalshi-cloudwatch
    Environment=KT_DISK=/var/lib
    Environment=AWS_DEFAULT_REGION=${topology.region}
    ${python}# The owner's own settings, if there are any.
    EnvironmentFile=-/etc/kalshi/cloudwatch.env
    TimeoutStartSec=90
    WatchdogSec=300
    TimeoutStopSec=30
    ${always 30}
    MemoryMax=256M
    TasksMax=32
    LimitNOFILE=1024
    CPUWeight=20
    IOWeight=20
    SyslogIdentifier=kalshi-cloudwatch

    ${serviceSandbox}
    [Install]
    WantedBy=kalshi.target
  '';

  target = ''
    [Unit]
    Description=Kalshi Tape: what this host runs

    [Install]
    WantedBy=multi-user.target
  '';

  # --- accounts and directories

  sysusers = ''
    # One account a service, none can log in. The gatherer may pass to the databases' sockets.
    u kalshi-gatherer     - "Kalshi Tape gatherer"           /var/lib/kalshi-gatherer
    u kalshi-timescaledb  - "Kalshi Tape TimescaleDB"        /var/lib/kalshi-timescaledb
    u kalshi-postgres     - "Kalshi Tape PostgreSQL"         /var/lib/kalshi-postgres
    u kalshi-deduplicator - "Kalshi Tape deduplicator"       -
    u kalshi-cloudwatch   - "Kalshi Tape CloudWatch"         /var/lib/kalshi-cloudwatch
    m kalshi-gatherer kalshi-timescaledb
    m kalshi-gatherer kalshi-postgres
  '';

  tmpfiles = ''
    # State and socket directories are made by the units. These hold what the owner brings.
    d /etc/kalshi                0755 root root -
    d /etc/credstore.encrypted   0700 root root -
  '';

  gathererEnvironment = ''
    # Copy to /etc/kalshi/gatherer.env on a gatherer host. Any KT_ setting may be added; what stands here wins over
    # the unit. No secrets: the exchange's key is the credential kalshi-key.
    KT_KEY_ID=00000000-0000-0000-0000-000000000000
    # The exchange's demo instead of its production:
    # KT_WS_URL=wss://external-api-ws.demo.kalshi.co/trade-api/ws/v2
    # KT_REST_URL=https://external-api.demo.kalshi.co/trade-api/v2
  '';

  deduplicatorEnvironment = ''
    # Copy to /etc/kalshi/deduplicator.env on the deduplicator host. Any KT_ setting may be added; what stands here
    # wins over the unit. No secrets: the passwords are the credential kalshi-pgpass.
    # HOST is the stack output Endpoint; production.pem holds the certificate authorities of RDS.
    KT_PRODUCTION_DSN=postgresql://${reader}@HOST:${toString ports.timescale}/${topology.production.database}?sslmode=verify-full&sslrootcert=/etc/kalshi/production.pem
    # With profile = "small" there is one gatherer:
    # KT_GATHERER_DSNS='${builtins.toJSON [ (remote ports.timescale (builtins.head smallGatherers)) ]}'
    # KT_GATHERER_META_DSNS='${builtins.toJSON [ (remote ports.postgres (builtins.head smallGatherers)) ]}'
  '';
in
{
  "kalshi.target" = target;
  "kalshi-gatherer.service" = gathererUnit;
  "kalshi-deduplicator.service" = deduplicatorUnit;
  "kalshi-backup.service" = backupUnit;
  "kalshi-backup.timer" = backupTimer;
  "kalshi-cloudwatch.service" = cloudwatchUnit;
  "kalshi-sysusers.conf" = sysusers;
  "kalshi-tmpfiles.conf" = tmpfiles;
  "kalshi-reader.sql" = readerPassword;
  "gatherer.env.example" = gathererEnvironment;
  "deduplicator.env.example" = deduplicatorEnvironment;
}
// builtins.listToAttrs (builtins.concatMap
  (name:
    let db = databases.${name}; in [
      { name = "${name}.service"; value = databaseUnit name db; }
      { name = "${name}-init.service"; value = initUnit name db; }
      { name = "${name}-roles.service"; value = rolesUnit name db; }
      { name = "${name}.conf"; value = configuration name db; }
      { name = "${name}-small.conf"; value = smallConfiguration name; }
      { name = "${name}-hba.conf"; value = hba; }
      { name = "${name}-ident.conf"; value = ident name; }
      { name = "${name}-roles.sql"; value = roles name; }
    ])
  (builtins.attrNames databases))
