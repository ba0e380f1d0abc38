# The lvolstore through the daemon: snapshots and clones under real file systems and tools, check and repair.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154,SC2164  # variables are shared; set -e is on

part_about="snapshots, clones and copies of volumes, under real file systems; check and repair"
part_packages=(attr coreutils e2fsprogs fio fuse3 jq python3)
part_checks=(snapshot_of_a_mounted_file_system copy_is_a_clone relatives clone_under_load
    check_after_kill check_after_dd space scrub pools grow
    external_parent external_volume shallow_copy power_cut)

pool=mount/volumes/pool0
demo=$pool/demo

# A snapshot of a mounted ext4 is consistent: what was fsynced is in it, and fsck finds no damage.
lvolstore_snapshot_of_a_mounted_file_system() {
    example_here
    daemon_start
    mkfs.ext4 -q -F "$demo"
    mkdir "$work/ext4"
    mount -o loop "$demo" "$work/ext4"
    dd if=/dev/urandom of="$work/data" bs=1M count=8 status=none
    dd if="$work/data" of="$work/ext4/kept" bs=1M conv=fsync status=none
    cli volume snapshot pool0/demo before
    rm "$work/ext4/kept"
    echo later >"$work/ext4/later"
    umount "$work/ext4"
    [[ $(stat -c %a "$pool/before") == 400 || $(stat -c %a "$pool/before") == 4[04][04] ]] ||
        fail "the snapshot's file can be written: $(stat -c %A "$pool/before")"
    ! dd if=/dev/zero of="$pool/before" bs=4096 count=1 conv=notrunc,fsync status=none ||
        fail "a snapshot took a write"
    cli volume clone pool0/before again
    # The journal is replayed into the clone, whose first writes copy.
    e2fsck -fy "$pool/again" || (($? <= 1)) || fail "fsck found damage in the clone"
    mount -o loop "$pool/again" "$work/ext4"
    cmp "$work/data" "$work/ext4/kept"
    [[ ! -e $work/ext4/later ]] || fail "what came after the snapshot is in it"
    umount "$work/ext4"
    e2fsck -fn "$demo"
    daemon_kill
    umount -l mount/volumes
    daemon_start
    e2fsck -fn "$pool/again"
    e2fsck -fn "$demo"
    expect_failure 'demo.*again|again.*demo' "$lvolfs" --socket var/lvolfs.sock volume delete pool0/before
    cli volume delete pool0/again
    cli volume delete pool0/before
    e2fsck -fn "$demo"
    daemon_stop
}

# `cp` of a volume neither reads nor writes it, and the two are independent afterwards.
lvolstore_copy_is_a_clone() {
    example_here
    daemon_start
    dd if=/dev/urandom of="$work/data" bs=1M count=64 status=none
    dd if="$work/data" of="$demo" bs=1M conv=notrunc,fsync status=none
    python3 - "$demo" "$pool/copy" <<'P'
import os, sys
source = os.open(sys.argv[1], os.O_RDONLY)
target = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
size = os.fstat(source).st_size
copied = os.copy_file_range(source, target, size)
print("copied", copied, "of", size)
assert copied == size
P
    [[ $(stat -c %b "$pool/copy") == 0 ]] || fail "the copy has blocks of its own"
    cmp "$demo" "$pool/copy"
    getfattr --only-values -n user.lvolfs.parent "$pool/copy" | grep -q '^\.copy-'
    printf changed | dd of="$pool/copy" bs=4096 seek=3 conv=notrunc,fsync status=none
    cmp -n 67108864 "$work/data" "$demo"
    cp --reflink=auto "$pool/copy" "$pool/second"
    cmp "$pool/copy" "$pool/second"
    # What the copies shared goes with the last but one that needs it.
    rm "$pool/second" "$pool/copy"
    local left
    left=$(find "$pool" -name '.copy-*' | wc -l)
    ((left == 0)) || fail "$left snapshots of copies are left"
    cmp -n 67108864 "$work/data" "$demo"
    daemon_restart
    cmp -n 67108864 "$work/data" "$demo"
    daemon_stop
}

