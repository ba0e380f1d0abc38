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
pci = \"$1\"
io_timeout = \"${io_timeout:-30s}\""
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
        local status=0
        wait "$daemon" || status=$?
        cat serve.log
        fail "the daemon ended before it was ready: exit $status"
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

# write_numbers FILE BLOCKS: for ever: the number N, in 4096 characters, goes to block N % BLOCKS and
# is fsynced. Says what it begins and what is durable; ends when the file fails it.
write_numbers() {
    local number=0
    while :; do
        number=$((number + 1))
        echo "begin $number"
        printf '%4096d' "$number" |
            dd of="$1" bs=4096 seek=$((number % $2)) conv=notrunc,fsync 2>/dev/null || break
        echo "fsynced $number"
    done
    echo "ended $number"
}

# check_numbers FILE BLOCKS LOG: what write_numbers said in LOG to be durable is there.
check_numbers() {
    local fsynced begun block found last
    fsynced=$(sed -n 's/^fsynced //p' "$3" | tail -n 1)
    begun=$(sed -n 's/^begin //p' "$3" | tail -n 1)
    for ((block = 0; block < $2; block++)); do
        found=$(dd if="$1" bs=4096 skip="$block" count=1 2>/dev/null | tr -d ' \0')
        last=$((fsynced - (fsynced - block + $2) % $2))
        if ((last <= 0)) && [[ -z $found ]]; then
            continue
        fi
        if [[ ! $found =~ ^[0-9]+$ ]] ||
            ((found < last || found > begun || found % $2 != block)); then
            fail "block $block: fsynced $last, found '${found:0:40}'"
        fi
    done
    echo "$fsynced numbers fsynced, $begun begun: all there"
}

# said_fsynced LOG COUNT
said_fsynced() {
    [[ $(sed -n 's/^fsynced //p' "$1" | tail -n 1) -ge $2 ]] || grep -q '^ended' "$1"
}
