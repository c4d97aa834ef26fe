# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Settings contradict themselves early, and give each stage a generator of its own."""

from dataclasses import replace

import pytest

from lmr_guard.compress import recipes
from lmr_guard.errors import ConfigError
from lmr_guard.release.policy import Policy
from lmr_guard.settings import Settings

PLAIN = Settings(
    repair=False, policy=Policy(require=("float32",)), recipes=recipes.parse(["float32"])
)


def test_a_required_variant_must_be_built() -> None:
    with pytest.raises(ConfigError, match="expected the policy to require variants that are buil"):
        replace(PLAIN, policy=Policy(require=("int8",)))


def test_a_variant_is_built_once() -> None:
    with pytest.raises(ConfigError, match=r"expected each variant once, got 'l1-0\.2' more than"):
        replace(PLAIN, recipes=recipes.parse(["float32", "l1-0.2", "l1-0.20"]))


def test_what_an_abstention_means_must_be_one_of_two() -> None:
    with pytest.raises(ConfigError, match="'repair-nothing' or 'refuse', got 'pass'"):
        replace(PLAIN, if_abstained="pass")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_a_seed_must_fit_every_generator(seed: int) -> None:
    with pytest.raises(ConfigError, match=r"expected a seed in 0\.\.4294967295, got"):
        replace(PLAIN, seed=seed)


def test_a_suspect_without_repair_is_a_contradiction() -> None:
    with pytest.raises(ConfigError, match="expected a suspect class or no repair, got both"):
        replace(PLAIN, suspect=1)


@pytest.mark.parametrize("twice", [(), (1, 1), (2, 1, 2)])
def test_each_suspect_is_named_once(twice: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"expected each suspect class once, got \("):
        Settings(suspect=twice)


@pytest.mark.parametrize(
    ("suspect", "named", "told"),
    [(None, (), None), (0, (0,), 0), ((2,), (2,), 2), ((2, 0), (2, 0), [2, 0])],
)
def test_one_suspect_or_several(
    suspect: int | tuple[int, ...] | None, named: tuple[int, ...], told: object
) -> None:
    settings = Settings(suspect=suspect)
    assert settings.suspects == named
    assert settings.to_json()["suspect"] == told


def test_every_use_has_randomness_of_its_own() -> None:
    uses = [
        ("split",),
        ("localize",),
        ("repel",),
        ("compress",),
        ("compress received",),
        ("repel", "l1-0.2"),
        ("repel", "l1-0.4"),
        ("compress", "l1-0.4"),
        ("compress received", "l1-0.4"),
        ("compress", "l1-0.4", "again"),
        ("listening",),
        ("target",),
    ]
    seeds = [
        replace(PLAIN, seed=seed).generator(*use).initial_seed() for seed in (7, 8) for use in uses
    ]
    assert len(set(seeds)) == 2 * len(uses)
    again = [replace(PLAIN, seed=7).generator(*use).initial_seed() for use in uses]
    assert again == seeds[: len(uses)]


def test_the_uses_of_the_stored_results_keep_their_seeds() -> None:
    stages = ("split", "localize", "repel")
    seeds = [replace(PLAIN, seed=7).generator(stage).initial_seed() for stage in stages]
    assert seeds == [35, 36, 37]
