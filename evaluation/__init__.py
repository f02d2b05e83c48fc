"""Evaluation of trained networks: policies, test set, your own images, figures, report, ONNX."""

import utils  # noqa: F401, first: Ctrl-C while it imports PyTorch ends in one line
