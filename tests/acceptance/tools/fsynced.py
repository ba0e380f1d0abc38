#!/usr/bin/env python3
"""Writes blocks that name themselves, remembers what was fsynced, and checks it afterwards.

    fsynced.py write FILE LOG SEED FIRST COUNT [--dsync] [--direct] [--groups N]
    fsynced.py check FILE LOG

`write` picks groups of 1 to 8 random 4 KiB blocks among COUNT blocks from block FIRST on, logs
what it is about to write, writes them, makes them durable (fsync, or O_DSYNC per write) and logs
that it did. It ends well after N groups, or when the file fails it, as it does when the daemon is
killed. The log is an ordinary file elsewhere: it survives the daemon, not the machine.

`check` wants each block as it was after its last fsynced group, or as a later group, begun and
never confirmed, would have it. A block in no confirmed group may also still be zero. Anything
else, half of a block included, is an error.
"""

import hashlib
import mmap
import os
import random
import sys

BLOCK = 4096


def contents(seed, block, group):
    """The one true content of `block` as written by `group`: it cannot be any other's."""
    name = f"{seed} {block} {group}".encode()
    return (hashlib.sha256(name).digest() * (BLOCK // 32))[:BLOCK]


def write(path, log_path, seed, first, count, options):
    flags = os.O_RDWR
    dsync = "--dsync" in options
    if dsync:
        flags |= os.O_DSYNC
    if "--direct" in options:
        flags |= os.O_DIRECT
    groups = int(options[options.index("--groups") + 1]) if "--groups" in options else 1 << 62
    rng = random.Random(seed)
    buffer = mmap.mmap(-1, BLOCK)  # page-aligned, as O_DIRECT wants
    group = 0
    with open(log_path, "w", buffering=1) as log:
        print("seed", seed, file=log)
        try:
            file = os.open(path, flags)
            while group < groups:
                group += 1
                blocks = rng.sample(range(first, first + count), rng.randint(1, min(8, count)))
                print("begin", group, *blocks, file=log)
                for block in blocks:
                    buffer[:] = contents(seed, block, group)
                    if os.pwrite(file, buffer, block * BLOCK) != BLOCK:
                        raise OSError("short write")
                if not dsync:
                    os.fsync(file)
                print("fsynced", group, file=log)
        except OSError as error:
            print("ended", error, file=log)
            print(f"seed {seed}: ended in group {group}: {error}", flush=True)
            return
    print(f"seed {seed}: {group} groups", flush=True)


def check(path, log_path):
    seed, begun, fsynced = None, {}, set()
    for line in open(log_path):
        words = line.split()
        if words[0] == "seed":
            seed = int(words[1])
        elif words[0] == "begin":
            begun[int(words[1])] = [int(word) for word in words[2:]]
        elif words[0] == "fsynced":
            fsynced.add(int(words[1]))
    history = {}  # block -> groups that wrote it, in order
    for group, blocks in sorted(begun.items()):
        for block in blocks:
            history.setdefault(block, []).append(group)
    bad = 0
    with open(path, "rb") as file:
        for block, groups in sorted(history.items()):
            durable = max((group for group in groups if group in fsynced), default=0)
            allowed = [contents(seed, block, group) for group in groups if group >= durable]
            if durable == 0:
                allowed.append(bytes(BLOCK))
            file.seek(block * BLOCK)
            found = file.read(BLOCK)
            if found not in allowed:
                bad += 1
                older = [group for group in groups if found == contents(seed, block, group)]
                what = f"group {older[0]}" if older else "zeros" if not any(found) else "foreign"
                print(f"seed {seed}: block {block}: fsynced in group {durable}, found {what}")
    print(f"seed {seed}: {len(fsynced)} groups fsynced, {len(history)} blocks, {bad} bad")
    return bad


def main():
    verb, path, log_path, *rest = sys.argv[1:]
    if verb == "write":
        seed, first, count, *options = rest
        write(path, log_path, int(seed), int(first), int(count), options)
    elif verb == "check":
        sys.exit(1 if check(path, log_path) else 0)
    else:
        sys.exit(__doc__)


main()
