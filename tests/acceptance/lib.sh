# What the parts of the acceptance run share. Sourced by `run`; not a program of its own.
#
# A check is a bash function that runs in its own process group and its own empty folder
# ($work, also the working directory). It fails by `set -e`, `fail` or its time limit, passes by
# returning, and steps aside by `skip`. Whatever it leaves behind (mounts, loop devices,
# processes, files) is removed after it, pass or fail, and only what is below its folder or in
# its process group is ever touched.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # this file, `run` and the parts share their variables

# ---- words for checks ------------------------------------------------------------------------

fail() {
    echo "FAILED: $*"
    exit 1
}

# skip WHY: this machine cannot run the check; the summary says why.
skip() {
    echo "$*" >>"$work.notes"
    exit 77
}

# note WHAT: a line that the summary shows beside the check.
note() {
    echo "$*" >>"$work.notes"
}

# wait_for SECONDS WHAT COMMAND...: until COMMAND succeeds; fails after SECONDS.
wait_for() {
    local limit=$1 what=$2 began=$SECONDS
    shift 2
    until "$@"; do
        ((SECONDS - began <= limit)) || fail "waited ${limit} s for $what"
        sleep 0.05
    done
}

# expect_failure PATTERN COMMAND...: COMMAND fails within 30 s and says PATTERN (grep -Ei).
expect_failure() {
    local pattern=$1 said status=0
    shift
    said=$(timeout -k 5 30 "$@" 2>&1) || status=$?
    echo "exit $status from: $*"
    echo "$said"
    ((status != 0)) || fail "should have failed: $*"
    ((status != 124 && status != 137)) || fail "hangs: $*"
    ((status < 128)) || fail "died by signal $((status - 128)): $*"
    grep -Eiq -- "$pattern" <<<"$said" || fail "does not say /$pattern/: $*"
    ! grep -q 'panicked at' <<<"$said" || fail "panicked: $*"
}

is_running() {
    local state
    state=$(ps -o stat= -p "$1" 2>/dev/null) && [[ $state != Z* ]]
}

has_ended() {
    ! is_running "$1"
}

# The file system type of what is mounted exactly at $1; fails when nothing is. Never touches
# the mount itself, which may be one whose daemon is gone.
mounted_type() {
    awk -v at="$(realpath -ms "$1")" '
        $5 == at { for (i = 7; i <= NF; i++) if ($i == "-") type = $(i + 1) }
        END { if (type == "") exit 1; print type }' /proc/self/mountinfo
}

is_mounted() {
    mounted_type "$1" >/dev/null
}

is_not_mounted() {
    ! mounted_type "$1" >/dev/null
}

# ---- the configuration -----------------------------------------------------------------------

# The example configuration in the current folder, as its user has it: paths in it are relative
# to the working directory, so the daemon, its image, socket and mount are this check's own.
example_here() {
    mkdir -p mount/volumes
    cp "$checkout/config.toml.example" config.toml
    # Another run on this machine may have the example's port; these are not given out by the kernel.
    config_set target listen "[\"127.0.0.1:$((20000 + RANDOM % 12000))\"]"
}

