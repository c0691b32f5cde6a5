"""What `k3s --version` says."""

VERSION = "v1.36.3+k3s1"
GO = "go1.26"


def text() -> str:
    """Two lines in K3s's form; the first one tells what this is."""
    return f"k3s version {VERSION} (stand-in)\ngo version {GO}\n"
