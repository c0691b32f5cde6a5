"""Command lines and configuration files of what a node runs, as K3s 1.36 gives them to the same programs."""

from __future__ import annotations

import base64
import json
import string
from pathlib import Path

from .cluster import Cluster
from .config import Config
from .paths import (
    AGENT,
    CNI_BIN,
    CNI_CONF,
    CONTAINERD,
    CONTAINERD_CONFIG,
    CONTAINERD_SOCKET,
    CONTAINERD_STATE,
    CRED,
    KUBELET_CONF_D,
    NET_CONF,
    RESOLV_CONF,
    STANDIN,
    TLS,
)

BIN = "/usr/local/bin"
# Several machines share few cores here: a leader may be slow for longer than Kubernetes's own limits (15, 10 and 2 s)
# allow, and one that loses its lease ends the unit. On an ordinary stop the lease is given back.
LEADER_ELECTION = {
    "leader-elect-lease-duration": "40s",
    "leader-elect-renew-deadline": "30s",
    "leader-elect-retry-period": "3s",
}

# Starting a controller costs a third of a second in a machine of the lab. Off beside those that K3s itself switches
# off: volumes, autoscaling, quotas, certificate requests and resource claims, which no lab has.
CONTROLLERS = """
    * tokencleaner -service-lb-controller -node-route-controller
    -certificatesigningrequest-approving-controller -certificatesigningrequest-cleaner-controller
    -certificatesigningrequest-signing-controller -device-taint-eviction-controller -ephemeral-volume-controller
    -horizontal-pod-autoscaler-controller -persistentvolume-attach-detach-controller
    -persistentvolume-binder-controller -persistentvolume-expander-controller
    -persistentvolume-protection-controller -persistentvolumeclaim-protection-controller -resourceclaim-controller
    -resourcequota-controller -validatingadmissionpolicy-status-controller
    -volumeattributesclass-protection-controller
"""

CONFLIST = """\
{
  "name":"cbr0",
  "cniVersion":"1.0.0",
  "plugins":[
    {
      "type":"flannel",
      "delegate":{
        "hairpinMode":true,
        "forceAddress":true,
        "isDefaultGateway":true
      }
    },
    {
      "type":"portmap",
      "capabilities":{
        "portMappings":true
      }
    },
    {
      "type":"bandwidth",
      "capabilities":{
        "bandwidth":true
      }
    }
  ]
}
"""


def command(program: str, options: dict[str, str], extra: tuple[str, ...] = ()) -> list[str]:
    """A command line; what the operator gave by a …-arg key replaces the option of that name."""
    given = dict(e.partition("=")[::2] for e in extra)
    return [f"{BIN}/{program}", *(f"--{k}={v}" for k, v in sorted({**options, **given}.items()))]


def apiserver(config: Config) -> list[str]:
    return command(
        "kube-apiserver",
        {
            "advertise-address": config.node_ip,
            "allow-privileged": "true",
            "authorization-mode": "Node,RBAC",
            "bind-address": "0.0.0.0",
            "cert-dir": f"{TLS}/temporary-certs",
            "client-ca-file": f"{TLS}/client-ca.crt",
            "enable-admission-plugins": "NodeRestriction",
            "enable-aggregator-routing": "true",
            "enable-bootstrap-token-auth": "true",
            "etcd-cafile": f"{TLS}/etcd/server-ca.crt",
            "etcd-certfile": f"{TLS}/etcd/client.crt",
            "etcd-keyfile": f"{TLS}/etcd/client.key",
            "etcd-servers": "https://127.0.0.1:2379",
            "kubelet-certificate-authority": f"{TLS}/server-ca.crt",
            "kubelet-client-certificate": f"{TLS}/client-kube-apiserver.crt",
            "kubelet-client-key": f"{TLS}/client-kube-apiserver.key",
            "kubelet-preferred-address-types": "InternalIP,ExternalIP,Hostname",
            "profiling": "false",
            "proxy-client-cert-file": f"{TLS}/client-auth-proxy.crt",
            "proxy-client-key-file": f"{TLS}/client-auth-proxy.key",
            "requestheader-allowed-names": "system:auth-proxy",
            "requestheader-client-ca-file": f"{TLS}/request-header-ca.crt",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-username-headers": "X-Remote-User",
            "secure-port": "6443",
            "service-account-issuer": f"https://kubernetes.default.svc.{config.cluster_domain}",
            "service-account-key-file": f"{TLS}/service.key",
            "service-account-signing-key-file": f"{TLS}/service.key",
            "service-cluster-ip-range": config.service_cidr,
            "service-node-port-range": "30000-32767",
            "tls-cert-file": f"{TLS}/serving-kube-apiserver.crt",
            "tls-private-key-file": f"{TLS}/serving-kube-apiserver.key",
            "token-auth-file": f"{CRED}/passwd",
        },
        config.kube_apiserver_arg,
    )


