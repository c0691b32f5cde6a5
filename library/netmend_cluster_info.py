#!/usr/bin/python
"""What the Kubernetes API knows of the cluster's network, in one pass that changes nothing."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.netmend.kube import (
    Api,
    ApiError,
    gather_cluster,
    k3s_credentials,
    kubeconfig_credentials,
)

DOCUMENTATION = r"""
module: netmend_cluster_info
short_description: Gather what the Kubernetes API knows about the cluster's network
description:
  - Reads nodes, pods, Services with their endpoints, Ingresses, NetworkPolicies, PodDisruptionBudgets, DaemonSets,
    Calico's resources and the health of the API. Only what bears on the network is kept; of Secrets that Ingresses name
    the type is asked for and nothing else, and no annotation is kept but those of Flannel, Calico and K3s and what an
    ingress-nginx speaks to pods, nor any environment but three variables of calico-node.
  - Runs once for a cluster, on a K3s server (with K3s's own credentials), or where a kubeconfig is.
  - Changes nothing. It fails only where the API cannot be asked at all, and says why and what to do.
author: netmend maintainers
options:
  kubeconfig:
    description:
      - A kubeconfig file, of which the current context is used.
      - Without it, K3s's own credentials below C(/var/lib/rancher/k3s/server/tls) are used.
    type: path
  server:
    description:
      - The API's URL, in place of the kubeconfig's server or of C(https://127.0.0.1:6443).
      - Its certificate must be good for the host that is named here.
    type: str
  timeout:
    description: How long to wait for a connection or an answer, in seconds.
    type: int
    default: 20
attributes:
  check_mode:
    description: Runs the same in check mode.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
requirements:
  - root on a K3s server, or the Python package kubernetes with O(kubeconfig)
"""

EXAMPLES = r"""
- name: Gather the cluster's facts on the first server
  netmend_cluster_info:
  delegate_to: "{{ groups['k3s_servers'] | first }}"
  run_once: true
  become: true
  register: cluster_info

- name: Gather them on the controller
  netmend_cluster_info:
    kubeconfig: "~/.kube/config"
    timeout: 5
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
netmend_cluster:
  description: The cluster's facts.
  returned: success
  type: dict
  contains:
    version:
      description: The API server's version.
      type: str
      sample: v1.36.3+k3s1
    api:
      description: The API's URL, and C(ok) or what fails for livez, readyz and etcd.
      type: dict
      sample: {server: "https://127.0.0.1:6443", livez: ok, readyz: ok, etcd: ok}
    cluster_cidr:
      description: The pods' network. Deduced; RV(netmend_cluster.errors) says so.
      type: str
      sample: 10.42.0.0/16
    service_cidr:
      description: The Services' network. Deduced; RV(netmend_cluster.errors) says so.
      type: str
      sample: 10.43.0.0/16
    dns_ip:
      description: The address of the cluster's DNS.
      type: str
      sample: 10.43.0.10
    nodes:
      description:
        - Nodes with role, part in etcd, addresses, podCIDR, readiness, and the annotations of Flannel, Calico and K3s.
      type: list
      elements: dict
    pods:
      description: Pods with node, address, readiness, owner, labels and ports.
      type: list
      elements: dict
    services:
      description: Services with ports, selector and endpoints.
      type: list
      elements: dict
    ingresses:
      description: Ingresses with class, hosts, paths, backends and addresses.
      type: list
      elements: dict
    secrets:
      description: The types of the Secrets that Ingresses name, by namespace and name; empty where there is none.
      type: dict
      sample: {shop/shop-tls: kubernetes.io/tls}
    ingress_classes:
      description: Ingress classes with their controllers.
      type: list
      elements: dict
    network_policies:
      description: NetworkPolicies with selector and rules.
      type: list
      elements: dict
    disruption_budgets:
      description: PodDisruptionBudgets with their selector, and how many pods are desired healthy of how many expected.
      type: list
      elements: dict
      sample: [{namespace: shop, name: api, selector: {matchLabels: {app: api}}, desired: 1, expected: 2}]
    daemonsets:
      description: DaemonSets with desired and ready pods, and their use of the host's network and ports.
      type: list
      elements: dict
    calico:
      description:
        - Calico's pools, configurations and block affinities, and of its DaemonSet calico-node the version, readiness,
          backend and the method by which it finds a node's address. Empty where Calico is not installed.
      type: dict
    ingress_nginx:
      description: Whether ingress-nginx expects the PROXY header. Empty where it does not run.
      type: dict
      sample: {proxy_protocol: false}
    errors:
      description: What could not be read or is only deduced.
      type: list
      elements: dict
"""


def argument_spec():
    return {
        "kubeconfig": {"type": "path"},
        "server": {"type": "str"},
        "timeout": {"type": "int", "default": 20},
    }


def main():
    module = AnsibleModule(argument_spec(), supports_check_mode=True)
    kubeconfig, server = module.params["kubeconfig"], module.params["server"] or ""
    try:
        credentials = kubeconfig_credentials(kubeconfig, server) if kubeconfig else k3s_credentials(server)
        cluster = gather_cluster(Api(credentials, module.params["timeout"]))
    except ApiError as error:
        module.fail_json(msg=f"The cluster cannot be measured: {error}")
    module.exit_json(changed=False, netmend_cluster=cluster)


if __name__ == "__main__":
    main()
