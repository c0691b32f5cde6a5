from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.netmend.parse.k3s import (
    REDACTED,
    containerd_cni,
    effective,
    flags,
    parse_config,
    parse_environment,
    parse_unit,
    pause_image,
)

CONFIG = """\
---
# the first server
token: "K10abc#1::server:xyz"   # joins
write-kubeconfig-mode: '0600'
cluster-init: true
node-ip: 10.0.0.100,2001:db8::1
tls-san: [10.0.0.100, "api.example.org", 'it''s']
disable:
  - traefik
  # not ours
  - "servicelb" # nor this
"kubelet-arg":
- eviction-hard=imagefs.available<5%,nodefs.available<5%
- max-pods=200
secrets-encryption:
https-listen-port: 6443
flannel-backend : none
kube-apiserver-arg+: []
"""


class PlainLoader(yaml.SafeLoader):
    """YAML 1.1 without dates, fractions and numbers in base 60, which no flag of K3s has: they stay strings."""


PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(("timestamp", "float", "int"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*|0[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)


def test_config_reads_as_pyyaml_reads_it() -> None:
    assert dict(parse_config(CONFIG, "config.yaml")) == yaml.load(CONFIG, PlainLoader)


def test_what_is_accepted_is_read_as_pyyaml_reads_it() -> None:
    """Random damage to a file: either it is refused, or both readers agree on every value."""
    chance = random.Random(20261121)
    accepted = refused = 0
    for _ in range(4000):
        text = CONFIG
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(text))
            text = (
                text[:at] + chance.choice(["", *"\n -:#'\"[],{}&*!|>%@`?~0x7aé\\"]) + text[at + chance.randint(0, 2) :]
            )
        try:
            pairs = parse_config(text, "config.yaml")
        except ValueError:
            refused += 1
            continue
        accepted += 1
        assert dict(pairs) == yaml.load(text, PlainLoader), text
    assert min(accepted, refused) > 400


@pytest.mark.parametrize(
    "line",
    [
        "disable: [a,",
        "a:\n  b: c",
        "a: {b: c}",
        "a: &x 1",
        "a: *x",
        "a: !!str 1",
        "a: |\n  text",
        "a: b\n  c",
        "a: b: c",
        "a:\n  - b: c",
        "a:\n  - [b]",
        "- a",
        "a: 'b' c",
        "a:\tb",
        "a: b\n---\na: c",
        "a: ~\n- b",
    ],
)
def test_more_than_k3s_needs_is_refused_without_quoting_it(line: str) -> None:
    with pytest.raises(ValueError, match=r"^90-cni.yaml, line \d: ") as refusal:
        parse_config(line.replace("b", "hunter2"), "90-cni.yaml")
    assert "hunter2" not in str(refusal.value)


def merged(*files: str, flags_given: str = "", environment: dict[str, str] | None = None) -> dict[str, Any]:
    pairs = [(f"{number}.yaml", parse_config(text, f"{number}.yaml")) for number, text in enumerate(files)]
    words = ["k3s", "server", *flags_given.split()]
    return effective(pairs, flags(words, environment or {}), environment or {})


def test_last_file_wins_and_plus_appends() -> None:
    config, sources = merged(
        "flannel-backend: vxlan\ndisable: [traefik]\ntls-san: [a]\nnode-label+: x=1",
        "flannel-backend: none\ndisable+: servicelb\ntls-san: [b]",
    )
    assert config == {
        "flannel-backend": "none",
        "disable": ["traefik", "servicelb"],
        "tls-san": ["b"],
        "node-label": ["x=1"],
    }
    assert sources["disable"] == "0.yaml, 1.yaml"
    assert sources["tls-san"] == "1.yaml"


def test_flags_override_values_and_add_to_lists() -> None:
    config, sources = merged(
        "flannel-backend: vxlan\ndisable: traefik\ncluster-init: true",
        flags_given="--flannel-backend=none --disable servicelb,local-storage --disable-network-policy -i 10.0.0.100 "
        "--cluster-init=false --debug",
    )
    assert config == {
        "flannel-backend": "none",
        "disable": ["traefik", "servicelb", "local-storage"],
        "cluster-init": False,
        "disable-network-policy": True,
        "node-ip": ["10.0.0.100"],
        "debug": True,
    }
    assert sources["disable"] == "0.yaml, ExecStart"
    assert sources["flannel-backend"] == "ExecStart"


def test_environment_counts_where_no_flag_is_given() -> None:
    environment = {"K3S_URL": "https://10.0.0.100:6443", "K3S_NODE_NAME": "a", "FLAGS": "--with-node-id", "DIR": "/x"}
    config, sources = merged("node-name: b", flags_given="$FLAGS --data-dir=${DIR}", environment=environment)
    assert config == {
        "node-name": "b",
        "with-node-id": True,
        "data-dir": "/x",
        "server": "https://10.0.0.100:6443",
    }
    assert sources["server"] == "environment"


def test_secrets_are_redacted() -> None:
    config, _ = merged(
        "token: t0psecret\nagent-token: [t0psecret]\ntoken-file: /etc/token\ndatastore-keyfile: /etc/key\n"
        "kube-apiserver-arg: [oidc-client-secret=t0psecret, anonymous-auth=false]",
        flags_given="--datastore-endpoint postgres://u:t0psecret@db/k3s --etcd-s3-proxy=http://u:t0psecret@proxy "
        "--vpn-auth name=tailscale,joinKey=t0psecret -t t0psecret",
        environment={"AWS_SECRET_ACCESS_KEY": "t0psecret", "K3S_AGENT_TOKEN": "t0psecret"},
    )
    assert "t0psecret" not in str(config)
    assert config["token"] == REDACTED
    assert config["token-file"] == "/etc/token"
    assert config["datastore-keyfile"] == "/etc/key"
    assert config["kube-apiserver-arg"] == [f"oidc-client-secret={REDACTED}", "anonymous-auth=false"]
    assert config["etcd-s3-proxy"] == f"http://{REDACTED}@proxy"


def test_unit_as_the_installer_writes_it() -> None:
    unit = parse_unit(
        "[Service]\nEnvironmentFile=-/etc/default/%N\nEnvironmentFile=-/etc/systemd/system/k3s.service.env\n"
        "ExecStartPre=-/sbin/modprobe overlay\nExecStart=/usr/local/bin/k3s \\\n    server \\\n"
        "\t'--flannel-backend=none' \\\n\t'--tls-san' \\\n\t'a b' \\\n\n[Install]\nExecStart=no\n",
        "[Service]\nEnvironment=K3S_DEBUG=true 'K3S_NODE_NAME=a b'\n",
    )
    assert unit.arguments == ["/usr/local/bin/k3s", "server", "--flannel-backend=none", "--tls-san", "a b"]
    assert unit.environment == {"K3S_DEBUG": "true", "K3S_NODE_NAME": "a b"}
    assert unit.environment_files == ["-/etc/default/%N", "-/etc/systemd/system/k3s.service.env"]


def test_drop_in_replaces_the_command() -> None:
    unit = parse_unit("[Service]\nExecStart=/a server\n", "[Service]\nExecStart=\nExecStart=/b agent --debug\n")
    assert unit.arguments == ["/b", "agent", "--debug"]


def test_environment_file() -> None:
    text = "# x\nK3S_TOKEN='a b'\nK3S_URL=https://10.0.0.100:6443\n;K3S_DEBUG=1\nEMPTY=\n"
    assert parse_environment(text) == {"K3S_TOKEN": "a b", "K3S_URL": "https://10.0.0.100:6443", "EMPTY": ""}


@pytest.mark.parametrize("state", ["flannel", "both-overlays"])
def test_containerd_reads_k3s_cni_under_flannel(fixtures: Path, state: str) -> None:
    text = (fixtures / "k3s-1.36.3" / state / "agent0/containerd-config.toml").read_text()
    assert containerd_cni(text) == ("/var/lib/rancher/k3s/agent/etc/cni/net.d", ["/opt/k3s/bin"])


@pytest.mark.parametrize("state", ["swapped-leftovers", "swapped-clean"])
def test_containerd_reads_its_defaults_without_flannel(fixtures: Path, state: str) -> None:
    text = (fixtures / "k3s-1.36.3" / state / "agent0/containerd-config.toml").read_text()
    assert containerd_cni(text) == ("/etc/cni/net.d", ["/opt/cni/bin"])


def test_containerd_of_older_k3s() -> None:
    text = '[plugins."io.containerd.grpc.v1.cri".cni]\n  bin_dir = "/a/bin"\n  conf_dir = "/a/net.d"\n'
    assert containerd_cni(text) == ("/a/net.d", ["/a/bin"])


def test_the_image_by_which_pods_are_paused(fixtures: Path) -> None:
    text = (fixtures / "k3s-1.36.3/flannel/agent0/containerd-config.toml").read_text()
    assert pause_image(text) == "docker.io/lab/pause:1"
    assert pause_image("  sandbox = 'registry.example.com/pause:3'\n") == "registry.example.com/pause:3"
    assert pause_image("") == ""
