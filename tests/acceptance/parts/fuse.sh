# The files of a mount under the tools and calls that use them, by both transports.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154,SC2164  # variables are shared; set -e is on

part_about="what the files promise, through real mounts by io_uring and by /dev/fuse"
part_packages=(attr e2fsprogs fio fuse3 jq python3 qemu-utils xfsprogs)
part_checks=(
    transports semantics kept durability loop mkfs qemu random verify write_back cache_refused large
    outstanding neglect sync_after_resize refused busy_mount interrupted killed aborted device_error
    poisoned
)

uring_switch=/sys/module/fuse/parameters/enable_uring
pool=mount/volumes/pool0
demo=$pool/demo

# by_each CHECK...: runs a check by each transport that this machine can have, each in a folder.
by_each() {
    local transport
    for transport in dev_fuse io_uring; do
        if [[ $transport == io_uring ]] && ! uring_is_on; then
            note "by /dev/fuse only: FUSE over io_uring is not to be had here"
            return
        fi
        echo "--- by $transport"
        mkdir "$work/$transport"
        cd "$work/$transport"
        example_here
        config_set mount transport "\"$transport\""
        "$@"
        cd "$work"
    done
}

# Turns the kernel's switch on, for good: it only offers something to those who ask for it.
uring_is_on() {
    [[ -e $uring_switch ]] || return 1
    [[ $(<$uring_switch) == Y ]] || echo Y 2>/dev/null >$uring_switch || return 1
}

transport_in_status() {
    cli status --json | jq -r '.mounts[0] | .transport + " " + (.transport_note // "")'
}

fuse_transports() {
    example_here
    config_set mount transport '"dev_fuse"'
    daemon_start
    [[ $(transport_in_status) == '/dev/fuse '*dev_fuse* ]] || fail "$(transport_in_status)"
    daemon_stop
    uring_is_on || skip "FUSE over io_uring is not to be had here"
    config_set mount transport '"io_uring"'
    daemon_start
    [[ $(transport_in_status) == 'io_uring ' ]] || fail "$(transport_in_status)"
    daemon_said 'mounted .*io_uring' || fail "the log does not say how"
    cli status | grep -q io_uring
    daemon_stop
    # One reactor for all queues, and more reactors than CPUs.
    for cores in 1 5; do
        config_set reactor cores "$cores"
        daemon_start
        [[ $(transport_in_status) == 'io_uring ' ]] || fail "$(transport_in_status)"
        dd if=/dev/urandom of=$demo bs=64k count=16 conv=notrunc,fsync status=none
        daemon_stop
    done
    # No memory for the queues: the mount does not hang, and says what happened.
    config_set reactor cores '"all"'
    config_set mount transport '"auto"'
    echo N >$uring_switch
    trap 'echo Y >$uring_switch' EXIT
    daemon_start
    [[ $(transport_in_status) == '/dev/fuse '*enable_uring* ]] || fail "$(transport_in_status)"
    dd if=/dev/urandom of=$demo bs=64k count=16 conv=notrunc,fsync status=none
    daemon_stop
    config_set mount transport '"io_uring"'
    daemon_refuses 'io_uring is not available.*enable_uring'
    is_not_mounted mount/volumes || fail "mounted all the same"
}

second_pool() {
    printf '\n[[device]]\nname = "ram"\ndriver = "memory"\nsize = "64MiB"\n' >>config.toml
    printf '\n[[pool]]\nname = "pool1"\ndevice = "ram"\ncluster_size = "1MiB"\ncreate = true\n' \
        >>config.toml
}

fuse_semantics() {
    by_each semantics_once
}

semantics_once() {
    second_pool
    daemon_start
    python3 "$tools/semantics.py" $pool mount/volumes/pool1
    daemon_stop
}

# Owner, mode, times and attributes survive a restart.
fuse_kept() {
    by_each kept_once
}

