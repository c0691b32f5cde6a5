"""Hetzner's API as it documents itself, as far as load balancers need it, and a cluster with an ingress for them."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "hcloud-7c1f0b9e4a"
READ_ONLY = "hcloud-read-only"
NETWORK = 4711
ADDRESSES = {"server0": "10.0.0.100", "agent0": "10.0.0.110", "agent1": "10.0.0.111"}
AGENTS = ("agent0", "agent1")
HTTP, HTTPS = 31695, 32720

Object = dict[str, Any]


def with_ingress(cluster: Any) -> None:
    """ingress-nginx on the agents' own network, and a Service with NodePorts that leads to it."""
    labels = {"app.kubernetes.io/name": "ingress-nginx"}
    for node in AGENTS:
        cluster["pods"].append(
            {
                "namespace": "ingress-nginx", "name": f"controller-{node}", "uid": f"uid-{node}", "node": node,
                "ip": ADDRESSES[node], "host_network": True, "ready": True, "phase": "Running", "reason": "",
                "owner": "DaemonSet/ingress-nginx-controller", "labels": labels,
                "ports": [{"name": "", "port": port, "protocol": "TCP", "hostPort": port} for port in (80, 443)],
                "readiness": {}, "unscheduled": "", "meant_for": node,
            }
        )  # fmt: skip
    cluster["services"] = [
        service for service in cluster["services"] if HTTP not in (port["nodePort"] for port in service["ports"])
    ]
    cluster["services"].append(
        {
            "namespace": "ingress-nginx", "name": "ingress-nginx-controller", "type": "NodePort",
            "cluster_ip": "10.43.7.7", "selector": labels, "external_traffic_policy": "Cluster",
            "health_check_node_port": 0,
            "ports": [
                {"name": name, "port": port, "targetPort": name, "nodePort": node_port, "protocol": "TCP"}
                for name, port, node_port in (("http", 80, HTTP), ("https", 443, HTTPS))
            ],
            "endpoints": [
                {"ip": ADDRESSES[node], "node": node, "port": port, "protocol": "TCP", "ready": True,
                 "pod": f"ingress-nginx/controller-{node}"}
                for node in AGENTS for port in (80, 443)
            ],
        }
    )  # fmt: skip
    cluster["ingress_nginx"] = {"proxy_protocol": False}
    path = {"path": "/", "service": "web", "port": 80}
    own = {"namespace": "default", "name": "web", "class": "nginx", "tls": [], "addresses": []}
    cluster["ingresses"].append({**own, "paths": [{"host": "platform.keybuzz.io", **path}]})


def service(protocol: str, listen_port: int, destination_port: int) -> Object:
    http = {"domain": "", "path": "/healthz", "response": "", "status_codes": ["2??", "3??"], "tls": False}
    return {
        "protocol": protocol,
        "listen_port": listen_port,
        "destination_port": destination_port,
        "proxyprotocol": False,
        "health_check": {
            "protocol": "https" if listen_port == 443 else "http",
            "port": destination_port,
            "interval": 15,
            "timeout": 10,
            "retries": 3,
            "http": http,
        },
    }


def target(number: int, *, private: bool = True, status: str = "healthy") -> Object:
    return {
        "type": "server",
        "server": {"id": number},
        "use_private_ip": private,
        "health_status": [{"listen_port": port, "status": status} for port in (80, 443)],
    }


def balancer(number: int, name: str, address: str, targets: list[Object]) -> Object:
    http = {"cookie_name": "HCLBSTICKY", "cookie_lifetime": 300, "certificates": [], "redirect_http": False}
    return {
        "id": number,
        "name": name,
        "public_net": {
            "enabled": True,
            "ipv4": {"ip": address, "dns_ptr": f"{name}.example.com"},
            "ipv6": {"ip": "2001:db8::1", "dns_ptr": f"{name}.example.com"},
        },
        "private_net": [{"network": NETWORK, "ip": f"10.0.0.{number}"}],
        "location": {"id": 1, "name": "fsn1", "network_zone": "eu-central"},
        "load_balancer_type": {"id": 1, "name": "lb11"},
        "protection": {"delete": False},
        "labels": {},
        "targets": targets,
        "services": [
            {**service("http", 80, HTTP), "http": {**http, "sticky_sessions": False, "timeout_idle": 50}},
            service("tcp", 443, HTTPS),
        ],
        "algorithm": {"type": "round_robin"},
        "created": "2026-01-30T23:50:00Z",
    }


def server(number: int, name: str, private: str, labels: dict[str, str]) -> Object:
    return {
        "id": number,
        "name": name,
        "status": "running",
        "created": "2026-01-30T23:50:00Z",
        "public_net": {
            "ipv4": {"id": number, "ip": f"198.51.100.{number}", "blocked": False, "dns_ptr": f"{name}.example.com"},
            "ipv6": None,
            "floating_ips": [],
            "firewalls": [],
        },
        "private_net": [{"network": NETWORK, "ip": private, "alias_ips": [], "mac_address": "86:00:ff:2a:7d:e1"}],
        "server_type": {"id": 1, "name": "cx22"},
        "location": {"id": 1, "name": "fsn1", "network_zone": "eu-central"},
        "image": None,
        "placement_group": None,
        "rescue_enabled": False,
        "backup_window": None,
        "protection": {"delete": False, "rebuild": False},
        "labels": labels,
    }


