"""Research programs. Each answers one question, and writes its results to results/."""

import utils  # noqa: F401, first: Ctrl-C while it imports PyTorch ends in one line

# isort: split
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from evaluation.figures import save
from utils.files import shown, write_json

OUT = Path("results")  # default folder of all studies


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, with the first column left-aligned and the others right-aligned."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None, form: str) -> str:
    """A cell of a table: `value` in this format; empty if it is None."""
    return "" if value is None else format(value, form)


def ends(interval: Sequence[float] | None, form: str, times: int = 1) -> str:
    """A cell of a table: an interval, multiplied by `times`; empty if there is none."""
    return " to ".join(format(times * end, form) for end in interval or ())


def write(out: Path, name: str, results: Any, **drawn: Figure) -> None:
    """Write the results to NAME.json and figures to PNG files in the folder `out`."""
    paths = [out / f"{name}.json", *(out / f"{figure}.png" for figure in drawn)]
    write_json(paths[0], results)
    for path, figure in zip(paths[1:], drawn.values(), strict=True):
        save(figure, path)
    print(f"wrote {', '.join(map(shown, paths))}")
