"""Gathers what the Kubernetes API knows of the cluster's network, with the standard library alone.

Credentials come from K3s's own files on a server, or from a kubeconfig where the kubernetes package is installed.
"""

from __future__ import annotations

import http.client
import importlib
import ipaddress
import json
import re
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple
from urllib.parse import quote, urlsplit

from .model import ClusterFacts, NodeFacts, Pod
from .parse import cluster as parse

K3S_TLS = "/var/lib/rancher/k3s/server/tls"
K3S_AGENT = "/var/lib/rancher/k3s/agent"
K3S_SERVER = "https://127.0.0.1:6443"
DEFAULT_CLUSTER_CIDR = "10.42.0.0/16"
DEFAULT_SERVICE_CIDR = "10.43.0.0/16"
PAGE = 500  # objects
RESTART = 90  # seconds that K3s may take to start, and its API to answer
AGAIN = 1.0  # seconds until a server that could not be reached is asked again
REPEATABLE = ("GET", "PATCH")  # where it is not known whether the first one was heard
_JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"  # RFC 7386
STRATEGIC_PATCH = "application/strategic-merge-patch+json"  # lists are merged by their keys: conditions by type
_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"  # what kubectl get shows
CALICO = "/apis/crd.projectcalico.org/v1"

Network = ipaddress.IPv4Network


class ApiError(Exception):
    """The API could not be asked. The message says what is wrong and what to do."""


class Credentials(NamedTuple):
    server: str
    ca_file: Optional[str]
    cert_file: Optional[str]
    key_file: Optional[str]
    authorization: str = ""  # the header's value, for tokens
    verify: bool = True


def k3s_credentials(server: str = "", tls: str = K3S_TLS) -> Credentials:
    """Those of K3s's administrator. ApiError where there are none, or for a user who may not read them."""
    ca, certificate, key = (f"{tls}/{name}" for name in ("server-ca.crt", "client-admin.crt", "client-admin.key"))
    for path in (ca, certificate, key):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise ApiError(
                f"cannot read K3s's credentials: {path}: {error.strerror}. Run as root on a K3s server,"
                " or name a kubeconfig"
            ) from error
    return Credentials(server or K3S_SERVER, ca, certificate, key)


def kubelet_credentials(agent: str = K3S_AGENT) -> Credentials:
    """Those by which the kubelet of this node, a server's or an agent's, asks. OSError where it has none yet."""
    with open(f"{agent}/kubelet.kubeconfig", encoding="utf-8") as file:
        server = re.search(r"^\s*server: (\S+)$", file.read(), re.M)
    ca, certificate, key = (f"{agent}/{name}" for name in ("server-ca.crt", "client-kubelet.crt", "client-kubelet.key"))
    return Credentials(server[1] if server else "", ca, certificate, key)


def kubeconfig_credentials(path: Optional[str], server: str = "") -> Credentials:
    """Those of a kubeconfig's current context, read by the kubernetes package. ApiError where that is not possible."""
    try:
        package = importlib.import_module("kubernetes")
    except ImportError as error:
        raise ApiError("a kubeconfig needs the Python package kubernetes where this runs: install it") from error
    try:
        settings = package.config.new_client_from_config(config_file=path).configuration
    except Exception as error:  # its exceptions have no common base of their own
        raise ApiError(f"cannot use the kubeconfig {path or '(default)'}: {error}") from error
    return Credentials(
        server or settings.host,
        settings.ssl_ca_cert,
        settings.cert_file,
        settings.key_file,
        settings.auth_settings().get("BearerToken", {}).get("value", ""),
        settings.verify_ssl,
    )


