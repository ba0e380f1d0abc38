# The files of a mount under the tools and calls that use them, by both transports.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154,SC2164  # variables are shared; set -e is on

part_about="what the files promise, through real mounts by io_uring and by /dev/fuse"
part_packages=(attr e2fsprogs fio fuse3 jq python3 qemu-utils)
part_checks=(
    transports semantics kept durability loop qemu random verify outstanding sync_after_resize
    busy_mount killed aborted device_error
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
    local job jobs=()
    daemon_start
    for job in "direct --direct=1 --ioengine=io_uring --iodepth=16 --bsrange=4k-256k --fsync=16" \
        "uneven --bs_unaligned --ioengine=psync --bsrange=512-60000 --fdatasync=32 --time_based=0" \
        "small --direct=1 --ioengine=libaio --iodepth=32 --bs=4k --sync=dsync"; do
        truncate -s 40M "$pool/${job%% *}"
        # shellcheck disable=SC2086  # words
        fio --filename="$PWD/$pool/${job%% *}" --size=32M --rw=randwrite --verify=crc32c \
            --verify_fatal=1 --do_verify=1 --allow_file_create=0 \
            --fallocate=none --time_based --runtime="${long:+60}10" --name=$job >"${job%% *}.log" 2>&1 &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do
        wait "$job" || fail "fio: $(tail -n 5 ./*.log)"
    done
    daemon_stop
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
