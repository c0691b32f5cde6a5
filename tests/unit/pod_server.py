"""An API server that has a cluster in memory behind it, and watches as the real one."""

from __future__ import annotations

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable
from urllib.parse import parse_qs, urlsplit

from ansible.module_utils.netmend.pod_replacement import PATHS

from tests.unit.pod_cluster import Cluster

WHAT = {path: what for what, path in PATHS.items()}
STATUS = json.dumps({"message": "Cannot evict pod as it would violate the pod's disruption budget."})


class Server:
    """Answers for the cluster; ``asked`` has every request that changes something."""

    def __init__(self, cluster: Cluster, tls: Path) -> None:
        self.cluster = cluster
        self.asked: list[str] = []
        self.watches: list[str] = []
        self.too_old = ""  # how the next watch is told that its version is: "status", "event" or not at all
        self.open = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = parse_qs(url.query)
                if url.path not in WHAT:
                    self.answer(404)
                elif "watch" in query:
                    server.watches.append(url.path)
                    self.stream(WHAT[url.path], query)
                else:
                    with server.cluster.changed:
                        items = list(server.cluster.objects[WHAT[url.path]].values())
                        items = [item for item in items if is_asked_for(query, item)]
                        version = max([0, *(version for version, _, _ in server.cluster.log)])
                        self.answer(200, json.dumps({"items": items, "metadata": {"resourceVersion": str(version)}}))

            def do_PATCH(self) -> None:
                is_status = self.path.endswith("/status")
                kind = "strategic-merge-patch" if is_status else "merge-patch"
                assert self.headers["Content-Type"] == f"application/{kind}+json"
                self.change(server.cluster.tell if is_status else server.cluster.patch, self.content())

            def do_DELETE(self) -> None:
                self.change(server.cluster.delete, self.content()["preconditions"]["uid"])

            def do_POST(self) -> None:
                content = self.content()
                assert (content["kind"], self.path.split("/")[-1]) == ("Eviction", "eviction")
                self.change(server.cluster.evict, content["deleteOptions"]["preconditions"]["uid"])

            def change(self, do: Callable[[str, Any], int], argument: Any) -> None:
                _, _, _, _, namespace, _, name = self.path.split("/")[:7]
                with server.cluster.changed:
                    server.asked.append(f"{self.command} {namespace}/{name}")
                    status = do(f"{namespace}/{name}", argument)
                    server.cluster.settle()
                self.answer(status, STATUS if status == 429 else "{}")

            def content(self) -> Any:
                return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

            def answer(self, status: int, body: str = "{}") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            def stream(self, what: str, query: dict[str, list[str]]) -> None:
                version = int(query["resourceVersion"][0])
                too_old, server.too_old = server.too_old, ""
                if too_old == "status":
                    self.answer(410)
                    return
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                if too_old:
                    self.chunk({"type": "ERROR", "object": {"code": 410}})
                    return
                bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version)}}}
                self.chunk(bookmark)
                done = 0
                while server.open:
                    with server.cluster.changed:
                        fresh = server.cluster.log[done:]
                        if not fresh:
                            server.cluster.changed.wait(0.1)
                    for at, of, event in fresh:
                        if of == what and at > version and is_asked_for(query, event["object"]):
                            self.chunk(event)
                    done += len(fresh)

            def chunk(self, event: dict[str, Any]) -> None:
                line = json.dumps(event).encode() + b"\n"
                self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")

            def log_message(self, *_: object) -> None:
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls / "server.crt", tls / "server.key")
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign] # clients hang up on their watches
        self.url = f"https://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.open = False
        with self.cluster.changed:
            self.cluster.changed.notify_all()
        self.http.shutdown()
        self.http.server_close()


def is_asked_for(query: dict[str, list[str]], item: dict[str, Any]) -> bool:
    """By the field selector of a kubelet, which may ask for no other."""
    field, _, name = query.get("fieldSelector", [""])[0].partition("=")
    return not field or (field, name) == ("spec.nodeName", item["spec"]["nodeName"])
