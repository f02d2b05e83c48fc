"""Evaluation of trained networks: policies, test set, your own images, figures, report, ONNX."""

from pathlib import Path
from types import ModuleType

from utils.files import UserError, try_folder


def figures_into(out: Path) -> ModuleType:
    """Import `evaluation.figures` and check that `out` can be written; call this before long work.

    Raises UserError if `out` cannot be written or Matplotlib cannot be imported.
    """
    try_folder(out)
    try:
        from evaluation import figures  # takes a second, and is not needed for own images
    except ImportError as error:
        raise UserError(f"the figures need Matplotlib: pip install matplotlib ({error})") from error
    return figures