# SPDK's methods by their names, and the command line.
lvolstore_relatives() {
    example_here
    daemon_start
    dd if=/dev/urandom of="$work/data" bs=1M count=4 status=none
    dd if="$work/data" of="$demo" bs=1M conv=notrunc,fsync status=none
    cli rpc bdev_lvol_snapshot '{"lvol_name":"pool0/demo","snapshot_name":"one"}' | grep -E '^"[0-9a-f-]{36}"'
    printf second | dd of="$demo" bs=1M seek=8 conv=notrunc,fsync status=none
    cli rpc bdev_lvol_snapshot '{"lvol_name":"pool0/demo","snapshot_name":"two"}'
    cli rpc bdev_get_bdevs '{"name":"pool0/one"}' |
        jq -e '.[0].driver_specific.lvol | .snapshot and .clones == ["two"]'
    cli rpc bdev_lvol_get_lvols '{"lvs_name":"pool0"}' |
        jq -e '[.[] | select(.name == "demo")][0] | .is_clone and (.is_snapshot | not)'
    cli volume decouple pool0/demo
    [[ $(getfattr --only-values -n user.lvolfs.parent "$demo") == one ]] || fail "not decoupled"
    cli rpc bdev_lvol_inflate '{"name":"pool0/demo"}'
    [[ $(getfattr --only-values -n user.lvolfs.parent "$demo") == '' ]] || fail "not inflated"
    [[ $(getfattr --only-values -n user.lvolfs.allocated "$demo") == "$(getfattr --only-values \
        -n user.lvolfs.size "$demo")" ]] || fail "inflated with holes"
    cmp -n 4194304 "$work/data" "$demo"
    truncate -s 256M "$pool/other"
    cli volume set-parent pool0/other two
    cmp -n 4194304 "$work/data" "$pool/other"
    cli volume read-only pool0/other
    expect_failure 'read-only' "$lvolfs" --socket var/lvolfs.sock volume snapshot pool0/other no
    expect_failure 'thick' "$lvolfs" --socket var/lvolfs.sock volume set-parent pool0/demo two
    expect_failure 'clone' "$lvolfs" --socket var/lvolfs.sock volume clone pool0/demo no
    daemon_stop
}

# Snapshots while fio writes and verifies: every write is found where it belongs.
lvolstore_clone_under_load() {
    example_here
    daemon_start
    fio --name=load --filename="$demo" --rw=randwrite --bs=4k --size=32M --ioengine=libaio \
        --iodepth=8 --direct=1 --fsync=16 --verify=crc32c --do_verify=1 --verify_fatal=1 \
        --time_based=0 --loops=2 >"$work/fio" 2>&1 &
    local load=$! turn
    for turn in 1 2 3 4; do
        cli volume snapshot pool0/demo "turn$turn"
        sleep 0.3
    done
    wait "$load" || fail "fio: $(tail -5 "$work/fio")"
    for turn in 1 2 3 4; do
        cli volume delete pool0/turn"$turn"
    done
    fio --name=load --filename="$demo" --rw=randwrite --bs=4k --size=32M --ioengine=libaio \
        --iodepth=8 --direct=1 --verify=crc32c --verify_only=1 --loops=2
    daemon_stop
}

# ---- check and repair ------------------------------------------------------------------------

image=var/disk0.img

# expect_exit CODE COMMAND...
expect_exit() {
    local wanted=$1 status=0
    shift
    "$@" || status=$?
    ((status == wanted)) || fail "exit $status, not $wanted: $*"
}

# SIGKILL in the middle of writers leaves a store that check finds nothing wrong with.
lvolstore_check_after_kill() {
    local round
    example_here
    config_set device size '"256MiB"'
    daemon_start
    expect_failure 'in use' "$lvolfs" check $image
    for round in 1 2 3; do
        cli volume create pool0/other$round 32MiB
        dd if=/dev/urandom of="$demo" bs=64k count=400 seek=$((round * 500)) \
            conv=notrunc,fsync status=none &
        local writer=$!
        dd if=/dev/urandom of=$pool/other$round bs=1M count=8 conv=notrunc,fsync status=none
        daemon_kill
        wait "$writer" 2>/dev/null || true
        expect_exit 0 "$lvolfs" check $image
        [[ $("$lvolfs" check --json $image | jq -r .store.closed_in_order) == false ]] ||
            fail "a killed daemon has closed its pool"
        daemon_start
    done
    daemon_stop
    expect_exit 0 "$lvolfs" check $image
    [[ $("$lvolfs" check --json $image | jq -r .store.closed_in_order) == true ]] ||
        fail "SIGTERM has not closed the pool"
    "$lvolfs" dump $image | grep -q 'name = other2' || fail "dump does not show a volume"
}

