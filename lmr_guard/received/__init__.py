# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What others hand in: weights, architectures, images; read, checked, never trusted."""

from lmr_guard.received.architectures import Architecture
from lmr_guard.received.data import read_folder, read_image, read_images
from lmr_guard.received.load import classifier
from lmr_guard.received.names import read_classes
from lmr_guard.received.parts import check_agreement, divide, split

__all__ = [
    "Architecture",
    "check_agreement",
    "classifier",
    "divide",
    "read_classes",
    "read_folder",
    "read_image",
    "read_images",
    "split",
]
