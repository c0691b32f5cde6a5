"""Holds packets back: a process in a lab's network that takes them from a TUN device and returns them later.

Not every kernel has netem; this works wherever there is /dev/net/tun. It ends when its device is deleted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque

TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
LARGEST = 65536


def main(device: str, milliseconds: str) -> None:
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TUN | IFF_NO_PI))
    subprocess.run(["ip", "link", "set", device, "mtu", "1500", "txqueuelen", "10000", "up"], check=True)
    print("ready", flush=True)
    try:
        hold(tun, int(milliseconds) / 1000)
    except OSError as problem:
        if problem.errno != errno.EBADFD:  # what a deleted device answers
            raise


def hold(tun: int, seconds: float) -> None:
    """Give each packet back `seconds` after it came."""
    held: deque[tuple[float, bytes]] = deque()
    while True:
        rest = max(0.0, held[0][0] - time.monotonic()) if held else None
        if select.select([tun], [], [], rest)[0]:
            held.append((time.monotonic() + seconds, os.read(tun, LARGEST)))
        while held and held[0][0] <= time.monotonic():
            os.write(tun, held.popleft()[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
