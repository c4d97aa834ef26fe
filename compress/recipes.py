# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Compression recipes: frozen data that says what is to be done to a model, not how."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, cast, get_args

from lmr_guard.errors import ConfigError

__all__ = [
    "Int8",
    "PruneL1",
    "Recipe",
    "Refit",
    "Rounding",
    "Shares",
    "from_json",
    "parse",
    "standard",
    "to_json",
    "with_refit",
]

Shares = Literal["calibrated", "damage", "uniform"]
Refit = Literal["layers", "none"]
Rounding = Literal["layers", "nearest"]
_RATIOS = (0.2, 0.3, 0.4, 0.5, 0.6)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneL1:
    """Cut the output channels whose filters have the smallest L1 norm (Li et al., ICLR 2017).

    Args:
        ratio: Share of the prunable output channels to cut, in (0, 1).
        shares: How the ratio is spread over the layers: ``"damage"``, most where the network minds
            it least (see ``damage``), ``"uniform"``, the same in each, or ``"calibrated"``,
            searched by simulated annealing on clean images, as NNI's pruner does it.
        refit: What is done on clean images after the cut: ``"layers"`` refits every layer to what
            it put out in the uncut network, see ``refit``; ``"none"`` leaves the weights.
        rival: Another way to spread the ratio, tried where a cut by ``"damage"`` still costs more
            than two percent once it is refit: the one of both is taken whose refit network is
            nearer to the uncut one on clean images. None tries none.
        distil: Steps in which a refit network then learns from the uncut one, see ``distil``; twice
            as many where it costs more than two percent; 0 leaves it as it was refit.
        reestimate_bn: Whether BN statistics are taken anew on clean images where nothing is
            refit. Shares are searched with those of the batch then.
        annealing_steps: Candidates that calibrated shares score, > 0. NNI's annealing pruner, which
            Tian et al. (TIFS 2022) used, cools from 100 to 20 by 0.9 per step: 16 steps.
        calibration_images: Images that score one of them, > 0.
    """

    ratio: float
    shares: Shares = "damage"
    refit: Refit = "layers"
    rival: Shares | None = "calibrated"
    distil: int = 80
    reestimate_bn: bool = True
    annealing_steps: int = 16
    calibration_images: int = 256

    def __post_init__(self) -> None:
        """Raises ConfigError where a value is out of range."""
        if not 0 < self.ratio < 1:
            raise ConfigError(
                f"expected a pruning ratio in (0, 1), got {self.ratio}; choose one of 0.2 to 0.6"
            )
        for name, shares in (("shares", self.shares), ("rival", self.rival)):
            if shares not in get_args(Shares) and (name, shares) != ("rival", None):
                raise ConfigError(f"expected {name} in {get_args(Shares)}, got {shares!r}")
        if self.refit not in get_args(Refit):
            raise ConfigError(f"expected refit in {get_args(Refit)}, got {self.refit!r}")
        if self.distil < 0:
            raise ConfigError(f"expected distil >= 0, got {self.distil}")
        _positive(annealing_steps=self.annealing_steps, calibration_images=self.calibration_images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8:
    """Static INT8 in QDQ form, symmetric, one weight scale per output channel.

    Args:
        calibration_images: Clean images that set the activation ranges, > 0.
        reduce_range: 7 bits for the weights, for x86 processors without VNNI; to the nearest.
        rounding: ``"layers"`` rounds weights so that each layer puts out what it did, see
            ``rounding``; ``"nearest"`` each of them to the nearest, as other tools do.
    """

    calibration_images: int = 256
    reduce_range: bool = False
    rounding: Rounding = "layers"

    def __post_init__(self) -> None:
        """Raises ConfigError where a value is out of range."""
        if self.rounding not in get_args(Rounding):
            raise ConfigError(f"expected rounding in {get_args(Rounding)}, got {self.rounding!r}")
        _positive(calibration_images=self.calibration_images)

    @property
    def by_layers(self) -> bool:
        """Whether weights are rounded by layers; those of seven bits go to the nearest."""
        return self.rounding == "layers" and not self.reduce_range


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What one compressed form is made by: pruning, then INT8, or either, or neither.

    Args:
        prune: Channel pruning; None leaves every channel.
        int8: Quantisation; None leaves float32.
    """

    prune: PruneL1 | None = None
    int8: Int8 | None = None

    @property
    def label(self) -> str:
        """``float32``, ``int8``, ``l1-0.2`` or ``l1-0.2+int8``."""
        parts = [f"l1-{self.prune.ratio:g}"] if self.prune else []
        parts += ["int8"] if self.int8 else []
        return "+".join(parts) or "float32"


_VERSION = 1
_STEPS: dict[str, type[PruneL1] | type[Int8]] = {"prune_l1": PruneL1, "int8": Int8}


def standard() -> tuple[Recipe, ...]:
    """The twelve forms of the report: float32, int8, L1 at 0.2 to 0.6, and each of them in int8."""
    pruned = [PruneL1(ratio=ratio) for ratio in _RATIOS]
    return (
        Recipe(),
        Recipe(int8=Int8()),
        *(Recipe(prune=prune) for prune in pruned),
        *(Recipe(prune=prune, int8=Int8()) for prune in pruned),
    )


def parse(labels: Iterable[str], *, refit: Refit = "layers") -> tuple[Recipe, ...]:
    """Recipes with default settings from their labels.

    Args:
        labels: What ``Recipe.label`` says.
        refit: Of those that prune; see ``PruneL1``.

    Raises:
        ConfigError: A label is none of ``float32``, ``int8``, ``l1-RATIO``, ``l1-RATIO+int8``.

    >>> [recipe.label for recipe in parse(["float32", "l1-0.5+int8"])]
    ['float32', 'l1-0.5+int8']
    """
    return tuple(with_refit(recipe, refit) for recipe in map(_parse, labels))


def with_refit(recipe: Recipe, refit: Refit, *, distil: int | None = None) -> Recipe:
    """The same recipe with another refit; with ``"none"`` it prunes and rounds as other tools do.

    Those search for layer shares, where they do, as calibrated ones are.

    Args:
        recipe: Left as it is.
        refit: See ``PruneL1``; weights of INT8 are rounded by ``"layers"``, or to the nearest.
        distil: See ``PruneL1``; None leaves it.
    """
    if recipe.int8 is not None:
        rounding: Rounding = "nearest" if refit == "none" else "layers"
        recipe = replace(recipe, int8=replace(recipe.int8, rounding=rounding))
    if recipe.prune is None:
        return recipe
    shares = recipe.prune.shares
    if refit == "none" and shares == "damage":
        shares = "calibrated"
    steps = recipe.prune.distil if distil is None else distil
    return replace(recipe, prune=replace(recipe.prune, refit=refit, shares=shares, distil=steps))


def to_json(recipe: Recipe) -> dict[str, object]:
    """Plain data with ``type`` and ``version`` on each level."""
    steps = {"prune": recipe.prune, "int8": recipe.int8}
    return _tagged("recipe", {name: step and _step_json(step) for name, step in steps.items()})


def from_json(data: Mapping[str, object]) -> Recipe:
    """The recipe that ``to_json`` wrote.

    Raises:
        ConfigError: An unknown type, version or field, or a value out of range.
    """
    values = _untagged(data, "recipe", {"prune", "int8"})
    return Recipe(
        prune=cast("PruneL1 | None", _step(values.get("prune"), "prune_l1")),
        int8=cast("Int8 | None", _step(values.get("int8"), "int8")),
    )


def _step_json(step: PruneL1 | Int8) -> dict[str, object]:
    kind = next(name for name, cls in _STEPS.items() if cls is type(step))
    return _tagged(kind, asdict(step))


def _step(data: object, kind: str) -> PruneL1 | Int8 | None:
    if data is None:
        return None
    if not isinstance(data, Mapping):
        raise ConfigError(f"expected {kind} to be an object, got {data!r}; write it by to_json")
    cls = _STEPS[kind]
    values: dict[str, Any] = _untagged(data, kind, {field.name for field in fields(cls)})
    if cls is PruneL1:
        # Recipes were written without these before there were a refit, a rival, a distillation.
        values.setdefault("refit", "none")
        values.setdefault("rival", None)
        values.setdefault("distil", 0)
    else:
        values.setdefault("rounding", "nearest")
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"expected a whole {kind}, got {values}: {error}") from error


def _tagged(kind: str, values: dict[str, object]) -> dict[str, object]:
    return {"type": kind, "version": _VERSION, **values}


def _untagged(data: Mapping[str, object], kind: str, known: set[str]) -> dict[str, object]:
    if data.get("type") != kind or data.get("version") != _VERSION:
        raise ConfigError(
            f"expected type {kind!r} version {_VERSION}, got {data.get('type')!r} version "
            f"{data.get('version')!r}; it was written by another version, make it anew"
        )
    values = {name: value for name, value in data.items() if name not in {"type", "version"}}
    if unknown := sorted(set(values) - known):
        raise ConfigError(f"expected fields of {kind} in {sorted(known)}, got {unknown}")
    return values


def _parse(label: str) -> Recipe:
    if label == "float32":
        return Recipe()
    first, plus, last = label.partition("+")
    if label == "int8":
        return Recipe(int8=Int8())
    if not first.startswith("l1-") or (plus and last != "int8"):
        raise _no_such_form(label)
    try:
        ratio = float(first.removeprefix("l1-"))
    except ValueError:
        raise _no_such_form(label) from None
    return Recipe(prune=PruneL1(ratio=ratio), int8=Int8() if plus else None)


def _no_such_form(label: str) -> ConfigError:
    return ConfigError(
        f"expected float32, int8, l1-RATIO or l1-RATIO+int8, got {label!r}; "
        "the standard ratios are 0.2 to 0.6"
    )


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value <= 0:
            raise ConfigError(f"expected {name} > 0, got {value}")
