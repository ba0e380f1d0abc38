# Persistent reservations: the file of a volume obeys them, and they outlive kills.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # variables are shared

part_about="reservations at the mount, from Linux hosts in a QEMU guest, and through kills"
part_packages=(attr fuse3 jq qemu-system-x86 busybox-static cpio kmod xz-utils zstd
    python3-minimal fio e2fsprogs nvme-cli perl-base)
part_checks=(ebade killed fresh_path empty_file corrupt_file in_the_volume hosts)

# shellcheck source=tests/acceptance/guest/hosts.sh
source "$checkout/tests/acceptance/guest/hosts.sh"

demo=mount/volumes/pool0/demo
us=11111111-2222-4333-8444-555555555555
other=99999999-8888-4777-8666-555555555555

reservations_config() {
    example_here
    config_set reservations host_id "\"$us\""
}

demo_uuid() {
    cli --json volume show pool0/demo | jq -r .uuid
}

put=(dd if=/dev/zero "of=$demo" bs=4096 count=1 'conv=notrunc,fsync' oflag=direct status=none)
get=(dd "if=$demo" of=/dev/null bs=4096 count=1 iflag=direct status=none)

put_block() {
    "${put[@]}"
}

get_block() {
    "${get[@]}"
}

# refused PATTERN ARGUMENTS...: the command line fails and says PATTERN.
refused() {
    local pattern=$1
    shift
    expect_failure "$pattern" "$lvolfs" "$@" --socket var/lvolfs.sock
}

# held_by_other RTYPE: the file as SPDK would have written it, of a reservation of another host.
held_by_other() {
    printf '{"ptpl":true,"rtype":%s,"crkey":51966,"bdev_uuid":"%s","holder_uuid":"%s","registrants":[{"rkey":51966,"host_uuid":"%s"}]}' \
        "$1" "$uuid" "$other" "$other" >"var/reservations/$uuid.json"
}

reservations_ebade() {
    reservations_config
    daemon_start
    uuid=$(demo_uuid)
    put_block
    daemon_stop
    held_by_other 1
    daemon_start
    cli reservation show pool0/demo | tee shown
    grep -q "^reservation *write-exclusive$" shown
    grep -q "$other *0xcafe *yes" shown
    get_block
    expect_failure 'Invalid exchange' "${put[@]}"
    expect_failure 'Invalid exchange' truncate -s 64M $demo
    expect_failure 'Invalid exchange' rm $demo
    expect_failure 'Invalid exchange' fallocate -l 1M $demo
    [[ $(getfattr --only-values -n user.lvolfs.reservation $demo) == 'type=1 registrants=1 role=none access=read' ]] ||
        fail "$(getfattr -n user.lvolfs.reservation $demo)"
    refused 'reservation' volume delete pool0/demo
    refused 'reservation' reservation acquire pool0/demo write-exclusive
    cli reservation register pool0/demo 0xabc
    refused 'reservation' reservation acquire pool0/demo write-exclusive
    expect_failure 'Invalid exchange' "${put[@]}"
    cli reservation preempt pool0/demo 0xcafe exclusive-access --abort
    put_block
    jq -e --arg us "$us" '.rtype == 2 and .holder_uuid == $us and (.registrants | length) == 1' \
        "var/reservations/$uuid.json"
    daemon_stop
    held_by_other 2
    daemon_start
    expect_failure 'Invalid exchange' "${get[@]}"
    # The administrator's override: explicit, and logged.
    refused 'not fenced' reservation reset pool0/demo
    cli reservation reset pool0/demo --force
    daemon_said 'reset by an administrator' || fail "the override is not in the log"
    put_block
    daemon_stop
}

# Whatever was answered is there after kill -9, before the first I/O; what was not, is or is not.
reservations_killed() {
    local turn kinds=(write-exclusive exclusive-access write-exclusive-registrants-only)
    reservations_config
    daemon_start
    uuid=$(demo_uuid)
    for ((turn = 0; turn < 6; turn++)); do
        cli reservation register pool0/demo $((turn + 1)) >registered.out
        cli reservation acquire pool0/demo "${kinds[turn % 3]}" >acquired.out
        # Commands are on their way when the daemon dies.
        (for key in 77 78 79; do cli reservation register pool0/demo $key; done) >/dev/null 2>&1 &
        daemon_kill
        wait $! || true
        umount -l mount/volumes 2>/dev/null || true
        daemon_start
        cli --json reservation show pool0/demo >shown
        jq -e --arg kind "${kinds[turn % 3]}" --argjson key $((turn + 1)) \
            '.type == $kind and .persist and (.registrants | length) == 1 and .registrants[0].holder
             and ([.registrants[0].key] | inside([$key, 77, 78, 79]))' shown || fail "$(cat shown)"
        put_block
        cli reservation release pool0/demo >released.out
    done
    cli reservation clear pool0/demo
    daemon_restart
    cli --json reservation show pool0/demo | jq -e '.registrants == [] and (has("type") | not)'
    daemon_stop
}

