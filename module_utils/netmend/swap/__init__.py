"""The swap of Flannel for Calico on a cluster that goes on running: where it stands, what forbids it, what comes next.

Pure, all of it: facts in, plans out.
"""
