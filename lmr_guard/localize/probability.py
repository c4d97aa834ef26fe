# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How likely it is that a score tells of a backdoor, as far as networks of known kind can say.

A logistic function of the logarithm of the score, fit to the leading class of 114 networks, 47 of
them honest, of which each half weighs the same:

``p(s) = sigmoid(OFFSET + SLOPE ln s)``

So it is meant for a model of which one would bet either way. Whoever holds one model in a hundred
to be backdoored multiplies the odds, ``p / (1 - p)``, by 1 / 99. A low one does not say that there
is no backdoor: of those that no search hears it knows nothing. ``python -m
examples.lab.population probability`` fits it, and tells how often it was right on networks that
it was not fit to.
"""

from math import exp, inf, log

__all__ = ["CERTAIN", "OFFSET", "SLOPE", "probability"]

OFFSET = -5.96
SLOPE = 8.16
"""Of the fit."""
CERTAIN = 0.98
"""No more is told, nor less than what is left to one: of 47 honest networks none can be rarer."""


def probability(score: float) -> float:
    """That the class which stands out most is an attacker's, where every second model has one.

    Args:
        score: Of that class, >= 1; see ``rule``.

    >>> [round(probability(score), 2) for score in (1.0, 1.8, 2.0, 2.5, 4.0)]
    [0.02, 0.24, 0.42, 0.82, 0.98]
    """
    against = OFFSET + SLOPE * log(score) if score < inf else inf
    return min(max(1 / (1 + exp(-against)), 1 - CERTAIN), CERTAIN)
