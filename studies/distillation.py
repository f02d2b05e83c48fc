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
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evaluation import figures_into
from evaluation.significance import t_interval
from models import NETWORKS, STUDENTS, TEACHER
from utils import checkpoint, cli
from utils.checkpoint import ALONE, FILES, ROOT, fingerprint_of, load_network, read_checkpoint
from utils.data import data_facts, load_splits
from utils.files import UserError, read_json, shown, write_json
from utils.safe_load import brief

BATCH_SIZE = 128  # images per step
EPOCHS = 10
SEEDS = 3  # runs per student and loss, 2 to 10
OUT = Path("results")  # for distillation.json and distillation.png
RUNS = ROOT / "runs" / "distillation"  # for the students

PAIRS = (  # student and distillation loss
    *((arch, loss) for arch in STUDENTS for loss in ("none", "mse")),
    (STUDENTS[-1], "kl"),
)
LOSSES = {"none": "alone", "mse": "MSE between logits", "kl": "softened outputs, temperature 4"}


@dataclass(frozen=True)
class Trained:
    """A finished run, with top-1 accuracies in [0, 1].

    teacher: the fingerprint of the teacher's weights.
    data: the description of the training images.
    """

    student: str
    distill_loss: str
    seed: int
    epochs: int
    batch_size: int
    teacher: str
    data: str
    val_accuracy: float
    test_accuracy: float


def runs_of(told: list[dict[str, Any]]) -> list[Trained]:
    """The content of distillation.json as runs. Raises UserError if it is damaged or has one twice.

    A run that counts twice would make the intervals too narrow.
    """
    try:
        runs = [Trained(**run) for run in told]
    except TypeError as error:
        raise UserError(f"not a list of runs ({error})") from error
    for run, count in Counter((run.student, run.distill_loss, run.seed) for run in runs).items():
        if count > 1:
            raise UserError("the run {}, {}, seed {} is there more than once".format(*run))
    return runs


def read(path: Path, of: dict[str, Any]) -> list[Trained]:
    """Read the finished runs. Without a file, the list is empty.

    Raises UserError if the file is damaged or empty, has a run twice, or has runs with other facts
    than `of`.
    """
    if not path.exists():
        return []
    try:
        runs = runs_of(read_json(path, list))
    except UserError as error:
        raise UserError(f"{error}; move {path} away or repair it") from error
    for name, fact in of.items():
        if others := [found for run in runs if (found := getattr(run, name)) != fact]:
            raise UserError(
                f"{path} has runs with {name} {brief(others[0])}, not {brief(fact)}: move it away, "
                "or use another --out"
            )
    return runs


def train(student: str, loss: str, seed: int, folder: Path, flags: list[str]) -> dict[str, Any]:
    """Run StudentTrain.py (or continue a run that was stopped). Returns the accuracies."""
    model = 1 + STUDENTS.index(student)
    words = ["--model", model, "--distill-loss", loss, "--seed", seed, "--checkpoint-dir", folder]
    cli.run_script("StudentTrain.py", [*map(str, words), *flags])
    made = read_checkpoint(folder / (ALONE if loss == "none" else FILES)[student])
    return {name: made[name] for name in ("val_accuracy", "test_accuracy")}


def summary(runs: list[Trained]) -> list[dict[str, Any]]:
    """For each student and loss: mean and deviation of the accuracies over seeds, and the gain.

    The gain is the difference in test accuracy to the student trained without the teacher with the
    same seed. Its 95 % interval is from Student's t distribution over the seeds.
    """
    rows = []
    test = {(run.student, run.distill_loss, run.seed): run.test_accuracy for run in runs}
    for student, loss in PAIRS:
        mine = [run for run in runs if (run.student, run.distill_loss) == (student, loss)]
        if len(mine) < 2:
            continue
        row: dict[str, Any] = {"student": student, "distill_loss": loss, "seeds": len(mine)}
        for name in ("val_accuracy", "test_accuracy"):
            values = [getattr(run, name) for run in mine]
            row[name] = {"mean": statistics.mean(values), "std": statistics.stdev(values)}
        seeds = [run.seed for run in mine if (student, "none", run.seed) in test]
        if loss != "none" and len(seeds) > 1:
            gains = [
                test[student, loss, seed] - test[student, "none", seed] for seed in sorted(seeds)
            ]
            row["gain"] = {"each": gains, "interval": t_interval(gains)}
        rows.append(row)
    return rows


