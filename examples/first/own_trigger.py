# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Audit with a trigger of your own: anything that makes triggered images of clean ones.

::

    python -m examples.first.own_trigger --out own-trigger

A bright frame is no backdoor of the network here, a white patch is one: the audit tells them apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from examples.hooks.situation import PREPROCESSING, TRIGGER, situation
from lmr_guard.contracts import Labelled, Source
from lmr_guard.hooks import verify_model
from lmr_guard.release.records import Variant


@dataclass(frozen=True)
class Frame:
    """A frame of one pixel around each image.

    Args:
        value: Its brightness, in [0, 1].
        target: The attacker's class; None takes the one most hit.
    """

    value: float = 0.5
    target: int | None = None
    name: str = "frame"
    source: Source = "given"

    def batches(self, clean: Labelled, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Framed copies with their true labels."""
        for pixels, labels in clean.batches(size):
            framed = pixels.clone()
            framed[..., [0, -1], :] = self.value
            framed[..., :, [0, -1]] = self.value
            yield framed, labels


def main(arguments: list[str] | None = None) -> Variant:
    """Audit the network as received with both; returns what was measured."""
    given = situation(arguments, __doc__)
    measured = verify_model(
        given.network,
        clean=given.clean,
        triggers=[Frame(), TRIGGER],
        preprocessing=PREPROCESSING,
    )
    for found in measured.triggers:
        print(f"{found.name} into {found.target}: ASR {found.asr}")
    return measured


if __name__ == "__main__":
    main()
