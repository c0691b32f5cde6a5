"""The k3s stand-in: K3s's rules for its configuration, K3s's files and words, and the processes that it keeps."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
import tomllib

NODE = Path(__file__).parents[3] / "lab/node"
STANDIN = NODE / "usr/local/lib/k3s-standin"
sys.path.insert(0, str(STANDIN))

from k3s_standin import (  # noqa: E402  found by the line above
    balancer,
    certificates,
    children,
    cli,
    cluster,
    components,
    config,
    crictl,
    etcd,
    node,
    pki,
)
from k3s_standin.log import Fatal  # noqa: E402

BASE = {"token": "secret", "node-ip": "10.0.0.100", "node-name": "server0"}


@pytest.fixture
def files(tmp_path):
    """Writes config.yaml and drop-ins: {"config.yaml": text, "90-x.yaml": text}; returns the main file's path."""

    def write(**texts: str) -> Path:
        main = tmp_path / "config.yaml"
        (tmp_path / "config.yaml.d").mkdir()
        for name, text in texts.items():
            path = main if name == "main" else tmp_path / "config.yaml.d" / f"{name.replace('_', '-')}.yaml"
            path.write_text(text)
        return main

    return write


@pytest.fixture
def tls(tmp_path, monkeypatch):
    """A server's tls directory, made by the real openssl."""
    monkeypatch.setattr(pki, "TLS", tmp_path / "tls")
    monkeypatch.setattr(pki, "STANDIN", STANDIN)
    pki.ensure_authorities()
    return tmp_path / "tls"


def openssl(*arguments: str) -> str:
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=True).stdout


# --- configuration --------------------------------------------------------------------------------------------------


def test_drop_ins_are_read_by_name_and_the_last_value_wins(files):
    main = files(main="flannel-backend: vxlan\n", b90="flannel-backend: none\n", a10="flannel-backend: host-gw\n")
    assert config.merge_files(config.config_files(main)) == {"flannel-backend": "none"}


def test_drop_ins_count_without_a_main_file(files):
    main = files(a10="node-name: one\n")
    assert config.merge_files(config.config_files(main)) == {"node-name": "one"}


def test_a_later_list_replaces_an_earlier_one_unless_its_key_ends_in_plus(files):
    main = files(
        main="disable: [traefik]\ntls-san: [10.0.0.100]\nnode-label: a=1\n",
        a10="disable: [coredns]\ntls-san+: [lab.test]\nnode-label+: [b=2]\n",
    )
    assert config.merge_files(config.config_files(main)) == {
        "disable": ["coredns"],
        "tls-san": ["10.0.0.100", "lab.test"],
        "node-label": ["a=1", "b=2"],
    }


def test_flags_override_files(files, monkeypatch):
    main = files(main="token: secret\nnode-ip: 10.0.0.1\nnode-name: A\ndisable: [traefik]\nflannel-backend: none\n")
    monkeypatch.delenv("K3S_CONFIG_FILE", raising=False)
    argv = ["--config", str(main), "--disable=coredns,servicelb", "--flannel-backend", "host-gw", "--cluster-init"]
    made = config.load("server", argv)
    assert (made.disable, made.flannel_backend, made.cluster_init) == (("coredns", "servicelb"), "host-gw", True)
    assert (made.node_name, made.node_ip) == ("a", "10.0.0.1")


def test_arguments_for_a_component_keep_their_commas():
    made = config.make("server", {**BASE, "kubelet-arg": ["feature-gates=A=true,B=false"]})
    assert made.kubelet_arg == ("feature-gates=A=true,B=false",)


@pytest.mark.parametrize(
    ("role", "values", "says"),
    [
        ("server", {"flanel-backend": "none"}, "not defined: -flanel-backend"),
        ("agent", {"server": "https://10.0.0.100:6443", "cluster-cidr": "10.42.0.0/16"}, "not defined: -cluster-cidr"),
        ("agent", {}, "--server is required"),
        ("server", {"flannel-backend": "wireguard-native"}, "unknown flannel backend"),
        ("server", {"cluster-init": "perhaps"}, "invalid boolean"),
    ],
)
def test_what_is_not_understood_is_fatal_and_named(role, values, says):
    with pytest.raises(Fatal, match=says):
        config.make(role, {**BASE, **values})