class Api:
    """Requests over one connection for each thread."""

    def __init__(self, credentials: Credentials, timeout: float = 20, patience: float = 0) -> None:
        """patience: seconds that a server which takes no connection, or ends it, is asked again: K3s restarts there.

        One that does not answer in time is asked again, too, where a second request changes nothing more.
        """
        self.server = credentials.server.rstrip("/")
        self.timeout, self.patience = timeout, patience
        self._url = urlsplit(self.server)
        self._headers = {"Accept": "application/json"}
        if credentials.authorization:
            self._headers["Authorization"] = credentials.authorization
        try:
            self._tls = ssl.create_default_context(cafile=credentials.ca_file or None)
            # Python 3.13 asks of certificates what the long-lived authorities of older clusters do not have.
            self._tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
            if not credentials.verify:
                self._tls.check_hostname = False
                self._tls.verify_mode = ssl.CERT_NONE
            if credentials.cert_file:
                self._tls.load_cert_chain(credentials.cert_file, credentials.key_file)
        except (OSError, ssl.SSLError) as error:
            raise ApiError(f"cannot load the credentials for {self.server}: {error}") from error
        self._local = threading.local()

    def get(self, path: str, accept: str = _JSON) -> Tuple[int, str]:
        """Status and body. ApiError where there is no answer, or none for us (401, 403)."""
        return self.send("GET", path, accept=accept)

    def send(
        self,
        method: str,
        path: str,
        content: Optional[Mapping[str, Any]] = None,
        content_type: str = _JSON,
        accept: str = _JSON,
    ) -> Tuple[int, str]:
        """The same for any method, with an object as content."""
        headers = {**self._headers, "Accept": accept, **({"Content-Type": content_type} if content else {})}
        try:
            status, body = self._answer(method, path, json.dumps(content) if content else None, headers)
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(self._explain(error)) from error
        if status in (401, 403):
            raise ApiError(
                f"{self.server} refuses {path} ({status}): the credentials are expired, of another cluster, or lack"
                " rights. See `k3s certificate check`, or name another kubeconfig"
            )
        return status, body

    def items(self, path: str) -> Optional[List[Dict[str, Any]]]:
        """All objects of a list, page by page; None where the API knows no such resource."""
        listed = self.listed(path)
        return listed and listed[0]

    def listed(self, path: str) -> Optional[Tuple[List[Dict[str, Any]], str]]:
        """The same with the list's resourceVersion, from which watch() goes on."""
        found: List[Dict[str, Any]] = []
        more = ""
        while True:
            page = f"limit={PAGE}" + (f"&continue={quote(more)}" if more else "")
            status, body = self.get(_asking(path, page))
            if status == 404:
                return None
            if status == 410 and more:  # the page is too old: begin again
                found, more = [], ""
                continue
            if status != 200:
                raise ApiError(f"{self.server} answers {path} with {status}: {body[:200]}")
            answer = json.loads(body)
            found += answer["items"] or []
            metadata = answer.get("metadata", {})
            more = metadata.get("continue", "")
            if not more:
                return found, metadata.get("resourceVersion", "")

    def item(self, path: str) -> Optional[Dict[str, Any]]:
        """One object; None where there is none."""
        return _one(self.server, path, *self.get(path))

    def table(self, path: str) -> Optional[Dict[str, Any]]:
        """What `kubectl get` shows of one object, without the object itself; None where there is none."""
        return _one(self.server, path, *self.get(f"{path}?includeObject=None", _TABLE))

    def watch(self, path: str, seconds: int, version: str = "") -> Iterator[Dict[str, Any]]:
        """Events of a list, {"type", "object"}: first one for each object that is there, then what happens to them.

        With a resourceVersion only what happened since then, and bookmarks of type BOOKMARK; or one of type ERROR
        where that is too long ago. Ends after ``seconds``. ApiError where the API does not answer.
        """
        since = f"&allowWatchBookmarks=true&resourceVersion={quote(version)}" if version else ""
        connection = self._connection(timeout=seconds + self.timeout)
        try:
            url = _asking(path, f"watch=1&timeoutSeconds={seconds}{since}")
            connection.request("GET", self._url.path + url, None, self._headers)
            response = connection.getresponse()
            if version and response.status == 410:
                yield {"type": "ERROR", "object": {"code": 410}}
                return
            if response.status != 200:
                raise ApiError(f"{self.server} answers {path} with {response.status}: {response.read()[:200].decode()}")
            for line in response:
                yield json.loads(line)
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(self._explain(error)) from error
        finally:
            connection.close()

    def _answer(self, method: str, path: str, text: Optional[str], headers: Mapping[str, str]) -> Tuple[int, str]:
        until = time.monotonic() + self.patience
        while True:
            try:
                return self._answer_now(method, path, text, headers)
            except (ConnectionError, socket.timeout) as error:
                may_be_done = isinstance(error, socket.timeout) and method not in REPEATABLE
                if may_be_done or time.monotonic() >= until:
                    raise
                time.sleep(AGAIN)

    def _answer_now(self, method: str, path: str, text: Optional[str], headers: Mapping[str, str]) -> Tuple[int, str]:
        connection: Optional[http.client.HTTPSConnection] = getattr(self._local, "connection", None)
        if connection:
            try:
                return self._ask(connection, method, path, text, headers)
            except (ConnectionError, http.client.HTTPException):
                connection.close()  # the server may close an idle connection at any time
        connection = self._local.connection = self._connection(self.timeout)
        return self._ask(connection, method, path, text, headers)

    def _connection(self, timeout: float) -> http.client.HTTPSConnection:
        port = self._url.port or 443
        return http.client.HTTPSConnection(self._url.hostname or "", port, timeout=timeout, context=self._tls)

    def _ask(
        self,
        connection: http.client.HTTPSConnection,
        method: str,
        path: str,
        text: Optional[str],
        headers: Mapping[str, str],
    ) -> Tuple[int, str]:
        connection.request(method, self._url.path + path, text, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()

    def _explain(self, error: Exception) -> str:
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"{self.server}: its certificate is not good: {error.verify_message}."
                " See `k3s certificate check`, and the clocks of both machines"
            )
        if isinstance(error, ssl.SSLError):
            return f"{self.server}: TLS fails: {error.reason}. See `k3s certificate check` for the client's certificate"
        if isinstance(error, socket.timeout):
            return (
                f"{self.server} does not answer within {self.timeout:g} s."
                " Is it up, and does no firewall drop TCP to its port?"
            )
        return f"{self.server} cannot be reached: {error}. Is K3s running there?"