# dd over bitmaps, the super block and a root page: named, repaired, undone, or left alone.
lvolstore_check_after_dd() {
    local root md_start
    example_here
    config_set device size '"256MiB"'
    daemon_start
    cli volume create pool0/other 32MiB
    dd if=/dev/urandom of=data bs=1M count=8 status=none
    dd if=data of="$demo" conv=notrunc,fsync status=none
    dd if=data of=$pool/other conv=notrunc,fsync status=none
    daemon_stop
    cp --sparse=always $image good.img

    dd if=/dev/urandom of=$image bs=4096 seek=1 count=3 conv=notrunc status=none
    cp --sparse=always $image damaged.img
    expect_exit 5 "$lvolfs" check $image
    expect_exit 0 "$lvolfs" check $image --repair
    expect_exit 0 "$lvolfs" check $image
    cmp $image good.img
    expect_failure 'earlier repair' "$lvolfs" check $image --repair
    "$lvolfs" check $image --undo disk0.img.undo
    cmp $image damaged.img
    cp --sparse=always good.img $image

    dd if=/dev/zero of=$image bs=4096 count=1 conv=notrunc status=none
    expect_failure 'no lvolstore here' "$lvolfs" check $image
    expect_exit 5 "$lvolfs" check $image --block-size 4096B
    expect_exit 0 "$lvolfs" check $image --block-size 4096B --repair --save-to super.undo
    daemon_start
    cmp -n $((8 << 20)) data "$demo"
    daemon_stop

    root=$("$lvolfs" dump --json $image |
        jq -r '.blobs[] | select(any(.xattrs[]; .name == "name" and .value == "demo")) | .id')
    md_start=$("$lvolfs" dump --json $image |
        jq -r '.super_block.regions[] | select(.name == "metadata") | .first')
    dd if=/dev/urandom of=$image bs=512 seek=$((8 * (md_start + root - 0x100000000) + 4)) count=4 \
        conv=notrunc status=none
    expect_exit 6 "$lvolfs" check $image
    expect_exit 6 "$lvolfs" check $image --repair --save-to root.undo
    # The configuration declares it; it is not made anew.
    daemon_start
    cmp -n $((8 << 20)) data $pool/other
    cli status | grep -q quarantined || fail "status does not name the damaged volume"
    [[ ! -e $demo ]] || fail "an empty volume has taken the damaged one's name"
    daemon_said 'whose name is lost: not made'
    local held
    held=$(cli --json pool show pool0 | jq .free_clusters)
    daemon_stop

    # Given up, it is gone, and its space is free.
    sed -i '/^\[\[volume\]\]/,$d' config.toml
    expect_exit 0 "$lvolfs" check $image --repair --save-to given-up.undo --give-up "$root"
    daemon_start
    cmp -n $((8 << 20)) data $pool/other
    cli --json pool show pool0 | jq -e --argjson held "$held" \
        '.free_clusters > $held and (.volumes | length) == 1' >/dev/null ||
        fail "the space of what was given up is not free: $(cli --json pool show pool0)"
    daemon_stop
}