kept_once() {
    daemon_start
    chmod 640 $demo
    touch -d '2020-02-03 04:05:06 UTC' $demo
    setfattr -n user.note -v mine $demo
    ((EUID != 0)) || chown 1234:4321 $demo
    local before
    before=$(stat -c '%a %u %g %Y %i' $demo)
    daemon_restart
    [[ $(stat -c '%a %u %g %Y %i' $demo) == "$before" ]] || fail "$(stat $demo)"
    [[ $(getfattr --only-values -n user.note $demo) == mine ]]
    daemon_stop
}

# Each call that promises durability makes the controller flush, or write with FUA.
fuse_durability() {
    by_each durability_once
}

barriers() {
    cli status --json |
        jq -e '[.. | objects | select(has("controller")) | .controller.flushes + .controller.force_unit_access] | add'
}

# expect_barrier WHAT PYTHON: the statement, on an open `file`, ends in at least one barrier.
expect_barrier() {
    local before after
    before=$(barriers)
    python3 -c "
import mmap, os, sys
flags = os.O_RDWR | (int(sys.argv[2]) if len(sys.argv) > 2 else 0)
file = os.open(sys.argv[1], flags)
$2" $demo "${3:-0}"
    after=$(barriers)
    ((after > before)) || fail "$1: no barrier reached the controller"
}

durability_once() {
    daemon_start
    dd if=/dev/urandom of=$demo bs=1M count=1 conv=notrunc,fsync status=none
    expect_barrier fsync "os.pwrite(file, b'x' * 4096, 0); os.fsync(file)"
    expect_barrier fdatasync "os.pwrite(file, b'x' * 4096, 0); os.fdatasync(file)"
    expect_barrier O_SYNC "os.pwrite(file, b'x' * 4096, 0)" "$(python3 -c 'import os; print(os.O_SYNC)')"
    expect_barrier O_DSYNC "os.pwrite(file, b'x' * 4096, 0)" "$(python3 -c 'import os; print(os.O_DSYNC)')"
    expect_barrier 'O_DSYNC, direct' "
m = mmap.mmap(-1, 4096); os.pwritev(file, [m], 0)" \
        "$(python3 -c 'import os; print(os.O_DSYNC | os.O_DIRECT)')"
    expect_barrier RWF_DSYNC "os.pwritev(file, [b'x' * 4096], 0, os.RWF_DSYNC)"
    expect_barrier RWF_SYNC "os.pwritev(file, [b'x' * 4096], 0, os.RWF_SYNC)"
    expect_barrier msync "m = mmap.mmap(file, 4096); m[0:1] = b'y'; m.flush()"
    expect_barrier 'first write, O_DSYNC' "os.pwrite(file, b'x' * 4096, 100 << 20)" \
        "$(python3 -c 'import os; print(os.O_DSYNC)')"
    # What was written first with O_DSYNC is found after a kill, mapping and all.
    daemon_kill
    daemon_start
    [[ $(dd if=$demo bs=1M skip=100 count=1 status=none | head -c 4) == xxxx ]] ||
        fail "a durable first write is gone"
    daemon_stop
}

fuse_loop() {
    [[ -e /dev/loop-control ]] || skip "no loop devices on this machine"
    by_each loop_once
}

allocated() {
    stat -c '%b' $demo | awk '{ print int($1 / 2048) }'
}

loop_once() {
    local device full
    daemon_start
    device=$(losetup --find --show --direct-io=on $demo)
    [[ $(losetup -nl -O DIO "$device" | tr -d ' ') == 1 ]] || fail "the loop device is not direct"
    mkfs.ext4 -q -E nodiscard "$device"
    mkdir inner
    mount "$device" inner
    dd if=/dev/urandom of=inner/file bs=1M count=40 conv=fsync status=none
    full=$(allocated)
    ((full >= 40)) || fail "40 MiB of data, $full MiB allocated"
    rm inner/file
    sync -f inner
    fstrim inner
    sync -f inner
    (($(allocated) <= full - 30)) || fail "fstrim gave back $((full - $(allocated))) MiB of 40"
    umount inner
    e2fsck -fn "$device"
    dd if=/dev/urandom of="$device" bs=1M count=8 oflag=direct status=none
    blkdiscard -z -o 4194304 -l 4194304 "$device"
    cmp -n 4194304 -i 4194304:0 "$device" /dev/zero
    blkdiscard "$device"
    wait_for 10 "the loop device to discard" gave_back_all
    losetup -d "$device"
    daemon_stop
}

