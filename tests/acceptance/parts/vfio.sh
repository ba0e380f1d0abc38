# Real NVMe controllers behind VFIO, in a virtual machine: QEMU's NVMe drive behind its IOMMU, a
# Debian kernel, the real ioctls.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154,SC2164  # shares variables with ../run and ../lib.sh; runs under set -e

part_about="NVMe drives through VFIO, in a QEMU guest with an IOMMU"
part_packages=(qemu-system-x86 busybox-static cpio kmod xz-utils zstd python3 jq
    fio e2fsprogs fuse3 gcc make)
part_checks=(bind probe unplug serve faults stalls power_loss crash cdev no_iommu)

guest=$checkout/tests/acceptance/guest
guest_folder=$checkout/target/guest

# guest_boot OPTIONS... SCRIPT: one of guest/checks, in a guest.
guest_boot() {
    [[ $(uname -m) == x86_64 ]] || skip "the guest is an x86-64 machine"
    "$guest/prepare" "$guest_folder"
    "$guest/boot" --folder "$guest_folder" --keep "$work/guest" \
        --file "$checkout/mount/bind-vfio" "$@"
}

# The example that tries the transport: beside the daemon, or built.
build_probe() {
    probe=$(dirname "$lvolfs")/examples/vfio_probe
    [[ -n ${LVOLFS:-} && -x $probe ]] && return
    (cd "$checkout" && cargo build --release --quiet --example vfio_probe)
    probe=$(cd "$checkout" && cargo metadata --format-version 1 --no-deps --quiet |
        jq -r .target_directory)/release/examples/vfio_probe
}

guest_probe() {
    build_probe
    # Once for its libraries, once to be found in /job.
    guest_boot --program "$probe" --file "$probe" "$@"
}

# guest_daemon OPTIONS... SCRIPT: with the daemon, and what its checks use.
guest_daemon() {
    guest_boot --program "$lvolfs" --program fio --program mke2fs --program e2fsck \
        --program fusermount3 --program setpriv --program jq --file "$guest/serve.sh" "$@"
}

vfio_bind() {
    # Two functions of one slot without access control share an IOMMU group.
    guest_probe --drive 64M --qemu "-drive if=none,id=other,file=null-co://,format=raw \
        -device nvme,addr=9.0,multifunction=on,drive=other,serial=SHARED \
        -device virtio-balloon-pci,addr=9.1" "$guest/checks/bind"
}

vfio_probe() {
    guest_probe --drive 64M --program setpriv "$guest/checks/probe"
}

# What Debian's kernels leave out of VFIO: its modules are built anew from their source.
rebuilt_vfio() {
    [[ -n $long ]] || skip "only with --long: it builds the kernel's VFIO modules"
    [[ $(uname -m) == x86_64 ]] || skip "the guest is an x86-64 machine"
    "$guest/rebuild-vfio" "$guest_folder-vfio"
}

vfio_cdev() {
    rebuilt_vfio
    build_probe
    guest_daemon --folder "$guest_folder-vfio" --drive 256M --timeout 180 \
        --program "$probe" --file "$probe" "$guest/checks/cdev"
}

vfio_no_iommu() {
    rebuilt_vfio
    guest_daemon --folder "$guest_folder-vfio" --no-iommu --kernel hugepages=64 --drive 256M \
        --timeout 240 "$guest/checks/no_iommu"
}

vfio_unplug() {
    guest_probe --drive 64M "$guest/checks/unplug" >guest.log 2>&1 &
    local booted=$! status=0
    wait_for 120 "the probe to hold the drive" grep -qE '^waiting|^FAILED|^stopped at [.]' guest.log
    python3 "$tools/qmp.py" guest/qmp device_del '{"id": "drive0"}'
    wait $booted || status=$?
    cat guest.log
    ((status == 0)) || fail "the guest's script ended with $status"
    grep 'the kernel wants the device back' guest.log
}

