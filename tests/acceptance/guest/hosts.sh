# Words for parts whose checks use the target from the Linux kernel's NVMe/TCP host in a guest: the
# daemon runs on this machine, and the guest asks for what is to be done to it.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # shares variables with the parts, run and lib.sh

guest=$checkout/tests/acceptance/guest
guest_folder=$checkout/target/guest
nqn=nqn.2026-11.io.lvolfs:demo
host=nqn.2014-08.org.nvmexpress:uuid:11111111-1111-4111-8111-111111111111
stranger=nqn.2014-08.org.nvmexpress:uuid:22222222-2222-4222-8222-222222222222

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# configured PORT...: ./config.toml whose target listens there, and lets the guest in.
configured() {
    local list
    list=$(printf '"127.0.0.1:%s", ' "$@")
    example_here
    config_set target listen "[${list%, }]"
    config_set target.subsystem hosts "[\"$host\"]"
    config_set volume size '"64MiB"'
    config_set pool cluster_size '"256KiB"'
}

# guest_starts SCRIPT ARGUMENTS...: in the background; what it says goes to guest.log.
guest_starts() {
    [[ $(uname -m) == x86_64 ]] || skip "the guest is an x86-64 machine"
    "$guest/prepare" "$guest_folder"
    : >guest.log
    "$guest/boot" --folder "$guest_folder" --keep "$work/guest" --network --no-iommu \
        "${boot_options[@]}" --timeout "${boot_limit:-200}" \
        --program nvme --program fio --program mke2fs --program e2fsck \
        --file "$guest/tcp.sh" "$guest/checks/$1" "${@:2}" >guest.log 2>&1 &
    booted=$!
}

boot_options=()

said_or_ended() {
    grep -q -- "$1" guest.log || has_ended "$booted"
}

# asked WHAT: waits until the guest asks for it.
asked() {
    wait_for 120 "the guest to ask for $1" said_or_ended "^ask: $1"
    grep -q "^ask: $1" guest.log || {
        cat guest.log
        fail "the guest ended before it asked for $1"
    }
}

guest_ends() {
    local status=0
    wait "$booted" || status=$?
    cat guest.log
    ((status == 0)) || {
        tail -n 40 guest/console.log "$daemon_log"
        fail "the guest's script ended with $status"
    }
}
