"""What routing between the two students gives: every policy's accuracy against its work.

    python -m utils.routing_study     writes routing.json and two figures into results/, in minutes
    python -m utils.routing_study --out-of-fold runs/half    takes the students' answers anew

Needs the four checkpoints and CIFAR-10. All is measured on the test images; the thresholds of the
policies are those in the selector's checkpoint, chosen on the validation images. Then come the
selectors that are trained on other labels and at other depths: see utils/selector_study.py.

Labels out of fold need students trained on one half of the training images to answer for the
other. Their answers lie in out_of_fold.npz among the results; `--out-of-fold` makes them anew, with
the students in the folder that it names, which are made by

    python -m utils.specialize halves
    python StudentTrain.py --model 1 --distill-loss none --epochs 6 \\
        --indices runs/special/halves-2.npy --checkpoint-dir runs/half
    and the same with --model 2
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from models import STUDENTS, confidence, macs
from utils import cli
from utils.answers import predict
from utils.checkpoint import FILES, check_students, load_network
from utils.data import load_splits
from utils.device import for_inference, pick_device
from utils.files import replacing, shown
from utils.selector_study import Answers, out_of_fold, selectors
from utils.statistics import auroc, mcnemar_p, share, wilson_interval

BATCH_SIZE = 500  # images a step
SEEDS = 5  # of each selector that the study trains
OUT = Path("results")  # for routing.json, routing.png and selectors.png
THRESHOLDS = [k / 100 for k in range(102)]


@dataclass
class Networks:
    """What the networks say of N images, and what each costs.

    Args:
        logits: (N, classes) of "resnet50" and of both students, (N,) of the "selector".
        work: MACs of each for one image.
        labels: int64 (N,).
    """

    logits: dict[str, torch.Tensor]
    work: dict[str, int]
    labels: torch.Tensor

    def right(self, logits: torch.Tensor) -> torch.Tensor:
        """Where the largest of the logits (N, classes) is the label's: bool (N,)."""
        return logits.argmax(dim=1) == self.labels

    def both(self) -> torch.Tensor:
        """The mean of both students' logits."""
        return sum(self.logits[arch] for arch in STUDENTS) / len(STUDENTS)


@dataclass
class Outcome:
    """What a policy does on N images.

    right: bool (N,), where its answer is the label.
    first_ran: bool (N,), where student 1 runs.
    macs: for one image, on average.
    """

    right: torch.Tensor
    first_ran: torch.Tensor
    macs: float


# ------------------------------------------------------------------ the policies


def selector(nets: Networks, threshold: float) -> Outcome:
    """Student 1 where the selector gives it at least this probability, else student 2."""
    return _one_of_both(nets, nets.logits["selector"].sigmoid() >= threshold, runs_selector=True)


def oracle(nets: Networks) -> Outcome:
    """The student that is right, where one is; the second where both are or neither."""
    first, second = (nets.right(nets.logits[arch]) for arch in STUDENTS)
    return _one_of_both(nets, first & ~second, runs_selector=False)


def _one_of_both(nets: Networks, to_first: torch.Tensor, runs_selector: bool) -> Outcome:
    first, second = (nets.right(nets.logits[arch]) for arch in STUDENTS)
    to_1 = share(to_first)
    work = to_1 * nets.work[STUDENTS[0]] + (1 - to_1) * nets.work[STUDENTS[1]]
    return Outcome(
        torch.where(to_first, first, second),
        to_first,
        work + runs_selector * nets.work["selector"],
    )


def cascade(nets: Networks, threshold: float) -> Outcome:
    """Student 2; where its largest probability is below the threshold, the mean of both."""
    alone = nets.logits[STUDENTS[1]]
    unsure = confidence(alone) < threshold
    return Outcome(
        torch.where(unsure, nets.right(nets.both()), nets.right(alone)),
        unsure,
        nets.work[STUDENTS[1]] + share(unsure) * nets.work[STUDENTS[0]],
    )


# ------------------------------------------------------------------ what they give


def report(nets: Networks, selector_threshold: float, cascade_threshold: float) -> dict:
    """What routing.json says; accuracies and shares in [0, 1], MACs of one image on average."""
    right = {arch: nets.right(nets.logits[arch]) for arch in ("resnet50", *STUDENTS)}
    first, second = (right[arch] for arch in STUDENTS)
    better = max(STUDENTS, key=lambda arch: right[arch].sum().item())
    images = len(nets.labels)

    def measured(correct: torch.Tensor, work: float) -> dict:
        accuracy = share(correct)
        return {
            "accuracy": accuracy,
            "interval": wilson_interval(accuracy, images),
            "macs": round(work),
        }

    apart = first != second
    scores = {  # of each image, high where student 1 is to be preferred
        "selector": nets.logits["selector"],
        "cascade": -confidence(nets.logits[STUDENTS[1]]),
        "both confidences": confidence(nets.logits[STUDENTS[0]])
        - confidence(nets.logits[STUDENTS[1]]),
    }
    areas = {name: auroc(score[apart], first[apart]) for name, score in scores.items()}
    policies = {}
    for name, outcome in {
        "selector": selector(nets, selector_threshold),
        "cascade": cascade(nets, cascade_threshold),
        "ensemble": cascade(nets, 1.01),
        "oracle": oracle(nets),
    }.items():
        policies[name] = {
            **measured(outcome.right, outcome.macs),
            f"share_{STUDENTS[0]}": share(outcome.first_ran),
            **({"auroc": areas[name]} if name in areas else {}),
            "mcnemar_p": mcnemar_p(outcome.right, right[better]),
        }
    policies["random"] = {
        "accuracy": (share(first) + share(second)) / 2,
        "macs": round(sum(nets.work[arch] for arch in STUDENTS) / 2),
        f"share_{STUDENTS[0]}": 0.5,
    }
    return {
        "images": images,
        "teacher": measured(right["resnet50"], nets.work["resnet50"]),
        "better_student": {"name": better, **measured(right[better], nets.work[better])},
        "students": {arch: measured(right[arch], nets.work[arch]) for arch in STUDENTS},
        "policies": policies,
        "study": {
            "right": {
                "both": share(first & second),
                f"{STUDENTS[0]} alone": share(first & ~second),
                f"{STUDENTS[1]} alone": share(second & ~first),
                "neither": share(~first & ~second),
            },
            "auroc": areas,
            "curves": {
                "selector": curve([selector(nets, each) for each in THRESHOLDS]),
                "cascade": curve([cascade(nets, each) for each in THRESHOLDS]),
            },
        },
    }