# A thin pool fills: who is told, whose space is kept, who waits.
lvolstore_space() {
    example_here
    config_set device size '"64MiB"'
    config_set volume size '"256MiB"'
    config_add_volume pool0/kept 32MiB
    config_add_volume pool0/patient 32MiB
    daemon_start
    "$lvolfs" events --socket var/lvolfs.sock >events.log &
    local watcher=$!
    cli volume space pool0/kept --reserve 8MiB
    cli volume space pool0/patient --on-full wait
    expect_failure 'No space left on device' \
        dd if=/dev/zero of=$demo bs=1M count=200 conv=notrunc,fsync
    # The reserve is there for its volume and for nobody else.
    dd if=/dev/urandom of=$pool/kept bs=1M count=8 conv=notrunc,fsync status=none
    # A write that waits ends well when space comes back.
    dd if=/dev/urandom of=$pool/patient bs=1M count=1 conv=notrunc,fsync status=none &
    local patient=$!
    fallocate -p -o 0 -l 16M $demo
    sync $demo
    wait $patient || fail "the write that waited failed"
    wait_for 10 "the events" grep -q lvstore_space_ok events.log
    cat events.log
    grep -q lvstore_low_space events.log || fail "no event for little space"
    grep -q lvstore_full events.log || fail "no event for a full pool"
    cli --json status | jq -e '.pools[0] | .reserved == 0 and .allocated < .provisioned' >/dev/null
    daemon_stop
    wait $watcher || fail "the stream of events did not end in order"
}

# A scrub of a pool in use reads all of it and finds nothing.
lvolstore_scrub() {
    example_here
    daemon_start
    dd if=/dev/urandom of=$demo bs=1M count=20 conv=notrunc,fsync status=none
    cli volume snapshot pool0/demo before
    cli volume clone pool0/before clone
    dd if=/dev/urandom of=$demo bs=1M count=5 conv=notrunc,fsync status=none
    cli pool scrub pool0 --wait --rate 1GiB
    cli --json pool scrub pool0 --status | jq -e '.state == "done" and .faults == 0' >/dev/null
    daemon_stop
}

# Pools are made, renamed and destroyed while the daemon runs and another pool is under load.
lvolstore_pools() {
    example_here
    printf '\n[[device]]\nname = "disk1"\ndriver = "file"\npath = "var/disk1.img"\nsize = "256MiB"\ncreate = true\n' >>config.toml
    daemon_start
    fio --name=load --filename="$demo" --rw=randwrite --bs=4k --size=16M --ioengine=libaio \
        --iodepth=4 --direct=1 --fsync=16 --verify=crc32c --do_verify=1 --verify_fatal=1 \
        --loops=2 >"$work/fio" 2>&1 &
    local load=$! lvolfs_here=("$lvolfs" --socket var/lvolfs.sock)
    expect_failure 'No such device' "${lvolfs_here[@]}" pool create fast nothing
    expect_failure 'Operation not permitted.*pool0' "${lvolfs_here[@]}" pool create fast disk0
    expect_failure 'File exists' "${lvolfs_here[@]}" pool create pool0 disk1
    cli pool create fast disk1 --cluster-size 64KiB
    [[ -d mount/volumes/fast ]] || fail "the new pool has no directory"
    cli rpc bdev_lvol_get_lvstores '{"lvs_name":"fast"}' |
        jq -e '.[0] | .base_bdev == "disk1" and .cluster_size == 65536' >/dev/null
    cli volume create fast/v 64MiB
    dd if=/dev/urandom of="$work/data" bs=1M count=8 status=none
    dd if="$work/data" of=mount/volumes/fast/v bs=1M conv=notrunc,fsync status=none

    # The name changes under an open file.
    exec 8<mount/volumes/fast/v
    cli pool rename fast quick
    [[ -d mount/volumes/quick && ! -e mount/volumes/fast ]] || fail "the directory was not renamed"
    cmp -n $((8 << 20)) "$work/data" /dev/fd/8
    expect_failure 'resource busy.*v is in use' "${lvolfs_here[@]}" pool delete quick --with-volumes
    exec 8<&-
    expect_failure 'File exists' "${lvolfs_here[@]}" pool rename quick pool0
    expect_failure 'No such file' "${lvolfs_here[@]}" pool rename fast other
    expect_failure 'with-volumes' "${lvolfs_here[@]}" pool delete quick

    # It is found again, though no configuration declares it.
    wait $load || { cat "$work/fio"; fail "fio met an error"; }
    daemon_kill
    umount -l mount/volumes
    daemon_start
    cmp -n $((8 << 20)) "$work/data" mount/volumes/quick/v
    cli target export quick/v --nqn nqn.2026-11.io.lvolfs:quick
    expect_failure 'lvolfs:quick' "${lvolfs_here[@]}" pool delete quick --with-volumes
    cli pool rename quick slow
    daemon_restart
    cli rpc nvmf_get_subsystems | jq -e --arg uuid "$(cli --json volume show slow/v | jq -r .uuid)" \
        '[.[] | select(.nqn == "nqn.2026-11.io.lvolfs:quick")][0].namespaces[0].uuid == $uuid' >/dev/null ||
        fail "the export did not follow the pool's name"
    cli target unexport slow/v --delete-empty
    cli pool delete slow --with-volumes
    [[ ! -e mount/volumes/slow ]] || fail "the directory of a destroyed pool is there"
    expect_failure 'No such device' "${lvolfs_here[@]}" rpc bdev_lvol_get_lvstores '{"lvs_name":"slow"}'
    cmp -n $((128 << 10)) var/disk1.img /dev/zero
    cli pool create again disk1 --clear none
    cli volume create again/v 64MiB
    cmp -n $((64 << 20)) mount/volumes/again/v /dev/zero
    daemon_stop
    "$lvolfs" check var/disk1.img
}

