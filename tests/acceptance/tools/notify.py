#!/usr/bin/env python3
"""Runs a command as systemd's Type=notify does, and says what it was told.

    notify.py COMMAND...

Waits for READY=1, then sends SIGTERM and waits for the end. Exits 0 when the command said READY=1
before, STOPPING=1 after, and exited 0; prints each message.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile


def main():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "notify")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(path)
        listener.settimeout(60)
        child = subprocess.Popen(sys.argv[1:], env={**os.environ, "NOTIFY_SOCKET": path})
        said = ""
        try:
            while "READY=1" not in said.splitlines():
                said += listener.recv(65536).decode() + "\n"
            print("before SIGTERM:", said.split(), flush=True)
            child.send_signal(signal.SIGTERM)
            status = child.wait(30)
            listener.setblocking(False)
            after = ""
            try:
                while True:
                    after += listener.recv(65536).decode() + "\n"
            except BlockingIOError:
                pass
            print("after SIGTERM:", after.split(), "exit", status)
            sys.exit(0 if status == 0 and "STOPPING=1" in after.splitlines() else 1)
        finally:
            child.kill()


main()
