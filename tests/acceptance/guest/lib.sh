# What scripts in the guest share; `boot` puts it beside them.
# shellcheck shell=bash
set -Eeuo pipefail
trap 'echo "stopped at ${BASH_SOURCE[0]}:$LINENO: $BASH_COMMAND"' ERR

fail() {
    echo "FAILED: $*"
    exit 1
}

# wait_for SECONDS WHAT COMMAND...: until COMMAND succeeds; fails after SECONDS.
wait_for() {
    local limit=$1 what=$2 began=$SECONDS
    shift 2
    until "$@"; do
        ((SECONDS - began <= limit)) || fail "waited $limit s for $what"
        usleep 50000
    done
}

# expect_failure PATTERN COMMAND...: COMMAND fails and says PATTERN (grep -Ei).
expect_failure() {
    local pattern=$1 said status=0
    shift
    said=$("$@" 2>&1) || status=$?
    echo "exit $status from: $*"
    echo "$said"
    ((status != 0)) || fail "should have failed: $*"
    ((status < 128)) || fail "died by signal $((status - 128)): $*"
    grep -Eiq -- "$pattern" <<<"$said" || fail "does not say '$pattern': $*"
}

# controller_of SERIAL: the name that the kernel's NVMe driver gave the drive, such as nvme0. The
# order of drives differs from boot to boot.
controller_of() {
    local controller
    for controller in /sys/class/nvme/nvme*; do
        [[ $(tr -d ' ' <"$controller/serial") != "$1" ]] || basename "$controller"
    done
}

# address_of SERIAL: its PCI address.
address_of() {
    basename "$(readlink "/sys/class/nvme/$(controller_of "$1")/device")"
}

has_namespace() {
    [[ -b /dev/$(controller_of "$1")n1 ]]
}

# with_kernel_driver SERIAL...: loads the kernel's NVMe driver and waits until it has the drives.
with_kernel_driver() {
    modprobe nvme
    local serial
    for serial in "$@"; do
        wait_for 20 "a namespace of $serial" has_namespace "$serial"
    done
}
