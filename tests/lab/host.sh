#!/bin/sh
# The lab host: libvirt with QEMU on this machine, with or without systemd. Run as root.
#
#   host.sh up      start what is not running: virtlogd, libvirtd, the NAT network and the storage pool "default"
#   host.sh status  say what runs; exit 1 unless all of it does
#   host.sh down    stop what `up` started, and nothing else
#
# Debian packages: qemu-system-x86 qemu-utils ovmf libvirt-daemon-system libvirt-clients dnsmasq-base iptables
# qemu.conf is left as it is: QEMU runs as libvirt-qemu, and libvirt gives it each disk of a domain at start.
set -eu

STATE=/run/caa-lab # on tmpfs: what a reboot stopped needs no stopping
NETWORK=default
POOL=default
POOL_PATH=/var/lib/libvirt/images
DNSMASQ="xmlns:dnsmasq='http://libvirt.org/schemas/network/dnsmasq/1.0'"
SUBNETS="122 123 124 125 126 127" # third byte of 192.168.x.0/24, libvirt's own default first

say() { echo "lab host: $*"; }
fail() { echo "lab host: $*" >&2; exit 1; }
v() { virsh --quiet --connect qemu:///system "$@"; }
answers() { v uri >/dev/null 2>&1; }
net_active() { v net-list --name | grep -qE "^$NETWORK *$"; }
net_defined() { v net-list --all --name | grep -qE "^$NETWORK *$"; }
pool_active() { v pool-list --name | grep -qE "^$POOL *$"; }
pool_defined() { v pool-list --all --name | grep -qE "^$POOL *$"; }
with_systemd() { [ -d /run/systemd/system ]; }
# A zombie keeps its name but has no command line; an init that reaps late must not look like a running daemon.
runs_as() { [ "$(cat "/proc/$1/comm" 2>/dev/null)" = "$2" ] && [ -n "$(tr -d '\0' <"/proc/$1/cmdline" 2>/dev/null)" ]; }
running() { for p in /proc/[0-9]*; do runs_as "${p#/proc/}" "$1" && return 0; done; return 1; }

start_daemon() { # name
    if with_systemd; then
        systemctl --quiet is-active "$1" && return
        systemctl start "$1"
        : >"$STATE/$1.unit"
    else
        running "$1" && return
        "$1" --daemon --pid-file "$STATE/$1.pid"
    fi
    say "started $1"
}

stop_daemon() { # name
    if [ -e "$STATE/$1.unit" ]; then
        systemctl stop "$1"
        rm "$STATE/$1.unit"
    elif [ -e "$STATE/$1.pid" ]; then
        pid=$(cat "$STATE/$1.pid")
        # The number may belong to another process by now.
        if runs_as "$pid" "$1"; then
            kill "$pid"
            i=0
            while runs_as "$pid" "$1"; do
                [ $i -lt 100 ] || fail "$1 (pid $pid) does not stop"
                sleep 0.1
                i=$((i + 1))
            done
        fi
        rm -f "$STATE/$1.pid"
    else
        return 0
    fi
    say "stopped $1"
}

# Where no udev runs, /dev/kvm belongs to root alone. libvirt, asking QEMU as root but running it as libvirt-qemu, then
# finds its knowledge of QEMU outdated at every call and asks anew: 4 to 10 s for each. This is what udev would set.
usual_kvm_mode() {
    [ -c /dev/kvm ] || return 0
    [ "$(stat -c %U:%G:%a /dev/kvm)" = root:root:600 ] || return 0
    chgrp kvm /dev/kvm && chmod 660 /dev/kvm
    say "gave /dev/kvm to the group kvm"
}

define_network() { # third byte
    v net-define /dev/stdin >/dev/null <<XML
<network $DNSMASQ>
  <name>$NETWORK</name>
  $(v net-dumpxml "$NETWORK" 2>/dev/null | grep '<uuid>' || true)
  <forward mode='nat'/>
  <bridge stp='on' delay='0'/>
  <ip address='192.168.$1.1' netmask='255.255.255.0'>
    <dhcp><range start='192.168.$1.2' end='192.168.$1.254'/></dhcp>
  </ip>
  <dnsmasq:options><dnsmasq:option value='no-ping'/></dnsmasq:options>
</network>
XML
}

# dnsmasq pings an address for up to 3 s before it offers it; nobody else gives out addresses here.
without_ping() {
    net_defined || return 0
    v net-dumpxml --inactive "$NETWORK" | grep -q "<dnsmasq:option" && return
    [ "$(v list --name | grep -c .)" -eq 0 ] || { say "domains run; $NETWORK goes on pinging addresses"; return 0; }
    v net-dumpxml --inactive "$NETWORK" | sed -e "s#<network[^>]*>#<network $DNSMASQ>#" -e \
        "s#</network>#  <dnsmasq:options><dnsmasq:option value='no-ping'/></dnsmasq:options></network>#" |
        v net-define /dev/stdin >/dev/null
    ! net_active || { v net-destroy "$NETWORK" && v net-start "$NETWORK"; }
    say "the network $NETWORK offers addresses without a ping first"
}

start_network() {
    without_ping
    net_active && return
    if net_defined; then
        if error=$(v net-start "$NETWORK" 2>&1); then
            : >"$STATE/network"
            say "started the network $NETWORK"
            return
        fi
        # Only a clash of addresses is cured by another subnet.
        case $error in *"already in use"*) ;; *) fail "$error" ;; esac
    else
        : >"$STATE/network.defined"
    fi
    for subnet in $SUBNETS; do
        define_network "$subnet"
        if error=$(v net-start "$NETWORK" 2>&1); then
            : >"$STATE/network"
            say "started the network $NETWORK on 192.168.$subnet.0/24"
            return
        fi
        case $error in *"already in use"*) ;; *) fail "$error" ;; esac
    done
    fail "no subnet is free for the network $NETWORK (tried 192.168.x.0/24, x in $SUBNETS): $error"
}

