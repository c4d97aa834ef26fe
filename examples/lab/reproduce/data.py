# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The paper's data sets from the user's folders, and the digits that stand in for them.

Three sets that share no image: what the attacker trains on, a pool that defence images are drawn
from, and what is reported on. The last two are parts of the held-out images: a defender has not
got the attacker's training images. (Of the paper's defence images one source says that they come
from the test set, another from the training set.) Shares are relative to the training set, as in
the paper: 1 % of CIFAR-10 are 500 images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch

from examples.lab.kit.images import DIGITS, Held, digits, hold
from lmr_guard.classifier import Preprocessing
from lmr_guard.contracts import Clean, Labelled, Progress, silent
from lmr_guard.errors import ConfigError
from lmr_guard.received.data import read_folder
from lmr_guard.received.parts import split

__all__ = ["DATASETS", "DataSet", "Reader", "Scale", "defence"]

Scale = Literal["small", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """One data set as this experiment uses it.

    Args:
        preprocessing: Size and normalisation that networks see.
        classes: K.
        folders: Of training and of held-out images below the data folder, one folder of images per
            class in each; None for the digits, which come with scikit-learn.
        pool: Share of the held-out images that defence images are drawn from; of digits a half.
        shift: Largest random translation in training, in pixels.
        flip: Whether images are mirrored at random in training.
    """

    preprocessing: Preprocessing
    classes: int
    folders: tuple[str, str] | None = None
    pool: float = 0.3
    shift: int = 4
    flip: bool = True

    def present(self, folder: Path | None) -> bool:
        """Whether its images can be had, ``folder`` being the data folder."""
        if self.folders is None:
            return True
        return folder is not None and all((folder / name).is_dir() for name in self.folders)


def _photographs(
    side: int, classes: int, *folders: str, resize: int | None = None, pool: float = 0.3
) -> DataSet:
    first, second = folders
    return DataSet(
        preprocessing=Preprocessing(
            height=side,
            width=side,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            resize=resize,
        ),
        classes=classes,
        folders=(first, second),
        pool=pool,
        shift=side // 8,
    )


DATASETS: Mapping[str, DataSet] = MappingProxyType(
    {
        "digits": DataSet(
            preprocessing=DIGITS,
            classes=10,
            shift=1,
            flip=False,
        ),
        "cifar10": _photographs(32, 10, "cifar10/train", "cifar10/test"),
        "tiny100": _photographs(64, 100, "tiny100/train", "tiny100/val"),
        "imagenet12": _photographs(
            224, 12, "imagenet12/train", "imagenet12/val", resize=256, pool=0.4
        ),
    }
)
"""Data sets by name; ``digits`` are scikit-learn's."""


class Reader:
    """Reads each data set once.

    Args:
        folder: Data folder; see ``DataSet.folders``.
        progress: Told while images are read.
    """

    def __init__(self, folder: Path | None, progress: Progress = silent) -> None:
        self.folder = folder
        self._progress = progress
        self._read: dict[str, tuple[Labelled, Labelled]] = {}

    def held(self, name: str, seed: int) -> Held:
        """The three sets; ``seed`` divides the held-out images, and of digits all of them.

        Raises:
            ConfigError: There is no such folder.
            InputError: The images are not what they must be.
        """
        dataset = DATASETS[name]
        if dataset.folders is None:
            return digits(seed)
        train, rest = self._folders(name, dataset)
        generator = torch.Generator().manual_seed(seed)
        return hold(train, rest, generator, pool=round(dataset.pool * len(rest)))

    def _folders(self, name: str, dataset: DataSet) -> tuple[Labelled, Labelled]:
        if name in self._read:
            return self._read[name]
        if self.folder is None or dataset.folders is None or not dataset.present(self.folder):
            raise ConfigError(
                f"expected the folders {' and '.join(dataset.folders or ())} for {name}, got "
                f"{self.folder or 'no data folder'}; say where they are with --data"
            )
        shape, classes = dataset.preprocessing, dataset.classes
        first, second = (
            read_folder(
                self.folder / part, shape, expected_classes=classes, progress=self._progress
            )
            for part in dataset.folders
        )
        self._read[name] = first, second
        return self._read[name]


def defence(held: Held, share: float, generator: torch.Generator) -> Clean:
    """The defender's images, and what numbers are reported on.

    Four fifths are to learn from and a fifth to choose on. Where a fifth is less than one image per
    class, everything is both: the paper's smallest set is one image per class.

    Args:
        held: Who holds what.
        share: Number of defence images as a share of the training set.
        generator: Decides which images of the pool they are.

    Raises:
        ConfigError: Fewer images than classes, or more than the pool has.
    """
    count, classes = round(share * len(held.train)), len(held.pool.classes)
    if not classes <= count <= len(held.pool) - 2 * classes:
        raise ConfigError(
            f"expected {classes} to {len(held.pool) - 2 * classes} defence images, got {count} "
            f"({share:g} of {len(held.train)})"
        )
    select = count // 5
    if select < classes:
        drawn = split(held.pool, repair=count, select=classes, generator=generator)
        return Clean(drawn.repair, drawn.repair, held.report)
    drawn = split(held.pool, repair=count - select, select=select, generator=generator)
    return Clean(drawn.repair, drawn.select, held.report)
