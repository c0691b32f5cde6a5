"""The core of netmend: facts, probes, plans, diagnosis. Plain Python 3.9, no Ansible in it.

Imports point one way: model <- parse <- gather, probe, plan <- walk <- diagnose <- report, swap.
"""
