"""Evaluation of trained networks: policies, test set, your own images, figures, report, ONNX."""
