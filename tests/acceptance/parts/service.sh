# The service end to end: one command, and a volume is a file whose fsync is a FLUSH.
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2034,SC2154,SC2164  # variables are shared; set -e is on; inner shells expand

part_about="the daemon of config.toml.example under real tools, kills and bad input"
part_packages=(attr e2fsprogs fio fuse3 jq python3 qemu-utils)
part_checks=(
    quick_start notify files ext4 fio fio_dsync qemu_img flush_count killed killed_dsync
    command_line config_errors mount_point two_daemons control_socket foreign_image
    damaged_image stale_mount pool_full dead_disk image_vanishes power_cut idle ordinary_user mount_helper unit_file
)

demo=mount/volumes/pool0/demo

# ---- as a user would -------------------------------------------------------------------------

# From the checkout itself, by the command that README.md shows, when nobody's files are there.
# The run has built the program before its first check, so no check waits for a compiler; with a
# program of somebody else's building, that one is started instead.
service_quick_start() {
    cd "$checkout"
    if [[ -e var ]] || is_mounted mount/volumes; then
        note "in a folder of its own: the checkout holds a var/ or a mount of yours"
        cd "$work"
        example_here
        cp config.toml config.toml.example
    else
        trap 'is_not_mounted mount/volumes && rm -rf var' EXIT
    fi
    daemon_log=$work/daemon-quick.log
    : >"$daemon_log"
    quick_start_once
    printf 'found again' | dd of=$demo bs=4096 seek=7 conv=notrunc,fsync status=none
    daemon_stop
    [[ ! -e $demo ]] || fail "the volume's file is there without its daemon"
    quick_start_once
    [[ $(dd if=$demo bs=4096 skip=7 count=1 status=none | head -c 11) == 'found again' ]] ||
        fail "a second start does not find what the first wrote"
    daemon_stop
}

quick_start_once() {
    local command=(cargo run --release --quiet --manifest-path "$checkout/Cargo.toml" --)
    [[ -z ${LVOLFS:-} ]] || command=("$lvolfs")
    "${command[@]}" serve --config config.toml.example >"$daemon_log" 2>&1 </dev/null &
    daemon_pid=$!
    daemon_await_ready
    grep -Ei '\bready\b' "$daemon_log"
    [[ $(stat -c %s $demo) == $((256 << 20)) ]] || fail "$demo is not of 256 MiB"
    [[ $(mounted_type mount/volumes) == fuse* ]] || fail "nothing is mounted at mount/volumes"
}

service_notify() {
    example_here
    python3 "$tools/notify.py" "$lvolfs" serve --config config.toml
}

# Volumes are files for the tools that know nothing of volumes.
service_files() {
    example_here
    daemon_start
    cd mount/volumes/pool0
    ls -l .
    [[ $(stat -c '%F' demo) == 'regular file' ]] || fail "demo is no regular file"
    (($(stat -c %b demo) < 8 << 11)) || fail "a fresh thin volume has blocks: $(stat -c %b demo)"
    dd if=/dev/urandom of="$work/data" bs=1M count=8 status=none
    dd if="$work/data" of=demo bs=1M seek=16 conv=notrunc,fsync status=none
    cmp -n 8388608 -i 0:16777216 "$work/data" demo
    (($(stat -c %b demo) >= 8 << 11)) || fail "written blocks are not counted"
    python3 - demo <<'P'
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
data = os.lseek(file, 0, os.SEEK_DATA)
hole = os.lseek(file, data, os.SEEK_HOLE)
print("data", data, "hole", hole)
assert data == 16 << 20 and hole == 24 << 20
P
    fallocate -p -o $((18 << 20)) -l $((2 << 20)) demo
    cmp -n 2097152 -i 0:18874368 /dev/zero demo
    cmp -n 2097152 -i 0:16777216 "$work/data" demo
    touch new
    truncate -s 64M new
    [[ $(stat -c %s new) == $((64 << 20)) ]] || fail "touch and truncate -s make no volume"
    cp --sparse=never "$work/data" copied
    cmp -n 8388608 "$work/data" copied
    mv new renamed
    fallocate -l 8M renamed
    rm renamed
    [[ ! -e renamed && ! -e new ]] || fail "rm leaves the volume"
    df --output=fstype,size,used .
    getfattr -d -m user.lvolfs demo
    expect_failure 'not permitted|denied|not supported|cross-device' ln demo other
    cd "$work"
    daemon_restart
    cmp -n 2097152 -i 0:16777216 data $demo
    [[ -e mount/volumes/pool0/copied && ! -e mount/volumes/pool0/renamed ]] ||
        fail "names do not survive a restart"
    daemon_stop
}

