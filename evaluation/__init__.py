"""What is shown of networks: policies, test set, your own images, figures, report, ONNX files."""

from pathlib import Path
from types import ModuleType

from utils.files import UserError, try_folder


def figures_into(out: Path) -> ModuleType:
    """`evaluation.figures`, for a run that ends with figures in `out`: to be called when it starts.

    Raises UserError where `out` cannot be written or Matplotlib cannot be loaded.
    """
    try_folder(out)
    try:
        from evaluation import figures  # takes a second, and is not needed for one's own images
    except ImportError as error:
        raise UserError(f"the figures need Matplotlib: pip install matplotlib ({error})") from error
    return figures