gave_back_all() {
    (($(allocated) == 0))
}

# File systems are made and checked on the file itself.
fuse_mkfs() {
    by_each mkfs_once
}

mkfs_once() {
    daemon_start
    truncate -s 400M $pool/xfs
    mkfs.xfs -q $pool/xfs
    xfs_repair -n -f $pool/xfs 2>xfs.log || fail "xfs_repair: $(tail -n 3 xfs.log)"
    mkfs.ext4 -q -F $demo
    e2fsck -fn $demo
    daemon_stop
}

fuse_qemu() {
    by_each qemu_once
}

qemu_once() {
    local mode
    daemon_start
    for mode in none writeback; do
        qemu-io -f raw -t $mode -c 'write -P 0x5a 1M 3M' -c 'write -P 0x33 1234 5000' \
            -c 'discard 2M 1M' -c 'write -z 3M 64k' -c flush -c 'read -P 0x5a 1M 1M' \
            -c 'read -P 0x33 1234 5000' -c 'read -P 0 3M 64k' $demo | tee io.txt
        ! grep -Eiq 'failed|error|verification' io.txt || fail "qemu-io with cache=$mode"
    done
    qemu-img convert -f raw -O qcow2 $demo out.qcow2
    qemu-img convert -n -t none -f qcow2 -O raw out.qcow2 $demo
    qemu-img compare -f raw -F qcow2 $demo out.qcow2
    qemu-img info --output=json -f raw $demo | jq -e '."virtual-size" == 268435456'
    daemon_stop
}

# Random operations against a model.
fuse_random() {
    by_each random_once
}

random_once() {
    local seed=${SEED:-$RANDOM}
    # In memory: it is the kernel and the operations that are tried, not the device.
    second_pool
    daemon_start
    echo "seed $seed"
    python3 "$tools/fsx.py" mount/volumes/pool1/fsx "${long:+10}100000" "$seed" $((1 << 20))
    daemon_stop
}

# Several jobs with checksums, sizes of all kinds, fsyncs and durable writes.
fuse_verify() {
    by_each verify_once
}

verify_once() {
    daemon_start
    verify_jobs "$pool"
    daemon_stop
}

# verify_jobs FOLDER: five jobs at once, each on a volume of its own in FOLDER, round after round
# for 30 s, 10 minutes with --long; every block that a round wrote is read and compared.
verify_jobs() {
    local job folder=$PWD/$1 file loop='' seconds=30
    local -A jobs=()
    [[ -z $long ]] || seconds=600
    for job in "direct --direct=1 --ioengine=io_uring --iodepth=16 --bsrange=4k-256k --fsync=16" \
        "uneven --bs_unaligned --ioengine=psync --bsrange=512-60000 --fdatasync=32" \
        "small --direct=1 --ioengine=libaio --iodepth=32 --bs=4k --sync=dsync" \
        "large --direct=1 --ioengine=libaio --iodepth=4 --bsrange=256k-2m --fsync=8"; do
        file=$folder/${job%% *}
        truncate -s 40M "$file"
        # shellcheck disable=SC2086  # words
        verify_rounds $seconds --filename="$file" --size=32M --rw=randwrite --verify=crc32c \
            --verify_fatal=1 --do_verify=1 --allow_file_create=0 --fallocate=none \
            --name=$job >"${job%% *}.log" 2>&1 &
        jobs[${job%% *}]=$!
    done
    if [[ -e /dev/loop-control ]]; then
        truncate -s 40M "$folder/trimmed"
        loop=$(losetup --find --show --direct-io=on "$folder/trimmed")
        verify_trims $seconds "$loop" >trimmed.log 2>&1 &
        jobs[trimmed]=$!
    else
        note "no trims: no loop devices on this machine"
    fi
    for job in "${!jobs[@]}"; do
        wait "${jobs[$job]}" || fail "$job ended with $?: $(tail -n 20 "$job.log")"
    done
    [[ -z $loop ]] || losetup -d "$loop"
}