# ---- a file system on the volume -------------------------------------------------------------

# real_tree: names, one a line, of some thousands of real files below $tree_root, of at most
# 120 MiB together.
real_tree() {
    tree_root=$(rustc --print sysroot)/share/doc
    if [[ $(find "$tree_root" -type f 2>/dev/null | head -n 2000 | wc -l) != 2000 ]]; then
        tree_root=${CARGO_HOME:-$HOME/.cargo}/registry/src
    fi
    find "$tree_root" -type f -printf '%s\t%P\n' | sort -k2 |
        awk -F'\t' '{ bytes += $1 } bytes <= 120 * 2^20 && NR <= 6000 { print $2 }' >tree.names
    (($(wc -l <tree.names) >= 1000)) || fail "no real tree of a thousand files on this machine"
}

mount_demo() {
    mkdir -p inner
    mount -o loop "$@" $demo inner || {
        [[ -e /dev/loop-control ]] || skip "no loop devices on this machine"
        fail "mount -o loop"
    }
}

service_ext4() {
    real_tree
    (cd "$tree_root" && tr '\n' '\0' <"$work/tree.names" | xargs -0 sha256sum) >tree.sums
    example_here
    daemon_start
    mkfs.ext4 -q -F $demo
    mount_demo
    tar -C "$tree_root" -cf - -T tree.names | tar -C inner -xf -
    sync
    umount inner
    e2fsck -fn $demo
    daemon_restart
    mount_demo -o ro
    (cd inner && sha256sum --quiet -c "$work/tree.sums")
    umount inner
    # A pool that was not closed: the file system was synced, so it must be whole.
    mount_demo
    rm -r "inner/$(cut -d/ -f1 tree.names | sort | uniq -c | sort -n | awk 'NR == 1 { print $2 }')"
    sync -f inner
    daemon_kill
    umount inner || umount -l inner
    losetup -j $demo -n -O NAME | xargs -r -n1 losetup -d
    daemon_start
    mount_demo
    umount inner
    e2fsck -fn $demo
    note "$(wc -l <tree.names) files, $(stat -c %b $demo | awk '{ print int($1 / 2048) }') MiB allocated"
    daemon_stop
}

# ---- fio and qemu-img ------------------------------------------------------------------------

# fio_verified NAME ARGUMENTS...: random writes with checksums, verified at once, and again by a
# second fio after a restart.
fio_verified() {
    local common=(--name="$1" --filename="$work/$demo" --rw=randwrite --size="${long:+2}32M"
        --verify=crc32c --verify_fatal=1 --allow_file_create=0 --fallocate=none --randseed=42
        --output-format=terse --terse-version=3)
    shift
    fio "${common[@]}" "$@" --do_verify=1 | fio_errors
    daemon_restart
    fio "${common[@]}" "$@" --verify_only=1 | fio_errors
}

# Field 5 of fio's terse line is its error code.
fio_errors() {
    awk -F';' 'NF > 10 { lines++; if ($5 != 0) bad++; print "fio: error", $5 }
        NF <= 10 { print } END { exit !(lines >= 1 && bad == 0) }'
}

service_fio() {
    example_here
    daemon_start
    fio_verified cached --direct=0 --bs=4k --ioengine=psync --fsync=16
    fio_verified direct --direct=1 --bs=4k --ioengine=libaio --iodepth=16 --fsync=32
    fio_verified mixed --direct=1 --bsrange=4k-256k --ioengine=libaio --iodepth=8 --fdatasync=8
    fio_verified unaligned --direct=0 --bs_unaligned --bsrange=512-20000 --ioengine=psync --fsync=64
    daemon_stop
}

