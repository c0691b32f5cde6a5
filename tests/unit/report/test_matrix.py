"""What fails, in few sentences that leave no path out."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from ansible.module_utils.netmend.report.matrix import Star, failing, losses, named, sentences, stars
from ansible.module_utils.netmend.report.topology import picture

from tests.unit.report import sample

WEB = "keybuzz/web"
NODES = ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], []),
        ([("a", "b")], [Star("a", True, ["b"])]),
        ([("a", "d"), ("b", "d"), ("c", "d")], [Star("d", False, ["a", "b", "c"])]),
        (
            [("a", "b"), ("a", "c"), ("b", "a"), ("c", "a")],
            [Star("a", True, ["b", "c"]), Star("a", False, ["b", "c"])],
        ),
    ],
)
def test_stars(pairs: list[tuple[str, str]], expected: list[Star]) -> None:
    assert stars(pairs) == expected


@pytest.mark.parametrize("left_out", range(0, 12, 3))
def test_every_path_is_in_one_star(left_out: int) -> None:
    pairs = list(itertools.permutations(NODES, 2))[left_out:]
    told = [
        (star.node, other) if star.outwards else (other, star.node) for star in stars(pairs) for other in star.others
    ]
    assert sorted(told) == sorted(pairs)


def everything(probe: Any) -> str:
    return "timeout" if probe["row"] == "pod-pod" and probe["source_node"] != probe["target_node"] else ""


def test_sentences() -> None:
    one = sample.measured(3, sample.overlay_to("k3s-worker-002"))["matrix"]
    assert sentences(one, "host-host") == []
    assert sentences(one, "pod-pod") == [
        "k3s-worker-002 to k3s-master-01, k3s-worker-001: timeout (tcp/8080, mtu)",
        "k3s-master-01, k3s-worker-001 to k3s-worker-002: timeout (tcp/8080, mtu)",
    ]
    every = sample.measured(9, everything)["matrix"]
    assert sentences(every, "pod-pod", most=2) == [
        "each of k3s-master-01, k3s-master-02 and 7 more to each other: timeout (tcp/8080, mtu)"
    ]


def test_what_is_lost_is_told_with_its_interval_the_surest_first() -> None:
    matrix = sample.lossy(3)["now"]["matrix"]
    told = losses(matrix)
    assert told[0] == (
        "pod-pod k3s-worker-002 to k3s-master-01 (tcp/8080): 4 of 20 (20 %, 8.07 to 41.6 % with 95 % confidence)"
    )
    assert [path.partition(" (")[0] for path in told[4:]] == [
        f"pod-clusterip k3s-worker-001 to {service}" for service in ("default/kubernetes", "kube-system/kube-dns", WEB)
    ]
    assert losses(matrix, most=2) == [*told[:2], "and 5 more of the kind"]
    assert losses(sample.measured(3)["matrix"]) == []


def test_names() -> None:
    assert named(["a", "b", "c"], 2) == "a, b, c"
    assert named(["a", "b", "c", "d"], 2) == "a, b and 2 more"


# --- the picture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 8, 12, 13, 60, 200])
def test_boxes_stand_inside_and_apart(count: int) -> None:
    whole = sample.healthy(count) if count < 60 else sample.whole(sample.measured(3), None, count)
    it = picture(whole["nodes"], whole["now"]["matrix"])
    assert len(it.boxes) == count
    for box in it.boxes:
        assert it.box_width / 2 <= box.x <= it.width - it.box_width / 2
        assert it.box_height / 2 <= box.y <= it.height - it.box_height / 2
    for one, other in itertools.combinations(it.boxes, 2):
        assert abs(one.x - other.x) >= it.box_width or abs(one.y - other.y) >= it.box_height
    assert not any(link.kind for link in it.links)


def test_lines_say_which_way_and_on_which_layer_it_fails() -> None:
    def fails(probe: Any) -> str:
        ends = probe["source_node"], probe.get("target_node")
        if probe["row"] == "pod-pod" and set(ends) == {"k3s-worker-001", "k3s-worker-002"}:
            return "timeout"
        both = probe["row"] in ("host-host", "node-nodeport")
        return "timeout" if both and ends == ("k3s-worker-002", "k3s-master-01") else ""

    whole = sample.sick(3, fails)
    it = picture(whole["nodes"], whole["now"]["matrix"])
    assert {(link.kind, link.label, link.both, link.title) for link in it.links if link.kind} == {
        ("pods", "pods", True, "k3s-worker-001 to k3s-worker-002, and back, fails: pods"),
        ("hosts", "hosts, NodePort", False, "k3s-worker-002 to k3s-master-01, fails: hosts, NodePort"),
    }
    master, second = it.boxes[0], it.boxes[2]
    (arrow,) = (link for link in it.links if link.kind == "hosts")
    assert abs(arrow.x2 - master.x) < abs(arrow.x1 - master.x)
    assert abs(arrow.x1 - second.x) < abs(arrow.x2 - second.x)


def test_a_node_that_fails_with_many_is_marked_instead_of_drawing_each() -> None:
    whole = sample.mended(60, "k3s-worker-040")
    it = picture(whole["nodes"], whole["before"]["matrix"])
    assert [(box.member["name"], box.label) for box in it.boxes if box.state == "hub"] == [("k3s-worker-040", "040")]
    assert (it.links, it.left_out) == ([], 0)
    assert {box.state for box in it.boxes} == {"hub", "ok"}


@pytest.mark.parametrize("count", [3, 30])
def test_long_names_are_shortened_to_what_tells_them_apart(count: int) -> None:
    whole = sample.healthy(count)
    for number, node in enumerate(whole["nodes"]):
        node["name"] = f"{'abcdefgh'[number % 8]}-{'long' * 12}-{number:04}"
    it = picture(whole["nodes"], whole["now"]["matrix"])
    labels = [box.label for box in it.boxes]
    assert len(set(labels)) == count
    assert max(map(len, labels)) <= 20


def test_nodes_that_do_not_answer_are_seen() -> None:
    whole = sample.healthy(3)
    whole["nodes"][1]["ready"] = False
    whole["nodes"].append({"name": "lost", "role": "", "address": "", "ready": False, "asked": False})
    states = {box.member["name"]: box.state for box in picture(whole["nodes"], whole["now"]["matrix"]).boxes}
    assert states == {"k3s-master-01": "ok", "k3s-worker-001": "down", "k3s-worker-002": "ok", "lost": "down"}


def test_what_fails_to_services_is_noted_at_the_source() -> None:
    whole = sample.sick(3, lambda probe: "timeout" if probe["row"] == "pod-dns" else "")
    it = picture(whole["nodes"], whole["now"]["matrix"])
    assert [box.notes for box in it.boxes] == [["DNS"]] * 3
    assert failing(whole["now"]["matrix"], "pod-dns")