# QEMU's own word for what reaches the drive's doorbells beside what the guest's checks say.
vfio_serve() {
    local events=$work/doorbells.log said
    guest_daemon --drive 256M --timeout 180 --qemu "-trace pci_nvme_dbbuf_config \
        -trace pci_nvme_mmio_doorbell_sq -trace pci_nvme_shadow_doorbell_sq -D $events" \
        "$guest/checks/serve"
    # Our DMA memory begins at 4 GiB, the kernel's lies below.
    said=$(awk '
        /pci_nvme_dbbuf_config/ { ours = /dbs_addr=0x1........( |$)/; told += ours }
        ours && /pci_nvme_mmio_doorbell_sq sqid [1-9]/ { registers++ }
        ours && /pci_nvme_shadow_doorbell_sq sqid [1-9]/ { memory++ }
        END {
            print told + 0, "controllers told of doorbells in memory;", memory + 0,
                "looks there,", registers + 0, "writes of the registers"
            exit !(told > 0 && memory > registers)
        }' "$events") || fail "the shadow doorbells are not used: $said"
    note "$said"
}

# store_on IMAGE: ./config.toml for the pool of guest/serve.sh in an image of a drive with blocks of
# 512 bytes.
store_on() {
    example_here
    config_set device driver '"file"'
    config_set device path "\"$1\""
    config_set device block_size 512
    config_set device create false
    sed -i '/^size = "1GiB"/d; s/^cluster_size.*/cluster_size = "256KiB"/; s/^size = "256MiB"/size = "64MiB"/' \
        config.toml
}

# numbers_are_there IMAGE FSYNCED BEGUN: in the volume that guest/serve.sh's writer wrote, in a store
# whose check finds nothing wrong before anything repairs it.
numbers_are_there() {
    store_on "$1"
    "$lvolfs" check "$1" || fail "lvolfs check: exit $?"
    daemon_start
    python3 "$tools/write_log.py" check mount/volumes/pool0/demo 16 "$2" "$3"
    daemon_stop
}

last_number() {
    sed -n "s/^$1 //p" "$2" | tail -n 1
}

limit_drive() {
    python3 "$tools/qmp.py" guest/qmp qom-set "{\"path\": \"/objects/image0\",
        \"property\": \"limits\", \"value\": {\"bps-total\": $1}}"
}

# The lines "host: ..." of guest.log are done to the drive, until the guest is gone.
do_to_drive() {
    local done=0 wish
    while kill -0 "$1" 2>/dev/null; do
        wish=$(sed -n 's/^host: //p' guest.log | sed -n "$((done + 1))p")
        if [[ -z $wish ]]; then
            sleep 0.05
            continue
        fi
        # The guest may have ended before its wish was seen.
        [[ -e guest/qmp ]] || break
        case $wish in
        unplug) python3 "$tools/qmp.py" guest/qmp device_del '{"id": "drive0"}' ;;
        # Four blocks in a second; a byte in a second; as many as there are. What QEMU makes wait
        # waits for its time, whatever is said later, or until the controller's reset.
        slow) limit_drive 16384 ;;
        stall) limit_drive 1 ;;
        go) limit_drive 0 ;;
        *)
            python3 "$tools/qmp.py" guest/qmp blockdev-reopen "{\"options\": [{\"driver\": \"throttle\",
                \"node-name\": \"image0\", \"throttle-group\": \"image0\", \"file\": \"${wish}0\"}]}"
            ;;
        esac
        done=$((done + 1))
    done
}

vfio_faults() {
    : >guest.log
    guest_daemon --faulty --drive 256M --drive 64M "$guest/checks/faults" >guest.log 2>&1 &
    local booted=$! status=0
    do_to_drive $booted
    wait $booted || status=$?
    cat guest.log
    ((status == 0)) || fail "the guest's script ended with $status"
    numbers_are_there guest/drive0.img "$(last_number fsynced guest.log)" "$(last_number begin guest.log)"
}

# The drive stops moving data, for less and for more time than a command has.
vfio_stalls() {
    : >guest.log
    guest_daemon --faulty --drive 256M --timeout 300 "$guest/checks/stalls" >guest.log 2>&1 &
    local booted=$! status=0
    do_to_drive $booted
    wait $booted || status=$?
    cat guest.log
    ((status == 0)) || fail "the guest's script ended with $status"
    numbers_are_there guest/drive0.img "$(last_number fsynced guest.log)" "$(last_number begin guest.log)"
}

# The drive's own word for it: after each fsync a FLUSH has reached it. Then power cuts at random
# entries of that log, which lose what no FLUSH covered.
vfio_power_loss() {
    local seed rounds=5 numbers=60 fsynced begun
    [[ -z $long ]] || rounds=50 numbers=400
    guest_daemon --logged --drive 256M "$guest/checks/power_loss" $numbers
    python3 "$tools/write_log.py" order guest/drive0.log
    for ((seed = 1; seed <= rounds; seed++)); do
        read -r fsynced begun < <(python3 "$tools/write_log.py" cut guest/drive0.log cut.img \
            "$((RANDOM * seed))" $((256 << 20)))
        numbers_are_there cut.img "$fsynced" "$begun"
    done
    note "$(python3 "$tools/write_log.py" order guest/drive0.log)"
}

# SIGKILL of the daemon in the guest, then the guest's own end, both under load.
vfio_crash() {
    local round rounds=5 kills=3 booted how
    [[ -z $long ]] || rounds=50 kills=10
    for ((round = 1; round <= rounds; round++)); do
        : >guest.log
        guest_daemon --drive 256M --timeout 200 "$guest/checks/crash" $kills >guest.log 2>&1 &
        booted=$!
        wait_for 200 "a writer" grep -qE \
            '^fsynced 1[2-9]|^FAILED|^stopped at [.]|: the guest ended|: not done' guest.log
        # The machine ends with the reset, as `boot` wants it.
        how=quit
        ((round % 2)) || how=system_reset
        python3 "$tools/qmp.py" guest/qmp $how || true
        wait $booted || true
        cat guest.log
        ! grep -E '^FAILED|^stopped at [.]' guest.log || fail "the guest's script failed"
        grep -q '^fsynced 12' guest.log || fail "the guest ended before it wrote"
        numbers_are_there guest/drive0.img "$(last_number fsynced guest.log)" 1000000
        # Only the first guest kills daemons.
        kills=0
    done
}
