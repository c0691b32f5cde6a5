#!/usr/bin/python
"""Stands in for each module that asks or changes nodes and cluster: WANT_JSON.

Notes who was asked for what in $NETMEND_JOURNEY/calls, and answers with the facts of the stage that was reached.
"""

import json
import os
import sys
from pathlib import Path

module = Path(sys.argv[0]).stem.rpartition("AnsiballZ_")[2]
arguments = json.loads(Path(sys.argv[1]).read_text())
journey, host = Path(os.environ["NETMEND_JOURNEY"]), os.environ["NETMEND_HOST"]
stage = journey / "stage"


def reached(name):
    stage.write_text(name)


def facts(name):
    return json.loads((journey / stage.read_text() / f"{name}.json").read_text())


# Stages whose pods are to be replaced -> what comes of it.
REPLACED = {"calico": "pods", "flipped": "leftovers"}

answer = {"changed": False}
said = ""
if module == "netmend_node_info":
    answer["netmend_node"] = facts(host)
    if arguments.get("cluster"):
        answer["netmend_cluster"] = facts("cluster")
elif module == "netmend_cluster_info":
    answer["netmend_cluster"] = facts("cluster")
elif module == "netmend_pod_replacement":
    begins = stage.read_text() in REPLACED
    said = " ".join(arguments["cidrs"])
    answer.update(changed=begins, replaced=[{"pod": "default/gone", "way": "surge"}] if begins else [], left=[])
    if begins:
        reached(REPLACED[stage.read_text()])
elif module == "netmend_apply":
    kinds = {each["kind"] for each in arguments["objects"]}
    said = "stop" if kinds == {"DaemonSet", "Deployment"} else "all" if "IPPool" in kinds else ""
    answer["changed"] = kinds != {"Pod"}
    if said == "all" and arguments.get("state") == "absent":
        reached("ended")
elif module == "netmend_connectivity":
    answer.update(met=True, unmet=[])
elif module == "netmend_cni_leftovers":
    owners = {name.partition("/")[0] for name in arguments["annotations"]}
    said = " ".join([str(len(arguments["commands"])), *arguments["conditions"], *owners])
    answer["changed"] = bool(arguments["commands"])
elif module == "netmend_lease":
    said = arguments.get("state", "held")
elif module == "netmend_pod_connections":
    said = arguments.get("state", "started")
elif module == "netmend_k3s_restart":
    said = arguments.get("unit") or ""
    answer["changed"] = True

if module not in ("netmend_node_info", "netmend_cluster_info", "netmend_connectivity", "netmend_underlay"):
    with (journey / "calls").open("a") as calls:
        calls.write(f"{module} {host} {said}".strip() + "\n")
print(json.dumps(answer))