def test_the_token_is_not_among_the_arguments_on_the_node():
    made = config.make("server", {**BASE, "disable": ["traefik", "coredns"], "cluster-init": True})
    assert made.arguments == (
        "server", "--token", "********", "--node-ip", "10.0.0.100", "--node-name", "server0",
        "--disable", "traefik", "--disable", "coredns", "--cluster-init", "true",
    )  # fmt: skip


def test_servers_that_disagree_are_told_in_what():
    theirs = cluster.Cluster.of(config.make("server", {**BASE, "flannel-backend": "none"}))
    with pytest.raises(Fatal, match=r"flannel_backend \('vxlan' here, 'none' there\)"):
        cluster.check_critical(config.make("server", BASE), theirs)


# --- files ----------------------------------------------------------------------------------------------------------


def test_conflist_is_k3ss(fixtures):
    captured = (fixtures / "k3s-1.36.3/flannel/server0/cni/10-flannel.conflist").read_text()
    assert captured == components.CONFLIST


@pytest.mark.parametrize("flannel", [True, False])
def test_containerd_reads_k3ss_cni_directories_under_flannel_and_its_defaults_otherwise(monkeypatch, flannel):
    monkeypatch.setattr(components, "STANDIN", STANDIN)
    rendered = tomllib.loads(components.containerd_configuration("docker.io/netmend/pause:1", flannel))
    cri = rendered["plugins"]["io.containerd.grpc.v1.cri"]
    directories = {
        "bin_dir": "/var/lib/rancher/k3s/data/cni",
        "conf_dir": "/var/lib/rancher/k3s/agent/etc/cni/net.d",
    }
    assert cri.get("cni") == (directories if flannel else None)
    assert cri["sandbox_image"] == "docker.io/netmend/pause:1"
    assert cri["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"] is True


def test_an_operators_argument_replaces_the_stand_ins_own():
    made = config.make("server", {**BASE, "kube-proxy-arg": ["proxy-mode=nftables", "v=4"]})
    argv = components.kube_proxy(made, cluster.Cluster.of(made))
    assert [a for a in argv if a.startswith(("--proxy-mode", "--v="))] == ["--proxy-mode=nftables", "--v=4"]


def test_etcd_listens_on_the_nodes_address_and_loopback_with_client_certificates():
    made = etcd.configuration(config.make("server", BASE), "server0-1", "server0-1=https://10.0.0.100:2380", "new")
    assert made["listen-client-urls"] == "https://127.0.0.1:2379,https://10.0.0.100:2379"
    assert made["listen-peer-urls"] == "https://127.0.0.1:2380,https://10.0.0.100:2380"
    assert made["client-transport-security"]["client-cert-auth"]
    assert made["peer-transport-security"]["trusted-ca-file"].endswith("/etcd/peer-ca.crt")


def test_what_is_disabled_goes_at_a_start_and_its_manifest_with_it(tmp_path, monkeypatch):
    (tmp_path / "traefik.yaml").write_text("")
    (tmp_path / "site.yaml").write_text("")
    ran = []

    async def kubectl(*arguments):
        ran.append(arguments)

    monkeypatch.setattr(node, "MANIFESTS", tmp_path)
    monkeypatch.setattr(node, "_kubectl", kubectl)
    made = config.make("server", {**BASE, "disable": ["coredns", "servicelb", "traefik"]})
    asyncio.run(node._deploy(made))
    assert [path.name for path in tmp_path.iterdir()] == ["site.yaml"]
    assert [(words[0], words[-1]) for words in ran] == [
        ("delete", str(tmp_path / "traefik.yaml")), ("apply", str(tmp_path)),
    ]  # fmt: skip


# --- certificates and tokens ----------------------------------------------------------------------------------------


def test_certificates_are_signed_by_their_authority_and_kept(tls):
    leaves = pki.server_leaves(config.make("server", {**BASE, "tls-san": ["10.0.0.9", "lab.test"]}))
    pki.ensure(leaves, tls, tls)
    before = {path: path.read_text() for path in tls.rglob("*.crt")}
    pki.ensure_authorities()
    pki.ensure(leaves, tls, tls)
    assert {path: path.read_text() for path in tls.rglob("*.crt")} == before
    for leaf in leaves:
        openssl("verify", "-CAfile", str(tls / f"{leaf.ca}.crt"), str(tls / f"{leaf.path}.crt"))
    assert all(stat.S_IMODE(key.stat().st_mode) == 0o600 for key in tls.rglob("*.key"))
    names = openssl("x509", "-in", str(tls / "serving-kube-apiserver.crt"), "-noout", "-ext", "subjectAltName")
    for name in ("IP Address:10.43.0.1", "IP Address:127.0.0.1", "IP Address:10.0.0.9", "DNS:lab.test"):
        assert name in names


