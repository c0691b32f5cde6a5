"""What is in the images in the place of Calico's, from Debian's packages: iptables, ipset, BIRD, plain CNI plugins."""

from __future__ import annotations

from .debian import LIBRARIES

PACKAGES = ("iptables", "ipset", "bird2", "containernetworking-plugins")
WANTED = (
    "usr/sbin/xtables-nft-multi",
    "usr/sbin/ipset",
    "usr/sbin/bird",
    # Those that Calico's own image has, besides its own two.
    *(f"usr/lib/cni/{name}" for name in ("bandwidth", "host-local", "loopback", "portmap", "tuning")),
    f"{LIBRARIES}/xtables/*.so",
)