# verify_trims SECONDS DEVICE: trims next to writes; what is trimmed reads as zeros, and nothing else.
verify_trims() {
    local end=$((SECONDS + $1)) device=$2 seed
    while ((SECONDS < end)); do
        seed=$((RANDOM * 32768 + RANDOM))
        dd if=/dev/urandom of="$device" bs=1M seek=16 count=16 oflag=direct status=none || return 1
        fio --filename="$device" --direct=1 --ioengine=libaio --iodepth=8 --randseed=$seed \
            --name=writes --rw=randwrite --size=16M --bsrange=4k-64k --fsync=32 --verify=crc32c \
            --verify_fatal=1 --do_verify=1 \
            --name=trims --rw=randtrim --offset=16M --size=16M --bs=64k || return 1
        cmp -n $((16 << 20)) -i $((16 << 20)):0 "$device" /dev/zero || return 1
    done
}

# verify_rounds SECONDS FIO_ARGUMENTS...: each round with another seed.
verify_rounds() {
    local end=$((SECONDS + $1)) round=0
    shift
    while ((SECONDS < end)); do
        round=$((round + 1))
        echo "round $round"
        fio "$@" --randseed=$((RANDOM * 32768 + RANDOM)) || return 1
    done
}

# Thousands of requests at a time, more than there is memory for.
fuse_outstanding() {
    by_each outstanding_once
}

outstanding_once() {
    daemon_start
    fio --name=deep --filename="$PWD/$demo" --size=256M --direct=1 --ioengine=libaio --iodepth=1024 \
        --numjobs=10 --rw=randrw --bs=4k --io_size=8M --allow_file_create=0 --fallocate=none \
        --group_reporting --output-format=terse --terse-version=3 | awk -F';' '{ exit $5 != 0 }'
    fio --name=large --filename="$PWD/$demo" --size=256M --direct=1 --ioengine=libaio --iodepth=256 \
        --rw=randwrite --bs=1m --io_size=512M --allow_file_create=0 --fallocate=none \
        --output-format=terse --terse-version=3 | awk -F';' '{ exit $5 != 0 }'
    is_running "$daemon_pid" || fail "the daemon ended"
    daemon_stop
}

# What a program never takes the answers of keeps nobody else waiting, and goes when it goes.
fuse_neglect() {
    by_each neglect_once
}

neglect_once() {
    local reader
    daemon_start
    dd if=/dev/urandom of=$demo bs=1M count=64 conv=notrunc,fsync status=none
    python3 "$tools/neglect.py" $demo 4000 >asked &
    reader=$!
    wait_for 30 "4000 reads to be asked for" grep -q asked asked
    timeout 30 dd if=$demo of=/dev/null bs=1M count=64 iflag=direct status=none
    timeout 30 dd if=/dev/urandom of=$demo bs=1M count=8 oflag=direct conv=notrunc,fsync status=none
    kill -KILL "$reader"
    wait_for 30 "the reader to be gone" has_ended "$reader"
    daemon_stop
}

# Requests beyond 1 MiB, where the administrator allows them.
fuse_large() {
    local limit=/proc/sys/fs/fuse/max_pages_limit before
    [[ -w $limit ]] || skip "this kernel has no fs.fuse.max_pages_limit, or it is not ours to change"
    before=$(<$limit)
    # shellcheck disable=SC2064  # the value of now
    trap "echo $before >$limit" EXIT
    echo 1024 >$limit
    by_each large_once
}

counter() {
    cli status --json | jq "[.mounts[].counters.$1] | add"
}

