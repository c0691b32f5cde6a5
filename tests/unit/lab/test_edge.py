"""The edge of a lab: balancers as they are declared, the controller's image, certificates."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
from pathlib import Path

import pytest
import yaml

from lab import balancer, build, images, ingress, load, spec

LAB = spec.load(Path("edge"))
HOSTS = ["my.keybuzz.io", "platform-api.keybuzz.io", "platform.keybuzz.io"]


def test_the_inventory_says_what_the_balancers_are_set_to(tmp_path):
    seen = balancer.variables(LAB, tmp_path)
    assert seen["ufw_balancers"] == ["10.0.0.5", "10.0.0.6"]
    first, second = seen["netmend_balancers"]
    assert (first["name"], first["address"], second["address"]) == ("lb-1", "203.0.113.5", "203.0.113.6")
    assert first["targets"] == [{"address": address, "status": {}} for address in ("10.0.0.110", "10.0.0.111")]
    assert [(s["listen_port"], s["destination_port"]) for s in first["services"]] == [(80, 31695), (443, 32720)]
    (tmp_path / "lb-1.json").write_text(json.dumps(balancer.changed(balancer.SERVICES, ["proxy", "on"])))
    first, second = balancer.variables(LAB, tmp_path)["netmend_balancers"]
    assert [s["proxy_protocol"] for s in first["services"]] == [True, True]
    assert [s["proxy_protocol"] for s in second["services"]] == [False, False]


def test_a_check_by_tcp_asks_for_no_page():
    services = balancer.changed(balancer.SERVICES, ["health", "tcp", "22"])
    text = balancer.configuration(LAB, LAB.balancers[0], services)
    assert "check port 22\n" in text
    assert "httpchk" not in text
    assert "option httpchk" in balancer.configuration(LAB, LAB.balancers[0], balancer.SERVICES)


def test_a_lab_without_balancers_says_nothing_of_them(tmp_path):
    assert balancer.variables(spec.parse(None, Path("some.yml")), tmp_path) == {}


def test_a_balancer_asks_from_its_private_address_and_checks_what_it_is_told():
    text = balancer.configuration(LAB, LAB.balancers[0], balancer.SERVICES)
    assert "    source 10.0.0.5\n" in text
    assert "    bind 203.0.113.5:443\n    mode tcp\n" in text
    assert "    server k3s-worker-02 10.0.0.111:31695 check port 31695\n" in text
    assert "    server k3s-worker-01 10.0.0.110:32720 check port 32720 check-ssl verify none\n" in text
    assert "send-proxy" not in text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["proxy", "on"], "server k3s-worker-01 10.0.0.110:31695 check port 31695 send-proxy check-send-proxy"),
        (["health", "8080"], "server k3s-worker-01 10.0.0.110:31695 check port 8080"),
        (["path", "/ready"], "http-check send meth GET uri /ready"),
    ],
)
def test_a_change_is_seen_in_the_configuration_and_taken_back(words, line):
    services = balancer.changed(balancer.SERVICES, words)
    assert f"    {line}\n" in balancer.configuration(LAB, LAB.balancers[0], services)
    if words == ["proxy", "on"]:
        assert balancer.changed(services, ["proxy", "off"]) == balancer.SERVICES


@pytest.mark.parametrize("words", [["proxy"], ["health", "http"], ["path", "ready"], ["mode", "tcp"], []])
def test_a_change_that_there_is_not_is_refused(words):
    with pytest.raises(balancer.BalancerError, match=r"CHANGE is proxy on\|off"):
        balancer.changed(balancer.SERVICES, words)


def test_the_image_has_the_name_that_the_role_asks_for_and_what_its_manifest_runs(tmp_path):
    for name in ("usr/sbin/nginx", "usr/sbin/haproxy", "lib64/ld-linux-x86-64.so.2"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\x7fELF")
    nothing = tmp_path / "nothing"
    program = tmp_path / "usr/sbin/nginx"
    artifacts = build.Artifacts(nothing, nothing, nothing, nothing, nothing, nothing, program, tmp_path)
    (image,) = ingress.container_images(artifacts)
    defaults = yaml.safe_load(ingress.ROLE.read_text())
    assert image.name == f"{defaults['ingress_nginx_image']}:{defaults['ingress_nginx_version']}"
    inside = {*image.base, *image.files, *image.links}
    assert {"/usr/sbin/nginx", "/nginx-ingress-controller", "/wait-shutdown"} <= inside
    assert "/usr/sbin/haproxy" not in inside
    images.write(tmp_path / "images.tar", [image])


def test_the_applications_hosts_have_a_certificate_that_the_labs_authority_vouches_for(tmp_path):
    assert ingress.hosts(LAB) == HOSTS
    (secret,) = ingress.certificates(LAB, tmp_path)
    assert (secret["metadata"], secret["type"]) == (
        {"namespace": "keybuzz", "name": "keybuzz-tls"},
        "kubernetes.io/tls",
    )
    certificate = tmp_path / "of-the-secret.crt"
    certificate.write_bytes(base64.b64decode(secret["data"]["tls.crt"]))
    for host in HOSTS:
        argv = ["openssl", "verify", "-CAfile", tmp_path / ingress.AUTHORITY, "-verify_hostname", host, certificate]
        assert subprocess.run(argv, capture_output=True, check=False).returncode == 0, host
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")


def test_the_client_is_a_program():
    compile(load.CLIENT, "client", "exec")
