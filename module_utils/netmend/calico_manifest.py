"""Calico's own manifest, patched for one cluster: its text and what is wanted in, the objects to apply out.

Made for manifests/calico-vxlan.yaml, calico.yaml and calico-typha.yaml of v3.31 and v3.32. The first two differ in
their values alone; the last one has Typha besides. Nothing of them is kept here: what is not named below goes through
as it is. Needs PyYAML, so the controller alone runs it.
"""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any, Callable, Dict, List, Mapping, NamedTuple

import yaml

VERSIONS = ("v3.31.", "v3.32.")
BACKENDS = ("felix", "bird", "vxlan")
IPIP_MODES = ("Always", "CrossSubnet")
GROUP = "crd.projectcalico.org"
API = f"{GROUP}/v1"
# Methods of IP_AUTODETECTION_METHOD; those with = want a value.
DETECTION = ("first-found", "kubernetes-internal-ip", "cidr=", "interface=", "skip-interface=", "can-reach=")
POOL = "default-ipv4-ippool"
TYPHA = "calico-typha"  # its Deployment, its Service and its PodDisruptionBudget
_IMAGE = re.compile(
    r"(?P<registry>[^@]+)/calico/(?P<name>[a-z-]+):(?P<tag>v\d+\.\d+\.\d+)(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MTU = "__CNI_MTU__"
# By the manifest's own words, one "can be deleted if this is a fresh installation", as it takes addresses over from an
# IPAM that Calico had before, and the other "mounts the necessary filesystems needed by the BPF data plane".
_NOT_NEEDED = ("upgrade-ipam", "ebpf-bootstrap")
# Many times faster, and only where PyYAML was built with it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Object = Dict[str, Any]


class ManifestError(Exception):
    """The manifest is not of the shape that is expected, or an option cannot be; the message says which part."""


class Options(NamedTuple):
    """What a cluster wants of Calico.

    ``backend`` is who makes the routes between nodes: "felix" over IPIP without a BGP daemon (programClusterRoutes),
    "bird" over IPIP by BGP on TCP 179, or "vxlan", Felix over VXLAN.
    """

    pool: str  # the pods' network, in CIDR notation
    backend: str = "felix"
    ipip_mode: str = "Always"
    block_size: int = 26  # of a node's share of the pool, as a prefix length; cannot be changed later
    nat_outgoing: bool = True
    autodetection: str = "kubernetes-internal-ip"  # IP_AUTODETECTION_METHOD
    mtu: int = 0  # bytes, of pods' interfaces and tunnels; 0: Felix finds it
    registry: str = ""  # in the place of the manifest's own, as in registry.example.com/mirror
    digests: Mapping[str, str] = {}  # image (cni, node, kube-controllers) -> sha256:...
    node_selector: Mapping[str, str] = {}  # labels of the nodes that are to have calico-node, besides the manifest's
    typha: int = 0  # replicas of Typha, between calico-node and the API; 0: each node asks the API by itself


class Calico(NamedTuple):
    """What to apply, in this order; the settings are of kinds that the definitions define."""

    version: str  # as in v3.32.1
    definitions: List[Object]
    settings: List[Object]
    objects: List[Object]

    @property
    def images(self) -> List[str]:
        """The images that the objects run, each once."""
        found = {c["image"] for o in self.objects for c in _containers(o)}
        return sorted(found)


def patch(manifest: str, options: Options) -> Calico:
    """The objects of a manifest's text for a cluster. ManifestError for another shape or an option that cannot be."""
    check(options)
    found = _Manifest(manifest)
    if options.typha:
        _scale_typha(found, options.typha)
    else:
        found.objects = [item for item in found.objects if item["metadata"].get("name") != TYPHA]
    _configure(found.one("ConfigMap", "calico-config"), options)
    _place(found.one("DaemonSet", "calico-node"), options)
    found.one("Deployment", "calico-kube-controllers")
    for item in found.objects:
        for container in _containers(item):
            container["image"] = _image(container["image"], options)
    return Calico(found.version, found.definitions, _settings(found, options), found.objects)


class _Manifest:
    """A manifest's documents, sorted by what they are for."""

    def __init__(self, text: str) -> None:
        try:
            documents = [document for document in yaml.load_all(text, _LOADER) if document]
        except yaml.YAMLError as problem:
            raise ManifestError(f"Calico's manifest is not YAML: {' '.join(str(problem).split())}") from problem
        if not all(isinstance(d, dict) and "kind" in d and "metadata" in d for d in documents):
            raise ManifestError("Calico's manifest has a document that is no object of Kubernetes")
        self.definitions = [d for d in documents if d["kind"] == "CustomResourceDefinition"]
        self.objects = [d for d in documents if d["kind"] != "CustomResourceDefinition"]
        tags = {_parts(c["image"])["tag"] for o in self.objects for c in _containers(o)}
        if len(tags) != 1:
            raise ManifestError(f"Calico's manifest has images of {len(tags)} versions, and one is expected")
        self.version = str(tags.pop())
        if not self.version.startswith(VERSIONS):
            made_for = " and ".join(prefix.rstrip(".") for prefix in VERSIONS)
            raise ManifestError(f"Calico's manifest is of {self.version}, and {made_for} are known")

    def one(self, kind: str, name: str) -> Object:
        found = [o for o in self.objects if (o["kind"], o["metadata"].get("name")) == (kind, name)]
        if len(found) != 1:
            raise ManifestError(f"Calico's manifest has {len(found)} {kind} {name}, and one is expected")
        item: Object = found[0]
        return item

    def knows(self, plural: str, field: str) -> bool:
        """Whether a kind of Calico's has this field in its spec."""
        for definition in self.definitions:
            if definition["metadata"].get("name") == f"{plural}.{GROUP}":
                schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
                return field in schema["properties"]["spec"]["properties"]
        raise ManifestError(f"Calico's manifest does not define {plural}")


def _scale_typha(found: _Manifest, replicas: int) -> None:
    """Typha comes in one manifest alone, where calico-node has the variable that leads to it."""
    daemonset = found.one("DaemonSet", "calico-node")
    named = {variable["name"] for container in _containers(daemonset) for variable in container.get("env") or []}
    if "FELIX_TYPHAK8SSERVICENAME" not in named:
        raise ManifestError("Calico's manifest is one without Typha: with typha, name calico-typha.yaml")
    found.one("Service", TYPHA)
    found.one("Deployment", TYPHA)["spec"]["replicas"] = replicas


def _configure(config: Object, options: Options) -> None:
    """The ConfigMap calico-config: the backend, the MTU, and pods that may forward, which K3s wants of its CNI."""
    data = config.get("data") or {}
    for key in ("typha_service_name", "calico_backend", "veth_mtu", "cni_network_config"):
        if not isinstance(data.get(key), str):
            raise ManifestError(f"Calico's manifest has no {key} in the ConfigMap calico-config")
    data["typha_service_name"] = TYPHA if options.typha else "none"
    # To Calico "vxlan" means: no BGP daemon. What runs between the nodes is the pool's affair.
    data["calico_backend"] = "bird" if options.backend == "bird" else "vxlan"
    data["veth_mtu"] = str(options.mtu)
    try:
        network = json.loads(data["cni_network_config"].replace(_MTU, f'"{_MTU}"'))
        plugin = next(plugin for plugin in network["plugins"] if plugin["type"] == "calico")
    except (ValueError, KeyError, TypeError, StopIteration):
        raise ManifestError("Calico's manifest has a cni_network_config without the plugin calico") from None
    plugin["container_settings"] = {"allow_ip_forwarding": True}
    data["cni_network_config"] = json.dumps(network, indent=2).replace(f'"{_MTU}"', _MTU)


def _place(daemonset: Object, options: Options) -> None:
    """The DaemonSet calico-node: its environment, its probes, where it runs, and what runs before it."""
    pod = daemonset["spec"]["template"]["spec"]
    main = [container for container in pod["containers"] if container["name"] == "calico-node"]
    if len(main) != 1:
        raise ManifestError("Calico's manifest has no container calico-node in its DaemonSet")
    container = main[0]
    environment = container.get("env") or []
    vxlan = options.backend == "vxlan"
    _set(environment, "CALICO_IPV4POOL_IPIP", "Never" if vxlan else options.ipip_mode, known=True)
    _set(environment, "CALICO_IPV4POOL_VXLAN", "Always" if vxlan else "Never", known=True)
    # The pool is an object of its own, because the variables for it count at the very first start only.
    _set(environment, "NO_DEFAULT_POOLS", "true")
    _set(environment, "IP", "autodetect", known=True)
    _set(environment, "IP_AUTODETECTION_METHOD", options.autodetection)
    for probe, check in (("livenessProbe", "-bird-live"), ("readinessProbe", "-bird-ready")):
        try:
            command = container[probe]["exec"]["command"]
        except (KeyError, TypeError):
            raise ManifestError(f"Calico's manifest has no {probe} with a command on calico-node") from None
        command[:] = [word for word in command if word != check] + [check] * (options.backend == "bird")
    pod["initContainers"] = [each for each in pod.get("initContainers") or [] if each["name"] not in _NOT_NEEDED]
    pod["nodeSelector"] = {**(pod.get("nodeSelector") or {}), **options.node_selector}


def _set(environment: List[Object], name: str, value: str, known: bool = False) -> None:
    """Give a variable its value; one that is `known` to be in the manifest must be there."""
    for variable in environment:
        if variable["name"] == name:
            variable.clear()
            variable.update(name=name, value=value)
            return
    if known:
        raise ManifestError(f"Calico's manifest does not set {name} on calico-node")
    environment.append({"name": name, "value": value})


def _settings(found: _Manifest, options: Options) -> List[Object]:
    felix, vxlan = options.backend == "felix", options.backend == "vxlan"
    if not found.knows("felixconfigurations", "programClusterRoutes"):
        raise ManifestError("Calico's manifest has a FelixConfiguration without programClusterRoutes")
    settings = [_object("FelixConfiguration", "default", programClusterRoutes="Enabled" if felix else "Disabled")]
    # From 3.32 on BIRD has a switch of its own: both on fight over the routes, both off leave none.
    if found.knows("bgpconfigurations", "programClusterRoutes"):
        settings.append(_object("BGPConfiguration", "default", programClusterRoutes="Disabled" if felix else "Enabled"))
    pool = _object(
        "IPPool",
        POOL,
        cidr=options.pool,
        blockSize=options.block_size,
        ipipMode="Never" if vxlan else options.ipip_mode,
        vxlanMode="Always" if vxlan else "Never",
        natOutgoing=options.nat_outgoing,
        nodeSelector="all()",
    )
    return [*settings, pool]


def _object(kind: str, name: str, **spec: object) -> Object:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _containers(item: Object) -> List[Object]:
    pod = ((item.get("spec") or {}).get("template") or {}).get("spec") or {}
    return [*(pod.get("initContainers") or []), *(pod.get("containers") or [])]


def _image(image: str, options: Options) -> str:
    parts = _parts(image)
    digest = options.digests.get(str(parts["name"]), parts["digest"])
    full = f"{options.registry.rstrip('/') or parts['registry']}/calico/{parts['name']}:{parts['tag']}"
    return f"{full}@{digest}" if digest else full


def _parts(image: object) -> Mapping[str, Any]:
    match = _IMAGE.fullmatch(str(image))
    if not match:
        raise ManifestError(f"Calico's manifest runs {image}, and REGISTRY/calico/NAME:vX.Y.Z is expected")
    return match.groupdict()


def check(options: Options) -> None:
    """ManifestError for an option that cannot be, by its name."""
    valid: Dict[str, Callable[[], bool]] = {
        "backend": lambda: options.backend in BACKENDS,
        "ipip_mode": lambda: options.ipip_mode in IPIP_MODES,
        "mtu": lambda: options.mtu == 0 or 1280 <= options.mtu <= 9000,
        "typha": lambda: 0 <= options.typha <= 20,
        "autodetection": lambda: _detects(options.autodetection),
        "digests": lambda: all(_DIGEST.fullmatch(digest) for digest in options.digests.values()),
    }
    wanted = {
        "backend": f"one of {', '.join(BACKENDS)}",
        "ipip_mode": f"one of {', '.join(IPIP_MODES)}",
        "mtu": "0 or from 1280 to 9000",
        "typha": "from 0 to 20",
        "autodetection": f"one of {', '.join(DETECTION)}",
        "digests": "sha256:... for each image",
    }
    for name, is_valid in valid.items():
        if not is_valid():
            raise ManifestError(f"{name} must be {wanted[name]}, and is {getattr(options, name)!r}")
    try:
        pool = ipaddress.IPv4Network(options.pool)
    except ValueError as problem:
        raise ManifestError(f"pool must be an IPv4 network: {problem}") from None
    if not max(pool.prefixlen, 20) <= options.block_size <= 32:
        raise ManifestError(f"block_size must be from 20 to 32 and within the pool {pool}, and is {options.block_size}")


def _detects(method: str) -> bool:
    name, equals, value = method.partition("=")
    return name + equals in DETECTION and bool(equals) == bool(value)