class Refused(Exception):
    """Carries the HTTP status, code and message of an error."""


class Hetzner:
    """A project with two balancers before the agents, and one that is nobody's here; healthy until said otherwise."""

    def __init__(self) -> None:
        members = enumerate(ADDRESSES.items(), 1)
        self.servers = [server(number, name, own, {"role": name[:-1]}) for number, (name, own) in members]
        self.servers.append(server(9, "mail", "10.0.0.90", {}))
        agents = [each["id"] for each in self.servers if each["name"] in AGENTS]
        self.balancers = [
            balancer(5, "lb-1", "203.0.113.80", [target(number) for number in agents]),
            balancer(6, "lb-2", "203.0.113.81", [target(number) for number in agents]),
            balancer(7, "lb-mail", "203.0.113.82", [target(9)]),
        ]
        self.asked: list[str] = []  # "POST /load_balancers/5/actions/update_service" ...
        self.heals = True  # whether all is healthy once something was changed
        self.refuses = ""  # a command that fails once
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def changes(self) -> list[str]:
        return [each for each in self.asked if each.startswith("POST ")]

    def answer(self, token: str, method: str, url: str, body: Object) -> Object:
        """Raises Refused."""
        if token not in (TOKEN, READ_ONLY):
            raise Refused(401, "unauthorized", "unable to authenticate")
        self.asked.append(f"{method} {urlsplit(url).path.removeprefix('/v1')}")
        _, kind, *more = urlsplit(url).path.removeprefix("/v1").split("/")
        if method == "GET":
            return self._read(kind, more, {key: values[0] for key, values in parse_qs(urlsplit(url).query).items()})
        if token == READ_ONLY:
            raise Refused(403, "token_readonly", "the token is only allowed to perform GET requests")
        number, _, command = more
        if command == self.refuses:
            self.refuses = ""
            raise Refused(422, "resource_limit_exceeded", f"{command} is refused")
        whole = _found(self.balancers, int(number))
        self._change(whole, command, body)
        if self.heals:
            set_health(whole, "healthy")
        return {"action": self._action(13)}

    def _read(self, kind: str, more: list[str], query: dict[str, str]) -> Object:
        if kind == "actions":
            return {"action": self._action(int(more[0]))}
        if kind == "networks":
            return {"network": {"id": NETWORK, "name": "cluster", "ip_range": "10.0.0.0/16"}}
        whole = {"load_balancers": self.balancers, "servers": self.servers}[kind]
        if more:
            return {kind[:-1]: _found(whole, int(more[0]))}
        key, _, value = query.get("label_selector", "").partition("==")
        found = [each for each in whole if each["name"] == query.get("name", each["name"])]
        found = [each for each in found if not key or each["labels"].get(key) == value]
        pages = {"page": 1, "per_page": 50, "previous_page": None, "next_page": None, "last_page": 1}
        return {kind: found, "meta": {"pagination": {**pages, "total_entries": len(found)}}}

    def _change(self, whole: Object, command: str, body: Object) -> None:
        if command == "update_service":
            there = next((each for each in whole["services"] if each["listen_port"] == body["listen_port"]), None)
            if there is None:
                raise Refused(404, "not_found", "service not found")
            _merge(there, body)
        elif command == "add_target":
            if any(each["server"] == body["server"] for each in whole["targets"]):
                raise Refused(422, "target_already_defined", "target is already defined")
            if body["use_private_ip"] and not whole["private_net"]:
                raise Refused(422, "load_balancer_not_attached_to_network", "load balancer not attached to network")
            status = [{"listen_port": each["listen_port"], "status": "unknown"} for each in whole["services"]]
            whole["targets"].append({**body, "health_status": status})
        elif command == "remove_target":
            there = [each for each in whole["targets"] if each["server"]["id"] == body["server"]["id"]]
            whole["targets"].remove(there[0])
        else:
            raise Refused(404, "not_found", f"no {command}")

    def _action(self, number: int) -> Object:
        times = {"started": "2026-01-30T23:50:00Z", "finished": "2026-01-30T23:50:01Z"}
        return {"id": number, "command": "any", "status": "success", "progress": 100, **times, "resources": [],
                "error": None}  # fmt: skip

    def _handler(hetzner) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                try:
                    status, said = 200, hetzner.answer(token, self.command, self.path, body)
                except Refused as refused:
                    status, code, message = refused.args
                    said = {"error": {"code": code, "message": message, "details": None}}
                text = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = answer

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def set_health(whole: Object, status: str) -> None:
    for each in whole["targets"]:
        for health in each["health_status"]:
            health["status"] = status


def _found(whole: list[Object], number: int) -> Object:
    there = [each for each in whole if each["id"] == number]
    if not there:
        raise Refused(404, "not_found", f"{number} not found")
    return there[0]


def _merge(there: Object, body: Object) -> None:
    """What is not given stays. Raises Refused for what the API does not know."""
    unknown = sorted(set(body) - set(there))
    if unknown:
        raise Refused(422, "invalid_input", f"unknown field {unknown[0]}")
    for key, value in body.items():
        if isinstance(value, dict):
            _merge(there[key], value)
        else:
            there[key] = value
