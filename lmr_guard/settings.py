# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Everything that decides a run, beside its inputs."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, Self

import torch

from lmr_guard.arithmetic import lightened
from lmr_guard.budgets import BUDGETS, Budget
from lmr_guard.classifier import Classifier
from lmr_guard.compress import recipes
from lmr_guard.compress.recipes import Recipe, standard
from lmr_guard.contracts import Labelled
from lmr_guard.errors import ConfigError
from lmr_guard.localize import ListeningSettings, LocalizeSettings
from lmr_guard.release.policy import Policy
from lmr_guard.repel import RepelSettings

__all__ = ["Settings"]

_SEEDS = 1 << 32
# These keep the seeds that the stored results of the experiments were made with: ``5 seed + n``.
_NUMBERED: Mapping[tuple[str, ...], int] = MappingProxyType(
    {("split",): 0, ("localize",): 1, ("repel",): 2}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a model is guarded; every field has a default.

    Args:
        localize: How classes are suspected.
        repel: How the model is repaired.
        after_pruning: How each pruned form is repaired once more, as by ``repel.AFTER_PRUNING``;
            None leaves it as it was cut and refit.
        listening: How each artefact is searched for triggers that nobody has shown; None searches
            none.
        policy: What an artefact must show.
        recipes: The variants to build.
        suspect: The suspect class where the user knows it, or several, which are repelled one
            after the other; None looks for them.
        repair: False audits and gates the model as it is.
        if_abstained: Where no class was suspected: ``"repair-nothing"`` leaves the verdict to the
            audit, ``"refuse"`` makes every variant incomplete, so that nothing is published.
        classes: Class folder names in the model's order; None takes them sorted.
        repair_images: Size of the ``repair`` part; None takes 40 % of the images, at most 2000.
        select_images: Size of the ``select`` part; None takes 20 %, at most 500.
        compare: Whether the variants of the model as received are built and measured too, cut as
            other tools do it, without a refit.
        device: Where localize and repel compute, and cut networks learn: cpu or cuda.
        precision: ``"auto"`` lets localize, repel, the search of each artefact and the learning of
            cut networks compute in bfloat16 where processor, network and clean images allow it,
            see ``arithmetic``; ``"float32"`` never does. What is counted for a report is counted
            in float32 anyway.
        seed: Of everything random, in [0, 2**32); each use has a generator of its own.
        threads: Of ONNX Runtime; None leaves it the choice.

    Raises:
        ConfigError: The parts contradict each other, or a value is out of range.
    """

    localize: LocalizeSettings = field(default_factory=LocalizeSettings)
    repel: RepelSettings = field(default_factory=RepelSettings)
    after_pruning: RepelSettings | None = None
    listening: ListeningSettings | None = field(default_factory=ListeningSettings)
    policy: Policy = field(default_factory=Policy)
    recipes: tuple[Recipe, ...] = field(default_factory=standard)
    suspect: int | tuple[int, ...] | None = None
    repair: bool = True
    if_abstained: Literal["repair-nothing", "refuse"] = "repair-nothing"
    classes: tuple[str, ...] | None = None
    repair_images: int | None = None
    select_images: int | None = None
    compare: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["auto", "float32"] = "auto"
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        """Validates; see the class."""
        built = [recipe.label for recipe in self.recipes]
        twice = [label for label, count in Counter(built).items() if count > 1]
        if twice:
            raise ConfigError(f"expected each variant once, got {twice[0]!r} more than once")
        absent = [name for name in self.policy.require if name not in built]
        if absent:
            raise ConfigError(
                f"expected the policy to require variants that are built, got {absent[0]!r}; "
                f"built are {', '.join(built)}; build it too, or set require in the policy"
            )
        if self.suspect is not None and not self.repair:
            raise ConfigError("expected a suspect class or no repair, got both; leave one out")
        if self.suspect is not None and not 0 < len(self.suspects) == len(set(self.suspects)):
            raise ConfigError(f"expected each suspect class once, got {self.suspect!r}")
        if not 0 <= self.seed < _SEEDS:
            raise ConfigError(f"expected a seed in 0..{_SEEDS - 1}, got {self.seed}")
        if self.precision not in ("auto", "float32"):
            raise ConfigError(f"expected precision 'auto' or 'float32', got {self.precision!r}")
        if self.if_abstained not in ("repair-nothing", "refuse"):
            raise ConfigError(
                f"expected if_abstained 'repair-nothing' or 'refuse', got {self.if_abstained!r}"
            )

    def within(self, budget: Budget) -> Self:
        """The same settings with the searches of a budget; where no file was searched, none is.

        Raises ConfigError for a name that is none.
        """
        if budget not in BUDGETS:
            raise ConfigError(f"expected a budget of {', '.join(BUDGETS)}, got {budget!r}")
        chosen = BUDGETS[budget]
        listening = None if self.listening is None else chosen.listening
        return replace(self, localize=chosen.localize, listening=listening)

    @property
    def budget(self) -> Budget | None:
        """The budget whose searches these settings have; None where they have others."""
        return next((each for each in BUDGETS if self.within(each) == self), None)

    @property
    def suspects(self) -> tuple[int, ...]:
        """The classes that the user named; empty where they are looked for."""
        if self.suspect is None:
            return ()
        return (self.suspect,) if isinstance(self.suspect, int) else self.suspect

    @property
    def searches_rounded(self) -> bool:
        """Whether localize looks at rounded weights."""
        return self.localize.forms != "none" and any(recipe.int8 for recipe in self.recipes)

    @property
    def searched_ratios(self) -> list[float]:
        """How far the prunings are cut that localize looks at, ascending."""
        ratios = sorted({recipe.prune.ratio for recipe in self.recipes if recipe.prune})
        some = ratios[len(ratios) // 4 :: max(1, len(ratios) // 2)][:2]
        return {"none": [], "some": some, "all": ratios}[self.localize.forms]

    def working(self, classifier: Classifier, images: Labelled) -> Classifier:
        """A copy to compute on, on the device and in the precision of these settings.

        Args:
            classifier: Not touched.
            images: Clean images, on which the copy must answer as it does.
        """
        model = classifier.clone().to(self.device)
        return model if self.precision == "float32" else lightened(model, images)

    def generator(self, *use: str) -> torch.Generator:
        """A CPU generator of this seed, another one for each use.

        What one use draws does not depend on which others there are: a form comes out the same
        whichever forms are built beside it.

        Args:
            *use: What it is drawn for, from the stage to the form, e.g. ``"compress", "l1-0.4"``.
        """
        if use in _NUMBERED:
            return torch.Generator().manual_seed(5 * self.seed + _NUMBERED[use])
        digest = hashlib.sha256(repr((self.seed, *use)).encode()).digest()
        # torch takes 64 bits, of which the first is the sign.
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def to_json(self) -> dict[str, Any]:
        """What a report says of them; the policy stands beside, the images by their number."""
        return {
            "budget": self.budget,
            "localize": asdict(self.localize),
            "audit": None if self.listening is None else asdict(self.listening),
            "repel": asdict(self.repel),
            "after_pruning": None if self.after_pruning is None else asdict(self.after_pruning),
            "recipes": [recipes.to_json(recipe) for recipe in self.recipes],
            "suspect": list(named) if len(named := self.suspects) > 1 else next(iter(named), None),
            "repair": self.repair,
            "if_abstained": self.if_abstained,
            "compare": self.compare,
            "precision": self.precision,
            "seed": self.seed,
        }
