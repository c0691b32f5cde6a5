#!/usr/bin/python
"""Replaces the pods whose addresses are outside of given networks, and loses no request that can be kept."""

from __future__ import annotations

import gc
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.netmend.declared import at_least
from ansible.module_utils.netmend.kube import RESTART, Api, ApiError, k3s_credentials, kubeconfig_credentials
from ansible.module_utils.netmend.mirror import Mirror
from ansible.module_utils.netmend.pod_replacement import LEFT, PATHS, Replacement, Wish, networks, plan
from ansible.module_utils.netmend.pod_replacement_apply import Limits, NotReplaced, Replacer

DOCUMENTATION = r"""
module: netmend_pod_replacement
short_description: Replace the pods that have addresses of another network, without losing a request
description:
  - A pod keeps its address until it is replaced. After the cluster's CNI was changed, this replaces every running pod
    that is not on its host's network and whose address is in none of O(cidrs), or which O(uids) names.
  - C(surge), for pods of Deployments. The pod is taken out of its ReplicaSet, which makes another at once; when
    that one is Ready and in the EndpointSlices, the pod is taken out of its Services; when no EndpointSlice has it, it
    drains, and is deleted. One replica is enough. The two run side by side for a while, as in the Deployment's own
    rolling update.
  - C(release), where controller and Services ask for the same labels, as with most DaemonSets. The pod is taken out of
    all at once, while at least one other Ready pod serves and its budgets allow it; one at a time for each controller.
  - C(evict), where two cannot run side by side; one at a time in the cluster, the next when its replacement is Ready,
    and when none of the others can be begun.
    So it is for StatefulSets (highest ordinal first), ports of the host, the strategy C(Recreate), C(maxSurge) 0, an
    antiaffinity to its like, and DaemonSets that write to folders of their hosts. A request that such a pod is just
    answering has the pod's grace period, no more.
  - A pod is taken out by taking labels that selectors ask for, as few as will do. NetworkPolicies that
    ask for those do not hold for the pod's last seconds, neither those that let it in or out nor those that isolate it.
  - Which connections a pod has, its node alone knows. Where M(netmend_pod_connections) runs there, a pod goes when it
    has none, and 15 s have passed for kube-proxies and ingress controllers to learn of it. Otherwise it goes when
    O(drain_seconds) are over. Then it gets SIGTERM and its grace period.
  - Returns when all that were told to end have ended.
  - Where a replacement does not come up, this stops, and puts the pods back into service whose replacements are not
    there. What was interrupted is finished by running it again, as pods that were taken out carry the annotation
    C(netmend/released).
author: netmend maintainers
options:
  cidrs:
    description:
      - Networks where the addresses of pods are to be. The new pool, or on the way back the nodes' podCIDRs.
      - This, or O(uids), is needed.
    type: list
    elements: str
    default: []
  uids:
    description: Pods that are to be replaced whatever address they have, by their C(metadata.uid), as names come again.
    type: list
    elements: str
    default: []
  exclude_namespaces:
    description: Namespaces whose pods are left as they are.
    type: list
    elements: str
    default: []
  singles:
    description:
      - What becomes of a pod that no other one can stand in for while it is replaced, or whose controller is of an
        unknown kind or a Job.
      - V(report) leaves it. V(recreate) evicts it; requests to it fail until its controller has made it again, which
        is waited for where the controller is a ReplicaSet, a StatefulSet or a DaemonSet.
      - Pods without a controller and static pods are always left, as nothing here can make them again.
    type: str
    choices: [report, recreate]
    default: report
  drain_seconds:
    description: Seconds that a pod goes on without new requests before it is deleted, at most.
    type: int
    default: 60
  parallel:
    description:
      - Replacements that start at once. The next start when these are Ready, while those that they replace drain, which
        need their memory until they end.
    type: int
    default: 5
  timeout:
    description: Seconds to wait for each replacement, and for a PodDisruptionBudget to let a pod go.
    type: int
    default: 300
  kubeconfig:
    description:
      - A kubeconfig file, of which the current context is used.
      - Without it, K3s's own credentials below C(/var/lib/rancher/k3s/server/tls) are used.
    type: path
attributes:
  check_mode:
    support: full
    description: Returns the plan and changes nothing.
  diff_mode:
    support: full
    description: The pods with addresses outside of the networks, before and after.
requirements:
  - root on a K3s server, or the Python package kubernetes with O(kubeconfig)
"""

