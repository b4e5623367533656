#!/bin/sh
# First process of the guest: runs the checks, prints each between marks, switches the machine off.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null || mount -t debugfs debugfs /sys/kernel/debug

section() {
  name=$1
  shift
  echo "@@@BEGIN $name"
  "$@" 2>/dev/null
  echo "@@@END $name"
}

section uname uname -r
section doctor observer doctor --output json

# Victims end with their standard input: this one stays open.
mkfifo /held
exec 4<>/held
deadlock <&4 >/truth 2>&1 &
victim=$!
until [ -s /truth ]; do usleep 100000; done
section deadlock observer attach $victim --once --threshold 1s --output json
kill $victim

for rung in fentry kprobe tp_btf tracepoint; do
  polls &
  victim=$!
  section $rung observer attach $victim --for 2s --interval 500ms --threshold 1s --probes $rung --output json
  kill $victim
done
poweroff -f
