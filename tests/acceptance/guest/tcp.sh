# Words for guest scripts that use the target as the kernel's NVMe/TCP host; sourced after lib.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034  # read by those who source this

nqn=nqn.2026-11.io.lvolfs:demo
host=nqn.2014-08.org.nvmexpress:uuid:11111111-1111-4111-8111-111111111111
host_id=11111111-1111-4111-8111-111111111111
stranger=nqn.2014-08.org.nvmexpress:uuid:22222222-2222-4222-8222-222222222222
stranger_id=22222222-2222-4222-8222-222222222222
# This machine's loopback, seen from the guest.
target=10.0.2.2

network_up() {
    modprobe virtio_net
    ip link set eth0 up
    ip address add 10.0.2.15/24 dev eth0
    modprobe nvme_tcp
}

# ask WHAT: the run outside reads this and does it; wait for what it changes.
ask() {
    echo "ask: $*"
}

# connect PORT OPTION...: as $host, with two I/O queues.
connect() {
    local port=$1
    shift
    nvme connect -t tcp -a "$target" -s "$port" -n "$nqn" --hostnqn="$host" --hostid="$host_id" \
        --nr-io-queues=2 --reconnect-delay=1 --ctrl-loss-tmo=60 "$@"
}

has_disk() {
    [[ -b /dev/$1 ]]
}

disk_has_size() {
    [[ $(blockdev --getsize64 "/dev/$1" 2>/dev/null) == "$2" ]]
}

# sum_of DISK: read past every cache of this machine.
sum_of() {
    dd if="/dev/$1" iflag=direct bs=1M status=none | sha256sum | cut -d' ' -f1
}

# fio_verified FILE SIZE OPTION...: written at random, flushed now and then, read back.
fio_verified() {
    local file=$1 size=$2
    shift 2
    fio --name=verified --filename="$file" --size="$size" --rw=randwrite --bs=4k-64k \
        --ioengine=libaio --iodepth=16 --direct=1 --fsync=32 --verify=crc32c --do_verify=1 \
        --verify_fatal=1 --minimal "$@" >fio.log 2>&1 || {
        cat fio.log
        dmesg | tail -n 30
        return 1
    }
}