def curve(outcomes: list[Outcome]) -> dict[str, list[float]]:
    """Accuracy and MACs at each of THRESHOLDS."""
    return {
        "threshold": THRESHOLDS,
        "accuracy": [share(outcome.right) for outcome in outcomes],
        "macs": [round(outcome.macs) for outcome in outcomes],
    }


def print_report(routing: dict) -> None:
    """The policies as a table, and how often the students differ."""
    print(f"{'':<16}{'top-1 %':>8}{'MMACs':>8}{'student 1':>11}{'AUROC':>8}{'p':>11}")
    lines = {"teacher": routing["teacher"], **routing["students"], **routing["policies"]}
    for name, facts in lines.items():
        share, area, p = (facts.get(key) for key in (f"share_{STUDENTS[0]}", "auroc", "mcnemar_p"))
        print(
            f"{name:<16}{100 * facts['accuracy']:>8.2f}{facts['macs'] / 1e6:>8.1f}"
            f"{'' if share is None else f'{share:.1%}':>11}"
            f"{'' if area is None else f'{area:.3f}':>8}{'' if p is None else f'{p:.2g}':>11}"
        )
    shares = (f"{name} {share:.1%}" for name, share in routing["study"]["right"].items())
    print(f"right: {', '.join(shares)}; p against {routing['better_student']['name']}, McNemar's")


def print_selectors(told: dict) -> None:
    """The trained selectors as a table."""
    print(f"\n{'labels':<13}{'weighted':<10}{'depth':<7}{'norm':<7}{'top-1 %':>8}{'AUROC':>15}")
    for row in told["variants"]:
        print(
            f"{row['labels']:<13}{row['weighted']!s:<10}{row['depth']:<7}{row['batch_norm']!s:<7}"
            f"{100 * row['accuracy']['mean']:>8.2f}"
            f"{row['auroc']['mean']:>8.3f} +- {row['auroc']['std']:.3f}"
        )


def main() -> None:
    parser = cli.common_parser(__doc__, globals())
    parser.add_argument(
        "--seeds", type=cli.flag("SEEDS", int), default=SEEDS, metavar="N",
        help="trainings of each selector of the study (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--out-of-fold", type=Path, metavar="PATH",
        help="folder of students that were trained on the second half of the training images",
    )  # fmt: skip
    cli.add_out(parser, OUT, "routing.json, routing.png and selectors.png")
    args = parser.parse_args()
    device = pick_device(args.device)
    figures = cli.figures_into(args.out)
    train, val, test = load_splits(args.data_dir, args.subset, device)
    folds = out_of_fold(args.out_of_fold, args.out / "out_of_fold.npz", train)
    nets, thresholds = {}, (0.5, 0.9)
    for arch, file in FILES.items():
        nets[arch], facts = load_network(args.checkpoint_dir / file, arch)
        if arch == "selector":
            path = args.checkpoint_dir / file
            check_students(path, facts, [nets[student] for student in STUDENTS])
            thresholds = facts.get("threshold", 0.5), facts.get("cascade_threshold", 0.9)
    work = {arch: round(1e6 * macs(net)) for arch, net in nets.items()}
    nets = {arch: for_inference(net, device) for arch, net in nets.items()}
    logits = {arch: predict(net, test.images, arch, args.batch_size) for arch, net in nets.items()}
    routing = report(Networks(logits, work, test.labels), *thresholds)
    print_report(routing)
    students = [nets[arch] for arch in STUDENTS]
    tested = Answers(test.images, test.labels, tuple(logits[arch] for arch in STUDENTS))
    routing["study"]["selectors"] = selectors(students, train, val, tested, args.seeds, folds)
    print_selectors(routing["study"]["selectors"])

    written = [args.out / name for name in ("routing.json", "routing.png", "selectors.png")]
    with replacing(written[0], binary=False) as file:
        json.dump(routing, file, indent=1)
    figures.save(figures.accuracy_against_work(routing), written[1])
    figures.save(figures.selectors(routing["study"]["selectors"]), written[2])
    print(f"wrote {', '.join(map(shown, written))}")


if __name__ == "__main__":
    cli.run(main)
