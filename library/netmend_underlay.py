#!/usr/bin/python
"""A node's part of the round that measures the network under the overlays; changes nothing."""

from __future__ import annotations

import socket

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.netmend.underlay import Order, Peer, measure

DOCUMENTATION = r"""
module: netmend_underlay
short_description: Measure from both ends what passes between nodes
description:
  - Run on all nodes at the same time. Each listens from the call on, and at O(start) sends marked packets to its peers,
    which are VXLAN on UDP 8472 and 4789, WireGuard's UDP 51820, IP protocol 4, SYNs to TCP 179, 6443, 10250, 2379, 2380
    and 5473, UDP to a closed port, UDP of many sizes with DF, and, where a peer is on the same link, a packet for an
    address behind it.
  - Says what left, what of the peers' packets arrived at a device, what of that got past this host's firewall, what was
    answered and by whom, and which rules that drop or reject had more packets afterwards. The reports of all nodes tell
    what the network between them drops from what a node drops itself.
  - Takes about 1.3 seconds longer than O(start) is ahead. Where a peer is not heard it takes up to five in all, or
    twice as long as O(start) is ahead if that is more. Where the moment has passed already, it sends at once and says
    so.
  - Changes nothing and disturbs nothing that runs. No port is opened, no connection is completed, no packet can be
    taken for one of an overlay. Does not fail because the network is sick.
  - A tunl0 counts five packets from each peer, which are dropped behind it for their wrong checksum.
author: netmend
options:
  run:
    description: A word that all nodes of a round have in common, and no other round has.
    type: str
    required: true
  node:
    description: This node's name.
    type: str
    required: true
  address:
    description: This node's IPv4 address in the network that is measured.
    type: str
    required: true
  peers:
    description: The nodes to send to and to hear.
    type: list
    elements: dict
    required: true
    suboptions:
      node:
        description: The peer's name.
        type: str
        required: true
      address:
        description: The peer's IPv4 address.
        type: str
        required: true
  start:
    description:
      - The moment to send, in seconds since the epoch on this node's clock. All nodes have to be told the same moment,
        and must have begun by then.
      - One that is more than 30 seconds ahead is not waited for, and named in RV(netmend_underlay.errors).
    type: float
    required: true
  vni:
    description: A VXLAN network identifier that no device of any node has.
    type: int
    default: 16777215
attributes:
  check_mode:
    description: Runs the same in check mode.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
requirements:
  - root on the node, for raw sockets and packet sockets
  - iproute2
"""

EXAMPLES = r"""
- name: Agree on a moment, where all clocks are right
  ansible.builtin.set_fact:
    moment: "{{ now(utc=true).timestamp() + 2 }}"
  run_once: true

- name: Measure between these nodes, all at once
  netmend_underlay:
    run: "{{ moment }}"
    node: "{{ inventory_hostname }}"
    address: "{{ (members | selectattr('node', 'eq', inventory_hostname) | first).address }}"
    peers: "{{ members | rejectattr('node', 'eq', inventory_hostname) }}"
    start: "{{ moment }}"
  vars:
    members:
      - {node: k3s-worker-01, address: 10.0.0.110}
      - {node: k3s-worker-02, address: 10.0.0.111}
  register: underlay
"""

RETURN = r"""
netmend_underlay:
  description: What this node saw of the round. Moments are seconds since the epoch on its clock.
  returned: always
  type: dict
  contains:
    node:
      description: This node's name.
      type: str
    address:
      description: Its address.
      type: str
    run:
      description: The round's word.
      type: str
    start:
      description: The agreed moment.
      type: float
    late:
      description: Seconds by which the moment was over when the module began.
      type: float
      sample: 0.0
    listened:
      description: When it began and ended to listen; zeros where it could not.
      type: list
      elements: float
    sent:
      description: When it sent its first and its last packet; zeros where it could not.
      type: list
      elements: float
    to:
      description: By peer, the device, gateway and MTU by which it is reached; of each kind what was sent, answered, by
        what, and what kept packets back; of each size with DF how many were sent, and the MTU that frag-needed told.
      type: dict
      sample:
        k3s-worker-02:
          device: enp7s0
          gateway: 10.0.0.1
          mtu: 1450
          kinds:
            udp-8472: {sent: 5, answered: 0, told: {}, kept: {}}
            tcp-10250: {sent: 5, answered: 5, told: {SYN-ACK: 5}, kept: {}}
          sizes: {"1450": 2, "1440": 2}
          frag_needed: {}
    heard:
      description: By peer, the device that its packets arrived at; the rounds of which some did; of each kind how many
        arrived, and how many got past this host's firewall; of each size with DF how many arrived.
      type: dict
      sample:
        k3s-worker-02:
          device: enp7s0
          rounds: [0, 1, 2, 3, 4]
          kinds:
            udp-8472: {arrived: 5, accepted: 0}
          sizes: {"1450": 2, "1440": 2}
    moved:
      description: Rules that drop or reject, and DROP policies, whose counters rose meanwhile.
      type: list
      elements: dict
      sample: [{backend: nft, table: filter, chain: INPUT, index: 0, spec: "-P DROP", packets: 65}]
    overflow:
      description: Packets that came while a receive buffer was full. Above 0, what seems missing may have arrived.
      type: int
    errors:
      description: What could not be done, and why.
      type: list
      elements: str
      sample: ["cannot listen at 10.0.0.110: Cannot assign requested address"]
"""

_VNIS = 1 << 24


def contract():
    required = {"type": "str", "required": True}
    peer = {"node": required, "address": required}
    options = {
        "run": required,
        **peer,
        "peers": {"type": "list", "elements": "dict", "required": True, "options": peer},
        "start": {"type": "float", "required": True},
        "vni": {"type": "int", "default": _VNIS - 1},
    }
    return {"argument_spec": options, "supports_check_mode": True}


def main():
    module = AnsibleModule(**contract())
    asked = module.params
    wrong = problem(asked)
    if wrong:
        module.fail_json(msg=wrong)
    own, *peers = [Peer(each["node"], each["address"]) for each in (asked, *asked["peers"])]
    order = Order(own=own, peers=peers, **{name: asked[name] for name in ("run", "start", "vni")})
    module.exit_json(changed=False, netmend_underlay=measure(order))


def problem(params):
    """What is wrong with the arguments, as a clause that names it; "" where nothing is."""
    places = [("", params), *((f"peers[{index}].", peer) for index, peer in enumerate(params["peers"]))]
    for place, end in places:
        try:
            socket.inet_pton(socket.AF_INET, end["address"])
        except OSError:
            return f"{place}address {end['address']!r} is not an IPv4 address"
    for what in ("node", "address"):
        seen = set()
        for place, end in places:
            if end[what] in seen:
                return f"{place}{what} {end[what]!r} is there already"
            seen.add(end[what])
    if not 0 < params["vni"] < _VNIS:
        return f"vni {params['vni']} is not from 1 to {_VNIS - 1}"
    return ""


if __name__ == "__main__":
    main()
