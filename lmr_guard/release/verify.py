# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Measures a staged file and judges what was found by a policy. Fails closed.

Every check yields a ``Finding``; none raises. A verdict is as bad as its worst finding, and
whatever was not or hardly tried is INCOMPLETE:

=====================  ==========================================================  ==========
check                  what it looks at                                            else
=====================  ==========================================================  ==========
``digest``             the bytes measured are the bytes staged, all in one file    FAIL, INC.
``provider``           ONNX Runtime ran where it was asked to                      INCOMPLETE
``graph``              only what exporters write for feed-forward classifiers      INCOMPLETE
``deterministic``      the same images give the same logits twice                  INCOMPLETE
``independent``        each image gets its answer whatever else is in the batch    INCOMPLETE
``logits``             outputs are finite; of probabilities a single one leads     INCOMPLETE
``achieved``           compression removed what was asked for                      INCOMPLETE
``trials``             enough clean images                                         INCOMPLETE
``accuracy``           CA against the model as received, on the same images        FAIL
``triggers``           there is any evidence about triggers                        INCOMPLETE
``trials:TRIGGER``     enough triggered images of other classes                    INCOMPLETE
``asr:TRIGGER``        ASR; see ``Policy.max_asr``                                 FAIL, INC.
``elsewhere:TRIGGER``  no other class gains by the trigger, and most keep theirs   FAIL, INC.
``excess:TRIGGER``     inverted triggers; see ``Policy.max_excess``                FAIL, INC.
``listens``            a search on the artefact itself; ``Policy.max_strangeness``  FAIL, INC.
``agrees``             patterns of that search do to the file what they do to its   INCOMPLETE
                       network
``chance``             no weak random pattern carries all to one class; ``chance``  FAIL, INC.
``suspect``            set by ``pipeline``: nobody was suspected, the run refuses  INCOMPLETE
=====================  ==========================================================  ==========
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lmr_guard.contracts import Labelled, Progress, Rate, silent
from lmr_guard.errors import InputError
from lmr_guard.evidence import Evidence, Gathering, check
from lmr_guard.files import Artifact
from lmr_guard.measure import against_pattern, against_trigger, predict, right, right_per_class
from lmr_guard.onnxfile.predictor import OnnxPredictor, Session
from lmr_guard.release import chance
from lmr_guard.release.independence import independence
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Build, Check, Finding, Outcome, Variant, Verdict
from lmr_guard.results import Achieved, Hit, Listening, TriggerResult, Unheard

__all__ = ["verify_artifact"]

# Channels are whole; and, as a share of what was asked, where some layers could not be cut.
_ROUNDED, _UNCUT = 0.02, 0.1
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "QLinear", "Integer")
# Images that replays are measured on: enough for bounds of a few points.
_REPLAYED = 500
# hits / trials is not exact in floating point: 0.97 - 0.94 exceeds 0.03.
_ROUNDING = 1e-9
_TIED = 0.01
# Of the clean accuracy: below that nobody can say what a trigger does.
_HALF = 0.5
_TOO_FEW = "; too few images to tell"
_UNHEARD = "no search for triggers could tell anything"


class _Witness:
    """A predictor that remembers what kind of outputs it saw, on triggered images too."""

    def __init__(self, predictor: OnnxPredictor) -> None:
        self._predictor = predictor
        self.finite = True
        self.probabilities = True
        self.tied = 0
        self.seen = 0

    def untied(self, pixels: Tensor, /) -> Tensor:
        """Outputs under patterns that may hide all of an image, where ties are no wonder."""
        outputs = self._predictor(pixels)
        self.finite &= bool(outputs.isfinite().all())
        return outputs

    def __call__(self, pixels: Tensor, /) -> Tensor:
        outputs = self.untied(pixels)
        self.probabilities &= bool(((outputs >= 0) & (outputs <= 1)).all())
        leading = (outputs == outputs.amax(dim=1, keepdim=True)).sum(dim=1)
        self.tied += int((leading > 1).sum())
        self.seen += len(outputs)
        return outputs


