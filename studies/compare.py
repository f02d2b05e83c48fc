"""Compare evaluations: accuracies, paired differences, and means over seeds.

    python -m studies.compare runs/seed-0 runs/seed-1           runs that inference.py evaluated
    python -m studies.compare runs/inference more --out table   folders that it wrote

Prints a table and writes it as compare.csv and compare.tex. Differences are to the first folder
that has the network or policy, on the same images, with a 95 % interval and the p value of
McNemar's test. A mean is of folders that differ by the seed only. Networks and policies with the
same weights as in an earlier folder are left out. compare.png shows the accuracy on the validation
images after each epoch, and the accuracy on the test images against MACs.
"""

import csv
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation import figures
from evaluation.policies import Networks
from evaluation.significance import mcnemar_p, paired_interval, wilson_interval
from evaluation.testset import LABELS, ROUTED
from models import NETWORKS, STUDENTS
from studies.policies import CURVES, curve
from utils import cli
from utils.files import UserError, read_json, replacing, shown, try_folder
from utils.method import share
from utils.safe_load import read_arrays

OUT = Path("runs/compare")  # for compare.csv, compare.tex and compare.png
POLICIES = {name: policy for policy, name in ROUTED.items()}  # whose names differ
COLUMNS = ("name", "run", "top1", "deviation", "low", "high", "mmacs")  # percent, and millions
COLUMNS += ("difference", "difference_low", "difference_high", "mcnemar_p")
HEADS = ["", "", "top-1 %", "95 %", "MMACs", "difference", "95 %", "p"]  # for people


@dataclass
class Evaluation:
    """What inference.py wrote to a folder: metrics.json, and the arrays of predictions.npz."""

    folder: str
    metrics: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def nets(self) -> Networks:
        """The stored logits of all networks."""
        stored = {name: self.arrays[f"logits/{name}"] for name in self.metrics["weights"]}
        logits = {name: torch.from_numpy(each).float() for name, each in stored.items()}
        labels = torch.from_numpy(self.arrays["labels"])
        return Networks(logits, self.metrics["macs_per_image"], labels)

    def parts(self, name: str) -> list[str]:
        """The networks that make up a network or policy."""
        weights = self.metrics["weights"]
        if name in weights:
            return [name]
        students = [part for part in weights if part in NETWORKS]
        return [*students, "selector"] if name == "routed" else students

    def identity(self, name: str) -> tuple:
        """The weights and thresholds of a network or policy."""
        weights = [self.metrics["weights"][part] for part in self.parts(name)]
        return weights, self.metrics["thresholds"].get(POLICIES.get(name, name))

    def recipe(self, name: str) -> str:
        """The hyperparameters except seeds, of its networks and of those they were trained with."""
        weights, recipes = self.metrics["weights"], self.metrics["hyperparameters"]
        if name not in weights:
            return "".join(map(self.recipe, self.parts(name)))
        text = json.dumps({**recipes[name], "seed": None}, sort_keys=True)
        for other in weights.keys() - {name}:
            if weights[other] in text:  # its teacher or a student
                text = text.replace(weights[other], self.recipe(other))
        return text


def read(folder: Path) -> Evaluation:
    """Read the evaluation in `folder`, or of the run in it. Raises UserError if there is none."""
    place = folder if (folder / "metrics.json").exists() else folder / "inference"
    if not (place / "metrics.json").exists():
        raise UserError(
            f"{folder} has no metrics.json of inference.py: evaluate a run first, with "
            f"python inference.py --run {folder.name}"
        )
    metrics = read_json(place / "metrics.json", dict)
    names = [f"predictions/{name}" for name in metrics.get("accuracy", ())]
    names += [f"logits/{name}" for name in metrics.get("weights", ())]
    arrays = read_arrays(place / "predictions.npz", ["labels", "indices", *names])
    if not {"weights", "hyperparameters"} <= metrics.keys() or "labels" not in arrays:
        raise UserError(f"{place} is of an earlier version: evaluate its networks again")
    return Evaluation(str(folder), metrics, arrays)


