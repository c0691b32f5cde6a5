from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ansible.module_utils.netmend.parse import proc


@pytest.fixture
def node(fixtures: Path) -> Path:
    return fixtures / "k3s-1.36.3/both-overlays/server0"


def test_snmp_and_netstat(node: Path) -> None:
    counters = proc.snmp((node / "snmp.txt").read_text(), (node / "netstat.txt").read_text())
    assert counters["Ip"]["Forwarding"] == 1
    assert counters["Udp"]["InCsumErrors"] == 0
    assert "IPReversePathFilter" in counters["TcpExt"]
    assert counters["Tcp"]["MaxConn"] == -1


def test_snmp_that_does_not_match_is_refused() -> None:
    with pytest.raises(ValueError, match="Udp"):
        proc.snmp("Udp: InDatagrams NoPorts\nUdp: 1\n")


def test_conntrack_sums_over_cpus() -> None:
    text = "entries  clashres found insert_failed drop\n0000000f 00000000 00000001 0000000a 00000002\n" * 1
    text += "0000000f 00000000 00000001 00000006 00000000\n"
    assert proc.conntrack(text) == {"clashres": 0, "found": 2, "insert_failed": 16, "drop": 2}
    assert proc.conntrack("") == {}


def test_sockets(node: Path) -> None:
    sockets = proc.sockets((node / "ss.txt").read_text())
    listening = {(s["protocol"], s["address"], s["port"]): s["process"] for s in sockets}
    assert listening["udp", "0.0.0.0", 8472] == ""
    assert listening["tcp", "::", 6443] == "k3s"
    assert listening["tcp", "10.0.0.100", 2379] == "k3s"
    assert proc.sockets("udp UNCONN 0 0 [fe80::1]%eth0:546 [::]:*\n")[0]["address"] == "fe80::1"
    assert (
        proc.sockets('udp UNCONN 0 0 127.0.0.53%lo:53 0.0.0.0:* users:(("r",pid=1,fd=3))')[0]["address"] == "127.0.0.53"
    )


TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 0502010A:A2C4 0A00000A:1538 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 20 4 30 10 -1
"""
TABLE6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue
   0: 00000000000000000000000000000000:0BB8 00000000000000000000000000000000:0000 0A 00000000:00000000
   1: 00000000000000000000000001000000:0BB9 00000000000000000000000000000000:0000 0A 00000000:00000000
"""


@pytest.mark.skipif(sys.byteorder != "little", reason="the tables were written by a little-endian machine")
def test_what_listens_in_a_network_namespace() -> None:
    assert proc.listening(TABLE) == ["127.0.0.1:8080", "0.0.0.0:80"]
    assert proc.listening(TABLE6) == ["[::]:3000", "[::1]:3001"]


# 10.42.0.5 listens at 80 and at 3000 of both families, and asks 10.43.0.10:53.
CONNECTED = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 05002A0A:0050 6E00000A:C000 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1
   2: 05002A0A:0050 6F00000A:C001 04 00000400:00000000 00:00000000 00000000     0        0 3 1 0 20 4 30 10 -1
   3: 05002A0A:0050 6F00000A:C002 06 00000000:00000000 03:000017A8 00000000     0        0 0 3 0
   4: 0100007F:0050 0100007F:C003 01 00000000:00000000 00:00000000 00000000     0        0 4 1 0 20 4 30 10 -1
   5: 05002A0A:C004 0A002B0A:0035 01 00000000:00000000 00:00000000 00000000     0        0 5 1 0 20 4 30 10 -1
"""
CONNECTED6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue
   0: 00000000000000000000000000000000:0BB8 00000000000000000000000000000000:0000 0A 00000000:00000000
   1: 0000000000000000FFFF000005002A0A:0BB8 0000000000000000FFFF00006E00000A:C005 01 00000000:00000000
   2: 0000000000000000FFFF00000100007F:0BB8 0000000000000000FFFF00000100007F:C006 01 00000000:00000000
"""


@pytest.mark.skipif(sys.byteorder != "little", reason="the tables were written by a little-endian machine")
def test_connections_that_others_have_to_a_pod() -> None:
    assert proc.incoming(CONNECTED) == 2  # one stands, one still sends; not what is over, loopback's and the pod's own
    assert proc.incoming(CONNECTED, CONNECTED6) == 3
    assert proc.incoming(TABLE, TABLE6) == 0


def test_bgp() -> None:
    text = (
        "ESTAB    0      0      10.0.0.110:179   10.0.0.111:41240\n"
        "SYN-SENT 0      1      10.0.0.110:38394 10.0.0.100:179  \n"
    )
    assert proc.bgp(text) == [
        {"own": "10.0.0.110", "peer": "10.0.0.111", "state": "ESTAB"},
        {"own": "10.0.0.110", "peer": "10.0.0.100", "state": "SYN-SENT"},
    ]
    assert proc.bgp("") == []
    with pytest.raises(ValueError, match="line 1"):
        proc.bgp("ESTAB 0 0 10.0.0.110:179\n")


def test_ipsets(node: Path) -> None:
    sets = proc.ipsets((node / "ipset.txt").read_text())
    assert sorted(sets["cali40all-hosts-net"]) == ["10.0.0.100", "10.0.0.110", "10.0.0.111"]
    assert sets["cali40dscp-src-net"] == []
    assert proc.ipsets("create a hash:ip timeout 9\nadd a 10.0.0.1 timeout 5\n") == {"a": ["10.0.0.1"]}


UID = "b129d998-febc-4b7c-b78d-9e6656ffaa25"
SLICE = UID.replace("-", "_")


@pytest.mark.parametrize(
    ("cgroup", "uid"),
    [
        (
            f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SLICE}.slice/cri-containerd-0a.scope",
            UID,
        ),
        (f"0::/kubepods.slice/kubepods-pod{SLICE}.slice/cri-containerd-0a.scope", UID),
        (f"0::/kubepods/burstable/pod{UID}/0a1b", UID),
        (f"4:memory:/kubepods/pod{UID}/0a\n1:name=systemd:/kubepods/pod{UID}/0a\n", UID),
        ("0::/kubepods/podb129d998febc4b7cb78d9e6656ffaa25/0a", "b129d998febc4b7cb78d9e6656ffaa25"),
        ("0::/system.slice/k3s.service", ""),
        (f"0::/user.slice/pod{UID}", ""),
    ],
)
def test_pod_uid(cgroup: str, uid: str) -> None:
    assert proc.pod_uid(cgroup) == uid