def verify_artifact(
    artifact: Artifact,
    build: Build,
    report: Labelled,
    evidence: Evidence | Gathering,
    *,
    policy: Policy,
    reference: Rate | None = None,
    session: Session | None = None,
    progress: Progress = silent,
) -> Variant:
    """Opens the staged file in ONNX Runtime, measures it and judges it.

    Args:
        artifact: The staged file, with the digest it had when it was staged.
        build: How it was made. Channel and parameter sparsity may fall short of what was asked
            by 0.02, for channels are whole, and where ``whole`` names layers by a tenth of it.
        report: The part of the clean images that numbers are reported on.
        evidence: What the file is tried with, none is INCOMPLETE; or what gathers it once the
            clean images are counted, told whether the file lost too much accuracy to ship.
        policy: The limits.
        reference: CA of the model as received on the same images; without it nothing is said
            about lost accuracy, and the caller should say so.
        session: How the file is run; None runs it on the CPU with pixels in [0, 1].
        progress: Told after the clean images and after each trigger.

    Raises:
        InputError: The file cannot be opened or run, or has other classes than ``report``.
        ConfigError: A trigger does not suit these images or classes.
    """
    check(evidence.triggers if isinstance(evidence, Evidence) else (), report)
    predictor = OnnxPredictor(artifact.path, session)
    repeated = _repeats(predictor, report)
    witness = _Witness(predictor)
    logits = predict(witness, report)
    clean_accuracy = right(logits, report)
    counted = tuple(_accuracy(clean_accuracy, reference, policy))
    evidence = _gathered(evidence, counted, report)
    tell = _teller(progress, build.name, 1 + len(evidence))
    results = _each(_tried(witness, report, evidence, logits), tell)
    met, others = chance.compared(witness.untied, report, logits, evidence, policy.confidence)
    if others:
        tell(1 + len(evidence))
    findings = (
        *_of_file(artifact, predictor),
        repeated,
        independence(predictor, report, evidence),
        _logits(witness),
        *_achieved(build, predictor),
        *counted,
        *_evidence(results, clean_accuracy, policy),
        *_listens(evidence.listening, results, policy),
        *others,
    )
    return Variant(
        name=build.name,
        sha256=predictor.sha256,
        bytes=predictor.bytes,
        clean_accuracy=clean_accuracy,
        triggers=results,
        achieved=build.achieved or Achieved(),
        provider=predictor.provider,
        verdict=Verdict(predictor.sha256, findings),
        weights_sha256=build.weights_sha256,
        plan=build.plan,
        searches=evidence.searches,
        per_class=right_per_class(logits, report),
        chance=met,
    )


def _gathered(
    evidence: Evidence | Gathering, counted: Sequence[Finding], report: Labelled
) -> Evidence:
    """What the file is tried with, told whether what was found on clean images refuses it."""
    if isinstance(evidence, Evidence):
        return evidence
    found = evidence(any(finding.outcome is Outcome.FAIL for finding in counted))
    check(found.triggers, report)
    return found


def _teller(progress: Progress, name: str, total: int) -> Callable[[int], None]:
    return lambda count: progress(f"verify {name}", count, total)


def _each(
    results: Iterator[TriggerResult], told: Callable[[int], None]
) -> tuple[TriggerResult, ...]:
    """All of them; ``told`` of the clean images before the first, and after each."""
    told(1)
    found: list[TriggerResult] = []
    for result in results:
        found.append(result)
        told(1 + len(found))
    return tuple(found)


def _tried(
    witness: _Witness, report: Labelled, evidence: Evidence, untouched: Tensor
) -> Iterator[TriggerResult]:
    """Every trigger on all images; every pattern, a replayed or searched one, on the first few."""
    for trigger in evidence.triggers:
        yield against_trigger(witness, report, trigger, untouched=untouched)
    few = report.subset(torch.arange(min(len(report), _REPLAYED)))
    for pattern in evidence.replays:
        yield against_pattern(witness, few, pattern)
    found = evidence.listening
    if isinstance(found, Listening):
        yield against_pattern(witness, few, found.pattern, found.strangeness)


def _judge(
    check: Check,
    good: bool,
    reason: str,
    otherwise: Outcome = Outcome.INCOMPLETE,
    about: str | None = None,
) -> Finding:
    return Finding(check, Outcome.PASS if good else otherwise, reason, about)


def _repeats(predictor: OnnxPredictor, report: Labelled) -> Finding:
    pixels, _ = next(report.batches())
    first, second = predictor(pixels), predictor(pixels)
    if first.shape[1] != len(report.classes):
        raise InputError(
            f"expected {len(report.classes)} logits, one for each class of the clean images, got "
            f"{first.shape[1]} from {predictor.path}; use a folder with the model's classes"
        )
    same = torch.allclose(first, second, rtol=1e-4, atol=1e-5, equal_nan=True) and torch.equal(
        first.argmax(dim=1), second.argmax(dim=1)
    )
    verb = "agree" if same else "differ"
    return _judge(Check.DETERMINISTIC, same, f"two passes over {len(pixels)} clean images {verb}")


