#!/usr/bin/env python3
"""What reached a drive, by a log in the format of Linux's dm-log-writes, as QEMU's blklogwrites
makes it, while `write_numbers` of guest/serve.sh wrote numbered blocks.

    write_log.py order LOG               each number's write is followed by a FLUSH before the next
    write_log.py cut LOG IMAGE SEED SIZE the drive after a power cut at a random entry: what a
                                         completed FLUSH covered is there, of the rest each write is
                                         or is not; prints the numbers fsynced and begun before it
    write_log.py check FILE BLOCKS FSYNCED BEGUN
                                         the volume FILE has what was fsynced
"""

import random
import re
import struct
import sys

FLUSH, FUA, DISCARD = 1, 2, 4
NUMBER = re.compile(rb" {4000,}(\d+)")


def entries(path):
    """Yields (first sector, sectors, flags, data) of each entry."""
    with open(path, "rb") as log:
        magic, _, _, sector = struct.unpack_from("<QQQI", log.read(28))
        if magic != 0x6A736677736872:
            sys.exit(f"{path} is no log of writes")
        at = sector
        while True:
            log.seek(at)
            head = log.read(32)
            if len(head) < 32:
                return
            first, count, flags, _ = struct.unpack("<QQQQ", head)
            if not count and not flags:
                return  # the log was preallocated, or ends here
            has_data = not flags & DISCARD and count
            log.seek(at + sector)
            data = log.read(count * sector) if has_data else b""
            if has_data and len(data) < count * sector:
                return  # QEMU ended while it wrote this entry
            yield first * sector, count * sector, flags, data
            at += sector + len(data)


def number_in(data):
    for at in range(0, len(data), 4096):
        found = NUMBER.fullmatch(data[at : at + 4096])
        if found:
            return int(found[1])
    return 0


def order(path):
    last, flushes, all_flushes = 0, 0, 0
    for _, _, flags, data in entries(path):
        number = number_in(data)
        if number > last:
            if last and not flushes:
                sys.exit(f"no FLUSH between the numbers {last} and {number}")
            last, flushes = number, 0
        if flags & (FLUSH | FUA):
            flushes += 1
            all_flushes += 1
    if last < 10:
        sys.exit(f"only {last} numbers were written")
    print(f"{last} fsyncs, {all_flushes} flushes reached the drive, one at least after each")


def cut(path, image, seed, size):
    rng = random.Random(seed)
    log = list(entries(path))
    first = next(at for at, entry in enumerate(log) if number_in(entry[3]))
    stop = rng.randrange(first + 1, len(log) + 1)
    begun = max(number_in(data) for *_, data in log[:stop])
    with open(image, "wb") as disk:
        disk.truncate(size)

        def apply(entry):
            start, length, flags, data = entry
            if flags & DISCARD:
                disk.seek(start)
                for at in range(0, length, 1 << 20):
                    disk.write(bytes(min(1 << 20, length - at)))
            else:
                disk.seek(start)
                disk.write(data)

        cached = []
        lost = 0
        for entry in log[:stop]:
            if entry[2] & FLUSH:
                for before in cached:
                    apply(before)
                cached.clear()
            if entry[1]:
                cached.append(entry)
        for entry in cached:
            if entry[2] & FUA or rng.random() < 0.5:
                apply(entry)
            else:
                lost += 1
    print(begun - 1, begun)
    print(f"seed {seed}: cut at {stop} of {len(log)}, {lost} unflushed writes lost", file=sys.stderr)


def check(path, blocks, fsynced, begun):
    with open(path, "rb") as file:
        for block in range(blocks):
            file.seek(block * 4096)
            data = file.read(4096)
            last = fsynced - (fsynced - block) % blocks
            found = NUMBER.fullmatch(data)
            number = int(found[1]) if found else 0
            if last <= 0 and not any(data):
                continue
            if number % blocks != block or not last <= number <= begun or not found:
                sys.exit(f"block {block}: fsynced {last}, found {data.strip()[:40]!r}")
    print(f"{fsynced} numbers fsynced, {begun} begun: all there")


def main():
    match sys.argv[1:]:
        case ["order", log]:
            order(log)
        case ["cut", log, image, seed, size]:
            cut(log, image, int(seed), int(size))
        case ["check", file, blocks, fsynced, begun]:
            check(file, int(blocks), int(fsynced), int(begun))
        case _:
            sys.exit(__doc__)


main()