# A pool takes in what its device has gained, while fio writes: an image under the emulated
# controller, and one under the file driver.
lvolstore_grow() {
    example_here
    printf '\n[[device]]\nname = "disk1"\ndriver = "file"\npath = "var/disk1.img"\nsize = "64MiB"\ncreate = true\n' >>config.toml
    config_set device size '"64MiB"'
    daemon_start
    cli pool create second disk1 --cluster-size 64KiB
    cli volume create second/v 256MiB
    local pool image file lvolfs_here=("$lvolfs" --socket var/lvolfs.sock)
    for pool in pool0 second; do
        image=var/disk0.img file=$demo
        [[ $pool == pool0 ]] || image=var/disk1.img file=mount/volumes/second/v
        cli pool grow $pool | grep -q 'gained nothing' || fail "$pool grew with nothing"
        fio --name=load --filename="$file" --rw=randwrite --bs=4k --size=16M --ioengine=libaio \
            --iodepth=4 --direct=1 --fsync=16 --verify=crc32c --do_verify=1 --verify_fatal=1 \
            --loops=2 >"$work/fio" 2>&1 &
        local load=$!
        truncate -s 192M $image
        cli pool grow $pool
        wait $load || { cat "$work/fio"; fail "fio met an error"; }
        cli --json pool show $pool |
            jq -e '.total_clusters * .cluster_size > 185 * 1048576' >/dev/null ||
            fail "$pool has not grown: $(cli --json pool show $pool)"
        # More than the device had before.
        dd if=/dev/urandom of="$work/data" bs=1M count=100 status=none
        dd if="$work/data" of=$file bs=1M conv=notrunc,fsync status=none
        cmp -n $((100 << 20)) "$work/data" $file
    done
    daemon_kill
    umount -l mount/volumes
    daemon_start
    cmp -n $((100 << 20)) "$work/data" mount/volumes/second/v
    cli pool grow second | grep -q 'gained nothing' || fail "the growth was lost"
    daemon_stop
    "$lvolfs" check var/disk0.img
    "$lvolfs" check var/disk1.img
}

