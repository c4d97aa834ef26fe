# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Which class does the model fall back to when it unlearns? That is the suspect, or nobody is.

Source: the anti-learning of LMR (CVPR 2026), after RNP (ICML 2023): gradient ascent on the
cross-entropy of clean images until accuracy is near chance; ``s(c)`` is the mean over the images
of ``log softmax_c``; one run names ``argmax_c s(c)``. It always names a class, also on a clean
network, and which one depends on batch norm, learning rate and seed. Hence many runs, on the
model as received and on its compressed forms, and this rule:

* A form's score for a class is the share of the images that its runs, on average, send there.
* A class's score is that of the form most decided about it, because a backdoor that sleeps in
  one form is awake in another.
* The class with the highest score is the suspect, unless the score is low or the next class is
  close: then nobody is.

A high score is no proof: clean networks collapse onto one class as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Progress, Suspicion, silent
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.measure import accuracy
from lmr_guard.randomness import private_randomness

__all__ = ["Config", "named", "suspect", "unlearn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How classes are suspected.

    Args:
        learning_rates: One run each, of SGD with momentum 0.9.
        seeds: Runs of each learning rate, with another order of the images.
        frozen_bn_runs: Whether each form is also unlearned with batch norm in eval mode. Such
            runs are reported but have no vote: they fall to the network's natural attractors.
        batch: Images a step.
        max_steps: Step budget of one run.
        stop: A run ends when a batch's accuracy is at most ``stop / K``.
        min_score: Score that the leading class needs, else abstain.
        min_lead: What it must be ahead of the next class, else abstain.
        min_accuracy: Compressed forms below this share of the received model's clean accuracy
            are left out: collapsed networks say nothing.
    """

    learning_rates: tuple[float, ...] = (0.01, 0.03)
    seeds: int = 2
    frozen_bn_runs: bool = True
    batch: int = 128
    max_steps: int = 200
    stop: float = 1.2
    min_score: float = 0.3
    min_lead: float = 0.05
    min_accuracy: float = 0.7

    def __post_init__(self) -> None:
        """Raises ConfigError where there would be no run, or a share is none."""
        counts = (self.seeds, self.batch, self.max_steps)
        if not self.learning_rates or min(*self.learning_rates, *counts) <= 0:
            raise ConfigError(
                "expected learning rates, and seeds, batch and max_steps, above 0, got "
                f"{self.learning_rates}, {counts}"
            )
        if not (0 <= self.min_score <= 1 and 0 <= self.min_lead <= 1):
            raise ConfigError(
                f"expected min_score and min_lead in [0, 1], got {self.min_score}, {self.min_lead}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """One unlearning run: the class it names and the share of images that lands in each."""

    form: str
    suspected: int
    landed: Tensor
    votes: bool
    record: dict[str, object]


def named(target: int, num_classes: int) -> Suspicion:
    """The suspicion of a user who knows the class. Raises ConfigError where it is none."""
    if not 0 <= target < num_classes:
        raise ConfigError(f"expected a suspect class in [0, {num_classes}), got {target}")
    return Suspicion(target=target, scores=(), method="named by the user", agreement=1.0)


def suspect(
    classifier: Classifier,
    repair: Labelled,
    config: Config,
    generator: torch.Generator,
    *,
    forms: Sequence[tuple[str, Classifier]] = (),
    progress: Progress = silent,
) -> Suspicion:
    """The class that most unlearning runs fall back to, or None where they disagree.

    Args:
        classifier: As received; not touched.
        repair: Clean images; nothing else is looked at.
        config: See ``Config``.
        generator: CPU generator; seeds the single runs.
        forms: Compressed forms of the classifier, by name; not touched.
        progress: Told after each run.

    Returns:
        ``scores`` as the module docstring says, in [0, 1]; ``agreement`` the share of the voting
        runs that name the leading class; ``evidence`` one record a run.

    Raises:
        StageError: No voting run reached chance accuracy within its budget.
    """
    kept = _worth_asking(classifier, forms, repair, config)
    plan = [(name, model, *run) for name, model in kept for run in _runs(model, config)]
    runs: list[_Run] = []
    for done, (name, model, lr, frozen_bn, repeat) in enumerate(plan, start=1):
        seed = int(torch.randint(2**31, (1,), generator=generator))
        logits, steps, reached = unlearn(
            model, repair, config, lr=lr, frozen_bn=frozen_bn, seed=seed
        )
        log_probabilities = logits.log_softmax(dim=1).mean(dim=0)
        landed = logits.argmax(dim=1).bincount(minlength=logits.shape[1]) / len(logits)
        suspected = int(log_probabilities.argmax())
        voting = reached and (not frozen_bn or not _has_bn(model))
        record: dict[str, object] = {
            "form": name,
            "bn": "eval" if frozen_bn else "train",
            "lr": lr,
            "repeat": repeat,
            "class": suspected,
            "log_probability": round(float(log_probabilities[suspected]), 4),
            "share": round(float(landed[suspected]), 4),
            "steps": steps,
            "reached_chance": reached,
            "votes": voting,
        }
        runs.append(_Run(name, suspected, landed, voting, record))
        progress("localize", done, len(plan))
    if not any(run.votes for run in runs):
        raise StageError(
            f"expected unlearning to reach chance accuracy within {config.max_steps} steps, got "
            "no such run; name the class with --suspect, or skip the repair with --no-repair"
        )
    return _judge(runs, config)


def unlearn(
    classifier: Classifier,
    repair: Labelled,
    config: Config,
    *,
    lr: float,
    frozen_bn: bool,
    seed: int,
) -> tuple[Tensor, int, bool]:
    """One run of gradient ascent on the cross-entropy of clean images.

    Args:
        classifier: Not touched.
        repair: Clean images.
        config: Batch, budget and stop rule.
        lr: Learning rate.
        frozen_bn: Batch norm in eval mode, else with batch statistics.
        seed: Of the image order, and of dropout where the model has any.

    Returns:
        Logits (N, K) of ``repair`` after unlearning, in the same batch norm mode; the steps
        taken; whether chance accuracy was reached.
    """
    model = classifier.clone().train(not frozen_bn)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    with private_randomness(generator, model.device):
        steps, reached = _ascend(model, repair, config, optimiser, generator)
        logits = _logits(model, repair, config.batch, generator)
    finite = bool(logits.isfinite().all())
    return logits.nan_to_num(), steps, reached and finite


def _ascend(
    model: Classifier,
    repair: Labelled,
    config: Config,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
) -> tuple[int, bool]:
    """Unlearns in place; the steps taken, and whether chance accuracy was reached."""
    limit = config.stop / model.num_classes
    steps = 0
    while steps < config.max_steps:
        for index in _batches(len(repair), config.batch, generator):
            labels = repair.labels[index].to(model.device)
            logits = model(repair.images[index].to(model.device).float() / 255)
            reached = float((logits.argmax(dim=1) == labels).float().mean()) <= limit
            if reached or steps == config.max_steps:
                return steps, reached
            optimiser.zero_grad(set_to_none=True)
            (-F.cross_entropy(logits, labels)).backward()
            # The loss has no lower bound; without a limit the weights can overflow at the end.
            torch.nn.utils.clip_grad_norm_(model.parameters(), 20.0)
            optimiser.step()
            steps += 1
    return steps, False


@torch.no_grad()
def _logits(model: Classifier, data: Labelled, batch: int, generator: torch.Generator) -> Tensor:
    """Logits in the stored order, in batches of about equal size that are drawn at random.

    Batch norm in train mode needs two images at least, and sees the statistics of one class
    only where images are stored by class.
    """
    order = torch.randperm(len(data), generator=generator)
    batches = order.tensor_split(-(-len(data) // batch))
    parts = [model(data.images[i].to(model.device).float() / 255).cpu() for i in batches]
    return torch.cat(parts)[order.argsort()]


def _runs(model: Classifier, config: Config) -> list[tuple[float, bool, int]]:
    """Learning rate, frozen batch norm, repeat of each run of one form."""
    runs = [(lr, False, repeat) for lr in config.learning_rates for repeat in range(config.seeds)]
    if config.frozen_bn_runs and _has_bn(model):
        runs.append((config.learning_rates[0], True, 0))
    return runs


def _has_bn(model: Classifier) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def _worth_asking(
    classifier: Classifier,
    forms: Sequence[tuple[str, Classifier]],
    repair: Labelled,
    config: Config,
) -> list[tuple[str, Classifier]]:
    received = classifier.clone()
    least = accuracy(received, repair).value * config.min_accuracy
    copies = [(name, form.clone()) for name, form in forms]
    awake = [(name, form) for name, form in copies if accuracy(form, repair).value >= least]
    return [("received", received), *awake]


def _batches(count: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """Random batches of equal size, the rest left out; all images where there are fewer."""
    order = torch.randperm(count, generator=generator)
    whole = count // size
    return list(order[: whole * size].split(size)) if whole else [order]


def _judge(runs: Sequence[_Run], config: Config) -> Suspicion:
    voting = [run for run in runs if run.votes]
    forms = {run.form for run in voting}
    by_form = [
        torch.stack([run.landed for run in voting if run.form == form]).mean(dim=0)
        for form in sorted(forms)
    ]
    scores = torch.stack(by_form).amax(dim=0)
    first, second = scores.topk(2).values.tolist()
    leading = int(scores.argmax())
    sure = first >= config.min_score and first - second >= config.min_lead
    return Suspicion(
        target=leading if sure else None,
        scores=tuple(round(float(score), 4) for score in scores),
        method="unlearning",
        agreement=round(sum(run.suspected == leading for run in voting) / len(voting), 4),
        evidence=tuple(run.record for run in runs),
    )
