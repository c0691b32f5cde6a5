#!/usr/bin/python
"""Brings declared applications into the cluster, and what was there before back where they do not come up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.netmend.applications import read
from ansible.module_utils.netmend.apply import CONCURRENCY, differences, named, remove
from ansible.module_utils.netmend.declared import at_least
from ansible.module_utils.netmend.kube import Api, ApiError, k3s_credentials
from ansible.module_utils.netmend.rollout_apply import Limits, Rollout, undeclared

DOCUMENTATION = r"""
module: netmend_rollout
short_description: Roll applications out from a K3s server, and undo what does not come up
description:
  - Applies each application's Deployment or DaemonSet, Service and Ingress on the server's side, and waits
    until it is rolled out, as C(kubectl rollout status) does, and served by its Services. Then it has to answer this
    server by its pods, its Service, its NodePort on all nodes and its Ingress.
  - Where it does not come up, or does not answer in a way in which it answered before, the former objects are applied
    again, and this fails with the pod, its reason and the last message of its container, never its log.
  - A new pod serves before an old one goes, and an old one goes on for O(drain_seconds) when it has left its Services;
    that takes Kubernetes 1.30. With the host's network the new pod needs the old one's port, so there one at a time is
    away.
  - The applications are rolled out side by side; one that fails does not stop the others.
  - What was there before is kept in a Secret C(netmend-former-NAME) meanwhile. What was interrupted is finished, or
    undone, by running it again.
author: netmend maintainers
options:
  applications:
    description: The applications.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the workload, the Service and the Ingress.
        type: str
        required: true
      namespace:
        description: Where they are; made where it is not there. C(default) unless given.
        type: str
      image:
        description: The container's image.
        type: str
        required: true
      port:
        description: TCP port on which it listens, and which the Service has, too.
        type: int
        required: true
      replicas:
        description: Pods of a Deployment, 1 unless given. A HorizontalPodAutoscaler's number is left as it is.
        type: int
      daemonset:
        description: A DaemonSet, with a pod on each node, in the place of a Deployment.
        type: bool
      health:
        description: Path that it answers with status 200 when it is well. C(/) unless given.
        type: str
      host:
        description: Name for which an Ingress leads to it.
        type: str
      ingress_class:
        description: IngressClass; the cluster's default unless given.
        type: str
      tls_secret:
        description: Secret with the certificate for O(applications[].host).
        type: str
      node_port:
        description: NodePort of its Service, from 30000 to 32767.
        type: int
      host_network:
        description: Whether its pods use their hosts' network and O(applications[].port).
        type: bool
      resources:
        description: C(requests) and C(limits), as Kubernetes has them.
        type: dict
      env:
        description: Environment, by name. No secrets; they are for O(applications[].env_from_secret).
        type: dict
      env_from_secret:
        description: Secrets whose keys become environment.
        type: list
        elements: str
  prune:
    description: Whether objects are removed that were rolled out, and are of none of O(applications) any more.
    type: bool
    default: false
  probe:
    description: Whether an application has to answer this server, too.
    type: bool
    default: true
  drain_seconds:
    description: Seconds that a pod goes on without new requests before it gets SIGTERM.
    type: int
    default: 30
  timeout:
    description: Seconds without progress until a rollout counts as failed; images are pulled meanwhile.
    type: int
    default: 300
  patience:
    description: Seconds that a pod is given whose image cannot be pulled, or whose container crashes.
    type: int
    default: 20
  answer_seconds:
    description: Seconds for an application to answer once it is rolled out.
    type: int
    default: 30
attributes:
  check_mode:
    support: full
    description: Asks the API server what would become of each object, without doing it.
  diff_mode:
    support: full
    description: Objects that change, without their status.
requirements:
  - root on a K3s server
"""

EXAMPLES = r"""
- name: Roll an application out
  netmend_rollout:
    applications:
      - name: keybuzz-api
        namespace: keybuzz
        image: registry.example/keybuzz-api:1.4.2
        port: 8080
        replicas: 3
        health: /health
        host: platform-api.keybuzz.io
        node_port: 30080
        env_from_secret: [keybuzz-api]
  delegate_to: "{{ groups['k3s_servers'] | first }}"
  run_once: true
"""

RETURN = r"""
applications:
  description: What became of each application.
  returned: when the API could be asked
  type: list
  elements: dict
  contains:
    name:
      description: Namespace and name, with a slash.
      type: str
      sample: keybuzz/keybuzz-api
    objects:
      description: Objects that were, or in check mode would be, changed.
      type: list
      elements: str
      sample: ["Deployment keybuzz/keybuzz-api"]
    undone:
      description: Whether it did not come up, and was undone.
      type: bool
    failure:
      description: What is wrong; empty for nothing.
      type: str
      sample: ""
undeclared:
  description: Objects that were rolled out, and are of none of the applications any more. Removed with O(prune).
  returned: when the API could be asked
  type: list
  elements: str
  sample: ["Deployment keybuzz/keybuzz-front"]
"""


def main():
    module = AnsibleModule(
        argument_spec={
            "applications": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "namespace": {"type": "str"},
                    "image": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "replicas": {"type": "int"},
                    "daemonset": {"type": "bool"},
                    "health": {"type": "str"},
                    "host": {"type": "str"},
                    "ingress_class": {"type": "str"},
                    "tls_secret": {"type": "str", "no_log": False},
                    "node_port": {"type": "int"},
                    "host_network": {"type": "bool"},
                    "resources": {"type": "dict"},
                    "env": {"type": "dict"},
                    "env_from_secret": {"type": "list", "elements": "str", "no_log": False},
                },
            },
            "prune": {"type": "bool", "default": False},
            "probe": {"type": "bool", "default": True},
            "drain_seconds": {"type": "int", "default": 30},
            "timeout": {"type": "int", "default": 300},
            "patience": {"type": "int", "default": 20},
            "answer_seconds": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        declared = read([present(each) for each in given["applications"]], "applications")
        for name, least in (("drain_seconds", 0), ("timeout", 1), ("patience", 0), ("answer_seconds", 0)):
            at_least(least)(given[name], name)
    except ValueError as error:
        module.fail_json(msg=str(error))
    limits = Limits(given["timeout"], given["patience"], given["answer_seconds"])
    try:
        api = Api(k3s_credentials(), timeout=60)
        rollouts = [Rollout(api, each, limits, given["probe"], given["drain_seconds"]) for each in declared]
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            results = list(pool.map(lambda rollout: rollout.run(module.check_mode), rollouts))
        failures = [result.failure for result in results if result.failure]
        strays = undeclared(api, declared)
        pruned = []
        if given["prune"] and not failures:
            pruned = remove(api, strays, dry_run=module.check_mode)
    except ApiError as error:
        module.fail_json(msg=str(error))
    changes = [change for result in results for change in result.changes] + pruned
    result = {
        "changed": bool(changes) or any(each.undone for each in results),
        "applications": [described(each) for each in results],
        "undeclared": [named(item) for item in strays],
    }
    if module._diff:
        result["diff"] = differences(changes)
    if failures:
        module.fail_json(msg="\n".join(failures), **result)
    module.exit_json(**result)


def present(application):
    return {key: value for key, value in application.items() if value is not None}


def described(result):
    objects = [change.what for change in result.changes]
    return {"name": result.name, "objects": objects, "undone": result.undone, "failure": result.failure}


if __name__ == "__main__":
    main()
