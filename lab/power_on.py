#!/usr/bin/env python3
"""Becomes a user-mode Linux machine; KERNEL, MEMORY_DIRECTORY, MEMORY (MiB) and PROCESSOR come in the
environment.

A kernel that reboots executes its argv[0] again, which is this file: descriptors, signal mask and ignored signals of
its life before would stay with it otherwise, and a machine then loses its disk's completions soon after.
"""

import os
import signal
import subprocess
import sys


def main() -> None:
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGIO, signal.SIGVTALRM, signal.SIGPIPE, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.sched_setaffinity(0, {int(os.environ["PROCESSOR"])})
    memory = os.environ["MEMORY_DIRECTORY"]
    if not os.path.ismount(memory):
        # In the mount namespace of this machine alone: it goes when the machine does.
        size = int(os.environ["MEMORY"]) + 64
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,size={size}M", "netmend", memory], check=True)
    os.environ["TMPDIR"] = memory
    os.execv(os.environ["KERNEL"], [os.path.abspath(__file__), *sys.argv[1:]])


if __name__ == "__main__":
    main()
