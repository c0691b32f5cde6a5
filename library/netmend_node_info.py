#!/usr/bin/python
"""What a node can tell about its network, in one pass that changes nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.netmend.gather import gather_node

DOCUMENTATION = r"""
module: netmend_node_info
short_description: Gather what a K3s node knows about its network
description:
  - Reads interfaces, routes, neighbours, the forwarding database, sysctls, both iptables rule sets with their counters,
    foreign nftables tables, ipsets, UFW's files, conntrack, sockets, protocol counters, K3s's effective configuration
    and when it started, the CNI configuration that containerd reads and what lies beside it, Flannel's files, room on
    disk, the clock, the dates of K3s's certificates, and a process in each pod's network namespace.
  - Changes nothing, loads no kernel module of the legacy iptables, and does not fail where a source is missing or a
    command fails. Such a source is named in RV(netmend_node.errors).
  - The result holds no secret. Tokens, keys and passwords in K3s's configuration are replaced by the word redacted.
author: netmend maintainers
options:
  cluster:
    description:
      - On a K3s server, read what its API knows at the same time, as M(netmend_cluster_info) does without options.
      - It saves a second call, and does not fail where the API cannot be asked.
    type: bool
    default: false
attributes:
  check_mode:
    description: Runs the same in check mode.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
requirements:
  - root on the node, for rule sets, process names and namespaces
"""

EXAMPLES = r"""
- name: Gather the network facts of every node
  netmend_node_info:
  register: node_info

- name: Gather them, and the cluster's from every server, in one call
  netmend_node_info:
    cluster: "{{ 'k3s_servers' in group_names }}"
  register: node_info

- name: Refuse to go on where packets are not forwarded
  ansible.builtin.assert:
    that: node_info.netmend_node.sysctls['net.ipv4.ip_forward'] == '1'
"""

RETURN = r"""
netmend_node:
  description: The facts of one node. A source that could not be read is empty.
  returned: always
  type: dict
  contains:
    name:
      description: The node's name in the cluster, as far as it can be told on the node.
      type: str
      sample: k3s-worker-01
    time:
      description: The node's clock when gathering began, in seconds since the epoch.
      type: float
    took:
      description: Seconds that gathering took.
      type: float
    clock:
      description: Whether the kernel takes its clock for synchronized, and which daemon cares for it.
      type: dict
      sample: {synchronized: true, source: timesyncd}
    interfaces:
      description: Interfaces with kind, MTU, addresses, the kind's own data, and counters.
      type: list
      elements: dict
    routes:
      description: Routes of all tables and both families.
      type: list
      elements: dict
    routing_rules:
      description: Routing rules as C(ip -j rule) gives them.
      type: list
      elements: dict
    neighbours:
      description: The neighbour table.
      type: list
      elements: dict
    fdb:
      description: Forwarding entries of tunnels, which name the peer that a MAC address is behind.
      type: list
      elements: dict
    sysctls:
      description: Settings that forwarding depends on; a dot in an interface's name is written as a slash.
      type: dict
      sample: {net.ipv4.ip_forward: "1"}
    iptables:
      description: The rule sets of both backends, by table and chain, in order, with counters.
      type: dict
    nft_tables:
      description: Tables that iptables does not know of, with hook, priority, policy and number of rules of each chain.
      type: list
      elements: dict
    ipsets:
      description: Members by set.
      type: dict
    ufw:
      description: UFW's state, default policies, rules, and the rules of before.rules.
      type: dict
    conntrack:
      description: Fill and limit of the connection table, and its counters summed over the CPUs.
      type: dict
      sample: {count: 340, max: 131072, insert_failed: 0}
    sockets:
      description: Listening TCP sockets and bound UDP sockets.
      type: list
      elements: dict
    bgp:
      description: TCP connections of port 179, with their state.
      type: list
      elements: dict
      sample: [{own: 10.0.0.110, peer: 10.0.0.100, state: SYN-SENT}]
    snmp:
      description: The kernel's counters by protocol.
      type: dict
      sample: {Udp: {InCsumErrors: 0}}
    k3s:
      description:
        - Role, unit, when it started, version, effective configuration, what decided each key, and when the
          configuration's files were last changed.
      type: dict
    cni:
      description:
        - Where containerd looks for networks and plugins, the image that it pauses pods by, the networks that it finds,
          and, unread, those in the folder that it would read with another C(flannel-backend).
      type: dict
    flannel:
      description: Flannel's files and directories that are there.
      type: list
      elements: str
      sample: [/run/flannel/subnet.env]
    calico:
      description: Those of Calico's files that are there.
      type: list
      elements: str
      sample: [/etc/cni/net.d/10-calico.conflist]
    disk:
      description: Size and free bytes of the file systems that hold K3s's data and containerd's plugins.
      type: dict
      sample: {/var/lib/rancher/k3s: {size: 40000000000, free: 31000000000}}
    pods:
      description: A process of every pod with a network of its own.
      type: list
      elements: dict
      sample: [{uid: b129d998-febc-4b7c-b78d-9e6656ffaa25, pid: 472, netns: 4026532281}]
    certificates:
      description: Name and dates, in seconds since the epoch, of the certificates that K3s made for itself.
      type: list
      elements: dict
      sample: [{file: /var/lib/rancher/k3s/agent/serving-kubelet.crt, subject: k3s-worker-01, not_before: 1795250021.0,
        not_after: 1826786021.0}]
    unconfirmed:
      description: Guarded changes that nobody has confirmed, by their id; a run is making them now, or was interrupted.
      type: list
      elements: str
      sample: [ufw]
    errors:
      description: What could not be read, and why.
      type: list
      elements: dict
      sample: [{what: ipsets, message: "ipset save: [Errno 2] No such file or directory: 'ipset'"}]
netmend_cluster:
  description: The cluster's facts, as M(netmend_cluster_info) returns them.
  returned: when O(cluster) and the API could be asked
  type: dict
netmend_cluster_error:
  description: Why the API could not be asked, and what to do.
  returned: when O(cluster) and it could not
  type: str
  sample: "cannot read K3s's credentials: /var/lib/rancher/k3s/server/tls/server-ca.crt: No such file or directory. Run
    as root on a K3s server, or name a kubeconfig"
netmend_call:
  description: When the controller began the call and had its result, in seconds since the epoch on its clock. With
    RV(netmend_node.time) and RV(netmend_node.took) this bounds how far the node's clock is off.
  returned: always
  type: dict
  sample: {sent: 1795265603.2, received: 1795265604.4}
"""


def contract():
    return {"argument_spec": {"cluster": {"type": "bool", "default": False}}, "supports_check_mode": True}


def main():
    module = AnsibleModule(**contract())
    with ThreadPoolExecutor(max_workers=1) as pool:
        cluster = pool.submit(ask_api) if module.params["cluster"] else None
        node = gather_node()
        answer = cluster.result() if cluster else {}
    module.exit_json(changed=False, netmend_node=node, **answer)


def ask_api():
    # Nodes that are no servers have no use for it, nor for what it imports.
    from ansible.module_utils.netmend.kube import Api, ApiError, gather_cluster, k3s_credentials  # noqa: PLC0415

    try:
        return {"netmend_cluster": gather_cluster(Api(k3s_credentials()))}
    except ApiError as error:
        return {"netmend_cluster_error": str(error)}


if __name__ == "__main__":
    main()