def gather_cluster(api: Api) -> ClusterFacts:
    """All facts of the cluster: a request for each kind of object, side by side. ApiError where the API is not usable.

    The networks are deduced; with_config() knows better once there are facts of the servers.
    """
    errors: List[Dict[str, str]] = []
    paths = {
        "nodes": "/api/v1/nodes",
        "pods": "/api/v1/pods",
        "services": "/api/v1/services",
        "endpointslices": "/apis/discovery.k8s.io/v1/endpointslices",
        "ingresses": "/apis/networking.k8s.io/v1/ingresses",
        "ingress_classes": "/apis/networking.k8s.io/v1/ingressclasses",
        "network_policies": "/apis/networking.k8s.io/v1/networkpolicies",
        "disruption_budgets": "/apis/policy/v1/poddisruptionbudgets",
        "daemonsets": "/apis/apps/v1/daemonsets",
        "ippools": f"{CALICO}/ippools",
        "felixconfigurations": f"{CALICO}/felixconfigurations",
        "bgpconfigurations": f"{CALICO}/bgpconfigurations",
        "blockaffinities": f"{CALICO}/blockaffinities",
    }
    version, states = _health(api)  # alone and first: where the API is dead, one time limit is enough
    with ThreadPoolExecutor(max_workers=6) as pool:
        lists = dict(zip(paths, pool.map(api.items, paths.values())))
    for what, listed in lists.items():
        if listed is None and not paths[what].startswith(CALICO):
            errors.append({"what": what, "message": f"{api.server} knows no {paths[what]}"})

    def reduced(what: str, reduce: Callable[[Dict[str, Any]], Any]) -> List[Any]:
        return [reduce(item) for item in lists[what] or []]

    ingresses = reduced("ingresses", parse.ingress)
    facts = ClusterFacts(
        version=version,
        api={**states, "server": api.server},
        cluster_cidr="",
        service_cidr="",
        dns_ip="",
        nodes=reduced("nodes", parse.node),
        pods=reduced("pods", parse.pod),
        services=parse.services(lists["services"] or [], lists["endpointslices"] or []),
        ingresses=ingresses,
        ingress_classes=reduced("ingress_classes", parse.ingress_class),
        secrets=_secrets(api, ingresses, errors),
        network_policies=reduced("network_policies", parse.network_policy),
        disruption_budgets=reduced("disruption_budgets", parse.disruption_budget),
        daemonsets=reduced("daemonsets", parse.daemonset),
        calico={
            **{
                what: reduced(what, parse.custom)
                for what, path in paths.items()
                if path.startswith(CALICO) and lists[what] is not None
            },
            **parse.calico_node(lists["daemonsets"] or []),
        },
        ingress_nginx={},
        errors=errors,
    )
    facts["ingress_nginx"] = _ingress_nginx(api, facts["pods"])
    return with_config(facts, {})


def with_config(cluster: ClusterFacts, nodes: Mapping[str, NodeFacts]) -> ClusterFacts:
    """The facts with the networks that the servers' K3s is configured for; what is not K3s's word is said in errors.

    Without a server's facts: K3s's defaults where all podCIDRs or ClusterIPs are within them, else the smallest network
    around the podCIDRs, and the /16 around the Service `kubernetes`.
    """
    servers = {name: facts["k3s"]["config"] for name, facts in nodes.items() if facts["k3s"]["role"] == "server"}
    known = {name: config for name, config in servers.items() if config}
    errors = [error for error in cluster["errors"] if error["what"] not in ("cluster_cidr", "service_cidr")]

    def configured(key: str, default: str) -> str:
        values = {name: _ipv4(config.get(key)) or default for name, config in known.items()}
        if len(set(values.values())) > 1:
            said = ", ".join(f"{name}: {value}" for name, value in sorted(values.items()))
            errors.append({"what": key.replace("-", "_"), "message": f"the servers disagree on {key}: {said}"})
        return next(iter(values.values()), "")

    def deduced(what: str, within: List[Network], default: str, otherwise: Callable[[List[Network]], str]) -> str:
        fits = all(network.subnet_of(Network(default)) for network in within)
        value = default if fits else otherwise(within)
        errors.append(
            {"what": what, "message": f"deduced to be {value or 'unknown'}: no server's configuration is known"}
        )
        return value

    pods = [Network(node["pod_cidr"]) for node in cluster["nodes"] if _ipv4(node["pod_cidr"])]
    addresses = [Network(service["cluster_ip"]) for service in cluster["services"] if _ipv4(service["cluster_ip"])]
    kubernetes = _cluster_ip(cluster, "default", "kubernetes")
    cluster_cidr = configured("cluster-cidr", DEFAULT_CLUSTER_CIDR) or deduced(
        "cluster_cidr", pods, DEFAULT_CLUSTER_CIDR, _around
    )
    service_cidr = configured("service-cidr", DEFAULT_SERVICE_CIDR) or deduced(
        "service_cidr",
        addresses,
        DEFAULT_SERVICE_CIDR,
        lambda _: str(Network(f"{kubernetes}/16", strict=False)) if kubernetes else "",
    )
    dns_ip = (
        configured("cluster-dns", "")
        or _cluster_ip(cluster, "kube-system", "kube-dns")
        or (str(Network(service_cidr)[10]) if _ipv4(service_cidr) else "")
    )
    networks = {"cluster_cidr": cluster_cidr, "service_cidr": service_cidr, "dns_ip": dns_ip}
    return ClusterFacts(**{**cluster, **networks, "errors": errors})  # type: ignore[typeddict-item]  # joined, it is no TypedDict


