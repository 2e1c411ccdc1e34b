#!/bin/bash
# First boot of a Kalshi Tape host (Debian 13, arm64). FROZEN: a changed byte stops and starts every host, so
# kalshi_infra/firstboot.py refuses to synthesize when this file does not have the recorded SHA-256.
# It installs what carries software (Nix, a deploy user, a trusted key), no software of ours: closures come
# later over SSH. Running it again changes nothing. Outbound port 80 is closed, so everything uses https.
# Settings come before the packages that read them: no daemon ever runs with a package's own.
set -euo pipefail
umask 022
: "${HOST_NAME:?}" "${HOST_ROLE:?}" "${DEPLOY_SSH_KEY:?}" "${NIX_PUBLIC_KEY:?}"
export DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1

put() { # put MODE FILE: standard input becomes FILE, only if it differs, in one step, also through a power cut
    local mode=$1 file=$2 new
    mkdir -p "$(dirname "$file")"
    new=$(mktemp "$file.XXXXXX")
    cat > "$new"
    chmod "$mode" "$new"
    if [ -f "$file" ] && cmp -s "$new" "$file" && [ "$(stat -c %a "$file")" = "${mode#0}" ]; then
        rm -f "$new"
    else
        sync "$new"
        mv -f "$new" "$file"
    fi
}

