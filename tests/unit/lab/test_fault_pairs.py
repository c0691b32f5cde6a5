"""Which faults the suite puts in together."""

from __future__ import annotations

from collections import Counter

import pytest

from lab import spec
from tests.faults import pairs

FAULTS = {
    "a": {"takes": ["ufw"]},
    "b": {"takes": ["ufw", "overlay"]},
    "c": {"takes": ["overlay"]},
    "d": {},
    "e": {"takes": ["api"]},
    "single": {"alone": True},
    "odd": {"healthy": True},
}


def test_what_takes_the_same_is_not_in_together_nor_is_what_has_to_be_alone():
    together = {frozenset(pair) for pair in pairs.possible(FAULTS)}
    assert together == {frozenset(pair) for pair in ("ac", "ad", "ae", "bd", "be", "cd", "ce", "de")}


def test_what_needs_the_api_goes_in_first():
    assert [pair[0] for pair in pairs.possible(FAULTS) if "e" in pair] == ["e"] * 4


def test_a_seed_gives_the_same_pairs_again_and_another_seed_others():
    faults = {name: {} for name in "abcdefghijkl"}
    chosen = pairs.choose(faults, 20, seed=1)
    assert chosen == pairs.choose(faults, 20, seed=1)
    assert set(chosen) != set(pairs.choose(faults, 20, seed=2))
    assert len(set(chosen)) == 20
    assert set(chosen) <= set(pairs.possible(faults))


def test_of_few_pairs_all_are_chosen():
    assert sorted(pairs.choose(FAULTS, 20, seed=1)) == sorted(pairs.possible(FAULTS))


@pytest.fixture
def by_lab():
    """The faults of each lab."""
    labs = {lab for fault in spec.faults().values() for lab in fault.get("labs", ["default"])}
    return [{n: f for n, f in spec.faults().items() if lab in f.get("labs", ["default"])} for lab in labs]


def test_faults_that_are_in_together_have_different_names(by_lab):
    for faults in by_lab:
        for pair in pairs.possible(faults):
            names = [faults[name].get("named", [name]) for name in pair]
            assert all(len(of_one) == 1 for of_one in names)
            assert names[0] != names[1]


def test_what_one_fault_takes_another_one_takes_too():
    taken = Counter(thing for fault in spec.faults().values() for thing in fault.get("takes", ()))
    assert {thing for thing, count in taken.items() if count < 2} == set(), "a thing that keeps nothing apart"
