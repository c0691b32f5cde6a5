"""What serves at a lab's edge, from Debian's packages: nginx behind the balancers, HAProxy as the balancers."""

from __future__ import annotations

PACKAGES = ("nginx", "haproxy")
NGINX = "usr/sbin/nginx"
HAPROXY = "usr/sbin/haproxy"
