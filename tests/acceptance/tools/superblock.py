#!/usr/bin/env python3
"""Changes an lvolstore's super block in an image.

    superblock.py IMAGE version N      the format version, with a right checksum
    superblock.py IMAGE damage         one byte, with the checksum left as it was
"""

import sys

SUPER_BLOCK_BYTES = 4096
VERSION_AT = 8
CHECKSUM_AT = 4092


def crc32c(data):
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def main():
    image, verb, *rest = sys.argv[1:]
    with open(image, "r+b") as file:
        block = bytearray(file.read(SUPER_BLOCK_BYTES))
        if block[:8] != b"SPDKBLOB":
            sys.exit(f"{image}: no super block")
        if crc32c(block[:CHECKSUM_AT]) != int.from_bytes(block[CHECKSUM_AT:], "little"):
            sys.exit(f"{image}: the checksum is wrong already")
        if verb == "version":
            block[VERSION_AT : VERSION_AT + 4] = int(rest[0]).to_bytes(4, "little")
            block[CHECKSUM_AT:] = crc32c(block[:CHECKSUM_AT]).to_bytes(4, "little")
        elif verb == "damage":
            block[28] ^= 0x40
        else:
            sys.exit(__doc__)
        file.seek(0)
        file.write(block)


main()
