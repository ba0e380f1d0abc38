# Words for guest scripts that run the daemon on a drive; sourced after lib.sh.
# shellcheck shell=bash

# configure DRIVER_LINES: ./config.toml with one device, one pool of 256 KiB clusters and one
# volume. The mount is ./volumes.
configure() {
    mkdir -p volumes
    cat >config.toml <<TOML
[mount]
path = "volumes"
[control]
socket = "lvolfs.sock"
[[device]]
name = "disk0"
$1
[[pool]]
name = "pool0"
device = "disk0"
cluster_size = "256KiB"
create = true
[[volume]]
name = "pool0/demo"
size = "${volume_size:-64MiB}"
[reactor]
cores = ${cores:-2}
wait = "${wait_policy:-adaptive}"
dma_memory = "16MiB"
huge_pages = false
TOML
}

# on_kernel_driver SERIAL: the drive as a block device of the kernel. Its blocks are those that
# the controller has.
on_kernel_driver() {
    local disk
    disk=$(controller_of "$1")n1
    configure "driver = \"file\"
path = \"/dev/$disk\"
block_size = $(</sys/class/block/"$disk"/queue/logical_block_size)"
}

on_vfio() {
    configure "driver = \"nvme\"
pci = \"$1\""
}

daemon_said() {
    grep -Eq -- "$1" serve.log
}

is_running() {
    [[ -e /proc/$1 && $(cut -d' ' -f3 "/proc/$1/stat" 2>/dev/null) != Z ]]
}

ready_or_gone() {
    daemon_said '^ready' || ! is_running "$daemon"
}

# serve: the daemon with ./config.toml; returns when it is ready.
serve() {
    "${as_user[@]}" lvolfs serve --config config.toml >serve.log 2>&1 &
    daemon=$!
    wait_for 60 "the daemon" ready_or_gone
    daemon_said '^ready' || {
        cat serve.log
        fail "the daemon ended before it was ready"
    }
}
as_user=()

is_gone() {
    ! is_running "$1"
}

# stop: SIGTERM; the daemon ends well and says that the pool is closed.
stop() {
    local status=0
    kill -TERM "$daemon"
    wait_for 60 "the daemon to end" is_gone "$daemon"
    wait "$daemon" || status=$?
    if ((status != 0)) || daemon_said 'panicked'; then
        cat serve.log
        fail "SIGTERM: exit $status"
    fi
}

cli() {
    lvolfs "$@" --socket lvolfs.sock
}

# counter NAME: of the driver's commands.
counter() {
    cli status --json | jq ".devices[0].nvme.$1"
}

# digest FILE
digest() {
    sha256sum "$1" | cut -d' ' -f1
}