# A golden image as the parent of volumes: shown, never written, missed when it is not there.
lvolstore_external_parent() {
    example_here
    mkdir -p var
    dd if=/dev/urandom of=var/golden.img bs=1M count=32 status=none
    cp var/golden.img "$work/golden"
    local device='\n[[device]]\nname = "golden"\ndriver = "file"\npath = "var/golden.img"\nuuid = "0eeeeeee-1111-4222-8333-444444444444"\n'
    # shellcheck disable=SC2059
    printf "$device" >>config.toml
    daemon_start
    local lvolfs_here=("$lvolfs" --socket var/lvolfs.sock)
    expect_failure 'No such device' "${lvolfs_here[@]}" volume clone pool0/c --from-device nothing
    expect_failure 'Operation not permitted' "${lvolfs_here[@]}" volume clone pool0/c --from-device disk0
    cli volume clone pool0/c --from-device golden
    cmp "$work/golden" $pool/c
    [[ $(stat -c %b $pool/c) == 0 ]] || fail "the clone has blocks of its own"
    printf changed | dd of=$pool/c bs=4096 seek=300 conv=notrunc,fsync status=none
    cmp -n $((300 * 4096)) "$work/golden" $pool/c
    cli volume snapshot pool0/c s
    cli volume clone pool0/s d
    cmp -i $((4 << 20)) "$work/golden" $pool/d
    expect_failure 'Operation not permitted.*parent' "${lvolfs_here[@]}" pool create other golden
    cli rpc bdev_lvol_get_lvols | jq -e '[.[] | select(.name == "s")][0] | .is_esnap_clone and (.is_degraded | not)' >/dev/null
    cli rpc bdev_get_bdevs '{"name":"pool0/s"}' | jq -e '.[0].driver_specific.lvol.external_snapshot_name == "0eeeeeee-1111-4222-8333-444444444444"' >/dev/null
    daemon_stop
    cmp "$work/golden" var/golden.img
    "$lvolfs" check var/disk0.img
    "$lvolfs" dump var/disk0.img | grep -q 0eeeeeee-1111-4222-8333-444444444444

    # Without it.
    cp config.toml "$work/with"
    sed -i '/^name = "golden"/,$d' config.toml
    sed -i '$d' config.toml
    daemon_start
    cli --json status | jq -e '[.pools[0].volumes[] | select(.name == "d")][0].state == "degraded"' >/dev/null
    expect_failure 'Input/output error' cat $pool/d
    expect_failure 'Read-only' dd if=/dev/zero of=$pool/c bs=4096 count=1 conv=notrunc status=none
    expect_failure 'read-only' "${lvolfs_here[@]}" volume inflate pool0/d
    daemon_stop
    cp "$work/with" config.toml
    daemon_start
    cli volume inflate pool0/d
    cli volume decouple pool0/c
    cli volume decouple pool0/c
    cli volume delete pool0/s
    # Nobody needs it any more: what keeps it from becoming a pool is its content.
    expect_failure 'not touched' "${lvolfs_here[@]}" pool create other golden
    cp --sparse=never $pool/d "$work/d"
    cmp -i $((4 << 20)) "$work/golden" "$work/d"
    truncate -s 64M $pool/t
    cli volume set-parent pool0/t --device golden
    cmp -n $((32 << 20)) "$work/golden" $pool/t
    daemon_stop
}

# same FILE VOLUME: they are equal, read in large pieces.
same() {
    dd if="$2" bs=1M iflag=direct status=none | cmp "$1" -
}

# pool_of NAME CLUSTER: a pool of that name on a file of its own, as the configuration has it.
pool_of() {
    printf '[[device]]\nname = "%s"\ndriver = "file"\npath = "var/%s.img"\nsize = "256MiB"\ncreate = true\n\n' "$1" "$1"
    printf '[[pool]]\nname = "%s"\ndevice = "%s"\ncluster_size = "%s"\ncreate = true\n\n' "$1" "$1" "$2"
}

# stand_in UUID: a device of that UUID, which stands for a volume.
stand_in() {
    printf '\n[[device]]\nname = "of-%s"\ndriver = "file"\npath = "var/stand-in-%s.img"\nsize = "4MiB"\ncreate = true\nuuid = "%s"\n' "$1" "$1" "$1"
}

# state_of POOL/VOLUME: its state and the reason for it.
state_of() {
    cli --json volume show "$1" | jq -r '"\(.state): \(.reason // "")"'
}

uuid_of() {
    cli --json volume show "$1" | jq -r .uuid
}