large_once() {
    local before after
    daemon_start
    dd if=/dev/urandom of=data bs=4M count=16 status=none
    before=$(counter writes)
    dd if=data of=$demo bs=4M oflag=direct conv=notrunc,fsync status=none
    after=$(counter writes)
    ((after - before == 16)) || fail "64 MiB in pieces of 4 MiB came as $((after - before)) writes"
    before=$(counter reads)
    dd if=$demo of=back bs=4M count=16 iflag=direct status=none
    after=$(counter reads)
    ((after - before == 16)) || fail "64 MiB in pieces of 4 MiB came as $((after - before)) reads"
    cmp data back
    daemon_stop
}

# cache = "writeback": the kernel keeps what is written until a flush, and gives it back unasked.
fuse_write_back() {
    by_each write_back_once
}

write_back_once() {
    local before after cached=mount/volumes/pool1
    second_pool
    config_set mount cache '"writeback"'
    config_set volume cache '"direct"'
    daemon_start
    [[ $(getfattr --only-values -n user.lvolfs.cache $demo) == direct ]]
    truncate -s 40M $cached/data
    [[ $(getfattr --only-values -n user.lvolfs.cache $cached/data) == writeback ]]
    before=$(counter writes)
    dd if=/dev/urandom of=data bs=1M count=8 status=none
    dd if=data of=$cached/data bs=512 conv=notrunc status=none
    after=$(counter writes)
    ((after - before < 8 << 11)) || fail "$((8 << 11)) writes of 512 bytes came as $((after - before))"
    # Closing writes back, and a flush is still one.
    before=$(counter fsyncs)
    python3 -c "
import os, sys
file = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(file, b'x' * 100, 5 << 20)
os.fsync(file)" $cached/data
    (($(counter fsyncs) > before)) || fail "no fsync arrived"
    before=$(counter reads)
    cat $cached/data >/dev/null
    cat $cached/data >/dev/null
    after=$(counter reads)
    ((after - before < 2 * 40 * 8)) || fail "what the kernel holds was read again: $((after - before))"
    [[ $(dd if=$cached/data bs=1 skip=$((5 << 20)) count=3 status=none) == xxx ]]
    cmp -n $((5 << 20)) data $cached/data
    python3 "$tools/semantics.py" $cached $pool sizes_are_whole_clusters \
        truncate_grows_with_zeros_and_cuts o_trunc_keeps_the_size_and_truncate_does_not \
        dd_and_cp_onto_a_volume_keep_its_size cp_to_a_new_name_makes_a_volume mv_across_pools_copies \
        rename_onto_an_existing_name_replaces mmap_and_msync_reach_the_volume \
        unaligned_direct_io_works locks_hold_between_programs owner_mode_and_times_are_kept \
        attributes_are_shown_and_stored
    # Open files keep their size here, so others may not change it; closed ones show it at once.
    exec 7<$cached/data
    expect_failure 'file is open' "$lvolfs" volume resize pool1/data 60MiB --socket var/lvolfs.sock
    exec 7<&-
    wait_for 10 "the file to be closed" cli volume resize pool1/data 60MiB
    [[ $(stat -c %s $cached/data) == $((60 << 20)) ]] || fail "stat sees $(stat -c %s $cached/data)"
    rm $cached/data
    python3 "$tools/fsx.py" $cached/fsx 20000 "${SEED:-$RANDOM}" $((1 << 20)) whole
    truncate -s 2M $cached/data
    expect_failure 'invalid argument' truncate -s 1500K $cached/data
    rm $cached/data
    daemon_stop
    # On a pool that outlives the daemon.
    config_set volume cache '"writeback"'
    grep -v '^namespaces' config.toml >less.toml
    mv less.toml config.toml
    daemon_start
    [[ $(getfattr --only-values -n user.lvolfs.cache $demo) == writeback ]]
    dd if=data of=$demo bs=4k conv=notrunc,fsync status=none
    touch -d '2020-02-03 04:05:06 UTC' $demo
    daemon_kill
    daemon_start
    cmp -n $((8 << 20)) data $demo
    [[ $(stat -c %Y $demo) == $(date -d '2020-02-03 04:05:06 UTC' +%s) ]] || fail "$(stat $demo)"
    daemon_stop
}

