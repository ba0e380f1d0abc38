# The NVMe-oF/TCP target as the Linux kernel's host uses it, in a QEMU guest whose network reaches
# this machine's loopback.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154,SC2164  # shares variables with ../run and ../lib.sh; runs under set -e

part_about="the NVMe-oF/TCP target and the Linux kernel's host, in a QEMU guest"
part_packages=(qemu-system-x86 busybox-static cpio kmod xz-utils zstd python3-minimal jq
    fio e2fsprogs fuse3 nvme-cli)
part_checks=(control host restart paths hosts soak)

# shellcheck source=tests/acceptance/guest/hosts.sh
source "$checkout/tests/acceptance/guest/hosts.sh"

allocated() {
    cli volume show pool0/demo --json | jq .allocated
}

has_fewer_than() {
    (($(allocated) < $1))
}

# What the n-th "ask: compare" of the guest said, and the file, are the same.
compare() {
    local told
    told=$(grep '^ask: compare' guest.log | sed -n "$1p" | cut -d' ' -f3)
    [[ $(sha256sum <mount/volumes/pool0/demo | cut -d' ' -f1) == "$told" ]] ||
        fail "the file and the namespace differ (comparison $1)"
}

target_control() {
    local port other
    port=$(free_port)
    configured "$port"
    daemon_start
    cli target list | tee list
    grep -q "$nqn.*pool0/demo.*127.0.0.1:$port.*$host" list
    expect_failure 'busy' rm mount/volumes/pool0/demo
    expect_failure "in use by $nqn" "$lvolfs" volume delete pool0/demo --socket var/lvolfs.sock
    # What is changed is there after a restart.
    other=$(free_port)
    cli volume create pool0/second 16MiB
    cli target export pool0/second --nqn nqn.2026-11.io.lvolfs:second --listen "127.0.0.1:$other"
    expect_failure 'in use by' "$lvolfs" target export pool0/second --nqn "$nqn" \
        --socket var/lvolfs.sock
    cli target allow "$nqn" "$stranger"
    daemon_restart
    cli target show nqn.2026-11.io.lvolfs:second | grep pool0/second
    cli target show "$nqn" | grep "$stranger"
    # An edited declaration wins over what was changed; what it does not name stays.
    config_set target.subsystem hosts '[]'
    daemon_restart
    daemon_said 'dropped changes of'
    cli target list | tee list
    grep -q "$nqn.*none" list
    grep -q "nqn.2026-11.io.lvolfs:second" list
    cli target unexport pool0/second --delete-empty
    cli volume delete pool0/second
    daemon_stop
    # A damaged state file exports nothing, and says so.
    [[ -s var/target/target.json ]] || fail "nothing was kept"
    sed -i 's/false/true/' var/target/target.json
    daemon_start
    daemon_said 'checksum is wrong'
    cli target list --json | jq -e 'length == 0'
    expect_failure 'Move the file away' "$lvolfs" target export pool0/demo --nqn "$nqn" \
        --socket var/lvolfs.sock
    daemon_stop
    rm var/target/target.json
    daemon_start
    cli target list | grep pool0/demo
    daemon_stop
    # Nothing needs to be mounted to export; but one of the two there must be.
    sed -i '/^\[mount\]/,/^\[/{/^\[control\]/!d}' config.toml
    daemon_start
    daemon_said 'ready: .* exported only'
    is_not_mounted mount/volumes || fail "mounted without being asked to"
    cli status --json | jq -e '.mounts == []'
    cli target list | grep pool0/demo
    cli volume create pool0/third 16MiB
    cli volume delete pool0/third
    daemon_stop
    sed -i '/^\[target\]/,$d' config.toml
    daemon_refuses 'neither \[mount\] nor \[target\]'
}

