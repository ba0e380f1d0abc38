#!/usr/bin/env python3
"""Makes an ext4 or XFS file system fail every I/O from now on with EIO, as a dead disk does.

    shutdown_filesystem.py MOUNT_POINT
"""

import fcntl
import os
import struct
import sys

EXT4_IOC_SHUTDOWN = 0x8004587D  # the same request as XFS_IOC_GOINGDOWN
WITHOUT_LOG_FLUSH = 2

fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), EXT4_IOC_SHUTDOWN, struct.pack("I", WITHOUT_LOG_FLUSH))