start_pool() {
    pool_active && return
    if ! pool_defined; then
        v pool-define-as "$POOL" dir --target "$POOL_PATH" >/dev/null
        : >"$STATE/pool.defined"
    fi
    [ -d "$POOL_PATH" ] || mkdir -p -m 0711 "$POOL_PATH"
    v pool-start "$POOL" >/dev/null
    : >"$STATE/pool"
    say "started the pool $POOL at $POOL_PATH"
}

up() {
    for tool in virsh libvirtd virtlogd qemu-img dnsmasq iptables; do
        command -v "$tool" >/dev/null || fail "$tool is missing; see the packages at the top of $0"
    done
    mkdir -p "$STATE"
    usual_kvm_mode
    start_daemon virtlogd
    start_daemon libvirtd
    i=0 # its first start ever looks at each QEMU there is, which takes seconds
    until answers; do
        [ $i -lt 300 ] || fail "libvirtd does not answer on qemu:///system"
        sleep 0.1
        i=$((i + 1))
    done
    start_network
    start_pool
    say "up"
}

status() {
    all=0
    line() { if "$2"; then say "$1: active"; else say "$1: not active"; all=1; fi; }
    line "libvirtd" answers
    [ $all -eq 0 ] || exit 1
    line "network $NETWORK" net_active
    line "pool $POOL" pool_active
    if grep -qE '^flags.* (vmx|svm)( |$)' /proc/cpuinfo && [ -c /dev/kvm ]; then
        say "hardware virtualization: yes"
    else
        say "hardware virtualization: no, pod VMs are emulated"
    fi
    exit $all
}

down() {
    if answers; then
        domains=$(v list --name | grep -c . || true)
        [ "$domains" -eq 0 ] || fail "$domains domains run; nothing was stopped"
        if [ -e "$STATE/pool" ] && pool_active; then v pool-destroy "$POOL" >/dev/null && say "stopped the pool $POOL"; fi
        [ ! -e "$STATE/pool.defined" ] || v pool-undefine "$POOL" >/dev/null
        if [ -e "$STATE/network" ] && net_active; then
            v net-destroy "$NETWORK" >/dev/null && say "stopped the network $NETWORK"
        fi
        [ ! -e "$STATE/network.defined" ] || v net-undefine "$NETWORK" >/dev/null
    fi
    rm -f "$STATE/pool" "$STATE/pool.defined" "$STATE/network" "$STATE/network.defined"
    stop_daemon libvirtd
    stop_daemon virtlogd
    say "down"
}

[ "$(id -u)" -eq 0 ] || fail "must run as root"
case ${1-} in
up | status | down) "$1" ;;
*) fail "usage: $0 up|status|down" ;;
esac