target_host() {
    local port full
    port=$(free_port)
    configured "$port"
    daemon_start
    guest_starts tcp "$port" "$(cli volume show pool0/demo --json | jq -r .uuid)"
    asked written
    full=$(allocated)
    asked trimmed
    wait_for 20 "clusters to come back" has_fewer_than $((full - (12 << 20)))
    note "fstrim gave back $(((full - $(allocated)) >> 20)) MiB"
    asked 'compare .'
    compare 1
    asked write-file
    printf 'through the file' | dd of=mount/volumes/pool0/demo bs=1 seek=5000000 conv=notrunc,fsync \
        status=none
    asked resize
    compare 2
    cli volume resize pool0/demo 96MiB
    asked plug
    cli volume create pool0/second 16MiB
    cli target export pool0/second --nqn "$nqn"
    cli target show "$nqn"
    asked unplug
    cli target unexport pool0/second
    guest_ends
    daemon_stop
}

target_restart() {
    local port block last
    port=$(free_port)
    configured "$port"
    daemon_start
    guest_starts tcp-restart "$port"
    asked restart
    daemon_restart
    asked kill
    daemon_kill
    last=$(grep -c '^fsynced' guest.log)
    umount -l mount/volumes 2>/dev/null || true
    daemon_start
    ((last > 30)) || fail "only $last blocks were fsynced before the kill"
    for ((block = 0; block < last; block++)); do
        [[ $(dd if=mount/volumes/pool0/demo bs=4k skip=$block count=1 status=none) == \
        "$(printf '%-4096s' "block $block")" ]] || fail "block $block was fsynced and is lost"
    done
    note "killed after $last fsyncs over the network: all there"
    guest_ends
    daemon_stop
}

target_paths() {
    local one two
    one=$(free_port)
    two=$(free_port)
    configured "$one" "$two"
    config_set target.subsystem ana true
    daemon_start
    guest_starts tcp-paths "$one" "$two"
    local first="{\"trtype\": \"tcp\", \"traddr\": \"127.0.0.1\", \"trsvcid\": \"$one\"}"
    local second="{\"trtype\": \"tcp\", \"traddr\": \"127.0.0.1\", \"trsvcid\": \"$two\"}"
    asked close-path
    cli rpc nvmf_subsystem_listener_set_ana_state \
        "{\"nqn\": \"$nqn\", \"listen_address\": $first, \"ana_state\": \"inaccessible\"}"
    asked open-path
    cli rpc nvmf_subsystem_listener_set_ana_state \
        "{\"nqn\": \"$nqn\", \"listen_address\": $first, \"ana_state\": \"optimized\"}"
    asked take-path
    cli rpc nvmf_subsystem_remove_listener "{\"nqn\": \"$nqn\", \"listen_address\": $second}"
    guest_ends
    daemon_stop
}

target_hosts() {
    local port
    port=$(free_port)
    configured "$port"
    config_set target.subsystem hosts "[\"$host\", \"$stranger\"]"
    daemon_start
    boot_options=(--kernel nvme_core.multipath=N)
    guest_starts tcp-hosts "$port"
    asked shut-out
    cli rpc nvmf_subsystem_get_qpairs "{\"nqn\": \"$nqn\"}" | jq -e 'length == 5'
    cli target deny "$nqn" "$stranger"
    guest_ends
    daemon_stop
}

# 30 minutes of it with --long: too long for every run.
target_soak() {
    [[ -n $long ]] || skip "takes 30 minutes; run with --long"
    local port seconds=1800 answered=0 what round before=
    port=$(free_port)
    configured "$port"
    daemon_start
    boot_limit=2000
    guest_starts tcp-soak "$port" "$seconds"
    while is_running "$booted"; do
        # A line that is not whole yet is not read.
        while read -r what round; do
            answered=$((answered + 1))
            if [[ $what == snapshot ]]; then
                cli volume snapshot pool0/demo "soak-$round"
                [[ -z $before ]] || cli volume delete "pool0/$before"
                before=soak-$round
            else
                daemon_restart
                cli volume resize pool0/demo "$((64 + round))MiB"
            fi
        done < <(sed -n 's/^ask: //p' guest.log | tail -n "+$((answered + 1))")
        sleep 0.2
    done
    guest_ends
    note "$(grep '^== done' guest.log)"
    note "answered $answered times: a snapshot, or a restart and a resize"
    daemon_stop
}