service_fio_dsync() {
    example_here
    daemon_start
    fio_verified dsync --sync=dsync --direct=0 --bs=4k --ioengine=psync --io_size=4M
    fio_verified sync --sync=sync --direct=1 --bs=4k --ioengine=psync --io_size=4M
    fio_verified direct --sync=dsync --direct=1 --bs=64k --ioengine=libaio --iodepth=4
    daemon_stop
}

service_qemu_img() {
    example_here
    daemon_start
    truncate -s 256M source.raw
    for at in 0 3 50 200 255; do
        dd if=/dev/urandom of=source.raw bs=1M seek=$at count=1 conv=notrunc status=none
    done
    qemu-img convert -f raw -O qcow2 source.raw source.qcow2
    qemu-img convert -n -f qcow2 -O raw source.qcow2 $demo
    cmp source.raw $demo
    qemu-img compare -f qcow2 -F raw source.qcow2 $demo
    daemon_restart
    qemu-img convert -f raw -O qcow2 $demo out.qcow2
    qemu-img compare -f raw -F qcow2 source.raw out.qcow2
    # Into a name that does not exist: qemu-img creates the file, and so the volume.
    qemu-img convert -f qcow2 -O raw source.qcow2 mount/volumes/pool0/imported
    cmp source.raw mount/volumes/pool0/imported
    note "$(($(stat -c %b $demo) / 2048)) MiB allocated for 5 MiB of data"
    daemon_stop
}

# ---- what fsync means ------------------------------------------------------------------------

# How many FLUSH commands the controllers of this daemon have served.
flushes() {
    cli status --json | jq -e '[.. | objects | select(has("controller")) | .controller.flushes] | add'
}

service_flush_count() {
    local n=50 before after
    example_here
    for writer in 1 2 3; do
        config_add_volume "pool0/v$writer" 16MiB
    done
    daemon_start
    dd if=/dev/urandom of=$demo bs=1M count=1 conv=notrunc,fsync status=none
    before=$(flushes)
    python3 "$tools/fsynced.py" write $demo log-1 1 0 256 --groups $n
    after=$(flushes)
    note "$n fsyncs one after the other: $((after - before)) flushes"
    ((after - before >= 1 && after - before <= n)) || fail "$n fsyncs, $((after - before)) flushes"
    before=$(flushes)
    for writer in 0 1 2 3; do
        python3 "$tools/fsynced.py" write $demo "log-$writer" "$writer" $((writer * 64)) 64 --groups $n &
        writers[writer]=$!
    done
    for writer in 0 1 2 3; do
        wait "${writers[writer]}"
    done
    after=$(flushes)
    # The kernel takes the inode's lock for an fsync: those of one file come one by one.
    note "$((4 * n)) fsyncs of 4 writers on one file: $((after - before)) flushes"
    ((after - before >= 1 && after - before <= 4 * n)) ||
        fail "$((4 * n)) fsyncs, $((after - before)) flushes"
    for writer in 1 2 3; do
        dd if=/dev/urandom of="mount/volumes/pool0/v$writer" bs=1M count=1 conv=notrunc,fsync status=none
    done
    before=$(flushes)
    for writer in 0 1 2 3; do
        local file=mount/volumes/pool0/v$writer
        ((writer > 0)) || file=$demo
        python3 "$tools/fsynced.py" write "$file" "log-v$writer" "$writer" 0 256 --groups $n &
        writers[writer]=$!
    done
    for writer in 0 1 2 3; do
        wait "${writers[writer]}"
    done
    after=$(flushes)
    note "on four files: $((after - before)) flushes"
    ((after - before >= n && after - before <= 4 * n)) ||
        fail "$((4 * n)) fsyncs on four files, $((after - before)) flushes"
    before=$(flushes)
    python3 -c 'import os,sys; f=os.open(sys.argv[1],os.O_RDONLY); [os.fsync(f) for _ in range(20)]' $demo
    after=$(flushes)
    note "20 fsyncs after no write: $((after - before)) flushes"
    before=$after
    python3 - $demo <<'P'
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(file, 1 << 20)
memory[5000:5007] = b"through"
memory.flush()
P
    after=$(flushes)
    ((after - before >= 1)) || fail "msync of a shared mapping: no flush"
    [[ $(dd if=$demo bs=4096 skip=1 count=1 status=none | tail -c +905 | head -c 7) == through ]] ||
        fail "msync of a shared mapping: the data is not there"
    ((after - before <= 20)) || fail "20 fsyncs after no write: $((after - before)) flushes"
    daemon_stop
}

