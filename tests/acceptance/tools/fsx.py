#!/usr/bin/env python3
"""Random operations on a volume's file and on a model of it, compared as they go.

    fsx.py FILE OPERATIONS SEED CLUSTER [whole]

FILE is created, and removed at the end. Reads and writes of any offset and length, by system
calls, past the page cache (O_DIRECT) and through a shared mapping, truncation, holes, zeroes,
fsync, closing and opening. With `whole`, sizes are whole clusters. The first difference ends it, and says the seed and the operation.
"""
import ctypes
import mmap
import os
import random
import sys

KEEP, PUNCH, ZERO = 1, 2, 16
LIMIT = 4 << 20
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def fallocate(file, mode, offset, length):
    if libc.fallocate(file, mode, offset, length):
        raise OSError(ctypes.get_errno(), "fallocate")


def main():
    path, operations, seed, cluster = sys.argv[1], *map(int, sys.argv[2:5])
    rng = random.Random(seed)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.ftruncate(file, 2 * cluster)
    model = bytearray(2 * cluster)
    pattern = rng.randbytes(1 << 20)
    direct = mmap.mmap(-1, 1 << 18)

    def extent(most):
        offset = rng.randrange(len(model))
        length = min(rng.choice((rng.randrange(1, 300), rng.randrange(1, most))), len(model) - offset)
        if rng.random() < 0.4:
            offset -= offset % 4096
            length = min(-(-length // 4096) * 4096, len(model) - offset)
        return offset, length

    def data(length):
        start = rng.randrange(len(pattern) - length)
        return pattern[start:start + length]

    step = what = None

    def same(got, offset, length):
        if got != model[offset:offset + length]:
            at = next(i for i in range(length) if i >= len(got) or got[i] != model[offset + i])
            sys.exit(f"seed {seed}, operation {step} ({what} {offset}+{length}): "
                     f"differs at byte {offset + at}")

    for step in range(operations):
        dice = rng.random()
        if dice < 0.35:
            what, (offset, length) = "read", extent(100_000)
            same(os.pread(file, length, offset), offset, length)
        elif dice < 0.70:
            what, (offset, length) = "write", extent(100_000)
            written = data(length)
            assert os.pwrite(file, written, offset) == length, (seed, step)
            model[offset:offset + length] = written
        elif dice < 0.78:
            what, (offset, length) = "direct write", extent(100_000)
            other = os.open(path, os.O_RDWR | os.O_DIRECT)
            direct[:length] = data(length)
            assert os.pwritev(other, [memoryview(direct)[:length]], offset) == length, (seed, step)
            model[offset:offset + length] = direct[:length]
            os.close(other)
        elif dice < 0.83:
            what, (offset, length) = "mapped write", extent(20_000)
            memory = mmap.mmap(file, len(model))
            same(memory[offset:offset + length], offset, length)
            memory[offset:offset + length] = written = data(length)
            memory.flush()
            memory.close()
            model[offset:offset + length] = written
        elif dice < 0.90:
            what, (offset, length) = "punch", extent(2 * cluster)
            fallocate(file, PUNCH | KEEP, offset, length)
            model[offset:offset + length] = bytes(length)
        elif dice < 0.94:
            what, (offset, length) = "zero", extent(2 * cluster)
            fallocate(file, ZERO | KEEP, offset, length)
            model[offset:offset + length] = bytes(length)
        elif dice < 0.96:
            what, size = "truncate", rng.randrange(1, LIMIT)
            if sys.argv[5:] == ["whole"]:
                size = -(-size // cluster) * cluster
            os.ftruncate(file, size)
            # Sizes are whole clusters; what is cut off reads as zeros.
            whole = -(-size // cluster) * cluster
            del model[size:]
            model.extend(bytes(whole - len(model)))
            assert os.fstat(file).st_size == whole, (seed, step)
        elif dice < 0.99:
            what = "fsync"
            (os.fsync if rng.random() < 0.5 else os.fdatasync)(file)
        else:
            what = "reopen"
            os.close(file)
            file = os.open(path, os.O_RDWR)
            same(os.pread(file, len(model), 0), 0, len(model))
    same(os.pread(file, len(model) + 1, 0), 0, len(model))
    os.close(file)
    os.remove(path)
    print(f"{operations} operations agree with the model; seed {seed}")


main()
