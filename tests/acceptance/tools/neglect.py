#!/usr/bin/env python3
"""Asks for many reads at once and never takes their answers.

    neglect.py FILE COUNT

Submits COUNT direct reads of 64 KiB by io_submit(2), prints "asked", and sleeps until it is killed.
"""
import ctypes
import mmap
import os
import signal
import struct
import sys

# System calls of x86-64 and of the generic table.
IO_SETUP, IO_SUBMIT = (206, 209) if os.uname().machine == "x86_64" else (0, 2)
READ, SIZE = 0, 64 << 10

path, count = sys.argv[1], int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
file = os.open(path, os.O_RDONLY | os.O_DIRECT)
length = os.fstat(file).st_size // SIZE
context = ctypes.c_ulong(0)
if libc.syscall(IO_SETUP, count, ctypes.byref(context)):
    raise OSError(ctypes.get_errno(), "io_setup")
memory = mmap.mmap(-1, count * SIZE)
base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
for index in range(count):
    # struct iocb: data, key, rw_flags, opcode, reqprio, fildes, buf, nbytes, offset, ...
    block = struct.pack("=QIiHhIQQqQII", index, 0, 0, READ, 0, file, base + index * SIZE, SIZE,
                        index % length * SIZE, 0, 0, 0)
    control = ctypes.create_string_buffer(block, len(block))
    pointer = ctypes.pointer(control)
    if libc.syscall(IO_SUBMIT, context, ctypes.c_long(1), ctypes.byref(pointer)) != 1:
        raise OSError(ctypes.get_errno(), f"io_submit of {index}")
print("asked", flush=True)
signal.pause()
