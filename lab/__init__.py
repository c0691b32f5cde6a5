"""A K3s-like cluster of real Linux machines (user-mode Linux) on one host, for the demo and the tests."""