# A volume is cached, or exported or reserved: whichever comes second is refused, and says why.
fuse_cache_refused() {
    example_here
    config_set volume cache '"writeback"'
    daemon_refuses 'target.subsystem.namespaces.volume.*page cache.*cache = "direct"'
    config_set volume cache '"direct"'
    config_set mount cache '"writeback"'
    daemon_start
    cli volume create pool0/cached 16MiB
    expect_failure 'page cache' "$lvolfs" target export pool0/cached \
        --nqn nqn.2026-11.io.lvolfs:demo --socket var/lvolfs.sock
    expect_failure 'page cache' "$lvolfs" reservation register pool0/cached 7 --socket var/lvolfs.sock
    cli reservation show pool0/cached
    # One that is direct is free for both; then it is not cached any more, whatever is configured.
    cli volume create pool0/used 16MiB
    daemon_stop
    config_set mount cache '"direct"'
    daemon_start
    cli reservation register pool0/used 7
    daemon_stop
    config_set mount cache '"writeback"'
    daemon_start
    daemon_said 'used.*has reservations' || fail "the log does not say why a volume is direct"
    [[ $(getfattr --only-values -n user.lvolfs.cache $pool/used) == direct ]]
    [[ $(getfattr --only-values -n user.lvolfs.cache $pool/cached) == writeback ]]
    daemon_stop
    # Exported while it was direct: not exported while it is cached.
    config_set mount cache '"direct"'
    daemon_start
    cli target export pool0/cached --nqn nqn.2026-11.io.lvolfs:demo
    daemon_stop
    config_set mount cache '"writeback"'
    daemon_start
    daemon_said 'not exported.*page cache' || fail "the log does not say what is not exported, and why"
    daemon_stop
}

# What cannot be removed says why: the caller gets EBUSY, the log the reason.
fuse_refused() {
    by_each refused_once
}

refused_once() {
    daemon_start
    expect_failure 'busy' rm $demo
    daemon_said 'not removed.*in use by nqn.2026-11.io.lvolfs:demo' || fail "the log does not say by whom"
    touch $pool/base
    truncate -s 8M $pool/base
    printf base | dd of=$pool/base conv=notrunc,fsync status=none
    cli volume snapshot pool0/base snap
    cli volume clone pool0/snap twin
    expect_failure 'busy' rm $pool/snap
    daemon_said 'not removed.*(base|twin)' || fail "the log does not name the clones"
    expect_failure 'read-only' dd if=/dev/zero of=$pool/snap bs=4k count=1 conv=notrunc
    rm $pool/twin
    exec 7<$pool/snap
    expect_failure 'busy' rm $pool/snap
    exec 7<&-
    wait_for 10 "the snapshot to be removed" rm $pool/snap
    [[ $(head -c 4 $pool/base) == base ]]
    daemon_stop
}

# A size that is changed elsewhere is seen at once, and so is what a reader finds behind it.
fuse_sync_after_resize() {
    by_each sync_after_resize_once
}

sync_after_resize_once() {
    daemon_start
    exec 7<$demo
    stat -c %s $demo
    cli volume resize pool0/demo 300MiB
    [[ $(stat -c %s $demo) == $((300 << 20)) ]] || fail "stat sees $(stat -c %s $demo)"
    [[ $(stat -L -c %s /proc/self/fd/7) == $((300 << 20)) ]] || fail "an open file sees the old size"
    cli volume resize pool0/demo 100MiB --shrink
    [[ $(stat -c %s $demo) == $((100 << 20)) ]] || fail "stat sees $(stat -c %s $demo)"
    cli volume rename pool0/demo other
    [[ ! -e $demo && -e $pool/other ]] || fail "the old name is still there"
    exec 7<&-
    # The example exports it: neither the mount nor the command line can delete it before.
    expect_failure 'busy' rm $pool/other
    expect_failure 'in use by nqn.2026-11.io.lvolfs:demo' \
        "$lvolfs" volume delete pool0/other --socket var/lvolfs.sock
    cli target unexport pool0/other
    cli volume delete pool0/other
    [[ ! -e $pool/other ]] || fail "a deleted volume is still there"
    daemon_stop
}

