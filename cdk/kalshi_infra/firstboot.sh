#!/bin/bash
# First boot of a Kalshi Tape host (Debian 13, arm64). FROZEN: a changed byte stops and starts every host, so
# kalshi_infra/firstboot.py refuses to synthesize when this file does not have the recorded SHA-256.
# It installs what carries software (Nix, a deploy user, a trusted key), no software of ours: closures come
# later over SSH. Running it again changes nothing. Outbound port 80 is closed, so everything uses https.
set -euo pipefail
umask 022
: "${HOST_NAME:?}" "${HOST_ROLE:?}" "${DEPLOY_SSH_KEY:?}" "${NIX_PUBLIC_KEY:?}"
export DEBIAN_FRONTEND=noninteractive

put() { # put MODE FILE: standard input becomes FILE, replaced in one step and only if it differs
    local mode=$1 file=$2 new
    mkdir -p "$(dirname "$file")"
    new=$(mktemp "$file.XXXXXX")
    cat > "$new"
    chmod "$mode" "$new"
    if [ -f "$file" ] && cmp -s "$new" "$file" && [ "$(stat -c %a "$file")" = "${mode#0}" ]; then
        rm -f "$new"
    else
        mv -f "$new" "$file"
    fi
}

# 1. The name, and package mirrors over https only.
printf '%s\n' "$HOST_NAME" | put 0644 /etc/hostname
hostname "$HOST_NAME" 2>/dev/null || true
for list in /etc/apt/sources.list /etc/apt/sources.list.d/* /etc/apt/mirrors/*; do
    if [ -f "$list" ] && grep -q 'http://' "$list"; then
        sed -i 's|http://|https://|g' "$list"
    fi
done
put 0644 /etc/apt/apt.conf.d/80-kalshi <<'CONF'
Acquire::Retries "5";
APT::Install-Recommends "false";
CONF

# 2. Packages. The production host in a private subnet has no way out; there they come through the jump host.
wanted="ca-certificates chrony curl nix-bin nix-setup-systemd unattended-upgrades"
missing=""
for package in $wanted; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
if [ -n "$missing" ] && [ "$HOST_ROLE" != production ]; then
    apt-get update -q
    # shellcheck disable=SC2086 # a list of package names
    apt-get install -q -y $missing
fi

# 3. Nix takes signed closures and builds nothing: what arrives must be complete.
put 0644 /etc/nix/nix.conf <<CONF
experimental-features = nix-command flakes
max-jobs = 0
require-sigs = true
trusted-users = root
allowed-users = root deploy
sandbox-fallback = false
substituters = https://cache.nixos.org
trusted-public-keys = cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY= $NIX_PUBLIC_KEY
CONF

# 4. The deploy user can speak to the Nix daemon and do nothing else: no shell, no sudo, no password.
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
    AllowTcpForwarding no
    AllowAgentForwarding no
    PermitTTY no
CONF

# 5. Time from the hypervisor (link local, not filtered by security groups); never stepped after the start,
#    because receive times must not jump under a running gatherer.
put 0644 /etc/chrony/chrony.conf <<'CONF'
server 169.254.169.123 prefer iburst minpoll 4 maxpoll 4
driftfile /var/lib/chrony/chrony.drift
makestep 1.0 3
rtcsync
leapsectz right/UTC
ntsdumpdir /var/lib/chrony
logdir /var/log/chrony
CONF

# 6. Security upgrades by themselves, reboots and restarts of services never: a person does those, one host at a time.
put 0644 /etc/apt/apt.conf.d/52-kalshi-upgrades <<'CONF'
APT::Periodic::Update-Package-Lists "1";
APT::Periodic::Unattended-Upgrade "1";
Unattended-Upgrade::Automatic-Reboot "false";
Unattended-Upgrade::Package-Blacklist { "nix-bin"; "nix-setup-systemd"; "systemd"; };
CONF
put 0644 /etc/needrestart/conf.d/kalshi.conf <<'CONF'
$nrconf{restart} = 'l';
CONF

# 7. The journal has a limit, so that logs cannot take the spool's disk.
put 0644 /etc/systemd/journald.conf.d/kalshi.conf <<'CONF'
[Journal]
Storage=persistent
SystemMaxUse=2G
SystemKeepFree=4G
RateLimitIntervalSec=0
CONF

# 8. What is running takes up the new settings. None of these is a service of ours.
systemctl daemon-reload
for unit in systemd-journald chrony ssh; do
    systemctl try-reload-or-restart "$unit.service" || true
done
systemctl enable --now nix-daemon.socket 2>/dev/null || true
printf '%s\n' "$HOST_ROLE" | put 0644 /etc/kalshi/role
