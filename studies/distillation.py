"""The effect of distillation: each student is trained with and without the teacher, several seeds.

    python -m studies.distillation             train what is missing, then write the results
    python -m studies.distillation --epochs 1 --seeds 2 --subset 2000    quick test in runs/quick/

Needs checkpoints/teacher.pth and CIFAR-10. Runs StudentTrain.py for each student, loss and seed, in
runs/distillation/. Each finished run is added to results/distillation.json; after Ctrl-C, the same
command continues. Finally, distillation.png shows the paired differences with and without the
teacher for each seed. The seed determines the initial weights and the order of the images. The
crops depend on it only without the teacher (StudentTrain.TEACHER_VIEWS).
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.significance import t_interval
from models import NETWORKS, SELECTED, STUDENTS, TEACHER
from studies import OUT, ends, figures, write
from utils import checkpoint, cli
from utils.checkpoint import ALONE, FILES, ROOT, fingerprint_of, load_network, read_checkpoint
from utils.data import data_facts, load_splits
from utils.files import UserError, read_json, try_folder, write_json

BATCH_SIZE = 128  # images per step
EPOCHS = 10
SEEDS = 3  # runs per student and loss, 2 to 10
RUNS = ROOT / "runs" / "distillation"  # for the students

PAIRS = (  # student and distillation loss
    *((arch, loss) for arch in SELECTED for loss in ("none", "mse")),
    (SELECTED[-1], "kl"),
)
LOSSES = {"none": "alone", "mse": "MSE between logits", "kl": "softened outputs, temperature 4"}
KEY = ("student", "distill_loss", "seed")  # of a run


def read(path: Path, same: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read the finished runs. Without a file, the list is empty.

    Raises UserError if the file is damaged or has runs with other facts than `same`.
    """
    if not path.exists():
        return []
    runs = read_json(path, list)
    try:
        by_key(runs)
        for name, fact in same.items():
            if others := [run[name] for run in runs if run[name] != fact]:
                raise UserError(f"it has runs with {name} {others[0]}, not {fact}")
    except (UserError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} cannot be used ({error}): move it away, or use another --out"
        ) from error
    return runs


def by_key(runs: Sequence[Mapping[str, Any]]) -> dict[tuple, Mapping[str, Any]]:
    """The runs by student, loss and seed: each counts once, also if it is listed twice."""
    return {tuple(run[name] for name in KEY): run for run in runs}


def train(student: str, loss: str, seed: int, folder: Path, flags: list[str]) -> dict[str, Any]:
    """Run StudentTrain.py (or continue a run that was stopped). Returns the accuracies."""
    model, folder = 1 + STUDENTS.index(student), folder / f"{loss}-{seed}"
    words = ["--model", model, "--distill-loss", loss, "--seed", seed, "--checkpoint-dir", folder]
    cli.run_script("StudentTrain.py", [*map(str, words), *flags])
    made = read_checkpoint(folder / (ALONE if loss == "none" else FILES)[student])
    return {name: made[name] for name in ("val_accuracy", "test_accuracy")}


def summary(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each student and loss: mean and deviation of the accuracies over seeds, and the gain.

    The gain is the difference in test accuracy to the student trained without the teacher with the
    same seed. Its 95 % interval is from Student's t distribution over the seeds.
    """
    rows, found = [], by_key(runs)
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
    parser = cli.common_parser(__doc__, globals())
    cli.add_flag(parser, "EPOCHS", EPOCHS, "number of epochs per run")
    what = "number of runs per student and loss, 2 to 10 (default: %(default)s)"
    seeds = {"type": int, "choices": range(2, 11), "metavar": "N", "help": what}
    parser.add_argument("--seeds", default=SEEDS, **seeds)
    cli.add_out(parser, OUT, "distillation.json and distillation.png")
    args = parser.parse_args()
    try_folder(args.out)
    teacher = args.checkpoint_dir / FILES["teacher"]
    images = load_splits(args.data, args.subset)[0]
    same = {
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "teacher": fingerprint_of(load_network(teacher, TEACHER)[0]),
        "data": data_facts(images.images, images.labels),
    }
    path = args.out / "distillation.json"
    runs = read(path, same)
    done = by_key(runs)
    asked = ((*pair, seed) for seed in range(args.seeds) for pair in PAIRS)
    keys = [key for key in asked if key not in done]
    print(f"{len(done)} runs are done, {len(keys)} remain", flush=True)
    flags = ["--epochs", str(args.epochs), "--batch-size", str(args.batch_size)]
    for name in ("data", "device", "subset"):
        flags += [f"--{name}", str(args.typed[name])] if name in args.typed else []
    folder = RUNS if args.subset is None else checkpoint.QUICK / RUNS.name
    # A run that was stopped is continued only by the same study.
    folder /= f"{args.epochs}-{args.batch_size}-{same['teacher']}-{same['data'][-12:]}"
    for key in keys:
        taught = [] if key[1] == "none" else ["--teacher", str(teacher)]
        accuracies = train(*key, folder, [*flags, *taught])
        runs.append({**dict(zip(KEY, key, strict=True)), **same, **accuracies})
        write_json(path, runs)
    print(cli.aligned(*table(runs)))
    gained = [row for row in summary(runs) if "gain" in row]
    drawn = figures.distillation_gains([row["name"] for row in gained], gained)
    write(args.out, "distillation", runs, distillation=drawn)


if __name__ == "__main__":
    cli.run(main)
