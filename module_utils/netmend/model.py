"""The shapes that travel between the phases of a run.

Everything is JSON-ready (dicts, lists, strings, numbers), because it crosses Ansible's boundary between node and
controller. A list or key whose source could not be read is empty, and ``errors`` says why: gathering never raises.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, TypedDict

# --- rule sets ------------------------------------------------------------------------------------------------------


class Rule(TypedDict):
    """One rule of iptables-save -c, in its chain's order.

    ``spec`` is the rule without ``-A CHAIN`` and counters, exactly as saved, so it can be fed back to iptables.
    ``matches`` holds what the packet walk understands; a match that is not understood stands in ``opaque``.
    """

    spec: str
    target: Optional[str]  # ACCEPT, DROP, REJECT, RETURN, a chain's name, DNAT ...; None: no -j
    target_options: Dict[str, str]  # e.g. {"reject-with": "icmp-port-unreachable"}, {"set-xmark": "0x4000/0x4000"}
    goto: bool
    packets: int
    bytes: int
    matches: Dict[str, str]  # source, destination, in, out, protocol, dport, sport, ctstate, mark, dst-type, src-type,
    #                          physdev-in ...; a negated match has the key "!source" etc.; ports may be "1:2" or "1,2"
    opaque: List[str]  # match extensions that are not interpreted: "statistic", "set", "limit", "recent" ...
    comment: str


class Chain(TypedDict):
    policy: Optional[str]  # ACCEPT or DROP for built-in chains, None for user chains
    packets: int  # the policy's counters
    bytes: int
    rules: List[Rule]


Table = Dict[str, Chain]  # chain name -> chain
Ruleset = Dict[str, Table]  # table name (filter, nat, mangle, raw) -> table


class Iptables(TypedDict):
    """Both rule sets of a node: iptables-nft and iptables-legacy are two (domain.md)."""

    backend: str  # what `iptables` itself is: "nft" or "legacy" or "" (not installed)
    version: str
    nft: Ruleset
    legacy: Ruleset


# --- node facts -----------------------------------------------------------------------------------------------------


class Interface(TypedDict):
    name: str
    index: int
    mtu: int  # bytes
    state: str  # UP, DOWN, UNKNOWN (operstate)
    mac: str
    kind: str  # "", veth, bridge, vxlan, ipip, dummy ... (linkinfo info_kind)
    master: str
    addresses: List[str]  # CIDR, IPv4 and IPv6
    info: Dict[str, Any]  # info_data of the kind, e.g. vxlan: id, port, local, link
    hairpin: Optional[bool]  # a bridge's port: whether it sends a frame back to where it came from; else None
    rx_packets: int
    tx_packets: int
    rx_dropped: int
    tx_dropped: int


class Route(TypedDict):
    destination: str  # CIDR or "default"
    type: str  # unicast, blackhole, local, ...
    gateway: str
    device: str
    table: str  # "main", "local" or a number
    protocol: str
    scope: str
    metric: int
    source: str  # preferred source
    mtu: int  # 0: none
    flags: List[str]  # onlink, linkdown ...


class Neighbour(TypedDict):
    address: str
    device: str
    mac: str
    state: str


class Fdb(TypedDict):
    mac: str
    device: str
    destination: str  # the VTEP's address
    state: str


class Socket(TypedDict):
    protocol: str  # tcp, udp
    address: str  # "0.0.0.0", "::", "10.0.0.100" ...
    port: int
    process: str  # "" where unknown


class BgpConnection(TypedDict):
    """A TCP connection to port 179, or from it, as the node has it at the moment."""

    own: str
    peer: str
    state: str  # ESTAB, SYN-SENT (nothing has answered yet) ...


class UfwRule(TypedDict):
    """One tuple line of user.rules: what `ufw show added` prints, taken apart."""

    action: str  # allow, deny, reject, limit
    direction: str  # in, out, routed
    protocol: str  # tcp, udp, any, esp ...
    source: str  # CIDR or "any"
    source_port: str
    destination: str
    port: str  # "22", "30000:32767", "80,443", "any"
    interface_in: str
    interface_out: str
    comment: str


class Ufw(TypedDict):
    installed: bool
    enabled: bool
    logging: str
    defaults: Dict[str, str]  # input, output, forward -> ACCEPT, DROP, REJECT (from /etc/default/ufw)
    manage_builtins: bool
    rules: List[UfwRule]
    before_rules: List[str]  # the -A lines of before.rules, in order


class K3s(TypedDict):
    role: str  # server, agent or "" (no unit)
    unit: str  # k3s.service, k3s-agent.service
    active: str  # systemd's ActiveState
    started: float  # when its process last began, seconds since the epoch; 0: never since the boot
    version: str  # "v1.36.3+k3s1"
    config: Dict[str, Any]  # effective; secrets are "(redacted)"
    sources: Dict[str, str]  # key -> file or "ExecStart" that decided it
    files: Dict[str, float]  # the files of the configuration, in the order of reading -> when each was last changed


class Cni(TypedDict):
    conf_dir: str  # what containerd reads
    bin_dirs: List[str]
    pause_image: str  # what holds a pod's network namespace
    networks: Dict[str, Any]  # file name -> parsed conflist; the first in order is the one that counts
    unread: Dict[str, Any]  # path -> the same, where containerd would look with flannel-backend none, or with Flannel


class Space(TypedDict):
    size: int  # bytes
    free: int  # bytes


class PodProcess(TypedDict):
    uid: str
    pid: int  # any process of the pod's sandbox
    netns: int  # inode; equals the host's for hostNetwork pods, which are left out
    listens: List[str]  # TCP sockets in the pod's network namespace: "0.0.0.0:8080", "[::]:8080"


class Certificate(TypedDict):
    """Name and dates of one of K3s's own certificates; the file may hold its issuer's behind it."""

    file: str
    subject: str  # its common name
    not_before: float  # seconds since the epoch
    not_after: float


class NodeFacts(TypedDict):
    name: str  # node-name of K3s, else the host name
    time: float  # the node's clock, seconds since the epoch, when gathering began
    took: float  # seconds that gathering took
    clock: Dict[str, Any]  # {"synchronized": bool | None, "source": "chrony" | "timesyncd" | ""}
    interfaces: List[Interface]
    routes: List[Route]
    routing_rules: List[Dict[str, Any]]
    neighbours: List[Neighbour]
    fdb: List[Fdb]
    sysctls: Dict[str, str]
    iptables: Iptables
    nft_tables: List[Dict[str, Any]]  # {"family","name","chains": {name: {"hook","priority","policy","rules": int}}}
    ipsets: Dict[str, List[str]]
    ufw: Ufw
    conntrack: Dict[str, int]  # count, max, insert_failed, drop ...
    sockets: List[Socket]
    bgp: List[BgpConnection]
    snmp: Dict[str, Dict[str, int]]  # /proc/net/snmp and netstat: {"Udp": {"InCsumErrors": 0}}
    k3s: K3s
    cni: Cni
    flannel: List[str]  # the files and directories of Flannel's that are there
    calico: List[str]  # the files of Calico's that are there
    disk: Dict[str, Space]  # of the file systems that hold K3s's data and containerd's plugins, by path
    pods: List[PodProcess]
    certificates: List[Certificate]
    unconfirmed: List[str]  # ids of changes that nobody has confirmed: a run makes them now, or did not come to its end
    errors: List[Dict[str, str]]  # {"what": "ipset", "message": "..."}


# --- cluster facts --------------------------------------------------------------------------------------------------


class Node(TypedDict):
    name: str
    role: str  # server, agent
    etcd: str  # voter, learner; "" for no member of the embedded etcd
    internal_ip: str
    external_ip: str
    pod_cidr: str
    ready: bool
    reason: str
    network: str  # the reason of the condition NetworkUnavailable, as in CalicoIsUp; "" where there is none
    annotations: Dict[str, str]  # flannel.alpha.coreos.com/*, projectcalico.org/*, k3s.io/* only
    labels: Dict[str, str]
    version: str


class Pod(TypedDict):
    namespace: str
    name: str
    uid: str
    node: str
    ip: str
    host_network: bool
    ready: bool
    phase: str
    reason: str
    owner: str  # "DaemonSet/web", "" for a bare pod
    labels: Dict[str, str]
    ports: List[Dict[str, Any]]  # {"name": "http", "port": 8080, "protocol": "TCP", "hostPort": 0}
    readiness: Dict[str, Any]  # of an httpGet readinessProbe: {"path", "port" (number or name), "scheme"}; else {}
    unscheduled: str  # what the scheduler says of a pod that it finds no node for; "" for all others
    meant_for: str  # the node that a DaemonSet made it for, on a node yet or not; "" for all others


class Service(TypedDict):
    namespace: str
    name: str
    type: str
    cluster_ip: str  # "None" for headless
    ports: List[Dict[str, Any]]  # {"name","port","targetPort","nodePort","protocol"}
    selector: Dict[str, str]
    external_traffic_policy: str
    health_check_node_port: int  # answers 200 where there are local endpoints, else 503; 0 for none
    endpoints: List[Dict[str, Any]]  # from EndpointSlices: {"ip","node","port","protocol","ready","pod"}


class ClusterFacts(TypedDict):
    version: str
    api: Dict[str, str]  # {"livez": "ok", "readyz": "ok", "etcd": "ok", "server": "https://..."}
    cluster_cidr: str  # from the servers' configuration, else deduced from the podCIDRs
    service_cidr: str
    dns_ip: str
    nodes: List[Node]
    pods: List[Pod]
    services: List[Service]
    ingresses: List[Dict[str, Any]]
    ingress_classes: List[Dict[str, Any]]
    secrets: Dict[str, str]  # "namespace/name" of those that Ingresses name -> type; "" where there is none
    network_policies: List[Dict[str, Any]]
    disruption_budgets: List[Dict[str, Any]]  # {"namespace","name","selector","desired","expected"}: numbers of pods
    daemonsets: List[Dict[str, Any]]  # {"namespace","name","desired","ready","host_network","host_ports"}
    calico: Dict[str, Any]  # ippools, felixconfigurations, bgpconfigurations, blockaffinities: absent where there is no
    #                         such CRD; node: the DaemonSet calico-node, absent where there is none
    ingress_nginx: Dict[str, Any]  # {"proxy_protocol": whether it expects the PROXY header}; {} where there is none
    errors: List[Dict[str, str]]


# --- probes ---------------------------------------------------------------------------------------------------------

# Outcomes of a probe. "ok" means that the path works: an HTTP 503 or an NXDOMAIN is "http" or "dns", with the code.
OUTCOMES = ("ok", "refused", "reset", "timeout", "unreachable", "prohibited", "tls", "http", "dns", "error")
BLOCKED = ("timeout", "refused", "unreachable", "prohibited")  # what an expectation "blocked" means


class Probe(TypedDict, total=False):
    """What is asked, from where, of whom. ``id`` is unique in a run and readable: "pod-pod agent1>agent2"."""

    id: str
    row: str  # host-host, host-pod, pod-pod, pod-clusterip, host-clusterip, pod-dns, node-nodeport, edge-*, or ""
    source_node: str  # CONTROLLER for what the controller asks, which stands for the internet
    source_pod: str  # "namespace/name", "" = from the host
    source_pid: int  # a process in the pod's network namespace; 0 = from the host
    target_node: str  # "" where no node is meant (ClusterIP)
    target_pod: str  # "namespace/name" of the pod whose address this is, else ""
    target_service: str  # "namespace/name" of the Service whose ClusterIP or NodePort this is, else ""
    protocol: str  # tcp, udp, icmp, http, https, dns-udp, dns-tcp, dns-pair, dns-apart, mtu
    address: str
    port: int
    name: str  # the DNS name asked for; the HTTP Host
    path: str  # HTTP path
    status: int  # http and https: the only status that is ok; 0 = any below 500
    statuses: List[int]  # the same, where there are several
    unwanted: List[int]  # statuses below 500 that are not ok either
    patience: float  # seconds that an HTTP answer may take once connected; timeout, if it is absent
    settle: float  # seconds in which it may yet come right, as after a repair, before it is measured
    proxy: str  # the PROXY header before HTTP or TLS: "sent", "none", or "unknown" (either will do); absent = never
    balancer: str  # the name of the balancer whose address this is, else ""
    backend: str  # "namespace/service:port" that an Ingress leads to, where the probe is about it, else ""
    verify: bool  # https: whether a certificate that cannot be trusted is the outcome "tls"; true unless declared
    timeout: float  # seconds
    attempts: int  # made at once, each may meet another endpoint of a Service; the outcome is ok if all are; default 1
    source_port: int  # the local one, for TCP and UDP; 0 = any, and so it is where that one is taken
    expect: str  # an outcome; "ok" unless declared otherwise ("blocked" = timeout, refused, unreachable or prohibited;
    #              "any": measured for comparison)


class Observation(TypedDict, total=False):
    id: str  # the probe's
    outcome: str
    detail: str  # "status 503", "NXDOMAIN", "icmp host-prohibited from 10.0.0.111", an errno's text
    rtt_ms: float  # milliseconds; of the connection, or of the whole answer for http and dns
    mtu: int  # protocol mtu: the largest IP packet that passed with DF, bytes; outcome "timeout": larger ones vanish
    attempts: int  # that were made in all; this and what follows is absent where it was a single one
    failed: int  # of them, otherwise than expected; what fails at one moment only is lost, and no fault
    ports: Dict[str, List[int]]  # local ports of failed attempts -> [attempts from there, failed ones]
    endpoints: Dict[str, List[int]]  # addresses that a Service's led to, as far as known -> the same of each
    status: int  # of an HTTP answer
    proxied: str  # what came of it the other way, with or without the PROXY header, where that passed
    certificate: Dict[str, Any]  # {"subject", "issuer": common names, "names": DNS names, "not_after"}, for https


class Moved(TypedDict):
    """A rule (or a policy) that drops, rejects or accepts, and whose counter rose while a node was probing."""

    backend: str
    table: str
    chain: str
    index: int  # 1-based as iptables counts; 0 = the policy
    spec: str
    packets: int  # how many more than before


CONTROLLER = "the controller"


class ProbeResult(TypedDict):
    """What one call of netmend_connectivity brings back from one node."""

    node: str
    observations: List[Observation]
    moved: List[Moved]
    risen: Dict[str, int]  # the kernel's counters of lost packets -> how much more than before; those that rose


class Controller(TypedDict):
    """A pod of ingress-nginx that is to be asked what it says itself."""

    pod: str  # "namespace/name"
    uid: str
    pid: int  # a process in its network namespace; 0: it is in the host's


class ControllerSaid(TypedDict):
    pod: str
    seconds: float  # of the log, before now
    log: Optional[Dict[str, Any]]  # as parse.ingress_nginx.log; None where it could not be read
    endpoints: Optional[Dict[str, List[str]]]  # upstream -> "address:port" of what it sends to; None: not to be had
    errors: Dict[str, str]  # "log" or "endpoints" -> why it could not be had


class Outcome(TypedDict):
    """What probes saw. Most of a matrix saw the same, so a matrix holds each once."""

    outcome: str
    detail: str
    met: bool  # whether it is what was expected


class Check(TypedDict):
    """What a row asks of one destination, from every source."""

    to: str  # what a reader calls the destination: a node, a Service, or an address
    protocol: str
    address: str
    port: int  # 0: the protocol has none
    pod: str  # "namespace/name" of the pod that has the address, else ""
    service: str  # "namespace/name" of the Service whose address or port this is, else ""
    expect: str


class Line(TypedDict):
    """What one source saw of a row's checks, in their order; None stands for a check that was not made from there.

    By columns, because two hundred nodes make hundreds of thousands of probes.
    """

    pod: str  # "namespace/name" of the pod that the probes started in; "" = on the host
    seen: List[Optional[int]]  # places in the matrix's outcomes
    rtt_ms: List[Optional[float]]  # milliseconds; None, too, where nothing came back


class Loss(TypedDict):
    """Of the attempts at one check from one source some failed, and others did not."""

    source: str  # node
    check: int  # place in the row's checks
    attempts: int
    failed: int
    low: float  # 95 % interval of the share that fails, 0..1
    high: float


class Row(TypedDict):
    ok: int  # probes whose expectation was met
    total: int
    checks: List[Check]
    sources: Dict[str, Line]  # by node
    losses: List[Loss]


class Coverage(TypedDict):
    """A large cluster is measured by a sample of its pairs."""

    peers: int  # that every node probed at least
    others: int  # that it could have probed


class Point(TypedDict):
    """One of the things that a checklist asks for."""

    name: str  # the same in every run
    met: bool
    seen: str  # a clause with figures


class Matrix(TypedDict):
    ok: int
    total: int
    outcomes: List[Outcome]
    rows: Dict[str, Row]  # in the order of the plan


# --- the network under the overlays ----------------------------------------------------------------------------------


class UnderlaySent(TypedDict):
    """Packets of one kind to one peer, as the sender knows of them."""

    sent: int  # left this node
    answered: int
    told: Dict[str, int]  # answer -> how many: "SYN-ACK", "RST", "icmp admin-prohibited from 10.0.0.1"
    kept: Dict[str, int]  # why others did not leave -> how many: "no route", "dropped by a rule for outgoing packets"


class UnderlayTo(TypedDict):
    device: str  # that leads to the peer; "" for none
    gateway: str  # "" where the peer is on the same link
    mtu: int  # of the device, bytes
    kinds: Dict[str, UnderlaySent]
    sizes: Dict[str, int]  # bytes of an IP packet with DF -> how many were sent
    frag_needed: Dict[str, int]  # who sent this ICMP error -> the MTU that it told


class UnderlayCount(TypedDict):
    arrived: int  # came in by a device
    accepted: int  # were let in by this host


class UnderlayHeard(TypedDict):
    """What came from one peer."""

    device: str
    rounds: List[int]  # of which something came
    kinds: Dict[str, UnderlayCount]
    sizes: Dict[str, int]  # as in UnderlayTo -> how many arrived


class UnderlayReport(TypedDict):
    """What one call of netmend_underlay brings back from one node; moments are seconds since the epoch on its clock."""

    node: str
    address: str
    run: str
    start: float  # the moment that was agreed on
    late: float  # seconds by which it was over when the module began
    listened: List[float]  # from, until
    sent: List[float]  # from, until; 0, 0 where nothing was
    to: Dict[str, UnderlayTo]  # by peer
    heard: Dict[str, UnderlayHeard]  # by peer
    moved: List[Moved]
    overflow: int  # packets that came while a receive buffer was full
    errors: List[str]


class Crossing(TypedDict):
    """One kind of packet from one node to another."""

    verdict: str  # passes, lossy, host (it arrives, and the receiver drops it), fabric, sender, unknown
    sent: int
    arrived: int
    accepted: int
    answered: int
    told: List[str]  # answers and ICMP errors, and what kept packets back
    rules: List[str]  # of the receiver's rules that drop: those that may have dropped these


class UnderlayPair(TypedDict):
    kinds: Dict[str, Crossing]
    device: str  # where it arrived
    mtu: int  # the largest packet with DF that arrived, bytes; 0: unknown
    larger: str  # what became of larger ones: "" (none fits the device), "icmp frag-needed from 10.0.0.1", "vanish"
    icmp_errors: str  # of the receiver: "come back", "none" (though it took what it has to answer so), "unknown"
    gateway: str  # by which the peer is reached; "" where both are on one link


class OverlayVerdict(TypedDict):
    """Whether an overlay can carry what pods send, between two nodes or between all that were measured."""

    verdict: str  # works, host (once the nodes' own firewalls let it), no, unknown
    mtu: int  # that pods would have, bytes; 0: unknown
    why: List[str]


class Underlay(TypedDict):
    addresses: Dict[str, str]  # node -> the address that was measured
    pairs: Dict[str, UnderlayPair]  # "a>b", each ordered pair
    overlays: Dict[str, OverlayVerdict]  # vxlan-8472, vxlan-4789, ipip, wireguard, host-gw: between all nodes
    by_pair: Dict[str, Dict[str, OverlayVerdict]]  # "a>b" with a < b -> overlay
    unknown: Dict[str, str]  # node -> why nothing is known of it


# --- the edge ---------------------------------------------------------------------------------------------------------


class HealthCheck(TypedDict):
    """How a balancer asks a target whether it is well."""

    protocol: str  # http, https, tcp
    port: int
    path: str
    codes: List[int]  # statuses that are well


class BalancerService(TypedDict):
    protocol: str  # http, https, tcp
    listen_port: int
    destination_port: int  # of the targets; 0: not known
    proxy_protocol: Optional[bool]  # whether it sends the PROXY header; None: not known
    health: Optional[HealthCheck]  # None: not known


class BalancerTarget(TypedDict):
    address: str  # of a node, as the balancer reaches it
    status: Dict[str, str]  # listen_port -> healthy, unhealthy, unknown


class Balancer(TypedDict):
    """A load balancer in front of the nodes, as it is declared or its provider tells."""

    name: str
    address: str  # the public side
    services: List[BalancerService]
    targets: List[BalancerTarget]  # empty: not known
    private: bool  # reaches its targets by the private network


# --- diagnosis ------------------------------------------------------------------------------------------------------


class Hop(TypedDict):
    """A step of a simulated walk."""

    node: str  # "a>b": between two nodes
    place: str  # pod, host, nat, route, kernel, firewall, tunnel, network, answer
    said: str  # a clause: the rule, the route, the device, the measurement
    verdict: str  # passes, drops (nothing comes back), rejects (an error comes back), unknown


class Walk(TypedDict):
    """One way of a failing probe's packet by the gathered facts, up to the first hop that ends it."""

    row: str
    source: str  # node
    to: str  # the destination, as in a Check
    protocol: str
    port: int
    packet: str  # "10.42.1.5 to 10.42.2.7, tcp/8080"
    hops: List[Hop]
    says: str  # what is to be expected by the hops: arrives, drops, rejects, unknown
    saw: str  # what the probe saw
    agrees: Optional[bool]  # None: the facts do not tell


