#!/bin/sh
# First process of the guest: does what /plan lists, prints each part between marks, switches the machine off. A part that
# /done names was done before the last guest died.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ TMPDIR=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null || mount -t debugfs debugfs /sys/kernel/debug
mkdir -p /sys/fs/cgroup && mount -t cgroup2 cgroup /sys/fs/cgroup
ifconfig lo 127.0.0.1 up
for module in inet_diag tcp_diag unix_diag; do
  [ -f /modules/$module.ko ] && insmod /modules/$module.ko 2>/dev/null
done
dmesg -n 1

# What the victims and observer are found by.
export OBSERVER_BIN=/bin/observer OBSERVER_VICTIMS=/victims

section() {
  name=$1
  shift
  if [ -f /done ] && grep -qx "$name" /done; then return; fi
  echo "@@@AT $(cut -d' ' -f1 /proc/uptime)"
  echo "@@@BEGIN $name"
  "$@" </dev/null 2>/tmp/complaints
  status=$?
  sed 's/^/@@@SAID /' /tmp/complaints
  echo "@@@END $name $status"
}

rung() {
  calls &
  calls=$!
  observer attach $calls --for 3s --interval 500ms --threshold 1s --probes $1 --cpu-budget off --output json
  kill $calls
}

run_test() {
  for try in 1 2; do
    timeout 150 /tests/$1 --exact $2 --test-threads 1 --nocapture && return 0
    [ $try = 1 ] && echo "SECOND TRY"
  done
  return 1
}

section uname uname -r
while read -r what name rest; do
  case $what in
  doctor) section doctor observer doctor --output json ;;
  programs) section programs verifier_log observer bench-programs ;;
  rung) section "rung $name" rung $name ;;
  test) section "test $name" run_test ${name%%:*} ${name##*:} ;;
  esac
done </plan
echo "@@@ALL DONE"
poweroff -f