# kill_rounds OPTIONS...: writers and fio at work, SIGKILL at some moment, start, everything that
# was fsynced is there. The pool was not closed and its caches are gone; what the image's page cache
# holds survives, so this is no power cut (`cargo test` simulates those).
kill_rounds() {
    local round rounds=${long:+60} writer groups=0
    rounds=${rounds:-6}
    example_here
    config_add_volume pool0/noise 64MiB
    daemon_start
    for ((round = 1; round <= rounds; round++)); do
        for writer in 0 1 2; do
            python3 "$tools/fsynced.py" write $demo "log-$writer" $((round * 10 + writer)) \
                $((writer * 20000)) $((1 << (3 + round % 12))) "$@" &
        done
        fio --name=noise --filename=mount/volumes/pool0/noise --rw=randwrite --bs=4k --size=64M \
            --fsync=8 --time_based --runtime=60 --allow_file_create=0 --fallocate=none >fio.log 2>&1 &
        wait_for 30 "some groups to be fsynced" all_logs_have $((round * 7 % 40 + 1))
        daemon_kill
        # The writers end by themselves: their file fails.
        wait_for 60 "the writers to see it" no_other_jobs
        daemon_start
        for writer in 0 1 2; do
            python3 "$tools/fsynced.py" check $demo "log-$writer"
            groups=$((groups + $(fsynced_groups "log-$writer")))
        done
        dd if=/dev/zero of=$demo bs=1M conv=notrunc,fsync status=none count=16
        fallocate -p -o 0 -l 256M $demo
        sync $demo
    done
    note "$rounds kills, $groups fsynced groups checked"
    daemon_stop
}

all_logs_have() {
    local writer
    for writer in 0 1 2; do
        (($(fsynced_groups "log-$writer") >= $1)) || return 1
    done
}

fsynced_groups() {
    awk '/^fsynced/ { groups++ } END { print groups + 0 }' "$1" 2>/dev/null || echo 0
}

no_other_jobs() {
    ! jobs -rp | grep -qvx "$daemon_pid"
}

service_killed() {
    kill_rounds
}

service_killed_dsync() {
    kill_rounds --dsync --direct
}

# ---- control ---------------------------------------------------------------------------------

has_size() {
    [[ $(stat -c %s "$1") == "$2" ]]
}

is_gone() {
    [[ ! -e $1 ]]
}

service_command_line() {
    example_here
    "$lvolfs" --version
    "$lvolfs" check-config config.toml
    expect_failure 'var/lvolfs.sock' "$lvolfs" status --socket var/lvolfs.sock
    daemon_start
    [[ $(stat -c %a var/lvolfs.sock) == 600 ]] || fail "the socket's mode is not 0600"
    cli status
    cli status --json | jq -e . >/dev/null
    cli pool list
    cli pool show pool0
    cli volume list
    cli volume create pool0/extra 32MiB
    [[ $(stat -c %s mount/volumes/pool0/extra) == $((32 << 20)) ]] || fail "volume create"
    cli volume resize pool0/extra 48MiB
    # The kernel remembers sizes and names for a moment.
    wait_for 5 "the new size to be seen" has_size mount/volumes/pool0/extra $((48 << 20))
    cli volume rename pool0/extra pool0/other
    cli volume show pool0/other --json | jq -e . >/dev/null
    [[ -e mount/volumes/pool0/other ]] || fail "volume rename"
    wait_for 5 "the old name to be gone" is_gone mount/volumes/pool0/extra
    cli volume delete pool0/other
    wait_for 5 "the volume to be gone" is_gone mount/volumes/pool0/other
    expect_failure 'pool0/nothing|not found|no such' "$lvolfs" volume show pool0/nothing
    cli rpc bdev_get_bdevs | jq -e 'length >= 1'
    cli rpc spdk_get_version | jq -e .version
    cli rpc rpc_get_methods | jq -e 'index("bdev_lvol_create") != null'
    expect_failure '[Mm]ethod' "$lvolfs" rpc no_such_method
    daemon_stop
}