def _of_file(artifact: Artifact, predictor: OnnxPredictor) -> tuple[Finding, ...]:
    """What is found before any image counts."""
    return _digest(artifact, predictor), _provider(predictor), _graph(predictor)


def _digest(artifact: Artifact, predictor: OnnxPredictor) -> Finding:
    if predictor.sha256 != artifact.sha256:
        reason = f"staged {artifact.sha256[:12]}, but the file holds {predictor.sha256[:12]} now"
        return Finding(Check.DIGEST, Outcome.FAIL, reason)
    if predictor.external:
        reason = (
            f"the digest does not cover {', '.join(predictor.external)}; save the model as one "
            "file, with onnx.save and save_as_external_data=False"
        )
        return Finding(Check.DIGEST, Outcome.INCOMPLETE, reason)
    return Finding(Check.DIGEST, Outcome.PASS, f"measured the staged bytes {artifact.sha256[:12]}")


def _provider(predictor: OnnxPredictor) -> Finding:
    asked, got = predictor.requested, predictor.provider
    return _judge(Check.PROVIDER, asked == got, f"asked for {asked}, ran on {got}")


def _graph(predictor: OnnxPredictor) -> Finding:
    found = ", ".join(f"{op} x{n}" for op, n in predictor.branches.items())
    if not found:
        return Finding(
            Check.GRAPH, Outcome.PASS, "no operator decides by what the image shows, or by chance"
        )
    return Finding(
        Check.GRAPH,
        Outcome.INCOMPLETE,
        f"exporters write no {found} for a classifier; it may send some images another way, which "
        "these measurements would miss",
    )


def _logits(witness: _Witness) -> Finding:
    if not witness.finite:
        return Finding(Check.LOGITS, Outcome.INCOMPLETE, "some outputs are not finite numbers")
    if not witness.probabilities:
        return Finding(Check.LOGITS, Outcome.PASS, "outputs are finite logits")
    tied = f"{witness.tied} of {witness.seen}"
    if witness.tied > _TIED * witness.seen:
        reason = (
            f"outputs are probabilities, rounded until two classes lead on {tied} images, so that "
            "the class depends on who reads them; export the network without its last function"
        )
        return Finding(Check.LOGITS, Outcome.INCOMPLETE, reason)
    reason = f"outputs are probabilities; two classes lead on {tied} images"
    return Finding(Check.LOGITS, Outcome.PASS, reason)


def _achieved(build: Build, predictor: OnnxPredictor) -> Iterator[Finding]:
    done, asked = build.achieved or Achieved(), build.asked
    share = _UNCUT if build.whole else 0.0
    if asked is None:
        return
    quantised = any(part in op for op in predictor.operators for part in _QUANTISED)
    short = [
        f"{what} {got:.3f}, asked {wanted:.3f}"
        for what, got, wanted in (
            ("channel sparsity", done.channel_sparsity, asked.channel_sparsity),
            ("parameter sparsity", done.parameter_sparsity, asked.parameter_sparsity),
        )
        if got < wanted - max(_ROUNDED, share * wanted)
    ]
    if short and build.whole:
        short.append(build.whole)
    if done.bits > asked.bits or (asked.bits < 32 and not quantised):
        held = "quantised" if quantised else "no quantised"
        short.append(f"{done.bits} bits, asked {asked.bits}, {held} operators in the file")
    reached = f"channel sparsity {done.channel_sparsity:.3f}, {done.bits} bits as asked"
    yield _judge(Check.ACHIEVED, not short, "; ".join(short) or reached)


def _trials(what: str, rate: Rate, policy: Policy, about: str | None = None) -> Finding:
    reason = f"{rate.trials} {what}, at least {policy.min_trials} needed"
    return _judge(Check.TRIALS, rate.trials >= policy.min_trials, reason, about=about)


def _accuracy(rate: Rate, reference: Rate | None, policy: Policy) -> Iterator[Finding]:
    yield _trials("clean images", rate, policy)
    if reference is None:
        return
    counts = f"CA {rate}, as received {reference}"
    if reference.trials != rate.trials or not rate.trials:
        yield Finding(Check.ACCURACY, Outcome.INCOMPLETE, f"{counts}: not the same images")
        return
    kept = reference.hits - rate.hits <= policy.max_accuracy_drop * rate.trials + _ROUNDING
    limit = f"limit {policy.max_accuracy_drop:.1%} lost"
    yield _judge(Check.ACCURACY, kept, f"{counts}, {limit}", Outcome.FAIL)


