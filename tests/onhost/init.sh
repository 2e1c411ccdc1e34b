# Becomes the systemd of a test host. Runs as process 1 of its own mount, pid, ipc, host name and
# cgroup namespaces. In the environment: NAME, ROOT (an empty directory), DISK (the host's disk, a
# file with ext4), LOWER (layers of the root tree, topmost first), CGROUPS (v1 hierarchies, as in
# /proc/self/cgroup, one a word; none: version 2 alone).
set -eu
hostname "$NAME"
mount -t tmpfs -o mode=700,size=1m stage "$ROOT"
mkdir "$ROOT/disk" "$ROOT/tree"
# On a disk of its own: it can be filled, and lose what was not synced when the power is cut.
mount -o loop "$DISK" "$ROOT/disk"
mkdir -p "$ROOT/disk/upper" "$ROOT/disk/work"
R=$ROOT/tree
mount -t overlay -o "lowerdir=$LOWER,upperdir=$ROOT/disk/upper,workdir=$ROOT/disk/work" root "$R"
mkdir -p -m 700 "$R/.disk"
mount --bind "$ROOT/disk" "$R/.disk"
mount -t proc -o nosuid,nodev,noexec proc "$R/proc"
# sysctl.d of the host must never reach the real kernel; its own network namespace it may set.
mount --bind "$R/proc/sys" "$R/proc/sys"
mount -o remount,bind,ro "$R/proc/sys"
mount --bind "$R/proc/sys/net" "$R/proc/sys/net"
mount -o remount,bind,rw "$R/proc/sys/net"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$R/sys"
if [ -n "$CGROUPS" ]; then
  mount -t tmpfs -o mode=755 cgroup "$R/sys/fs/cgroup"
  for hierarchy in $CGROUPS; do
    place=$R/sys/fs/cgroup/${hierarchy#name=}
    mkdir "$place"
    case $hierarchy in
      name=*) mount -t cgroup -o "none,$hierarchy,xattr" cgroup "$place" ;;
      *) mount -t cgroup -o "$hierarchy" cgroup "$place" ;;
    esac
  done
  mkdir "$R/sys/fs/cgroup/unified"
  mount -t cgroup2 cgroup2 "$R/sys/fs/cgroup/unified"
else
  mount -t cgroup2 cgroup2 "$R/sys/fs/cgroup"
fi
mount -t tmpfs -o mode=755 dev "$R/dev"
mkdir "$R/dev/pts" "$R/dev/shm"
mknod -m 666 "$R/dev/null" c 1 3
mknod -m 666 "$R/dev/zero" c 1 5
mknod -m 666 "$R/dev/full" c 1 7
mknod -m 666 "$R/dev/random" c 1 8
mknod -m 666 "$R/dev/urandom" c 1 9
mknod -m 666 "$R/dev/tty" c 5 0
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$R/dev/pts"
ln -s pts/ptmx "$R/dev/ptmx"
mount -t tmpfs -o mode=1777 shm "$R/dev/shm"
ln -s /proc/self/fd "$R/dev/fd"
ln -s /proc/self/fd/0 "$R/dev/stdin"
ln -s /proc/self/fd/1 "$R/dev/stdout"
ln -s /proc/self/fd/2 "$R/dev/stderr"
mount -t tmpfs -o mode=755 run "$R/run"
cd "$R"
mkdir -p .old
pivot_root . .old
umount -l /.old
# Without this LoadCredential= makes a directory that its service may not read.
mount --make-rshared /
# No host may set the real clock.
exec setpriv --bounding-set=-sys_time --inh-caps=-sys_time \
  env -i container=kalshi-test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system