# ---- bad input, each before anything is touched ----------------------------------------------

nothing_was_touched() {
    [[ ! -e var/disk0.img ]] || fail "the image was created all the same"
    is_not_mounted mount/volumes || fail "mounted all the same"
}

service_config_errors() {
    example_here
    config_set control sokcet '"x"'
    expect_failure 'config\.toml.*sokcet|sokcet.*config\.toml' "$lvolfs" check-config config.toml
    daemon_refuses 'sokcet'
    example_here
    config_set device size '"1 pebble"'
    daemon_refuses 'size.*pebble|pebble.*size'
    example_here
    printf '\n[[pool]]\nname = "pool1"\ndevice = "disk0"\n' >>config.toml
    daemon_refuses 'disk0'
    example_here
    config_add_volume nowhere/v 1MiB
    daemon_refuses 'nowhere'
    rm config.toml
    daemon_refuses 'config\.toml'
    nothing_was_touched
}

service_mount_point() {
    example_here
    rmdir mount/volumes
    daemon_refuses 'mount/volumes'
    echo text >mount/volumes
    daemon_refuses 'not a (directory|folder)'
    rm mount/volumes
    mkdir mount/volumes
    touch mount/volumes/mine
    daemon_refuses 'not empty'
    rm mount/volumes/mine
    mount -t tmpfs none mount/volumes
    daemon_refuses 'mounted|mount point'
    [[ $(mounted_type mount/volumes) == tmpfs ]] || fail "took away a mount that is not its own"
    umount mount/volumes
    nothing_was_touched
    daemon_start
    daemon_stop
}

# A second daemon on the same image, with its own socket and mount point.
service_two_daemons() {
    example_here
    daemon_start
    mkdir other
    config_set mount path '"other"'
    config_set control socket '"var/other.sock"'
    daemon_refuses 'disk0\.img.*(in use|locked|lock)|(in use|locked|lock).*disk0\.img'
    is_not_mounted other || fail "the second daemon mounted"
    printf alive | dd of=$demo conv=notrunc,fsync status=none
    daemon_stop
}

service_control_socket() {
    example_here
    daemon_start
    # Another daemon with everything of its own but the socket.
    mkdir other
    cp config.toml first.toml
    config_set mount path '"other"'
    config_set device path '"var/other.img"'
    daemon_refuses 'var/lvolfs\.sock.*(in use|answers|another)|(in use|answers|another).*var/lvolfs\.sock'
    cli status >/dev/null || fail "the first daemon lost its socket"
    # A socket file that nobody listens on is replaced.
    cp first.toml config.toml
    daemon_kill
    [[ -S var/lvolfs.sock ]] || fail "SIGKILL took the socket file away: nothing is tested"
    daemon_start
    cli status >/dev/null
    daemon_stop
    [[ ! -e var/lvolfs.sock ]] || fail "the socket file is left after a clean end"
    # A file that is no socket is somebody's.
    echo precious >var/lvolfs.sock
    daemon_refuses 'var/lvolfs\.sock'
    [[ $(cat var/lvolfs.sock) == precious ]] || fail "overwrote a file that is no socket"
}

# Images with something else in them: named and left alone.
service_foreign_image() {
    local sum
    example_here
    config_set device size '"128MiB"'
    mkdir var
    truncate -s 128M var/disk0.img
    mkfs.ext4 -q -F var/disk0.img
    sum=$(sha256sum <var/disk0.img)
    daemon_refuses 'ext4|ext2|not blank'
    [[ $sum == "$(sha256sum <var/disk0.img)" ]] || fail "wrote to an image that holds ext4"
    truncate -s 0 var/disk0.img
    truncate -s 128M var/disk0.img
    dd if=/dev/urandom of=var/disk0.img bs=1M count=4 conv=notrunc status=none
    sum=$(sha256sum <var/disk0.img)
    daemon_refuses 'not blank|unrecognised data'
    [[ $sum == "$(sha256sum <var/disk0.img)" ]] || fail "wrote to an image that is not blank"
    # Too small for what the configuration says, and too small for any pool.
    truncate -s 0 var/disk0.img
    truncate -s 16M var/disk0.img
    daemon_refuses 'disk0.*(has|holds) 16777216'
    rm var/disk0.img
    config_set device size '"1MiB"'
    daemon_refuses 'disk0.*(too small|cannot hold|at least)|clusters cannot hold'
}

