"""Addresses that follow from the configuration."""

from __future__ import annotations

import ipaddress


def service_address(service_cidr: str) -> str:
    """The ClusterIP of the API server: the first address of the Service network."""
    return str(ipaddress.ip_network(service_cidr)[1])
