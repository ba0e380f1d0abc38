# Real NVMe controllers behind VFIO, in a virtual machine: QEMU's NVMe drive behind its IOMMU, a
# Debian kernel, the real ioctls.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154,SC2164  # shares variables with ../run and ../lib.sh; runs under set -e

part_about="NVMe drives through VFIO, in a QEMU guest with an IOMMU"
part_packages=(qemu-system-x86 busybox-static cpio kmod xz-utils zstd python3-minimal jq
    fio e2fsprogs fuse3)
part_checks=(bind probe unplug serve)

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

vfio_unplug() {
    guest_probe --drive 64M "$guest/checks/unplug" >guest.log 2>&1 &
    local booted=$! status=0
    wait_for 120 "the probe to hold the drive" grep -qE '^waiting|^FAILED|^stopped' guest.log
    python3 "$tools/qmp.py" guest/qmp device_del '{"id": "drive0"}'
    wait $booted || status=$?
    cat guest.log
    ((status == 0)) || fail "the guest's script ended with $status"
    grep 'the kernel wants the device back' guest.log
}

vfio_serve() {
    guest_daemon --drive 256M "$guest/checks/serve"
}