service_damaged_image() {
    local sum
    example_here
    config_set device size '"128MiB"'
    daemon_start
    printf precious | dd of=$demo conv=notrunc,fsync status=none
    daemon_stop
    cp --sparse=always var/disk0.img good.img
    python3 "$tools/superblock.py" var/disk0.img damage
    sum=$(sha256sum <var/disk0.img)
    daemon_refuses 'super ?block.*(damaged|checksum)|(damaged|checksum).*super ?block'
    [[ $sum == "$(sha256sum <var/disk0.img)" ]] || fail "wrote to a pool that it refused"
    cp --sparse=always good.img var/disk0.img
    python3 "$tools/superblock.py" var/disk0.img version 99
    sum=$(sha256sum <var/disk0.img)
    daemon_refuses 'version.*99|99.*version'
    [[ $sum == "$(sha256sum <var/disk0.img)" ]] || fail "wrote to a pool that it refused"
    cp --sparse=always good.img var/disk0.img
    daemon_start
    [[ $(head -c 8 $demo) == precious ]] || fail "the restored image has lost the data"
    daemon_stop
}

# SIGKILL leaves a dead mount; the next start clears its own and recovers, by itself.
service_stale_mount() {
    example_here
    daemon_start
    printf durable | dd of=$demo conv=notrunc,fsync status=none
    daemon_kill
    is_mounted mount/volumes || fail "SIGKILL left no stale mount: nothing is tested"
    daemon_start
    [[ $(mounts_below "$work" | grep -c 'mount/volumes$') == 1 ]] || fail "mounted over the dead mount"
    [[ $(head -c 7 $demo) == durable ]] || fail "what was fsynced is gone"
    # The same with a file held open and a working directory inside.
    (
        cd mount/volumes/pool0
        exec sleep 300 3<demo
    ) &
    sleeper=$!
    wait_for 10 "the file to be open" has_open "$sleeper" $demo
    daemon_kill
    daemon_start
    [[ $(head -c 7 $demo) == durable ]] || fail "what was fsynced is gone"
    kill "$sleeper"
    daemon_stop
}

has_open() {
    [[ $(readlink "/proc/$1/fd/3") == "$(realpath -ms "$2")" ]]
}

# ---- when things break at run time -----------------------------------------------------------

service_pool_full() {
    example_here
    config_set device size '"64MiB"'
    config_set volume size '"256MiB"'
    config_add_volume pool0/other 8MiB
    daemon_start
    local other=mount/volumes/pool0/other
    dd if=/dev/urandom of=data bs=1M count=4 status=none
    dd if=data of=$other conv=notrunc,fsync status=none
    expect_failure 'No space left on device' \
        dd if=/dev/zero of=$demo bs=1M count=200 conv=notrunc,fsync
    is_running "$daemon_pid" || fail "a full pool ended the daemon"
    # What is mapped goes on, reads go on, the daemon says what happened.
    cmp -n 4194304 data $other
    dd if=/dev/urandom of=data bs=1M count=4 status=none
    dd if=data of=$other conv=notrunc,fsync status=none
    cmp -n 4194304 data $other
    df --output=avail mount/volumes/pool0
    # Space that is given back can be used again.
    fallocate -p -o 0 -l 256M $demo
    sync $demo
    dd if=/dev/urandom of=$demo bs=1M count=16 conv=notrunc,fsync status=none
    daemon_restart
    cmp -n 4194304 data $other
    daemon_stop
}