def _ingress_nginx(api: Api, pods: List[Pod]) -> Dict[str, Any]:
    """Its settings stand in a ConfigMap in its own namespace; {} where it does not run."""
    namespaces = {pod["namespace"] for pod in pods if parse.ingress_controller(pod) == parse.INGRESS_NGINX}
    listed = [api.items(f"/api/v1/namespaces/{namespace}/configmaps") or [] for namespace in sorted(namespaces)]
    return parse.ingress_nginx(item for items in listed for item in items) if namespaces else {}


def _secrets(api: Api, ingresses: List[Dict[str, Any]], errors: List[Dict[str, str]]) -> Dict[str, str]:
    """Types of the Secrets that Ingresses name; their content is not asked for. Without the right to it: none."""
    names = {(each["namespace"], tls["secret"]) for each in ingresses for tls in each["tls"] if tls["secret"]}
    types: Dict[str, str] = {}
    try:
        for namespace, name in sorted(names):
            table = api.table(f"/api/v1/namespaces/{namespace}/secrets/{name}")
            types[f"{namespace}/{name}"] = parse.secret(table) if table else ""
    except ApiError as error:
        errors.append({"what": "secrets", "message": str(error)})
    return types


def _asking(path: str, query: str) -> str:
    """A list's path, which may have a selector, with more to ask."""
    return f"{path}{'&' if '?' in path else '?'}{query}"


def answered(
    api: Api,
    accepted: Iterable[int],
    method: str,
    path: str,
    *,
    content: Mapping[str, Any],
    content_type: str = _JSON,
) -> Tuple[int, str]:
    """Status and body of what a request changes. ApiError, which says both, for a status that is not accepted."""
    status, body = api.send(method, path, content, content_type)
    if status not in accepted:
        raise ApiError(f"{api.server} answers {method} {path} with {status}: {body[:200]}")
    return status, body


def _one(server: str, path: str, status: int, body: str) -> Optional[Dict[str, Any]]:
    if status == 404:
        return None
    if status != 200:
        raise ApiError(f"{server} answers {path} with {status}: {body[:200]}")
    found: Dict[str, Any] = json.loads(body)
    return found


def _health(api: Api) -> Tuple[str, Dict[str, str]]:
    _, version = api.get("/version")
    states: Dict[str, str] = {}
    for name in ("livez", "readyz"):
        status, body = api.get(f"/{name}?verbose")
        checks = parse.readiness(body)
        failed = sorted(check for check, state in checks.items() if state != "ok")
        states[name] = "ok" if status == 200 else f"{status}: {', '.join(failed) or body[:200]}"
        if "etcd" in checks:
            states["etcd"] = checks["etcd"]
    return json.loads(version).get("gitVersion", ""), states


def _ipv4(value: Any) -> str:
    """The first IPv4 address or network of a configuration value or a field; "" for none."""
    values: Iterable[Any] = value if isinstance(value, list) else [value]
    return next((str(item) for item in values if re.match(r"\d+\.\d+\.\d+\.\d+(/\d+)?$", str(item))), "")


def _cluster_ip(cluster: ClusterFacts, namespace: str, name: str) -> str:
    wanted = (namespace, name)
    found = (_ipv4(item["cluster_ip"]) for item in cluster["services"] if (item["namespace"], item["name"]) == wanted)
    return next(found, "")


def _around(networks: List[Network]) -> str:
    whole = networks[0]
    while not all(network.subnet_of(whole) for network in networks):
        whole = whole.supernet()
    return str(whole)
