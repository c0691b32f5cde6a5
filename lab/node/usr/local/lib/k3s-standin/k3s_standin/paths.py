"""Where K3s keeps its things."""

from pathlib import Path

CONFIG_FILE = Path("/etc/rancher/k3s/config.yaml")
KUBECONFIG = Path("/etc/rancher/k3s/k3s.yaml")

DATA = Path("/var/lib/rancher/k3s")
CNI_BIN = DATA / "data/cni"

SERVER = DATA / "server"
TLS = SERVER / "tls"
CRED = SERVER / "cred"
MANIFESTS = SERVER / "manifests"
DB = SERVER / "db"
ETCD = DB / "etcd"
SNAPSHOTS = DB / "snapshots"
RESET_FLAG = DB / "reset-flag"

AGENT = DATA / "agent"
AGENT_ETC = AGENT / "etc"
CNI_CONF = AGENT_ETC / "cni/net.d"
NET_CONF = AGENT_ETC / "flannel/net-conf.json"
RESOLV_CONF = AGENT_ETC / "resolv.conf"
KUBELET_CONF_D = AGENT_ETC / "kubelet.conf.d"
IMAGES = AGENT / "images"
CONTAINERD = AGENT / "containerd"
CONTAINERD_CONFIG = AGENT_ETC / "containerd/config.toml"
BALANCER_STATE = AGENT_ETC / "k3s-agent-load-balancer.json"

CONTAINERD_STATE = Path("/run/k3s/containerd")
CONTAINERD_SOCKET = CONTAINERD_STATE / "containerd.sock"
SUBNET_ENV = Path("/run/flannel/subnet.env")

STANDIN = Path("/usr/local/lib/k3s-standin")
KUBE = Path("/usr/local/bin/kube")
