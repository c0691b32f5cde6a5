"""What repeated attempts tell: how much of them fails, and whether the failures keep to something. Pure.

An attempt fails or it does not, so that counts are binomial. Nothing here knows what was attempted.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Dict, FrozenSet, Iterable, List, NamedTuple, Sequence, Tuple

Label = Tuple[str, str]  # kind and name: ("from", "agent0"), ("endpoint", "10.42.1.5")

BY_CHANCE = 0.01  # what is less probable is not taken for chance
AS_LIKELY = math.log(20)  # explanations whose likelihoods differ by less cannot be told apart

_Z = 1.959964  # standard deviations to either side that hold 95 % of a normal distribution


class Tally(NamedTuple):
    attempts: int
    failed: int

    @property
    def rate(self) -> float:
        return self.failed / self.attempts if self.attempts else 0.0

    def plus(self, other: Tally) -> Tally:
        return Tally(self.attempts + other.attempts, self.failed + other.failed)

    def without(self, other: Tally) -> Tally:
        return Tally(self.attempts - other.attempts, self.failed - other.failed)

    def __str__(self) -> str:
        return f"{self.failed} of {self.attempts}"


class Sample(NamedTuple):
    """Attempts that are alike in all that they are labelled with."""

    labels: FrozenSet[Label]
    tally: Tally


class Lead(NamedTuple):
    """Something that failures keep to."""

    label: Label
    inside: Tally
    outside: Tally
    chance: float  # of failures that keep to any label that much, though they are spread at random
    likelihood: float  # logarithm of the probability of what was seen, with one rate inside and one outside


def total(tallies: Iterable[Tally]) -> Tally:
    return reduce(Tally.plus, tallies, Tally(0, 0))


def wilson(tally: Tally) -> Tuple[float, float]:
    """Between which rates the true one is, with 95 % confidence; of at least one attempt.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, J. Am. Stat. Assoc. 22 (1927),
    209-212. It holds for few attempts, and where none or all failed.
    """
    share = _Z * _Z / tally.attempts
    middle = tally.rate + share / 2
    half = math.sqrt(tally.rate * (1 - tally.rate) * share + share * share / 4)
    return max(0.0, (middle - half) / (1 + share)), min(1.0, (middle + half) / (1 + share))


def interval(tally: Tally) -> str:
    """ "4 of 20 (20 %, 8.1 to 41.6 % with 95 % confidence)"."""
    low, high = wilson(tally)
    return f"{tally} ({100 * tally.rate:.3g} %, {100 * low:.3g} to {100 * high:.3g} % with 95 % confidence)"


def chance(inside: Tally, outside: Tally) -> float:
    """The probability that so many failures or more are inside, if they are spread over all attempts at random.

    R. A. Fisher's exact test, one-sided (J. Royal Stat. Soc. 85 (1922), 87-94): no approximation that needs many.
    """
    attempts, failed = inside.plus(outside)
    most = min(inside.attempts, failed)
    ways = _choose(attempts, failed)
    return min(
        1.0,
        sum(
            math.exp(_choose(inside.attempts, here) + _choose(outside.attempts, failed - here) - ways)
            for here in range(inside.failed, most + 1)
            if failed - here <= outside.attempts
        ),
    )


def leads(samples: Sequence[Sample]) -> List[Lead]:
    """What the failures keep to, and not by chance; the likeliest first, with those that are about as likely as it.

    A chance is multiplied by the number of labels that were looked at (Bonferroni): among many, one always stands out.
    Which of several labels it is, their likelihoods say: one that holds passing attempts too explains less.
    """
    everything = total(sample.tally for sample in samples)
    inside: Dict[Label, Tally] = {}
    for sample in samples:
        for label in sample.labels:
            inside[label] = inside[label].plus(sample.tally) if label in inside else sample.tally
    found = []
    for label, tally in inside.items():
        outside = everything.without(tally)
        if tally.rate > outside.rate and outside.attempts:
            likelihood = _likelihood(tally) + _likelihood(outside)
            found.append(Lead(label, tally, outside, min(1.0, len(inside) * chance(tally, outside)), likelihood))
    kept = sorted((lead for lead in found if lead.chance < BY_CHANCE), key=lambda lead: (-lead.likelihood, lead.label))
    return [lead for lead in kept if kept[0].likelihood - lead.likelihood < AS_LIKELY]


def _likelihood(tally: Tally) -> float:
    """Logarithm of the probability of these outcomes at the rate that makes it largest."""
    counts = (tally.failed, tally.attempts - tally.failed)
    return sum(count * math.log(count / tally.attempts) for count in counts if count)


def _choose(of: int, these: int) -> float:
    """Logarithm of the binomial coefficient."""
    return math.lgamma(of + 1) - math.lgamma(these + 1) - math.lgamma(of - these + 1)