# A snapshot in one pool as the parent of volumes in another, whose snapshot is that of one in a third:
# shown, kept from going, found in any order of the pools, missed when it is not there.
lvolstore_external_volume() {
    example_here
    mkdir -p var
    cp config.toml "$work/plain"
    # The pool of the clones is opened before that of their parent.
    { cat "$work/plain" && echo && pool_of far 1MiB && pool_of vault 256KiB; } >config.toml
    daemon_start
    local lvolfs_here=("$lvolfs" --socket var/lvolfs.sock) vault=mount/volumes/vault far=mount/volumes/far
    truncate -s 16M $vault/image
    dd if=/dev/urandom of=$vault/image bs=1M count=12 conv=notrunc,fsync status=none
    cp --sparse=never $vault/image "$work/golden"
    expect_failure 'not permitted.*snapshot' "${lvolfs_here[@]}" volume clone pool0/c --from-device vault/image
    cli volume snapshot vault/image golden
    dd if=/dev/zero of=$vault/image bs=1M count=4 conv=notrunc,fsync status=none
    expect_failure 'same pool.*volume clone' "${lvolfs_here[@]}" volume clone vault/c --from-device vault/golden
    expect_failure 'No such device' "${lvolfs_here[@]}" volume clone pool0/c --from-device vault/none

    cli volume clone pool0/c --from-device vault/golden
    same "$work/golden" $pool/c
    [[ $(stat -c %b $pool/c) == 0 ]] || fail "the clone has blocks of its own"
    printf changed | dd of=$pool/c bs=4096 seek=300 conv=notrunc,fsync status=none
    cp "$work/golden" "$work/c"
    printf changed | dd of="$work/c" bs=4096 seek=300 conv=notrunc status=none
    same "$work/c" $pool/c
    cli volume snapshot pool0/c s
    local golden snapshot
    golden=$(uuid_of vault/golden) snapshot=$(uuid_of pool0/s)
    cli rpc bdev_lvol_clone_bdev "{\"bdev\":\"$snapshot\",\"lvs_name\":\"far\",\"clone_name\":\"d\"}"
    printf far | dd of=$far/d bs=4096 seek=2000 conv=notrunc,fsync status=none
    cp "$work/c" "$work/d"
    printf far | dd of="$work/d" bs=4096 seek=2000 conv=notrunc status=none
    same "$work/d" $far/d
    truncate -s 16M $far/t
    cli volume set-parent far/t --device vault/golden
    same "$work/golden" $far/t

    # What it is called, by whom.
    cli rpc bdev_get_bdevs '{"name":"pool0/s"}' | jq -e --arg uuid "$golden" '.[0].driver_specific.lvol |
        .esnap_clone and .external_snapshot_name == $uuid and .external_snapshot_alias == "vault/golden"' >/dev/null
    cli volume show far/d | grep -q 'external parent.*pool0/s'
    [[ $(getfattr --only-values -n user.lvolfs.parent $far/t) == "external vault/golden" ]]

    # It stays as long as somebody needs it; its pool's name may change.
    expect_failure 'resource busy' rm -f $vault/golden
    expect_failure 'busy.*(pool0/s, far/t|far/t, pool0/s)' "${lvolfs_here[@]}" volume delete vault/golden
    expect_failure 'busy.*golden.*pool0/s' "${lvolfs_here[@]}" pool delete vault --with-volumes
    expect_failure 'read-only' "${lvolfs_here[@]}" volume resize vault/golden 32MiB
    cli pool rename vault cellar
    cli volume show far/t | grep -q 'external parent.*cellar/golden'
    same "$work/golden" $far/t
    cli pool rename cellar vault
    daemon_kill
    umount -l mount/volumes
    daemon_start
    same "$work/c" $pool/c
    same "$work/d" $far/d
    cli volume delete far/t
    expect_failure 'busy.*pool0/s' "${lvolfs_here[@]}" volume delete vault/golden
    daemon_stop
    local store
    for store in disk0 far vault; do
        "$lvolfs" check "var/$store.img"
    done
    "$lvolfs" dump var/disk0.img | grep -q "$golden"

    # The other order, then without the golden image: both clones miss it.
    { pool_of vault 256KiB && pool_of far 1MiB && cat "$work/plain"; } >config.toml
    daemon_start
    same "$work/c" $pool/c
    same "$work/d" $far/d
    daemon_stop
    { pool_of far 1MiB && cat "$work/plain"; } >config.toml
    daemon_start
    state_of pool0/c | grep "degraded: .*$golden"
    state_of far/d | grep 'degraded: .*pool0/s is degraded'
    expect_failure 'Input/output error' cat $far/d
    expect_failure 'No such device.*degraded' "${lvolfs_here[@]}" volume clone far/e --from-device pool0/s
    expect_failure 'Read-only' dd if=/dev/zero of=$pool/c bs=4096 count=1 conv=notrunc status=none
    daemon_stop
    { pool_of far 1MiB && cat "$work/plain" && echo && pool_of vault 256KiB; } >config.toml
    daemon_start
    cli volume inflate far/d
    cli volume delete pool0/s
    cli volume decouple pool0/c
    cli volume delete vault/golden
    cli pool delete vault --with-volumes
    same "$work/c" $pool/c
    same "$work/d" $far/d

    # A parent that can still be written is none before that ends; a circle never is one.
    truncate -s 4M $pool/w $pool/x $far/y
    dd if=/dev/urandom of=$far/h bs=1M count=4 status=none
    local h x y
    h=$(uuid_of far/h) x=$(uuid_of pool0/x) y=$(uuid_of far/y)
    daemon_stop
    { pool_of far 1MiB && cat "$work/plain" && stand_in "$h" && stand_in "$x" && stand_in "$y"; } >config.toml
    daemon_start
    cli volume set-parent pool0/w --device "of-$h"
    cli volume set-parent far/y --device "of-$x"
    cli volume set-parent pool0/x --device "of-$y"
    cli volume read-only pool0/x
    cli volume read-only far/y
    daemon_stop
    { pool_of far 1MiB && cat "$work/plain"; } >config.toml
    daemon_start
    state_of pool0/w | grep 'degraded: .*far/h can be written'
    state_of pool0/x | grep 'degraded: .*cycle: far/y -> pool0/x -> far/y'
    expect_failure 'Input/output error' cat $pool/x
    expect_failure 'cycle' "${lvolfs_here[@]}" volume clone far/z --from-device pool0/x
    cli volume read-only far/h
    state_of pool0/w | grep '^ok'
    same $far/h $pool/w
    daemon_stop
}