def compare(evaluations: list[Evaluation]) -> list[dict[str, Any]]:
    """The rows of the table: what each has of COLUMNS.

    Raises UserError if the evaluations are not of the same images.
    """
    first, *others = evaluations
    for each in others:
        same = [each.metrics[key] == first.metrics[key] for key in ("dataset", "context")]
        for key in ("labels", "indices"):
            same.append(np.array_equal(each.arrays[key], first.arrays[key]))
        if not all(same):
            raise UserError(
                f"{each.folder} was evaluated on other images than {first.folder}: use the same "
                "--data, --context and --subset"
            )
    rows = []
    for name in dict.fromkeys(name for each in evaluations for name in each.metrics["accuracy"]):
        base, seen = None, []
        groups: dict[str, list[dict[str, Any]]] = {}  # rows of the same recipe
        for each in evaluations:
            if f"predictions/{name}" not in each.arrays or each.identity(name) in seen:
                continue
            seen.append(each.identity(name))
            right = torch.from_numpy(each.arrays[f"predictions/{name}"] == each.arrays["labels"])
            work = each.metrics["macs_per_image"][name] / 1e6
            row = {"name": name, "run": each.folder, "mmacs": work}
            own = percent(share(right), *wilson_interval(share(right), len(right)))
            row["top1"], row["low"], row["high"] = own
            if base is None:
                base = right
            else:
                gain = percent(share(right) - share(base), *paired_interval(right, base))
                row["difference"], row["difference_low"], row["difference_high"] = gain
                row["mcnemar_p"] = mcnemar_p(right, base)
            rows.append(row)
            groups.setdefault(each.recipe(name), []).append(row)
        for group in [group for group in groups.values() if len(group) > 1]:
            row = {key: statistics.mean(each[key] for each in group) for key in ("top1", "mmacs")}
            row["deviation"] = statistics.stdev(each["top1"] for each in group)
            rows.append({"name": name, "run": f"mean of {len(group)} seeds", **row})
    return rows


def percent(*shares: float) -> list[float]:
    return [round(100 * each, 6) for each in shares]  # without the noise of floating point


def for_people(row: dict[str, Any]) -> list[str]:
    """The cells below HEADS."""

    def cell(words: str, *keys: str) -> str:
        return words.format(*(row[key] for key in keys)) if keys[0] in row else ""

    return [
        LABELS.get(row["name"], row["name"]),
        row["run"],
        cell("{:.2f}", "top1") + cell(" +- {:.2f}", "deviation"),
        cell("{:.1f} to {:.1f}", "low", "high"),
        cell("{:.1f}", "mmacs"),
        cell("{:+.2f}", "difference"),
        cell("{:+.1f} to {:+.1f}", "difference_low", "difference_high"),
        cell("{:.2g}", "mcnemar_p"),
    ]


def latex_of(table: list[list[str]]) -> str:
    """The table as a LaTeX tabular."""
    special = str.maketrans({each: f"\\{each}" for each in "%_&#$"})
    head, *lines = [" & ".join(each.translate(special) for each in line) + r" \\" for line in table]
    lines = [rf"\begin{{tabular}}{{ll{'r' * (len(HEADS) - 2)}}}", head, r"\hline", *lines]
    return "\n".join([*lines, r"\end{tabular}", ""]).replace("+-", r"$\pm$")


def draw(evaluations: list[Evaluation], rows: list[dict[str, Any]]) -> Any:
    """Accuracy after each epoch, and accuracy against MACs: a color per run, a marker per network.

    Lines in the second plot are policies at all thresholds.
    """
    plt, markers = figures.plt, figures.MARKERS
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for k, each in enumerate(evaluations):
        color = f"C{k % 10}"
        left.plot([], [], color=color, lw=3, label=each.folder)
        for row in [row for row in rows if row["run"] == each.folder]:
            name, policy = row["name"], POLICIES.get(row["name"], row["name"])
            style = {"color": color, "marker": markers.get(name, "P")}
            history = percent(*each.metrics["val_accuracy_per_epoch"].get(policy, ()))
            left.plot(range(1, len(history) + 1), history, markevery=[-1], **style)
            error = [[row["top1"] - row["low"]], [row["high"] - row["top1"]]]
            right.errorbar(row["mmacs"], row["top1"], error, capsize=3, elinewidth=1, **style)
            if policy in CURVES and set(STUDENTS) <= each.metrics["weights"].keys():
                points = curve(each.nets(), policy, each.metrics["thresholds"])
                work = [macs / 1e6 for macs in points["macs"]]
                right.plot(work, percent(*points["accuracy"]), color=color, lw=1, alpha=0.5)
    left.set(xlabel="epoch", ylabel="top-1 accuracy on validation images, %")
    right.set(xlabel="MMACs per image", ylabel="top-1 accuracy on test images, %")
    for name in dict.fromkeys(row["name"] for row in rows):
        left.plot([], [], "k", ls="", marker=markers.get(name, "P"), label=LABELS.get(name, name))
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="evaluations or evaluated runs")
    cli.add_out(parser, OUT, "compare.csv, compare.tex and compare.png")
    args = parser.parse_args()
    evaluations = [read(folder) for folder in args.folders]
    rows = compare(evaluations)
    try_folder(args.out)
    cells = [for_people(row) for row in rows]
    print(cli.aligned(HEADS, cells, left=2))
    paths = [args.out / f"compare.{kind}" for kind in ("csv", "tex", "png")]
    with replacing(paths[0], binary=False) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with replacing(paths[1], binary=False) as file:
        file.write(latex_of([HEADS, *cells]))
    figures.save(draw(evaluations, rows), paths[2])
    print(f"\nwrote {', '.join(map(shown, paths))}")


if __name__ == "__main__":
    cli.run(main)
