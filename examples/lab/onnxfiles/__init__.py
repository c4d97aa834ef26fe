# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""ONNX files as others write them: which go the whole way, which are only audited."""