def test_a_node_that_comes_to_a_new_cluster_gets_new_certificates(tls, tmp_path, monkeypatch):
    monkeypatch.setattr(pki, "AGENT", tmp_path / "agent")
    made = config.make("agent", {**BASE, "server": "https://10.0.0.100:6443"})
    pki.ensure_agent(made, tls)
    old = (tmp_path / "agent/client-kubelet.crt").read_text()
    for authority in tls.rglob("*-ca.*"):
        authority.unlink()
    pki.ensure_authorities()
    pki.ensure_agent(made, tls)
    openssl("verify", "-CAfile", str(tls / "client-ca.crt"), str(tmp_path / "agent/client-kubelet.crt"))
    assert (tmp_path / "agent/client-kubelet.crt").read_text() != old


def test_a_full_token_carries_the_authoritys_hash(tls):
    digest, password = pki.split_token(pki.full_token("secret"))
    der = subprocess.run(
        ["openssl", "x509", "-in", tls / "server-ca.crt", "-outform", "DER"], capture_output=True, check=True
    ).stdout
    assert (digest, password) == (hashlib.sha256(der).hexdigest(), "secret")
    assert pki.split_token("secret") == ("", "secret")
    with pytest.raises(Fatal, match="must be in format"):
        pki.split_token("K10abc")


def test_certificate_check_speaks_as_k3s(fixtures, tls):
    pki.ensure(pki.etcd_leaves(config.make("server", BASE)), tls, tls)
    file = tls / "etcd/server-client.crt"
    leaf, authority = (certificates.facts(pem) for pem in certificates.split(file.read_text()))
    said = [certificates.describe(file, facts, time.time())[1] for facts in (leaf, authority)]
    captured = (fixtures / "k3s-1.36.3/flannel/server0/k3s-certificate-check.txt").read_text()
    theirs = re.findall(r'msg="(server-client\.crt: .*)"', captured)
    variable = re.compile(r"@\d+|\d{4}-\d\d-\d\dT[\d:]+Z")
    assert [variable.sub("_", line) for line in said] == [variable.sub("_", line) for line in theirs]
    assert certificates.describe(file, leaf, time.time() + 366 * 86400)[0] == "error"


# --- commands -------------------------------------------------------------------------------------------------------


def test_the_list_of_snapshots_is_k3ss(fixtures):
    captured = (fixtures / "k3s-1.36.3/flannel/server0/k3s-etcd-snapshot-ls.txt").read_text()
    name, created = "before-server0-1795250073", 1795250073
    table = etcd.snapshot_table([(name, 938016, created)], Path("/var/lib/rancher/k3s/server/db/snapshots"))
    assert table.split() == captured.split()
    assert table.splitlines()[0].index("Size") == captured.splitlines()[0].index("Size")