# The image's own file system fails every I/O from one moment on.
service_dead_disk() {
    example_here
    truncate -s 1500M host.img
    mkfs.ext4 -q -F host.img
    mkdir var
    mount -o loop host.img var || skip "no loop devices on this machine"
    config_set control socket '"lvolfs.sock"'
    daemon_start
    dd if=/dev/urandom of=$demo bs=1M count=8 conv=notrunc,fsync status=none
    python3 "$tools/shutdown_filesystem.py" var || skip "this kernel cannot shut an ext4 down"
    expect_failure 'Input/output error|Read-only file system' \
        dd if=/dev/zero of=$demo bs=1M seek=16 count=4 conv=notrunc,fsync
    expect_failure 'Input/output error|Read-only file system' \
        dd if=/dev/zero of=$demo bs=4k count=1 conv=notrunc,fsync
    is_running "$daemon_pid" || fail "a dead disk ended the daemon"
    "$lvolfs" status --socket lvolfs.sock | tee status.txt
    grep -Eiq 'poisoned|read-only' status.txt || fail "status does not say why writes fail"
    stat $demo
    # The end is orderly all the same; the exit status may tell that the pool was not closed.
    kill -TERM "$daemon_pid"
    wait_for 30 "the daemon to end with a dead disk" has_ended "$daemon_pid"
    is_not_mounted mount/volumes || fail "still mounted"
    ! daemon_said 'panicked at' || fail "the daemon panicked"
}

# The image is deleted under the daemon: what is written from then on is in no file.
service_image_vanishes() {
    local driver
    for driver in nvme-emulated file; do
        example_here
        config_set device driver "\"$driver\""
        daemon_start
        dd if=/dev/urandom of=data bs=1M count=8 status=none
        dd if=data of=$demo conv=notrunc,fsync status=none
        rm var/disk0.img
        expect_failure 'Input/output error|Read-only file system' \
            dd if=/dev/zero of=$demo bs=1M seek=16 count=4 conv=notrunc,fsync
        expect_failure 'Input/output error|Read-only file system' \
            dd if=/dev/zero of=$demo bs=4k count=1 conv=notrunc,fsync
        is_running "$daemon_pid" || fail "a deleted image ended the daemon"
        "$lvolfs" status --socket var/lvolfs.sock | tee status.txt
        grep -q 'poisoned' status.txt || fail "status does not say why writes fail"
        daemon_said 'deleted or replaced while it was in use' || fail "nothing says what happened"
        # What was written before can be copied away.
        cmp -n 8388608 data $demo
        kill -TERM "$daemon_pid"
        wait_for 30 "the daemon to end without its image" has_ended "$daemon_pid"
        is_not_mounted mount/volumes || fail "still mounted"
        rm -rf var mount config.toml
    done
}

# Power cuts under the operations of the mount, simulated: ten times those of `cargo test`.
service_power_cut() {
    command -v cargo >/dev/null || skip "needs cargo"
    local seeds=10000
    [[ -z $long ]] || seeds=100000
    (cd "$checkout" && POWER_CUTS=$seeds cargo test --quiet --test it fuse_power_cut) >"$work/log" 2>&1 ||
        fail "$(grep -m 3 -e panicked -e seed "$work/log")"
    note "$seeds seeds; $(grep "test result" "$work/log")"
}

# ---- what it costs ---------------------------------------------------------------------------

cpu_ticks() {
    awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$daemon_pid/stat"
}

resident_mib() {
    awk -v key="$1:" '$1 == key { print int(($2 + 1023) / 1024) }' "/proc/$daemon_pid/status"
}

service_idle() {
    local before after seconds=20 percent
    example_here
    daemon_start
    dd if=/dev/urandom of=$demo bs=1M count=8 conv=notrunc,fsync status=none
    sleep 2
    before=$(cpu_ticks)
    # A measured stretch of time, not a wait for something.
    sleep "$seconds"
    after=$(cpu_ticks)
    percent=$(awk -v d=$((after - before)) -v hz="$(getconf CLK_TCK)" -v s=$seconds \
        'BEGIN { printf "%.2f", 100 * d / hz / s }')
    note "idle: $percent % of a core over $seconds s"
    fio --name=load --filename=$demo --rw=randrw --bs=64k --size=128M --direct=1 --ioengine=libaio \
        --iodepth=32 --allow_file_create=0 --fallocate=none >/dev/null
    note "resident: $(resident_mib VmRSS) MiB, peak under load $(resident_mib VmHWM) MiB"
    awk -v p="$percent" 'BEGIN { exit !(p < 1.0) }' || fail "idle: $percent % of a core"
    (($(resident_mib VmHWM) < 100)) || fail "resident: $(resident_mib VmHWM) MiB"
    daemon_stop
}

