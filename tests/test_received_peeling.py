# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What belongs to a network is told by its names alone."""

from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lmr_guard.errors import InputError
from lmr_guard.received.peeling import peeled, without_prefix

NAMES = ("conv.weight", "conv.bias", "head.weight", "head.bias")


def weights(*names: str) -> dict[str, Tensor]:
    return {name: torch.tensor(float(i)) for i, name in enumerate(names)}


@given(
    st.lists(st.sampled_from(["net", "module", "_orig_mod", "a b", ""]), max_size=4),
    st.lists(st.sampled_from(["loss.weight", "step", "ema"]), unique=True),
)
def test_any_prefix_is_peeled(prefix: list[str], more: list[str]) -> None:
    around = "".join(f"{part}." for part in prefix)
    found, left = peeled(weights(*(f"{around}{n}" for n in NAMES), *more), NAMES)
    if prefix:
        assert tuple(found) == NAMES
        assert left == tuple(more)
    else:
        assert tuple(found) == (*NAMES, *more)
        assert left == ()


def test_what_has_the_networks_own_names_is_left_as_it_is() -> None:
    held = weights("module.conv.weight", "module.head.weight", "scale")
    assert peeled(held, list(held)) == (held, ())


def test_a_name_that_a_wrapper_bears_too_stays_where_names_would_meet() -> None:
    held = weights("a.module.b", "a.b")
    assert peeled(held, ["x"]) == (held, ())


def test_another_network_is_left_as_it_is() -> None:
    held = weights("x.conv.weight", "y.1", "y.2")
    assert peeled(held, NAMES) == (held, ())


def test_two_whole_sets_are_refused() -> None:
    both = weights(*(f"{who}.{name}" for who in ("a", "b") for name in NAMES))
    with pytest.raises(InputError, match=r"got a\., b\., each with all that the network needs"):
        peeled(both, NAMES)


def test_versions_of_modules_go_with_their_names() -> None:
    held = OrderedDict(weights("module.conv._orig_mod.weight", "module.head.weight", "step"))
    versions = ("", "module", "module.conv", "module.conv._orig_mod", "module.head")
    held._metadata = {name: i for i, name in enumerate(versions)}  # type: ignore[attr-defined]
    found, _ = peeled(held, ["conv.weight", "head.weight"])
    assert (found._metadata["conv"], found._metadata["head"]) == (3, 4)  # type: ignore[attr-defined]
    assert not hasattr(without_prefix({"a.b": torch.ones(1)}, "a."), "_metadata")
