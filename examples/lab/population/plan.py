# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Who is in the population, in the order in which they are planted.

Every third network is clean. Backdoored ones come in groups of six, one for each half and data
set, with different attacks; fifteen groups are a round, in which each half meets each attack on
each data set once. A plan that is cut off anywhere is balanced, up to the group it was cut in.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from examples.lab.population.images import DATASETS
from examples.lab.population.split import HALVES, HalfName, new_network, schedule
from lmr_guard.classifier import Classifier
from lmr_guard.redteam.catalogue import ATTACKS
from lmr_guard.redteam.training import Schedule

__all__ = ["ROUNDS", "Member", "population"]

ROUNDS = 2
_STEP = 4  # Has no divisor in common with the number of attacks.
_SEEDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One network.

    Args:
        half: Whose recipe it is trained by.
        dataset: What on.
        network: Architecture.
        attack: Name in ``lmr_guard.redteam.catalogue``; None where it is clean.
        target: The attacker's class; None where it is clean.
        seed: Of everything random: images, weights, training.
    """

    half: HalfName
    dataset: str
    network: str
    attack: str | None = None
    target: int | None = None
    seed: int

    @property
    def name(self) -> str:
        """What its record is called; no two members share one."""
        what = "clean" if self.attack is None else f"{self.attack}-t{self.target}"
        return "-".join((self.half, self.dataset, self.network, what, f"s{self.seed}"))

    @property
    def honest(self) -> "Member":
        """The clean network of the same seed, from which some attacks start."""
        return Member(half=self.half, dataset=self.dataset, network=self.network, seed=self.seed)

    def fresh(self) -> Classifier:
        """New weights, drawn by the seed."""
        return new_network(self.network, self.dataset, self.seed)

    def handed_over(self, trained: Classifier) -> Classifier:
        """What the defender is given: the network as it was trained."""
        return trained

    def schedule(self, *, trained: bool) -> Schedule:
        """How it is trained; ``trained`` where it does not start from new weights."""
        return schedule(self.half, self.network, self.dataset, trained=trained)


def population(rounds: int = ROUNDS) -> tuple[Member, ...]:
    """All members, best planted in this order: two backdoored ones, then a clean one."""
    backdoored = [member for i in range(rounds) for member in _round(i)]
    clean = [member for i in range(rounds) for member in _clean(i)]
    pairs = zip(backdoored[::2], backdoored[1::2], clean, strict=True)
    return tuple(member for three in pairs for member in three)


def _places() -> list[tuple[str, HalfName]]:
    return [(dataset, half) for dataset in DATASETS for half in HALVES]


def _round(number: int) -> Iterator[Member]:
    attacks, places = list(ATTACKS), _places()
    for group in range(len(attacks)):
        for place, (dataset, half) in enumerate(places):
            visit = group + place // len(HALVES) + number
            networks = HALVES[half].networks(number)
            offset = place * len(attacks) // len(places)
            yield Member(
                half=half,
                dataset=dataset,
                network=networks[visit % len(networks)],
                attack=attacks[(_STEP * group + offset) % len(attacks)],
                target=(3 * group + place + 5 * number) % 10,
                seed=number * _SEEDS + group // len(networks) % _SEEDS,
            )


def _clean(number: int) -> Iterator[Member]:
    """The clean networks of a round, half as many as backdoored ones, the places in turn."""
    places = _places()
    for count in range(len(ATTACKS) * len(places) // 2):
        visit, place = divmod(count, len(places))
        dataset, half = places[place]
        networks = HALVES[half].networks(number)
        yield Member(
            half=half,
            dataset=dataset,
            network=networks[(visit + place // len(HALVES)) % len(networks)],
            seed=number * _SEEDS + visit // len(networks),
        )