def name_of(row: dict[str, Any]) -> str:
    """Student and loss of a row of `summary`, for people."""
    return f"{NETWORKS[row['student']].title}, {LOSSES[row['distill_loss']]}"


def cells(row: dict[str, Any], sign: str) -> list[str]:
    """Validation accuracy, test accuracy and gain of a row of `summary`, for people, in %.

    `sign` is put between a mean and its deviation. The gain is empty if the row has none.
    """
    told = [
        f"{100 * row[name]['mean']:.2f} {sign} {100 * row[name]['std']:.2f}"
        for name in ("val_accuracy", "test_accuracy")
    ]
    if "gain" not in row:
        return [*told, ""]
    low, high = row["gain"]["interval"]
    mean = statistics.mean(row["gain"]["each"])
    return [*told, f"{100 * mean:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"]


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the summary as a table."""
    print(f"\n{'':<50}{'validation %':>14}{'test %':>14}{'gain (95 %)':>24}")
    for row in rows:
        val, test, gain = cells(row, "+-")
        print(f"{name_of(row):<50}{val:>14}{test:>14}{gain or '-':>24}")


def main() -> None:
    parser = cli.common_parser(__doc__, globals())
    cli.add_flag(parser, "EPOCHS", EPOCHS, "number of epochs per run")
    parser.add_argument(
        "--seeds",
        type=int,
        choices=range(2, 11),
        default=SEEDS,
        metavar="N",
        help="number of runs per student and loss, 2 to 10 (default: %(default)s)",
    )
    cli.add_out(parser, OUT, "distillation.json and distillation.png")
    args = parser.parse_args()
    figures = figures_into(args.out)
    teacher = args.checkpoint_dir / FILES["teacher"]
    images = load_splits(args.data, args.subset)[0]
    of = {
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "teacher": fingerprint_of(load_network(teacher, TEACHER)[0]),
        "data": data_facts(images.images, images.labels),
    }
    path = args.out / "distillation.json"
    runs = read(path, of)
    done = {(run.student, run.distill_loss, run.seed) for run in runs}
    todo = [
        (student, loss, seed)
        for seed in range(args.seeds)
        for student, loss in PAIRS
        if (student, loss, seed) not in done
    ]
    print(f"{len(done)} runs are done, {len(todo)} remain", flush=True)
    flags = ["--epochs", str(args.epochs), "--batch-size", str(args.batch_size)]
    flags += cli.retyped(args, "data", "device", "subset")
    folder = RUNS if args.subset is None else checkpoint.QUICK / RUNS.name
    # A run that was stopped is continued only by the same study.
    folder /= "-".join(map(str, (args.epochs, args.batch_size, of["teacher"], of["data"][-12:])))
    for student, loss, seed in todo:
        taught = [] if loss == "none" else ["--teacher", str(teacher)]
        made = train(student, loss, seed, folder / f"{loss}-{seed}", [*flags, *taught])
        runs.append(Trained(student, loss, seed, **of, **made))
        write_json(path, [asdict(run) for run in runs])
    rows = summary(runs)
    print_table(rows)
    picture = args.out / "distillation.png"
    from studies.figures import distillation_gains  # which needs Matplotlib

    gained = [row for row in rows if "gain" in row]
    figures.save(distillation_gains(gained, [name_of(row) for row in gained]), picture)
    print(f"\nwrote {shown(path)}, {shown(picture)}")


if __name__ == "__main__":
    cli.run(main)
