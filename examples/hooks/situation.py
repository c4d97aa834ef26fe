# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Where a user of the hooks stands: a network from somebody else, and clean images of their own.

The network is a small ResNet for scikit-learn's handwritten digits that its trainer gave a
BadNets backdoor: a white 3x3 patch near the lower right corner makes it say 3.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Clean, Rate
from lmr_guard.demo import digits
from lmr_guard.evidence import Patch
from lmr_guard.hooks import RepairHook
from lmr_guard.localize import inversion, rule
from lmr_guard.measure import accuracy, against_trigger
from lmr_guard.onnxfile.predictor import OnnxPredictor, Session
from lmr_guard.received.parts import split
from lmr_guard.redteam.badnets import BadNets, plant
from lmr_guard.redteam.networks import digits_resnet
from lmr_guard.redteam.training import Schedule, fit_clean
from lmr_guard.settings import Settings

PREPROCESSING = Preprocessing(channels=1, height=16, width=16, mean=(0.3,), std=(0.35,))
TRIGGER = Patch(torch.ones(1, 3, 3), 12, 12, "white patch", target=3)


@dataclass(frozen=True)
class Situation:
    """What the user holds.

    Args:
        network: Normalised images to logits; its trainer knows the trigger, its user does not.
        clean: The user's images.
        folder: Where results go.
        seed: Of everything random.
        tiny: Whether everything is kept short.
    """

    network: nn.Module
    clean: Clean
    folder: Path
    seed: int
    tiny: bool

    def settings(self, hook: RepairHook) -> Settings:
        """The hook's own settings with this seed, and shorter where that was asked for."""
        own = replace(hook.settings, seed=self.seed)
        if not self.tiny:
            return own
        return replace(
            own,
            localize=rule.LocalizeSettings(deep=inversion.LOOK, confirm=1),
            repel=replace(own.repel, learning_rates=own.repel.learning_rates[:1]),
        )


def situation(arguments: list[str] | None, purpose: str | None) -> Situation:
    """Read ``--out``, ``--seed`` and ``--tiny``, and train the network that the user is given."""
    parser = argparse.ArgumentParser(description=(purpose or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("hooks-example"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="too short to work well, but quick")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(options.seed)
    attackers, users = digits(options.seed)
    clean = split(users, repair=300, select=150, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        fresh = Classifier(digits_resnet(), PREPROCESSING, num_classes=10)
    epochs = 3 if options.tiny else 10
    honest = fit_clean(fresh, attackers, Schedule(epochs=epochs, batch=64, shift=1), generator)
    recipe = BadNets(trigger=TRIGGER, schedule=Schedule(epochs=epochs, lr=0.05, batch=64, shift=1))
    network = plant(recipe, honest, attackers, generator).classifier.network
    return Situation(network, clean, options.out, options.seed, options.tiny)


def show(what: str, path: Path, clean: Clean, preprocessing: Preprocessing | None) -> Rate:
    """Print what ONNX Runtime makes of a file, and return its attack success rate.

    Args:
        what: How the line begins.
        path: An ONNX file.
        clean: Measured on ``report``.
        preprocessing: For a file that expects normalised images, else None.
    """
    predictor = OnnxPredictor(path, Session(threads=1, preprocessing=preprocessing))
    right = accuracy(predictor, clean.report)
    attack = against_trigger(predictor, clean.report, TRIGGER).asr
    print(f"{what:<46} CA {right}   ASR {attack}")
    return attack