# ---- trouble ---------------------------------------------------------------------------------

hold_open() {
    exec 8<>$demo
    printf held | dd of=$demo conv=notrunc,fsync status=none
}

# The end of the daemon with files open, by signal, and unmounted lazily by somebody else.
fuse_busy_mount() {
    by_each busy_mount_once
}

busy_mount_once() {
    daemon_start
    hold_open
    daemon_stop
    expect_failure 'not connected|aborted' head -c 4 /proc/self/fd/8 8<&8
    exec 8>&-
    daemon_start
    [[ $(head -c 4 $demo) == held ]] || fail "what was fsynced is gone"
    hold_open
    umount -l mount/volumes
    # Still served: only the name is gone.
    dd bs=4 count=1 status=none <&8 | grep -q held || fail "an open file ended with a lazy umount"
    exec 8>&-
    wait_for 30 "the daemon to end after the last user" has_ended "$daemon_pid"
    daemon_start
    hold_open
    umount -f mount/volumes || true
    wait_for 30 "the daemon to end after a forced umount" has_ended "$daemon_pid"
    exec 8>&-
    ! is_mounted mount/volumes || umount -l mount/volumes
    daemon_start
    [[ $(head -c 4 $demo) == held ]] || fail "what was fsynced is gone"
    daemon_stop
}

# Killed with requests under way: they fail, nothing hangs, and the next start recovers.
fuse_killed() {
    by_each killed_once
}

killed_once() {
    daemon_start
    hold_open
    fio --name=load --filename="$PWD/$demo" --offset=1M --size=64M --direct=1 --ioengine=libaio \
        --iodepth=32 --rw=randwrite --bs=16k --time_based --runtime=60 --allow_file_create=0 \
        --fallocate=none >fio.log 2>&1 &
    local load=$!
    wait_for 20 "writes to be under way" some_writes 1000
    daemon_kill
    wait_for 20 "the writer to fail" has_ended $load
    exec 8>&-
    daemon_start
    [[ $(head -c 4 $demo) == held ]] || fail "what was fsynced is gone"
    daemon_stop
}

# Signals to programs that wait for requests: those end, and nobody else is disturbed.
fuse_interrupted() {
    by_each interrupted_once
}

interrupted_once() {
    local signal load turn
    second_pool
    daemon_start
    fio --name=load --filename="$PWD/$demo" --offset=64M --size=64M --direct=1 --ioengine=libaio \
        --iodepth=8 --rw=randwrite --bs=16k --verify=crc32c --verify_fatal=1 --loops=100 \
        --time_based --runtime=6 --allow_file_create=0 --fallocate=none >fio.log 2>&1 &
    load=$!
    for signal in INT TERM KILL; do
        for turn in 1 2 3 4; do
            timeout -s $signal 0.3 dd if=/dev/zero of=$demo bs=1M count=60 oflag=dsync \
                conv=notrunc status=none || true
            timeout -s $signal 0.2 cat $demo $demo $demo $demo >/dev/null || true
        done
    done
    wait $load || fail "$(tail -n 5 fio.log)"
    # Nothing is left behind: the next one finds everything as it should be.
    dd if=/dev/urandom of=data bs=1M count=8 status=none
    dd if=data of=$demo bs=1M conv=notrunc,fsync status=none
    cmp -n $((8 << 20)) data $demo
    interrupted_wait
    daemon_stop
}