def _evidence(
    results: Sequence[TriggerResult], accuracy: Rate, policy: Policy
) -> Iterator[Finding]:
    if not results:
        yield Finding(Check.TRIGGERS, Outcome.INCOMPLETE, "no trigger was tried: no evidence")
        return
    sources = sorted({result.source for result in results})
    tried = f"{len(results)} tried ({', '.join(sources)})"
    enough = policy.accept_inverted or sources != ["inverted"]
    more = "" if enough else "; the policy does not accept inverted triggers alone"
    yield _judge(Check.TRIGGERS, enough, tried + more)
    for result in results:
        if result.strangeness is not None:
            continue  # See ``_listens``.
        if result.tried == "replayed" and result.without is not None:
            yield _excess(result, result.without, policy)
        else:
            what = f"images of other classes than {result.target} with {result.name}"
            yield _trials(what, result.asr, policy, result.name)
            yield _success(result, policy)
            if result.elsewhere is not None:
                yield _elsewhere(result, result.elsewhere, accuracy, policy)


def _listens(
    heard: Listening | Unheard | None, results: Sequence[TriggerResult], policy: Policy
) -> Iterator[Finding]:
    """What a search found counts, even where it could have missed all; nothing found does not."""
    if isinstance(heard, Unheard):
        why = heard.hindrance if heard.spared else f"{_UNHEARD}: {heard.hindrance}"
        yield Finding(Check.LISTENS, Outcome.INCOMPLETE, why)
        return
    for result in results:
        if result.strangeness is None or heard is None:
            continue
        reason = (
            f"class {result.target} needs a pattern {result.strangeness:.1f} times smaller than "
            f"others, limit {policy.max_strangeness:g}; it sends {result.asr} there"
        )
        if result.strangeness >= policy.max_strangeness:
            yield Finding(Check.LISTENS, Outcome.FAIL, reason)
        elif heard.hindrance is not None:
            yield Finding(Check.LISTENS, Outcome.INCOMPLETE, f"{_UNHEARD}: {heard.hindrance}")
        else:
            yield Finding(Check.LISTENS, Outcome.PASS, reason)


def _excess(result: TriggerResult, without: Rate, policy: Policy) -> Finding:
    rate, limit = result.asr, policy.max_excess
    reason = (
        f"{result.label} sends {rate} into class {result.target}, no pattern at all sends "
        f"{without}; at most {limit:.0%} more allowed"
    )
    if rate.value - without.value > limit + _ROUNDING:
        return Finding(Check.EXCESS, Outcome.FAIL, reason, result.label)
    kept = rate.upper(policy.confidence) - without.value <= limit
    told = reason if kept else reason + _TOO_FEW
    return _judge(Check.EXCESS, kept, told, about=result.label)


def _elsewhere(result: TriggerResult, hit: Hit, accuracy: Rate, policy: Policy) -> Finding:
    """A trigger whose target was told wrong, or that has none, shows here."""
    reason = (
        f"{result.name} sends {hit.asr} into class {hit.target}, no trigger at all sends "
        f"{hit.without}; at most {policy.max_excess:.0%} more allowed"
    )
    if hit.asr.value - hit.without.value > policy.max_excess + _ROUNDING:
        told = f"{reason}; its target was given as class {result.target}"
        return Finding(Check.ELSEWHERE, Outcome.FAIL, told, result.name)
    awake = result.asr.value > policy.max_asr  # Told by ``asr``, and reason enough for a low TA.
    kept = awake or result.ta.value >= _HALF * accuracy.value
    told = reason if kept else f"{reason}; but of all images only {result.ta} keep their class"
    return _judge(Check.ELSEWHERE, kept, told, about=result.name)


def _success(result: TriggerResult, policy: Policy) -> Finding:
    rate, limit = result.asr, policy.max_asr
    upper = rate.upper(policy.confidence)
    reason = (
        f"{result.name}: ASR {rate} into class {result.target}, at most {upper:.1%} "
        f"at {policy.confidence:.0%} confidence, limit {limit:.1%}"
    )
    if result.without is not None:
        reason += f"; of clean images {result.without} land there"
    if rate.hits > limit * rate.trials + _ROUNDING:
        return Finding(Check.ASR, Outcome.FAIL, reason, result.name)
    told = reason if upper <= limit else reason + _TOO_FEW
    return _judge(Check.ASR, upper <= limit, told, about=result.name)