# config_set SECTION KEY VALUE: in the first table named SECTION of ./config.toml.
config_set() {
    awk -v section="$1" -v key="$2" -v value="$3" '
        function flush_key() { if (inside && !done) { print key " = " value; done = 1 } }
        /^\[/ {
            name = $0; sub(/[ \t]*#.*/, "", name); gsub(/[\[\] \t]/, "", name)
            if (inside) { flush_key(); inside = 0 }
            if (name == section && !seen) { seen = 1; inside = 1 }
        }
        inside && $0 ~ "^" key "[ \t]*=" { print key " = " value; done = 1; next }
        { print }
        END {
            if (!seen) print "\n[" section "]\n" key " = " value
            else flush_key()
        }' config.toml >config.toml.new
    mv config.toml.new config.toml
}

# config_add_volume NAME SIZE
config_add_volume() {
    printf '\n[[volume]]\nname = "%s"\nsize = "%s"\nthin = true\n' "$1" "$2" >>config.toml
}

# ---- the daemon ------------------------------------------------------------------------------

daemon_starts=0

daemon_said() {
    grep -Eiq -- "$1" "$daemon_log"
}

daemon_is_ready_or_gone() {
    daemon_said '\bready\b' || has_ended "$daemon_pid"
}

# daemon_start: lvolfs with ./config.toml; returns when it says ready, fails if it ends.
# Sets daemon_pid and daemon_log.
daemon_start() {
    daemon_starts=$((daemon_starts + 1))
    daemon_log=$work/daemon-$daemon_starts.log
    : >"$daemon_log"
    "${daemon_prefix[@]}" "$lvolfs" serve --config config.toml >"$daemon_log" 2>&1 </dev/null &
    daemon_pid=$!
    daemon_await_ready
}

daemon_prefix=()

daemon_await_ready() {
    wait_for 60 "the line that says ready" daemon_is_ready_or_gone
    daemon_said '\bready\b' || fail "the daemon ended before it was ready"
    is_running "$daemon_pid" || fail "the daemon ended just after it was ready"
}

# daemon_stop: SIGTERM, and what is promised for it: exit 0 within 30 s, unmounted, no panic.
daemon_stop() {
    kill -TERM "$daemon_pid"
    wait_for 30 "the daemon to drain and exit" has_ended "$daemon_pid"
    local status=0
    wait "$daemon_pid" || status=$?
    ((status == 0)) || fail "SIGTERM: exit $status, not 0"
    is_not_mounted mount/volumes || fail "SIGTERM: still mounted"
    ! daemon_said 'panicked at' || fail "the daemon panicked"
}

daemon_kill() {
    kill -KILL "$daemon_pid"
    wait "$daemon_pid" 2>/dev/null || true
}

# daemon_refuses PATTERN: a start with ./config.toml ends non-zero and says PATTERN.
daemon_refuses() {
    expect_failure "$1" "$lvolfs" serve --config config.toml
}

daemon_restart() {
    daemon_stop
    daemon_start
}

# cli ARGUMENTS...: the command line, talking to this check's daemon.
cli() {
    "$lvolfs" "$@" --socket var/lvolfs.sock
}

# ---- the run's own machinery -----------------------------------------------------------------

# Mounts below a folder, innermost first.
mounts_below() {
    awk -v below="$1/" 'index($5 "/", below) == 1 { print $5 }' /proc/self/mountinfo | tac
}

loops_below() {
    losetup -nl -O NAME,BACK-FILE 2>/dev/null | awk -v below="$1/" 'index($2, below) == 1 { print $1 }'
}

group_is_empty() {
    ! pgrep -g "$1" >/dev/null
}

# clean_up FOLDER GROUP: inner mounts first while the daemon still serves them, then the daemon,
# then whatever mount it left. Call it with `|| true`: each step is tried whatever the others did.
clean_up() {
    local folder=$1 group=$2 at device turn
    while read -r at; do
        [[ $(mounted_type "$at") == fuse* ]] || timeout 20 umount "$at" || umount -l "$at"
    done < <(mounts_below "$folder")
    while read -r device; do
        timeout 20 losetup -d "$device"
    done < <(loops_below "$folder")
    for signal in TERM KILL; do
        for ((turn = 0; turn < 100; turn++)); do
            group_is_empty "$group" && break 2
            ((turn > 0)) || kill -"$signal" -- -"$group" 2>/dev/null || true
            sleep 0.1
        done
    done
    while read -r at; do
        umount -l "$at"
    done < <(mounts_below "$folder")
    rm -rf --one-file-system "$folder"
} >>"$scratch/clean-up.log" 2>&1

passed=0 failed=0 skipped=0
summary=()

# run_check PART CHECK: one check in its own group and folder; counts and prints the result. It may
# take $check_limit seconds, or what the variable PART_CHECK_limit says.
run_check() {
    local name=$1/$2 function=$1_$2 began=$SECONDS status=0 group seconds notes=
    local own_limit=$1_$2_limit
    local limit=${!own_limit:-$check_limit}
    work=$scratch/$1-$2
    local log=$scratch/$1-$2.log
    mkdir "$work"
    chmod 755 "$work"
    set -m
    (
        set -Eeuo pipefail
        trap 'echo "stopped at ${BASH_SOURCE[0]}:$LINENO: $BASH_COMMAND" >&2' ERR
        cd "$work"
        PS4='+ '
        "$function"
    ) >"$log" 2>&1 </dev/null &
    group=$!
    set +m
    current_folder=$work current_group=$group
    while is_running "$group"; do
        if ((SECONDS - began > limit)); then
            echo "FAILED: not done after $limit s" >>"$log"
            kill -KILL -- -"$group" 2>/dev/null
        fi
        sleep 0.1
    done
    wait "$group" 2>/dev/null || status=$?
    seconds=$((SECONDS - began))
    [[ ! -e $work.notes ]] || notes=$(tr '\n' ';' <"$work.notes" | sed 's/;$//; s/;/; /g')
    case $status in
    0)
        passed=$((passed + 1))
        report "pass  $name (${seconds} s)${notes:+  $notes}"
        ;;
    77)
        skipped=$((skipped + 1))
        report "skip  $name: $notes"
        ;;
    *)
        failed=$((failed + 1))
        report "FAIL  $name (${seconds} s, status $status)${notes:+  $notes}"
        show_failure "$log"
        ;;
    esac
    clean_up "$work" "$group" || true
    current_folder='' current_group=''
}

report() {
    summary+=("$1")
    echo "$1"
}

# show_failure LOG: the ends of what the check and its daemons said.
show_failure() {
    local daemon_log
    echo "----- ${1##*/}: last lines"
    tail -n 40 "$1" | cut -c1-400
    for daemon_log in "$work"/daemon-*.log; do
        [[ -e $daemon_log ]] || continue
        echo "----- ${daemon_log##*/}: last lines"
        tail -n 25 "$daemon_log" | cut -c1-400
    done
    echo "-----"
}