# A writer that waits for space in a full pool ends with the signal, not with the wait's minute.
interrupted_wait() {
    local signal began at=mount/volumes/pool1
    truncate -s 100M $at/full $at/waits
    cli volume space pool1/waits --on-full wait
    expect_failure 'no space' dd if=/dev/zero of=$at/full bs=1M conv=notrunc oflag=direct
    for signal in INT TERM KILL; do
        began=$SECONDS
        timeout -s $signal 1 dd if=/dev/zero of=$at/waits bs=4k count=1 conv=notrunc oflag=direct || true
        ((SECONDS - began < 20)) || fail "a writer that waits for space was deaf to SIG$signal"
    done
    rm $at/full
    printf late | dd of=$at/waits conv=notrunc,fsync status=none
    [[ $(head -c 4 $at/waits) == late ]]
}

some_writes() {
    (($(cli status --json | jq '[.mounts[].counters.writes] | add') > $1))
}

# Aborted by the kernel's control file system: a clean end.
fuse_aborted() {
    ((EUID == 0)) || skip "needs root"
    by_each aborted_once
}

aborted_once() {
    local number
    mkdir control
    mount -t fusectl none control 2>/dev/null || skip "no fusectl in this kernel"
    daemon_start
    hold_open
    number=$(awk -v at="$(realpath -ms mount/volumes)" '$5 == at { sub(/.*:/, "", $3); print $3 }' \
        /proc/self/mountinfo)
    echo 1 >"control/$number/abort"
    wait_for 30 "the daemon to end" has_ended "$daemon_pid"
    ! daemon_said 'panicked at' || fail "the daemon panicked"
    exec 8>&-
    umount control
    ! is_mounted mount/volumes || umount -l mount/volumes
    daemon_start
    [[ $(head -c 4 $demo) == held ]] || fail "what was fsynced is gone"
    daemon_stop
}

# A device that cannot read one place: that request fails, and no other.
fuse_device_error() {
    by_each device_error_once
}

device_error_once() {
    config_set device driver '"file"'
    config_set device size '"128MiB"'
    config_set volume size '"64MiB"'
    daemon_start
    dd if=/dev/urandom of=$demo bs=1M count=64 conv=notrunc,fsync status=none
    dd if=$demo of=head bs=1M count=1 status=none
    # The file under the device loses its second half.
    truncate -s 40M var/disk0.img
    expect_failure 'Input/output error' dd if=$demo of=/dev/null bs=1M skip=60 count=1 iflag=direct
    cmp -n 1048576 head $demo
    is_running "$daemon_pid" || fail "a device error ended the daemon"
    truncate -s 128M var/disk0.img
    daemon_stop
}

# A device whose writes fail: the pool stops writing for good. Reads and attributes go on.
fuse_poisoned() {
    by_each poisoned_once
}

poisoned_once() {
    truncate -s 1500M host.img
    mkfs.ext4 -q -F host.img
    mkdir var
    mount -o loop host.img var || skip "no loop devices on this machine"
    config_set control socket '"lvolfs.sock"'
    daemon_start
    dd if=/dev/urandom of=$demo bs=1M count=8 conv=notrunc,fsync status=none
    exec 8<>$demo
    python3 "$tools/shutdown_filesystem.py" var || skip "this kernel cannot shut an ext4 down"
    expect_failure 'Input/output error' dd if=/dev/zero of=$demo bs=1M seek=16 count=4 conv=notrunc,fsync
    # What is open gets errors; what is opened now is read-only.
    expect_failure 'Input/output error' bash -c 'printf x >&8'
    expect_failure 'Input/output error' sync -d $demo
    expect_failure 'Read-only file system' dd if=/dev/zero of=$demo bs=4k count=1 conv=notrunc
    expect_failure 'Input/output error' touch $pool/new
    expect_failure 'Input/output error' rm $demo
    stat $demo
    exec 8>&-
    getfattr -d $demo
    kill -TERM "$daemon_pid"
    wait_for 30 "the daemon to end with a dead disk" has_ended "$daemon_pid"
    is_not_mounted mount/volumes || fail "still mounted"
    ! daemon_said 'panicked at' || fail "the daemon panicked"
    umount var
}
