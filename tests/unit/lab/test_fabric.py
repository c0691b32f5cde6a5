"""The words of a fault become rules of the gateway, by the NICs that lead to the nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import fabric, spec

LAB = spec.parse(None, Path("some.yml"))


def rules(words: str) -> list[str]:
    return list(fabric.rules(fabric.parse(words.split()), LAB))


def test_a_drop_for_all_is_between_all_private_nics():
    assert rules("drop udp/8472") == [
        'add rule inet fabric forward iifname "private-*" oifname "private-*" '
        'udp dport 8472 counter drop comment "drop udp/8472"'
    ]


def test_a_drop_for_a_pair_is_for_that_direction_alone():
    assert rules("drop proto/4 k3s-worker-01 k3s-master-01") == [
        'add rule inet fabric forward iifname "private-1" oifname "private-0" '
        'ip protocol 4 counter drop comment "drop proto/4 k3s-worker-01 k3s-master-01"'
    ]


def test_damage_is_a_wrong_checksum():
    assert rules("corrupt udp/8472") == [
        'add rule inet fabric forward iifname "private-*" oifname "private-*" '
        'udp dport 8472 counter udp checksum set 4660 comment "corrupt udp/8472"'
    ]


def test_icmp_is_dropped_where_the_gateway_sends_it_too():
    forward, output = rules("drop icmp/frag-needed any k3s-worker-02")
    match = "icmp type destination-unreachable icmp code frag-needed counter drop"
    comment = 'comment "drop icmp/frag-needed any k3s-worker-02"'
    assert forward == f'add rule inet fabric forward iifname "private-*" oifname "private-2" {match} {comment}'
    assert output == f'add rule inet fabric output oifname "private-2" {match} {comment}'


def test_loss_is_a_share_of_packets():
    assert "numgen random mod 10000 < 250 counter drop" in rules("loss 2.5%")[0]


@pytest.mark.parametrize("words", ["drop tcp/2379-2380", "drop icmp", "loss 10%", "mtu 1400 any a-node", "delay 50ms"])
def test_a_fault_is_read_back_from_its_own_words(words):
    assert str(fabric.parse(words.split())) == words


def test_any_for_both_is_the_fault_for_all():
    assert fabric.parse(["drop", "icmp", "any", "any"]) == fabric.parse(["drop", "icmp"])


@pytest.mark.parametrize(
    "words", ["drop", "drop udp", "drop udp/http", "drop icmp a", "loss 10", "mtu 9000", "burn all"]
)
def test_what_is_no_fault_is_refused(words):
    with pytest.raises(fabric.FabricError):
        fabric.parse(words.split())


def test_a_node_that_the_lab_lacks_is_named():
    with pytest.raises(spec.SpecError, match="lab default has no node k3s-worker-09"):
        rules("drop icmp k3s-worker-09 any")
