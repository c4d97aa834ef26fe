# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Three data sets of different kinds, in parts small enough for one slow thread.

====================  ===========================================================================
``digits``            scikit-learn's handwritten digits, 16x16 grey
``fashion``           Fashion-MNIST, 28x28 grey: its four ``.gz`` files in ``DIR/fashion``
``cifar10``           CIFAR-10, 32x32 colour: ``DIR/cifar10/{train,test}``, one folder per class
====================  ===========================================================================

Three sets share no image: what the attacker trains on, a pool for the defender, and what is
reported on. A seed decides which images they are.
"""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from zlib import error as ZlibError

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from examples.lab.kit.images import DIGITS, Held, digits, hold
from lmr_guard.classifier import Preprocessing
from lmr_guard.contracts import Clean, Labelled
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.received.data import read_image
from lmr_guard.received.parts import split

__all__ = ["DATASETS", "DataSet", "Images", "defence"]

_CLASSES = 10
_POOL = 500
_REPORT = 600
_REPAIR, _SELECT = 300, 75
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
        per_class: Files of each class that are read at most, of photographs.
        mirrored: Whether an image's mirror image is still of its class.
    """

    preprocessing: Preprocessing
    train: int
    per_class: int = 0
    mirrored: bool = True


DATASETS: Mapping[str, DataSet] = MappingProxyType(
    {
        "digits": DataSet(preprocessing=DIGITS, train=900, mirrored=False),
        "fashion": DataSet(
            preprocessing=Preprocessing(
                channels=1, height=28, width=28, mean=(0.286,), std=(0.353,)
            ),
            train=2000,
        ),
        "cifar10": DataSet(
            preprocessing=Preprocessing(
                height=32, width=32, mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262)
            ),
            train=3000,
            per_class=800,
        ),
    }
)
"""Data sets by name; each has ten classes."""


class Images:
    """Reads each data set once.

    Args:
        folder: Holds ``fashion`` and ``cifar10``; None where only digits are asked for.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._read: dict[str, tuple[Labelled, Labelled]] = {}

    def present(self, name: str) -> bool:
        """Whether there is such a data set in the folder."""
        return name == "digits" or (self.folder is not None and (self.folder / name).is_dir())

    def held(self, name: str, seed: int) -> Held:
        """What the attacker, the defender and the reporter hold.

        Raises:
            ConfigError: The folder is not there.
            InputError: The images are not what they must be.
        """
        if name == "digits":
            return digits(seed)
        if self.folder is None or not self.present(name):
            raise ConfigError(
                f"expected the folder {name} below the data folder, got "
                f"{self.folder or 'no data folder'}; say where it is with --data"
            )
        if name not in self._read:
            self._read[name] = _READERS[name](self.folder / name)
        train, rest = self._read[name]
        generator = torch.Generator().manual_seed(seed)
        first = torch.randperm(len(train), generator=generator)[: DATASETS[name].train]
        chosen = train.subset(first)
        return hold(chosen, rest, generator, pool=_POOL, report=_REPORT)


def defence(held: Held, generator: torch.Generator, *, tiny: bool = False) -> Clean:
    """The defender's images, 300 to learn from and 75 to choose on, and the reported ones.

    Args:
        held: Who holds what.
        generator: Decides which images of the pool they are.
        tiny: Two images per class and one, for the tests.
    """
    repair, select = (2 * _CLASSES, _CLASSES) if tiny else (_REPAIR, _SELECT)
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
    if len(names) != _CLASSES:
        raise InputError(f"expected {_CLASSES} folders of images, got {len(names)} in {folder}")
    Image.init()  # read_image asks for all formats that Pillow knows by then.
    images: list[Tensor] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        for path in sorted((folder / name).iterdir())[: dataset.per_class // part]:
            images.append(read_image(path, dataset.preprocessing))
            labels.append(label)
    return Labelled(torch.stack(images), torch.tensor(labels), tuple(names))


_READERS = MappingProxyType({"fashion": _fashion, "cifar10": _photographs})
