# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Does a file do under patterns what the network does that it was made from?

Searches follow the gradients of a network in torch; the file is what ships. What was found for each
class and in each space is tried on both, and the rates are compared. An INT8 file rounds its
activations as well, which moves single images near a border to and fro.
"""

from collections.abc import Iterator, Sequence

from lmr_guard.contracts import Labelled, Predictor
from lmr_guard.measure import carried
from lmr_guard.release.records import Check, Finding, Outcome
from lmr_guard.results import Promise

__all__ = ["APART", "agreement"]

APART = 0.1
"""What the rates may differ by in the mean over the patterns."""


def agreement(
    predictor: Predictor, report: Labelled, promises: Sequence[Promise]
) -> Iterator[Finding]:
    """INCOMPLETE where the rates are apart: what was searched is then not what would ship.

    Args:
        predictor: The file.
        report: Clean images, the same that the promises were counted on.
        promises: What patterns do to the network; without any nothing is found.
    """
    if not promises:
        return
    kept = [carried(predictor, report, promise.pattern) for promise in promises]
    apart = [abs(a.value - b.rate.value) for a, b in zip(kept, promises, strict=True)]
    mean, worst = sum(apart) / len(apart), max(range(len(apart)), key=lambda i: apart[i])
    pattern, promised = promises[worst].pattern, promises[worst].rate
    reason = (
        f"under {len(promises)} patterns of the search the rates of the file and of its network "
        f"are {mean:.1%} apart in the mean, limit {APART:.0%}; most under {pattern.name} to class "
        f"{pattern.target}: {kept[worst]}, the network {promised}"
    )
    outcome = Outcome.PASS if mean <= APART else Outcome.INCOMPLETE
    yield Finding(Check.AGREES, outcome, reason)
