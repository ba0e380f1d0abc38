"""qmp.py SOCKET COMMAND [JSON]: one command to a QEMU's monitor."""

import json
import socket
import sys


def main():
    monitor = socket.socket(socket.AF_UNIX)
    monitor.connect(sys.argv[1])
    lines = monitor.makefile("rw")
    lines.readline()
    arguments = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    answer = None
    for command, given in (("qmp_capabilities", {}), (sys.argv[2], arguments)):
        lines.write(json.dumps({"execute": command, "arguments": given}) + "\n")
        lines.flush()
        answer = {}
        while "return" not in answer and "error" not in answer:
            answer = json.loads(lines.readline())
    print(json.dumps(answer))
    sys.exit("error" in answer)


main()
