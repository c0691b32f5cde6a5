"""A stand-in for the k3s binary; see lab/README.md for where it differs."""