# shallow_copy_is_over ID: what it said last is in ./copy.json.
shallow_copy_is_over() {
    cli rpc bdev_lvol_check_shallow_copy "{\"operation_id\":$1}" >copy.json
    jq -e '.state != "in progress"' copy.json >/dev/null
}

# What a snapshot has of its own goes to the same places of another device.
lvolstore_shallow_copy() {
    example_here
    printf '\n[[device]]\nname = "backup"\ndriver = "file"\npath = "var/backup.img"\nsize = "256MiB"\ncreate = true\n' >>config.toml
    daemon_start
    dd if=/dev/urandom of=$demo bs=1M count=40 conv=notrunc,fsync status=none
    cli volume snapshot pool0/demo one
    printf changed | dd of=$demo bs=1M seek=3 conv=notrunc,fsync status=none
    cli volume snapshot pool0/demo two
    local name id
    expect_failure 'Invalid argument' "$lvolfs" --socket var/lvolfs.sock rpc bdev_lvol_start_shallow_copy \
        '{"src_lvol_name":"pool0/demo","dst_bdev_name":"backup"}'
    for name in one two; do
        id=$(cli rpc bdev_lvol_start_shallow_copy \
            "{\"src_lvol_name\":\"pool0/$name\",\"dst_bdev_name\":\"backup\"}" | jq .operation_id)
        wait_for 30 "the copy" shallow_copy_is_over "$id"
        jq -e '.state == "complete" and .copied_clusters == .total_clusters' copy.json >/dev/null ||
            fail "$(cat copy.json)"
    done
    jq -e '.total_clusters == 1' copy.json >/dev/null || fail "more than what had changed: $(cat copy.json)"
    cmp $pool/two var/backup.img
    daemon_stop
}

# Every operation, cut at each command with every choice of what survives, up to 12 outstanding
# writes. `cargo test` draws from these.
lvolstore_power_cut_limit=2400
lvolstore_power_cut() {
    command -v cargo >/dev/null || skip "needs cargo"
    (cd "$checkout" && POWER_CUT=full cargo test --release --quiet --test it undone_or_done) >"$work/log" 2>&1 ||
        fail "$(grep -m 3 -e panicked -e choice "$work/log")"
    note "$(grep "test result" "$work/log")"
}