EXAMPLES = r"""
- name: Move all pods onto Calico's pool
  netmend_pod_replacement:
    cidrs: [10.42.128.0/17]
  delegate_to: "{{ groups['k3s_servers'] | first }}"
  run_once: true

- name: Move them back onto what Flannel has on the nodes, those that stand alone included
  netmend_pod_replacement:
    cidrs: [10.42.0.0/24, 10.42.1.0/24, 10.42.2.0/24]
    singles: recreate
  delegate_to: "{{ groups['k3s_servers'] | first }}"
  run_once: true
"""

RETURN = r"""
replaced:
  description: Pods that were deleted, in this order; in check mode those that would be. Present where this fails, too.
  returned: when the cluster could be read
  type: list
  elements: dict
  contains:
    pod:
      description: Namespace and name, with a slash.
      type: str
      sample: default/web-6j7ps
    node:
      description: Its node.
      type: str
      sample: k3s-worker-01
    owner:
      description: Namespace, kind and name of its controller; empty for none.
      type: str
      sample: default/DaemonSet/web
    way:
      description: V(surge), V(release) or V(evict); V(under way) for what an earlier run began.
      type: str
      sample: release
    why:
      description: What is special about it, and which requests it may lose; empty for nothing.
      type: str
      sample: its Deployment's strategy is Recreate
    seconds:
      description: From the first step with it to its deletion. Absent in check mode.
      type: float
      sample: 34.2
left:
  description:
    - Pods that stay where they are, with the same keys up to C(why), which says the reason and what to do. Where this
      fails, those that it did not come to as well.
  returned: when the cluster could be read
  type: list
  elements: dict
"""


def contract() -> dict[str, Any]:
    options = {
        "cidrs": {"type": "list", "elements": "str", "default": []},
        "uids": {"type": "list", "elements": "str", "default": []},
        "exclude_namespaces": {"type": "list", "elements": "str", "default": []},
        "singles": {"type": "str", "choices": ["report", "recreate"], "default": "report"},
        "drain_seconds": {"type": "int", "default": 60},
        "parallel": {"type": "int", "default": 5},
        "timeout": {"type": "int", "default": 300},
        "kubeconfig": {"type": "path"},
    }
    return {"argument_spec": options, "supports_check_mode": True}


def main() -> None:
    module = AnsibleModule(**contract())
    gc.enable()  # it is off where a module runs without Ansible's own code, as those end soon
    try:
        wish, limits = _wish(module.params), _limits(module.params)
    except ValueError as error:
        module.fail_json(msg=str(error))
    kubeconfig = module.params["kubeconfig"]
    try:
        api = Api(kubeconfig_credentials(kubeconfig) if kubeconfig else k3s_credentials(), patience=RESTART)
        objects = Mirror(api, PATHS)
    except ApiError as error:
        module.fail_json(msg=f"The pods cannot be read: {error}")
    before = plan(objects.state(), wish)
    todo = [each for each in before if each.way != LEFT]
    if module.check_mode:
        left = before[len(todo) :]
        module.exit_json(changed=bool(todo), replaced=_shown(todo), left=_shown(left), diff=_diff(before, left))
    run = Replacer(api, objects, wish, limits)
    failure = ""
    try:
        run.run()
    except (ApiError, NotReplaced) as error:
        failure = str(error)
    after = plan(objects.state(), wish)
    result = {
        "changed": run.changed,
        "replaced": [{**_described(each.replacement), "seconds": each.seconds} for each in run.replaced],
        "left": _shown(after),
        "diff": _diff(before, after),
    }
    if failure:
        module.fail_json(msg=failure, **result)
    module.exit_json(**result)


def _wish(given: dict[str, Any]) -> Wish:
    try:
        cidrs = networks(given["cidrs"])
    except ValueError as error:
        raise ValueError(f"cidrs: {error}") from error
    uids = frozenset(given["uids"])
    if not cidrs and not uids:
        raise ValueError("cidrs and uids are empty: name the networks where the addresses of pods are to be, or pods")
    excluded = frozenset(given["exclude_namespaces"])
    return Wish(cidrs, uids, excluded, given["singles"] == "recreate", at_least(1)(given["parallel"], "parallel"))


def _limits(given: dict[str, Any]) -> Limits:
    return Limits(at_least(0)(given["drain_seconds"], "drain_seconds"), at_least(1)(given["timeout"], "timeout"))


def _shown(replacements: list[Replacement]) -> list[dict[str, str]]:
    return [_described(each) for each in replacements]


def _described(replacement: Replacement) -> dict[str, str]:
    return {name: value for name, value in replacement._asdict().items() if name != "uid"}


def _diff(before: list[Replacement], after: list[Replacement]) -> dict[str, str]:
    return {
        "before": "".join(f"{each.pod} on {each.node}\n" for each in before),
        "after": "".join(f"{each.pod} on {each.node}\n" for each in after),
    }


if __name__ == "__main__":
    main()
