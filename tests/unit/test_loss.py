"""Intervals and leads against published figures, and on attempts made up from known rates."""

from __future__ import annotations

import random
from itertools import permutations
from typing import Callable

import pytest
from ansible.module_utils.netmend.loss import Label, Sample, Tally, chance, interval, leads, wilson


@pytest.mark.parametrize(
    ("attempts", "failed", "low", "high"),
    # R. G. Newcombe, Two-sided confidence intervals for the single proportion, Statistics in Medicine 17 (1998), 857
    [(263, 81, 0.2553, 0.3662), (148, 15, 0.0624, 0.1605), (20, 0, 0.0, 0.1611), (29, 1, 0.0061, 0.1718)],
)
def test_wilsons_interval(attempts: int, failed: int, low: float, high: float) -> None:
    assert wilson(Tally(attempts, failed)) == pytest.approx((low, high), abs=5e-5)
    passed = wilson(Tally(attempts, attempts - failed))
    assert passed == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_an_interval_in_words() -> None:
    assert interval(Tally(20, 4)) == "4 of 20 (20 %, 8.07 to 41.6 % with 95 % confidence)"


def test_chance_is_that_of_the_lady_tasting_tea() -> None:
    """Fisher, The Design of Experiments (1935): four cups of eight, three or four of them right."""
    assert chance(Tally(4, 3), Tally(4, 1)) == pytest.approx(17 / 70)
    assert chance(Tally(4, 4), Tally(4, 0)) == pytest.approx(1 / 70)
    assert chance(Tally(5, 0), Tally(9, 3)) == pytest.approx(1.0)
    assert chance(Tally(20000, 60), Tally(80000, 40)) < 1e-15


NODES = ("a", "b", "c", "d")


def attempted(rate: Callable[[str, str], float], attempts: int = 40, seed: int = 1) -> list[Sample]:
    """Attempts from every node to the one endpoint on every other, each of which fails at a rate."""
    dice = random.Random(seed)
    return [
        Sample(labels(source, target), Tally(attempts, sum(dice.random() < fails for _ in range(attempts))))
        for source, target in permutations(NODES, 2)
        for fails in [rate(source, target)]
    ]


def labels(source: str, target: str) -> frozenset[Label]:
    ends = [("node", source), ("node", target), ("from", source), ("to", target), ("pair", f"{source}>{target}")]
    return frozenset(ends)


@pytest.mark.parametrize(
    ("rate", "label"),
    [
        (lambda source, target: 0.4 * (source == "b"), ("from", "b")),
        (lambda source, target: 0.4 * (target == "b"), ("to", "b")),
        (lambda source, target: 0.4 * ("b" in (source, target)), ("node", "b")),
        (lambda source, target: 0.4 * ((source, target) == ("b", "c")), ("pair", "b>c")),
        (lambda source, target: 0.02 + 0.5 * (target == "b"), ("to", "b")),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_what_failures_keep_to_is_named_alone(rate: Callable[[str, str], float], label: Label, seed: int) -> None:
    found = leads(attempted(rate, seed=seed))
    assert [lead.label for lead in found] == [label]
    assert found[0].chance < 0.01


def test_failures_that_are_spread_keep_to_nothing() -> None:
    found = [leads(attempted(lambda source, target: 0.2, seed=seed)) for seed in range(100)]
    assert sum(map(bool, found)) <= 1  # one of a hundred is what BY_CHANCE allows


def test_labels_of_the_same_attempts_cannot_be_told_apart() -> None:
    samples = [Sample(each.labels | {("endpoint", f"on {target(each)}")}, each.tally) for each in attempted(to_b)]
    assert [lead.label for lead in leads(samples)] == [("endpoint", "on b"), ("to", "b")]


def to_b(source: str, target: str) -> float:
    return 0.4 * (target == "b")


def target(sample: Sample) -> str:
    return next(name for kind, name in sample.labels if kind == "to")


def test_too_few_attempts_tell_nothing() -> None:
    assert leads(attempted(to_b, attempts=1)) == []
    assert leads([]) == []
    assert leads([Sample(frozenset([("to", "b")]), Tally(6, 6))]) == []  # nothing to compare with