def controller_manager(config: Config) -> list[str]:
    return command(
        "kube-controller-manager",
        {
            **LEADER_ELECTION,
            "allocate-node-cidrs": "true",
            "authentication-kubeconfig": f"{CRED}/controller.kubeconfig",
            "authorization-kubeconfig": f"{CRED}/controller.kubeconfig",
            "bind-address": "127.0.0.1",
            "cluster-cidr": config.cluster_cidr,
            "cluster-signing-cert-file": f"{TLS}/client-ca.crt",
            "cluster-signing-key-file": f"{TLS}/client-ca.key",
            "controllers": ",".join(CONTROLLERS.split()),
            # Without it a stopped controller manager, unlike a scheduler, keeps its lease.
            "feature-gates": "ControllerManagerReleaseLeaderElectionLockOnExit=true",
            "kubeconfig": f"{CRED}/controller.kubeconfig",
            "profiling": "false",
            "root-ca-file": f"{TLS}/server-ca.crt",
            "secure-port": "10257",
            "service-account-private-key-file": f"{TLS}/service.key",
            "service-cluster-ip-range": config.service_cidr,
            "tls-cert-file": f"{TLS}/kube-controller-manager/kube-controller-manager.crt",
            "tls-private-key-file": f"{TLS}/kube-controller-manager/kube-controller-manager.key",
            "use-service-account-credentials": "true",
        },
        config.kube_controller_manager_arg,
    )


def scheduler(config: Config) -> list[str]:
    return command(
        "kube-scheduler",
        {
            **LEADER_ELECTION,
            "authentication-kubeconfig": f"{CRED}/scheduler.kubeconfig",
            "authorization-kubeconfig": f"{CRED}/scheduler.kubeconfig",
            "bind-address": "127.0.0.1",
            "kubeconfig": f"{CRED}/scheduler.kubeconfig",
            "profiling": "false",
            "secure-port": "10259",
            "tls-cert-file": f"{TLS}/kube-scheduler/kube-scheduler.crt",
            "tls-private-key-file": f"{TLS}/kube-scheduler/kube-scheduler.key",
        },
        config.kube_scheduler_arg,
    )


def kubelet(config: Config) -> list[str]:
    labels = ["node.kubernetes.io/instance-type=k3s", *config.node_label]
    return command(
        "kubelet",
        {
            "config-dir": str(KUBELET_CONF_D),
            "hostname-override": config.node_name,
            "kubeconfig": f"{AGENT}/kubelet.kubeconfig",
            "node-ip": config.node_ip,
            "node-labels": ",".join(labels),
            "read-only-port": "0",
        },
        config.kubelet_arg,
    )


