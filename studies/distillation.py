"""The effect of distillation: each student is trained with and without the teacher, several seeds.

    python -m studies.distillation    writes distillation.json and distillation.png to results/
    make reproduce-distillation       trains the students first; RESUME=1 continues
    make reproduce-distillation EPOCHS=1 SUBSET=2000    quick test, in runs/quick/

Reads the runs that StudentTrain.py wrote to runs/distillation/; without any, those that are in
distillation.json already. The figure shows the paired differences with and without the teacher for
each seed. The seed determines the initial weights and the order of the images. The crops depend on
it only without the teacher (StudentTrain.TEACHER_VIEWS).
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.significance import t_interval
from models import NETWORKS, SELECTED
from studies import OUT, ends, figures, write
from utils import cli
from utils.checkpoint import ALONE, FILES, read_checkpoint
from utils.files import UserError, read_json, shown, try_folder

RUNS = Path("runs/distillation")  # has a folder for each loss and seed
PAIRS = (  # student and distillation loss
    *((arch, loss) for arch in SELECTED for loss in ("none", "mse")),
    (SELECTED[-1], "kl"),
)
LOSSES = {"none": "alone", "mse": "MSE between logits", "kl": "softened outputs, temperature 4"}
KEY = ("student", "distill_loss", "seed")  # of a run
SAME = ("epochs", "batch_size", "data", "teacher")  # for all runs


def read(folder: Path, results: Path) -> list[dict[str, Any]]:
    """The finished runs in `folder`; without any, those in the file `results`.

    Raises UserError if a file is damaged, or if the runs differ in one of SAME.
    """
    runs = []
    for arch, loss in PAIRS:
        file = (ALONE if loss == "none" else FILES)[arch]
        for path in sorted(folder.glob(f"{loss}-*/{file}")):
            facts = read_checkpoint(path, arch)
            recipe = {"student": arch, **facts["hyperparameters"]}
            run = {name: recipe[name] for name in (*KEY, *SAME)}
            run |= {name: facts[name] for name in ("val_accuracy", "test_accuracy")}
            if run["test_accuracy"] is not None:  # else it is not finished
                runs.append(run)
    for name in SAME:
        found = {run[name] for run in runs if run[name] is not None}  # no teacher, alone
        if len(found) > 1:
            raise UserError(
                f"{shown(folder)} has runs with {name} {' and '.join(map(str, sorted(found)))}: "
                "move some of them away"
            )
    return runs or read_json(results, list)


def summary(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each student and loss: mean and deviation of the accuracies over seeds, and the gain.

    The gain is the difference in test accuracy to the student trained without the teacher with the
    same seed. Its 95 % interval is from Student's t distribution over the seeds.
    """
    rows = []
    found = {tuple(run[name] for name in KEY): run for run in runs}  # each counts once
    for student, loss in PAIRS:
        own = [key for key in sorted(found) if key[:2] == (student, loss)]
        if len(own) < 2:
            continue
        row: dict[str, Any] = {"name": f"{NETWORKS[student].title}, {LOSSES[loss]}"}
        row["seeds"] = len(own)
        for name in ("val_accuracy", "test_accuracy"):
            values = [found[key][name] for key in own]
            row[name] = {"mean": statistics.mean(values), "std": statistics.stdev(values)}
        gains = [
            found[key]["test_accuracy"] - alone["test_accuracy"]
            for key in own
            if loss != "none" and (alone := found.get((student, "none", key[2])))
        ]
        if len(gains) > 1:
            row["gain"] = {"each": gains, "interval": t_interval(gains)}
        rows.append(row)
    return rows


def table(runs: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The summary as a table: heads and rows."""
    rows = []
    for row in summary(runs):
        cells = [row["name"], str(row["seeds"])]
        for name in ("val_accuracy", "test_accuracy"):
            cells.append(f"{100 * row[name]['mean']:.2f} ± {100 * row[name]['std']:.2f}")
        gain = ""
        if "gain" in row:
            mean = 100 * statistics.mean(row["gain"]["each"])
            gain = f"{mean:+.2f} ({ends(row['gain']['interval'], '+.2f', 100)})"
        rows.append([*cells, gain])
    return ["top-1, %", "seeds", "validation", "test", "gain on test (95 %)"], rows


def main() -> None:
    parser = cli.Parser(description=__doc__)
    cli.add_path(parser, "--runs", "folder of the runs (default: %(default)s)", RUNS)
    cli.add_out(parser, OUT, "distillation.json and distillation.png")
    args = parser.parse_args()
    try_folder(args.out)
    runs = read(args.runs, args.out / "distillation.json")
    print(cli.aligned(*table(runs)))
    gains = [(row["name"], row["gain"]) for row in summary(runs) if "gain" in row]
    dots = [
        (name, *([100 * each for each in gain[key]] for key in ("each", "interval")))
        for name, gain in gains
    ]
    what = "gain over training without the teacher, in points of test accuracy"
    write(args.out, "distillation", runs, distillation=figures.dots_per_seed(dots, 0, what))


if __name__ == "__main__":
    cli.run(main)