# ---- other ways to start it ------------------------------------------------------------------

service_ordinary_user() {
    ((EUID == 0)) || skip "needs root to become another user"
    [[ -u $(command -v fusermount3) ]] || skip "fusermount3 is not setuid root here"
    local user=(setpriv --reuid=nobody --regid=nogroup --clear-groups env HOME="$work")
    install -m 755 "$lvolfs" lvolfs-copy
    lvolfs=$work/lvolfs-copy
    example_here
    chown -R nobody . mount config.toml
    daemon_prefix=("${user[@]}")
    if ! "${user[@]}" test -r /dev/fuse -a -w /dev/fuse; then
        # The device's mode is not a test's to change: the daemon sees a node of its own.
        note "with a device node of its own: /dev/fuse is for root only here"
        cp -a /dev/fuse fuse.node
        chmod 666 fuse.node
        daemon_prefix=(unshare --mount sh -c 'mount --bind fuse.node /dev/fuse && exec "$@"' sh
            "${user[@]}")
    fi
    daemon_start
    [[ $(ps -o user= -p "$daemon_pid") == nobody ]] || fail "does not run as nobody"
    as_nobody stat -c '%U %a %s' $demo
    echo mine >mine
    as_nobody dd if=mine of=$demo conv=notrunc,fsync status=none
    [[ $(as_nobody head -c 4 $demo) == mine ]] || fail "cannot read back"
    daemon_restart
    [[ $(as_nobody head -c 4 $demo) == mine ]] || fail "cannot read back after a restart"
    daemon_stop
}

# COMMAND... as nobody, where the daemon's mounts are seen.
as_nobody() {
    nsenter --mount="/proc/$daemon_pid/ns/mnt" sh -c 'cd "$0" && exec "$@"' "$work" \
        setpriv --reuid=nobody --regid=nogroup --clear-groups "$@"
}

service_mount_helper() {
    example_here
    ((EUID == 0)) || skip "mount(8) calls helpers for root only"
    local helper=$checkout/mount/mount.lvolfs
    # As mount(8) calls it for: mount -t lvolfs config.toml DIR -o lvolfs=BINARY
    "$helper" config.toml mount/volumes -o "rw,lvolfs=$lvolfs,log=$work/daemon-helper.log"
    is_mounted mount/volumes || fail "the helper returned before anything was mounted"
    [[ -f $demo ]] || fail "no volume"
    expect_failure 'mounted' "$helper" config.toml mount/volumes -o "lvolfs=$lvolfs"
    daemon_pid=$(cli status --json | jq -er .pid)
    umount mount/volumes
    wait_for 30 "the daemon to end after umount" has_ended "$daemon_pid"
    # A configuration that mounts elsewhere, and one that is wrong: no daemon stays behind.
    mkdir other
    expect_failure 'mount/volumes' "$helper" config.toml other -o "lvolfs=$lvolfs"
    config_set device size '"1 pebble"'
    expect_failure 'pebble' "$helper" config.toml mount/volumes -o "lvolfs=$lvolfs"
    ! pgrep -g 0 -x lvolfs || fail "a daemon stays behind"
}

service_unit_file() {
    command -v systemd-analyze >/dev/null || skip "no systemd-analyze on this machine"
    install -D -m 755 "$lvolfs" root/usr/bin/lvolfs
    sed "s|/usr/bin/lvolfs|$work/root/usr/bin/lvolfs|" "$checkout/mount/systemd/lvolfs.service" \
        >lvolfs.service
    systemd-analyze verify --man=no ./lvolfs.service
    note "$(systemd-analyze security --offline=true ./lvolfs.service 2>/dev/null | tail -n 1)"
}
