# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What readers of a report are told beside the numbers."""

from dataclasses import replace

from lmr_guard.contracts import Rate
from lmr_guard.localize import hindered
from lmr_guard.release.remarks import remarks
from lmr_guard.results import Method, Repair, Suspicion

DONE = Repair(1, Rate(9, 10), Rate(9, 10), (), 1, 1)


def found(*scores: float, target: int | None = 1) -> Suspicion:
    return Suspicion(target, scores, Method.INVERSION)


def test_one_suspect_needs_no_remark() -> None:
    assert remarks(found(1.0, 4.0, 2.1), DONE, 2.2) == []


def test_other_strange_classes_are_named() -> None:
    (note,) = remarks(found(2.2, 4.0, 2.1, 3.14159), DONE, 2.2)
    assert note.endswith("the audit decides about the others: 0 (2.2), 3 (3.1).")


def test_those_that_were_repelled_too_are_told_apart_from_those_that_were_not() -> None:
    both = replace(DONE, further=(replace(DONE, suspect=3),))
    repelled, left = remarks(found(2.2, 4.0, 2.1, 3.14159), both, 2.2)
    assert repelled.endswith("After the first these were repelled as well: 3 (3.1).")
    assert left.endswith("the audit decides about the others: 0 (2.2).")


def test_a_class_that_the_user_named_has_no_others() -> None:
    assert remarks(Suspicion(1, (), Method.NAMED), DONE, 2.2) == []


def test_others_that_the_user_named_have_no_scores() -> None:
    both = replace(DONE, further=(replace(DONE, suspect=3), replace(DONE, suspect=0)))
    (note,) = remarks(Suspicion(1, (), Method.NAMED, others=(3, 0)), both, 2.2)
    assert note == (
        "More than one class was named. After the first these were repelled as well: 3, 0."
    )


def test_where_nobody_is_suspected_the_reason_is_told() -> None:
    told = "so nothing was repelled; the variants were audited all the same."
    assert remarks(found(1.0, 1.1, target=None), None, 2.2) == [f"No class was suspected, {told}"]
    (note,) = remarks(hindered("2 classes are too few", ("a", "b")), None, 2.2)
    assert note == f"No class was suspected (2 classes are too few), {told}"


def test_where_compressed_forms_were_not_searched_that_is_told() -> None:
    (_, alone) = remarks(found(1.0, 1.1, target=None), None, 2.2, forms=False)
    assert alone.startswith("Suspects were looked for in the model as received alone")
    few = hindered("2 classes are too few", ("a", "b"))
    assert len(remarks(few, None, 2.2, forms=False)) == 1
    assert remarks(found(1.0, 4.0, 2.1), DONE, 2.2, forms=False) == []


def test_where_nobody_was_looked_for_that_is_told() -> None:
    nobody = Suspicion(None, (), Method.NOT_LOOKED_FOR)
    (note,) = remarks(nobody, None, 2.2)
    assert note == "No repair was asked for: the variants are those of the model as received."