# 1. The name, also for sudo, which looks it up; and package mirrors over https only.
printf '%s\n' "$HOST_NAME" | put 0644 /etc/hostname
hostname "$HOST_NAME" 2>/dev/null || true
grep -qE "^127\.0\.1\.1[[:space:]]+$HOST_NAME\$" /etc/hosts || printf '127.0.1.1 %s\n' "$HOST_NAME" >> /etc/hosts
for list in /etc/apt/sources.list /etc/apt/sources.list.d/* /etc/apt/mirrors/*; do
    if [ -f "$list" ] && grep -q 'http://' "$list"; then
        sed 's|http://|https://|g' "$list" | put "$(stat -c %a "$list")" "$list"
    fi
done

# 2. The deploy user can speak to the Nix daemon and do nothing else: no shell, no sudo, no password.
getent group nix-users >/dev/null || groupadd --system nix-users
id deploy >/dev/null 2>&1 || useradd --system --create-home --home-dir /var/lib/deploy --shell /bin/sh deploy
id -nG deploy | grep -qw nix-users || usermod --append --groups nix-users deploy
passwd -S deploy | grep -q ' L ' || usermod --lock deploy
install -d -m 0755 -o root -g root /etc/ssh/authorized_keys.d
printf 'restrict,command="nix-daemon --stdio" %s\n' "$DEPLOY_SSH_KEY" | put 0644 /etc/ssh/authorized_keys.d/deploy
put 0644 /etc/ssh/sshd_config.d/10-kalshi.conf <<'CONF'
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
X11Forwarding no
Match User deploy
    AuthorizedKeysFile /etc/ssh/authorized_keys.d/deploy
    ForceCommand nix-daemon --stdio
    DisableForwarding yes
    PermitTTY no
CONF

# 3. Nix takes signed closures and builds nothing: what arrives must be complete. max-jobs alone would be a wish,
#    because any client of the daemon may raise it, and what a host built itself needs no signature. Builds also
#    need a member of the build group; root's group has none.
put 0644 /etc/nix/nix.conf <<CONF
experimental-features = nix-command flakes
max-jobs = 0
build-users-group = root
require-sigs = true
trusted-users = root
allowed-users = root deploy
sandbox-fallback = false
substituters = https://cache.nixos.org
trusted-public-keys = cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY= $NIX_PUBLIC_KEY
CONF

# 4. Time from the hypervisor (link local, not filtered by security groups); never stepped after the start,
#    because receive times must not jump under a running gatherer. Its leap seconds are smeared, so no leapsectz.
put 0644 /etc/chrony/chrony.conf <<'CONF'
server 169.254.169.123 prefer iburst minpoll 4 maxpoll 4
driftfile /var/lib/chrony/chrony.drift
makestep 1.0 3
rtcsync
ntsdumpdir /var/lib/chrony
logdir /var/log/chrony
CONF

# 5. Security upgrades by themselves, and nothing else (Debian's own file also takes point releases). Reboots and
#    restarts of services never: a person does those, one host at a time. Files that were set here stay.
put 0644 /etc/apt/apt.conf.d/80-kalshi <<'CONF'
Acquire::Retries "5";
APT::Install-Recommends "false";
APT::Update::Error-Mode "any";
DPkg::Lock::Timeout "300";
Dpkg::Options { "--force-confdef"; "--force-confold"; };
CONF
put 0644 /etc/apt/apt.conf.d/52-kalshi-upgrades <<'CONF'
APT::Periodic::Update-Package-Lists "1";
APT::Periodic::Unattended-Upgrade "1";
#clear Unattended-Upgrade::Origins-Pattern;
#clear Unattended-Upgrade::Allowed-Origins;
Unattended-Upgrade::Origins-Pattern { "origin=Debian,codename=${distro_codename}-security,label=Debian-Security"; };
Unattended-Upgrade::Automatic-Reboot "false";
Unattended-Upgrade::Package-Blacklist { "nix-bin"; "nix-setup-systemd"; "systemd"; };
CONF
put 0644 /etc/needrestart/conf.d/kalshi.conf <<'CONF'
$nrconf{restart} = 'l';
CONF

# 6. The journal has a limit, so that logs cannot take the spool's disk.
put 0644 /etc/systemd/journald.conf.d/kalshi.conf <<'CONF'
[Journal]
Storage=persistent
SystemMaxUse=2G
SystemKeepFree=4G
RateLimitIntervalSec=0
CONF

# 7. Packages. The production host in a private subnet has no way out; there they come through the jump host.
again() { # again COMMAND...: until it works; other programs hold apt's locks, and networks come up late
    local left=9
    until "$@"; do
        [ "$left" -gt 0 ] || return 1
        left=$((left - 1))
        sleep 20
    done
}
wanted="ca-certificates chrony curl nix-bin nix-setup-systemd unattended-upgrades"
missing=""
for package in $wanted; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
if [ -n "$missing" ] && [ "$HOST_ROLE" != production ]; then
    # After a power cut in the lines below packages are half configured, and apt takes emptied lists for good ones.
    dpkg --configure --pending --force-confdef --force-confold || true
    rm -rf /var/lib/apt/lists/*
    again apt-get update -q
    # shellcheck disable=SC2086 # a list of package names
    again apt-get install -q -y $missing
fi

# 8. What is running takes up the settings; what fails here is seen in the console's last lines. None of these is
#    a service of ours. An image may have had the packages and started them with other settings.
present() { systemctl cat "$1" >/dev/null 2>&1; }
systemctl daemon-reload
systemctl restart systemd-journald.service
systemctl try-reload-or-restart ssh.service
if present chrony.service; then
    systemctl restart chrony.service # its package has enabled it
fi
if present nix-daemon.socket; then
    systemctl stop nix-daemon.socket nix-daemon.service
    systemctl reset-failed nix-daemon.socket nix-daemon.service # restarted too often just now is no reason to stay down
    systemctl enable --quiet nix-daemon.socket nix-daemon.service
    systemctl start nix-daemon.socket nix-daemon.service # apart, because --quiet also hides why a start failed
fi
if present apt-daily-upgrade.timer; then
    systemctl enable --quiet apt-daily.timer apt-daily-upgrade.timer
    systemctl start apt-daily.timer apt-daily-upgrade.timer
fi

# 9. Written last: a host without it did not come to the end, and this is to be run again.
sync
printf '%s\n' "$HOST_ROLE" | put 0644 /etc/kalshi/role