def kubelet_configuration(cluster: Cluster) -> str:
    """agent/etc/kubelet.conf.d/00-k3s-defaults.conf."""
    content = {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{AGENT}/client-ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "systemd",
        "clusterDNS": [cluster.cluster_dns],
        "clusterDomain": cluster.cluster_domain,
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "failSwapOn": False,
        "healthzBindAddress": "127.0.0.1",
        "resolvConf": str(RESOLV_CONF),
        "serializeImagePulls": False,
        "staticPodPath": f"{AGENT}/pod-manifests",
        "tlsCertFile": f"{AGENT}/serving-kubelet.crt",
        "tlsPrivateKeyFile": f"{AGENT}/serving-kubelet.key",
    }
    return json.dumps(content, indent=2) + "\n"


def kube_proxy(config: Config, cluster: Cluster) -> list[str]:
    return command(
        "kube-proxy",
        {
            "cluster-cidr": cluster.cluster_cidr,
            # The stand-in sets these sysctls itself, as K3s does.
            "conntrack-max-per-core": "0",
            "conntrack-tcp-timeout-close-wait": "0s",
            "conntrack-tcp-timeout-established": "0s",
            "healthz-bind-address": "127.0.0.1",
            "hostname-override": config.node_name,
            "kubeconfig": f"{AGENT}/kubeproxy.kubeconfig",
            "proxy-mode": "iptables",
        },
        config.kube_proxy_arg,
    )


def flanneld(config: Config) -> list[str]:
    options = {"kubeconfig": f"{AGENT}/k3scontroller.kubeconfig", "net-conf": str(NET_CONF), "node": config.node_name}
    return command("flanneld", {**options, **({"iface": config.flannel_iface} if config.flannel_iface else {})})


def net_conf(cluster: Cluster) -> str:
    content = {
        "Network": cluster.cluster_cidr,
        "EnableIPv6": False,
        "EnableIPv4": True,
        "IPv6Network": "::/0",
        "Backend": {"Type": cluster.flannel_backend},
    }
    return json.dumps(content, indent=2) + "\n"


def containerd() -> list[str]:
    return [
        "containerd", "-c", str(CONTAINERD_CONFIG), "-a", str(CONTAINERD_SOCKET),
        "--state", str(CONTAINERD_STATE), "--root", str(CONTAINERD),
    ]  # fmt: skip


def containerd_configuration(pause_image: str, flannel: bool) -> str:
    """K3s's text for containerd 1.7, which is what Debian has; K3s 1.36 itself renders version 3 for containerd 2.

    Without Flannel there is no section "cni": containerd's defaults then count, and K3s relies on that.
    """
    cni = f'[plugins."io.containerd.grpc.v1.cri".cni]\n  bin_dir = "{CNI_BIN}"\n  conf_dir = "{CNI_CONF}"\n\n'
    template = string.Template((STANDIN / "containerd.toml").read_text())
    return template.substitute(
        root=CONTAINERD, state=CONTAINERD_STATE, socket=CONTAINERD_SOCKET, pause=pause_image, cni=cni if flannel else ""
    )


def manifest(name: str, config: Config) -> str:
    template = string.Template((STANDIN / f"manifests/{name}.yaml").read_text())
    return template.substitute(dns=config.cluster_dns, domain=config.cluster_domain)


def kubeconfig(server: str, authority: Path, certificate: Path) -> str:
    """One that names files, as K3s's components have them."""
    return _kubeconfig(
        f"certificate-authority: {authority}",
        server,
        f"client-certificate: {certificate}.crt\n    client-key: {certificate}.key",
    )


def admin_kubeconfig(server: str, authority: Path, certificate: Path) -> str:
    """k3s.yaml, which may be carried away: everything is inside."""

    def content(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    return _kubeconfig(
        f"certificate-authority-data: {content(authority)}",
        server,
        f"client-certificate-data: {content(certificate.with_suffix('.crt'))}\n"
        f"    client-key-data: {content(certificate.with_suffix('.key'))}",
    )


def _kubeconfig(authority: str, server: str, user: str) -> str:
    return f"""\
apiVersion: v1
clusters:
- cluster:
    {authority}
    server: {server}
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
preferences: {{}}
users:
- name: default
  user:
    {user}
"""