def test_version_has_k3ss_form_and_says_what_it_is(capsys):
    assert cli.main(["k3s", "--version"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"k3s version v1\.36\.\d+\+k3s\d+ \(stand-in\)", first)
    assert second.startswith("go version go")


def test_an_unknown_command_fails_and_is_named(capsys):
    assert cli.main(["k3s", "secrets-encrypt"]) == 1
    assert "secrets-encrypt" in capsys.readouterr().err


def test_crictl_shows_a_sandbox_with_its_pod_and_process():
    labels = {"io.kubernetes.pod.name": "p0", "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": "u"}
    record = {
        "ID": "06a5cce65f684ad7",
        "Labels": {**labels, "io.cri-containerd.kind": "sandbox", "run": "p0"},
        "Image": "docker.io/netmend/pause:1",
        "Runtime": {"Name": "io.containerd.runc.v2"},
        "CreatedAt": "2026-11-21T10:56:43.065367707Z",
        "Spec": {"linux": {"namespaces": [{"type": "network", "path": "/run/netns/cni-1"}]}},
    }
    shown = crictl.inspect(record, {"06a5cce65f684ad7": 1989})
    assert shown["info"]["pid"] == 1989
    assert shown["status"]["metadata"] == {"name": "p0", "uid": "u", "namespace": "default", "attempt": 0}
    assert shown["status"]["labels"] == {**labels, "run": "p0"}
    assert shown["status"]["createdAt"] == "1795258603065367707"
    assert crictl.sandbox(record, {})["state"] == "SANDBOX_NOTREADY"


# --- CNI ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def flannel(tmp_path, monkeypatch):
    """The plugin "flannel" with directories of its own, and a delegate that writes down what it is asked."""
    loader = SourceFileLoader("cni_flannel", str(STANDIN / "cni/flannel"))
    spec = importlib.util.spec_from_loader("cni_flannel", loader)
    plugin = importlib.util.module_from_spec(spec)
    loader.exec_module(plugin)
    plugin.SUBNET_ENV, plugin.KEPT = tmp_path / "subnet.env", tmp_path / "kept"
    bridge = tmp_path / "bridge"
    bridge.write_text(f"#!/bin/sh\ncat >{tmp_path}/asked-$CNI_COMMAND\n")
    bridge.chmod(0o755)
    monkeypatch.setenv("CNI_PATH", str(tmp_path))
    monkeypatch.setenv("CNI_CONTAINERID", "c1")

    def call(verb: str) -> int:
        conf = {"name": "cbr0", "cniVersion": "1.0.0", **json.loads(components.CONFLIST)["plugins"][0]}
        read, write = os.pipe()
        os.write(write, json.dumps(conf).encode())
        os.close(write)
        monkeypatch.setenv("CNI_COMMAND", verb)
        with os.fdopen(read) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            return plugin.main()

    call.directory = tmp_path
    return call


def test_cni_flannel_completes_the_bridge_from_subnet_env_and_forgets_it_on_deletion(flannel):
    (flannel.directory / "subnet.env").write_text(
        "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n"
    )
    assert flannel("ADD") == 0
    asked = json.loads((flannel.directory / "asked-ADD").read_text())
    assert (asked["type"], asked["mtu"], asked["ipMasq"], asked["isDefaultGateway"]) == ("bridge", 1400, False, True)
    assert asked["ipam"]["ranges"] == [[{"subnet": "10.42.1.0/24"}]]
    assert asked["ipam"]["routes"] == [{"dst": "10.42.0.0/16"}]
    assert flannel("DEL") == 0
    assert json.loads((flannel.directory / "asked-DEL").read_text()) == asked
    assert not (flannel.directory / "kept/c1").exists()


def test_cni_flannel_fails_as_flannels_does_while_the_network_is_not_up(flannel, capsys):
    assert flannel("ADD") == 1
    assert "loadFlannelSubnetEnv failed" in json.loads(capsys.readouterr().out)["msg"]
    assert flannel("DEL") == 0


# --- processes ------------------------------------------------------------------------------------------------------


def test_a_child_that_ends_ends_the_unit_with_its_last_lines(tmp_path):
    async def run() -> None:
        started = children.Children()
        log = tmp_path / "log"
        await started.start(["sh", "-c", "echo the reason; exit 3"], log=log)
        await started.died

    with pytest.raises(Fatal, match=r"sh exited: status 3; its last lines: the reason"):
        asyncio.run(run())


def test_stopping_ends_what_does_not_listen_and_is_no_failure(tmp_path):
    stubborn = tmp_path / "kubelet"
    stubborn.write_text("#!/bin/sh\ntrap '' TERM\necho $$\nwhile :; do sleep 0.1; done\n")
    stubborn.chmod(0o755)

    async def run() -> tuple[int, bool]:
        started = children.Children()
        log = tmp_path / "log"
        await started.start([str(stubborn)], log=log)
        while not log.read_text():
            await asyncio.sleep(0.01)
        await started.stop()
        return int(log.read_text()), started.died.done()

    process, failed = asyncio.run(run())
    assert not Path(f"/proc/{process}").exists()
    assert not failed


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_balancer_goes_on_with_another_server_and_keeps_what_it_learns(tmp_path, monkeypatch, free_port):
    monkeypatch.setattr(balancer, "PORT", free_port)
    monkeypatch.setattr(balancer, "BALANCER_STATE", tmp_path / "state.json")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(4))
        await writer.drain()
        writer.close()

    async def run() -> bytes:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        alive = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        tested = balancer.Balancer("https://10.0.0.100:6443", ["127.0.0.1:1"])
        await tested.start()
        tested.update(["127.0.0.1:1", alive])
        assert json.loads((tmp_path / "state.json").read_text())["ServerAddresses"] == sorted(["127.0.0.1:1", alive])
        reader, writer = await asyncio.open_connection("127.0.0.1", free_port)
        writer.write(b"ping")
        said = await reader.read()
        writer.close()
        return said

    assert asyncio.run(run()) == b"ping"