# A path that was never used starts clean.
reservations_fresh_path() {
    reservations_config
    config_set reservations path '"state/below/reservations"'
    daemon_start
    [[ $(stat -c %a state/below/reservations) == 700 ]] || fail "others may look at keys"
    put_block
    cli --json reservation show pool0/demo | jq -e '.local_access == "read-write" and (has("fence") | not)'
    daemon_stop
}

# An empty file starts clean: SPDK leaves one when persistence is switched off.
reservations_empty_file() {
    reservations_config
    daemon_start
    uuid=$(demo_uuid)
    daemon_stop
    : >"var/reservations/$uuid.json"
    daemon_start
    put_block
    cli reservation register pool0/demo 5
    daemon_restart
    cli --json reservation show pool0/demo | jq -e '.registrants[0].key == 5'
    daemon_stop
}

# A corrupt file fences the volume, says why and what to do, and is kept when the fence is lifted.
reservations_corrupt_file() {
    reservations_config
    daemon_start
    uuid=$(demo_uuid)
    daemon_stop
    echo '{"ptpl": tru' >"var/reservations/$uuid.json"
    daemon_start
    daemon_said 'lvolfs reservation reset' || fail "the log does not say what to do"
    cli status | grep -i 'volume pool0/demo is fenced.*reservation reset pool0/demo'
    expect_failure 'Invalid exchange' "${get[@]}"
    expect_failure 'Invalid exchange' "${put[@]}"
    cli reservation register pool0/demo 5
    refused 'reservation' reservation acquire pool0/demo write-exclusive
    cmp <(echo '{"ptpl": tru') "var/reservations/$uuid.json"
    cli reservation reset pool0/demo
    cmp <(echo '{"ptpl": tru') "var/reservations/$uuid.json.damaged-1"
    put_block
    get_block
    daemon_restart
    put_block
    daemon_stop
}

# With ptpl = "volume" the state moves with the image.
reservations_in_the_volume() {
    reservations_config
    config_set reservations ptpl '"volume"'
    daemon_start
    cli reservation register pool0/demo 5
    cli reservation acquire pool0/demo write-exclusive
    put_block
    daemon_kill
    umount -l mount/volumes 2>/dev/null || true
    config_set reservations host_id "\"$other\""
    daemon_start
    expect_failure 'Invalid exchange' "${put[@]}"
    cli --json reservation show pool0/demo | jq -e --arg us "$us" '.registrants[0].host == $us'
    daemon_stop
}

# Two hosts of the Linux kernel with identities of their own, and the mount as a third.
reservations_hosts() {
    local port
    port=$(free_port)
    configured "$port"
    config_set reservations host_id "\"$us\""
    config_set target.subsystem hosts "[\"$host\", \"$stranger\"]"
    daemon_start
    uuid=$(demo_uuid)
    boot_options=(--kernel nvme_core.multipath=N --program perl --file "$guest/pr")
    boot_limit=290
    guest_starts tcp-reservations "$port"
    asked file-conflicts
    cli reservation show pool0/demo | tee shown
    grep -q '^reservation *exclusive-access$' shown
    grep -q "11111111-1111-4111-8111-111111111111 *0xa *yes" shown
    expect_failure 'Invalid exchange' "${get[@]}"
    expect_failure 'Invalid exchange' "${put[@]}"
    refused 'reservation' volume read-only pool0/demo
    cli reservation register pool0/demo 0x10c
    asked file-works
    put_block
    cli reservation register pool0/demo 0x10d
    asked kill
    jq -e '.rtype == 2 and (.registrants | length) == 2' "var/reservations/$uuid.json"
    daemon_kill
    umount -l mount/volumes 2>/dev/null || true
    daemon_start
    # The first I/O that the new daemon sees.
    expect_failure 'Invalid exchange' "${get[@]}"
    cli reservation register pool0/demo 0x10e
    guest_ends
    note "$(grep 'writes and reads were refused' guest.log)"
    daemon_stop
}
