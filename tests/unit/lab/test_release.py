"""K3s's release is downloaded, resumed, verified and kept."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lab import release

BINARY = bytes(range(256)) * 4096
IMAGES = b"images " * 1000


class Server(ThreadingHTTPServer):
    """Serves two files; knows Range unless told otherwise, and can hang up in the middle."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/v1/k3s": BINARY, "/v1/images.tar.zst": IMAGES}
        self.ranges = True
        self.hang_up_after = []  # for each answer in turn: send so many bytes and end the connection
        self.asked = []  # (path, Range header)

    def url(self, path):
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        body = content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.hang_up_after:
            body = body[: self.server.hang_up_after.pop(0)]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NETMEND_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def describe(server, binary_sha256=None):
    return release.parse(
        {
            "version": "v1.36.3+k3s1",
            "binary": {"url": server.url("/v1/k3s"), "sha256": binary_sha256 or hashlib.sha256(BINARY).hexdigest()},
            "images": {"url": server.url("/v1/images.tar.zst"), "sha256": hashlib.sha256(IMAGES).hexdigest()},
        }
    )


def test_files_are_downloaded_once(server):
    binary, images = release.fetch(describe(server))
    assert (binary.name, images.name) == ("k3s", "images.tar.zst")
    assert (binary.read_bytes(), images.read_bytes()) == (BINARY, IMAGES)
    assert release.fetch(describe(server)) == (binary, images)
    assert len(server.asked) == 2


def test_a_broken_connection_is_taken_up_where_it_ended(server):
    server.hang_up_after = [300_000, 200_000]
    binary, _ = release.fetch(describe(server))
    assert binary.read_bytes() == BINARY
    assert [range for path, range in server.asked if path == "/v1/k3s"] == [None, "bytes=300000-", "bytes=500000-"]


def test_another_run_goes_on_where_the_last_one_gave_up(server):
    server.hang_up_after = [100_000] * release.ATTEMPTS
    with pytest.raises(release.ReleaseError, match=r"ended early after 0\.3 MiB; another run goes on"):
        release.fetch(describe(server))
    server.asked.clear()
    binary, _ = release.fetch(describe(server))
    assert binary.read_bytes() == BINARY
    assert server.asked[0] == ("/v1/k3s", "bytes=300000-")


def test_a_run_that_ended_before_the_check_only_checks(server):
    description = describe(server)
    place = description.binary.place
    place.parent.mkdir(parents=True)
    place.with_name("k3s.partial").write_bytes(BINARY)
    assert release.fetch(description)[0].read_bytes() == BINARY


def test_a_server_without_ranges_starts_over(server):
    server.ranges = False
    server.hang_up_after = [300_000]
    assert release.fetch(describe(server))[0].read_bytes() == BINARY


def test_a_wrong_checksum_is_refused_and_not_kept(server):
    wrong = describe(server, binary_sha256="0" * 64)
    with pytest.raises(release.ReleaseError, match=f"has the SHA-256 {hashlib.sha256(BINARY).hexdigest()}"):
        release.fetch(wrong)
    assert not wrong.binary.place.exists()
    server.asked.clear()
    with pytest.raises(release.ReleaseError):
        release.fetch(wrong)
    assert server.asked == [("/v1/k3s", None)]


def test_a_file_that_is_not_there(server):
    del server.files["/v1/k3s"]
    with pytest.raises(release.ReleaseError, match=r"/v1/k3s: the server answers 404 Not Found"):
        release.fetch(describe(server))


def test_a_server_that_is_not_there(server):
    description = describe(server)
    server.server_close()
    with pytest.raises(release.ReleaseError, match="Connection refused"):
        release.fetch(description)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"binary": {"url": "ftp://example.org/k3s", "sha256": "0" * 64}}, "binary.url .* http or https"),
        ({"images": {"url": "https://example.org/images", "sha256": "beef"}}, "images.sha256 .* 64 hexadecimal digits"),
        ({"images": {"url": "https://example.org/images"}}, "images of a release must have url and sha256"),
        ({"extra": 1}, "version, binary and images"),
    ],
)
def test_a_wrong_description_is_refused(change, message):
    good = {"url": "https://example.org/file", "sha256": "0" * 64}
    with pytest.raises(release.ReleaseError, match=message):
        release.parse({"version": "v1", "binary": good, "images": good, **change})