class Remedy(TypedDict, total=False):
    role: str  # the role that mends it; "" = nothing here mends it by itself
    nodes: List[str]  # where it is to run
    vars: Dict[str, Any]  # further variables of the role
    pods: Dict[str, str]  # uid -> "namespace/name" of pods that are to be made anew once the role is done
    command: str  # what a person would type, for remedies without a role
    text: str  # one sentence


class Finding(TypedDict):
    fault: str  # a name from docs/faults.md, e.g. "vxlan-dropped-by-host"
    number: int  # its number in the catalogue
    title: str
    where: List[str]  # nodes, "a>b" pairs, "namespace/service"
    confidence: float  # 0..1
    evidence: List[str]  # sentences with figures: what speaks for it
    ruled_out: List[str]  # look-alikes, and what rules each out
    remedy: Remedy
    explains: List[str]  # ids of the failing probes that it accounts for


class _Measured(TypedDict):
    expected_nodes: List[str]  # the inventory's
    nodes: Dict[str, NodeFacts]
    cluster: ClusterFacts
    probes: List[Probe]
    results: Dict[str, ProbeResult]  # by node


class Run(_Measured, total=False):
    """All that diagnosis sees: it gathers nothing itself."""

    silent: Dict[str, str]  # node of the inventory that gave no facts -> what was said instead
    underlay: Underlay  # absent where it was not measured
    balancers: List[Balancer]
    balancer_sources: List[str]  # addresses or CIDRs from which balancers reach the nodes: ufw_balancers
    gone_nodes: List[str]  # whose machines are gone for good, by the operators' word
    k3s_disable: List[str]  # which of K3s's own components may give way to who else wants their ports
    controllers: Dict[str, List[ControllerSaid]]  # node -> what the ingress controllers there say themselves


def met(probe: Probe, observation: Observation) -> bool:
    """Whether a probe saw what it expects."""
    expected = probe.get("expect", "ok")
    return expected == "any" or observation["outcome"] in (BLOCKED if expected == "blocked" else (expected,))
