"""127.0.0.1:6444 on an agent: to the API server that answers, so that losing one does not cut the node off."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import closing, suppress
from typing import Iterable

from .log import info, write
from .paths import BALANCER_STATE

PORT = 6444
DIAL_SECONDS = 3


class Balancer:
    def __init__(self, url: str, servers: Iterable[str]) -> None:
        self._url = url
        self._servers = list(servers)  # "address:port", the one that answered last comes first

    async def start(self) -> None:
        for address in ("127.0.0.1", "::1"):
            try:
                await asyncio.start_server(self._serve, address, PORT)
            except OSError:
                if address == "127.0.0.1":
                    raise  # a node without IPv6 lacks only the other one
        info(f"Running load balancer k3s-agent-load-balancer 127.0.0.1:{PORT} -> {self._servers}")
        self._keep()

    def update(self, servers: Iterable[str]) -> None:
        """Takes over the cluster's servers, and keeps them for the next start of the unit."""
        new = set(servers)
        if new and new != set(self._servers):
            self._servers = [s for s in self._servers if s in new] + sorted(new - set(self._servers))
            info(f"Updated load balancer k3s-agent-load-balancer server addresses -> {self._servers}")
            self._keep()

    def _keep(self) -> None:
        state = {"ServerURL": self._url, "ServerAddresses": sorted(self._servers)}
        write(BALANCER_STATE, json.dumps(state, indent=2) + "\n")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(OSError, TimeoutError):
            upstream = await self._dial()
            if upstream is None:
                return
            with closing(upstream[1]):
                pumps = [
                    asyncio.create_task(_pump(reader, upstream[1])),
                    asyncio.create_task(_pump(upstream[0], writer)),
                ]
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                for pump in pumps:
                    pump.cancel()

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for server in list(self._servers):
            host, _, port = server.rpartition(":")
            try:
                async with asyncio.timeout(DIAL_SECONDS):
                    reader, writer = await asyncio.open_connection(host, int(port))
            except (OSError, TimeoutError):
                # It stays in the list, last: the next connection should not wait for it again.
                self._servers.sort(key=server.__eq__)
                continue
            _notice_silence(writer.get_extra_info("socket"))
            return reader, writer
        return None


def _notice_silence(connection: socket.socket) -> None:
    """A server that lost its power sends nothing: without this a watch would hang on it for minutes."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, 5),
        (socket.TCP_KEEPINTVL, 2),
        (socket.TCP_KEEPCNT, 3),
        (socket.TCP_USER_TIMEOUT, 10_000),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
