"""The policy study: accuracy and MACs of each way to choose between the students.

    python -m studies.policies                                  write routing.json and routing.png
    python -m studies.policies --scores mine.npy --macs 9.1     evaluate your own router
    python -m studies.policies --collect                        recompute the logits first
    python -m studies.policies --collect --context mixed --checkpoint-dir checkpoints/contexts \
        --out runs/policies                                     another system and its images

Runs in seconds, without images or weights, because results/logits.npz has the logits of the
networks for the 5,000 validation and 10,000 test images. --collect writes that file in minutes; it
needs CIFAR-10, the students and the selector, and takes the teacher as well if it is there. All
results are measured on the test images. The thresholds of the selector and the cascade are in the
selector's checkpoint; they were chosen on the validation images.

Your own router is a .npy file of 15,000 scores, for the validation images and then the test images.
A high score means that student 1 should answer. With more than two students, it has one column of
scores per student. See docs/router.md for an example.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from evaluation import figures_into
from evaluation.policies import BOTH, Networks, Outcome, thresholds_of
from evaluation.significance import auroc_apart, mcnemar_p, wilson_interval
from models import SELECTED, STUDENTS, confidence, macs
from utils import cli
from utils.checkpoint import FILES, check_data, fingerprint_of, load_parts
from utils.contexts import in_context
from utils.data import described, load_splits
from utils.device import for_inference, pick_device
from utils.files import UserError, replacing, shown, try_folder, write_json
from utils.logits import predict
from utils.method import selector_thresholds, share
from utils.safe_load import brief, read_array, read_arrays, read_logits

BATCH_SIZE = 500  # images per step
CURVES = ("selector", "cascade")  # policies to draw with all thresholds
OUT = Path("results")  # for logits.npz, routing.json and routing.png


# ------------------------------------------------------------------ results


def measured(right: torch.Tensor, work: float) -> dict:
    """Facts for routing.json about a network; `right`: whether it is correct, bool (N,)."""
    accuracy = share(right)
    interval = wilson_interval(accuracy, len(right))
    return {"accuracy": accuracy, "interval": interval, "macs": round(work)}


def measured_policy(nets: Networks, outcome: Outcome, scores: torch.Tensor | None = None) -> dict:
    """Facts for routing.json about a policy, with McNemar's p against better student and teacher.

    The shares are those of the images on which a student runs, for all students but the last.
    `scores`, (N, K), are high if a student is preferred. There is no AUROC if `auroc_apart` gives
    none.
    """
    facts = {
        **measured(outcome.right, outcome.macs),
        **{f"share_{arch}": share(outcome.ran[arch]) for arch in STUDENTS[:-1]},
        "mcnemar_p": mcnemar_p(outcome.right, nets.right(nets.better_student())),
    }
    if "teacher" in nets.logits:
        facts["mcnemar_p_teacher"] = mcnemar_p(outcome.right, nets.right("teacher"))
    if scores is not None:
        among = SELECTED if scores.shape[1] == len(SELECTED) else STUDENTS
        area, interval = auroc_apart(scores, nets.students_right(among))
        if interval:
            facts |= {"auroc": area, "auroc_interval": interval}
    return facts


def confidences(nets: Networks) -> torch.Tensor:
    """The confidence of each student: (N, K)."""
    return torch.stack([confidence(nets.logits[arch]) for arch in STUDENTS], dim=1)


def doubts(nets: Networks) -> torch.Tensor:
    """Scores (N, K) of the cascade: those of the cheapest student are its confidence, others 0."""
    cheapest = min(STUDENTS, key=nets.work.get)
    first = torch.tensor([arch == cheapest for arch in STUDENTS])
    return confidences(nets) * first


def report(nets: Networks, thresholds: Mapping[str, Sequence[float]]) -> dict:
    """The content of routing.json: accuracies and shares in [0, 1], mean MACs per image."""
    right, better = nets.students_right(), nets.better_student()
    scores = dict.fromkeys(thresholds, doubts(nets)) | {"selector": nets.logits["selector"]}
    policies = {
        **{
            name: measured_policy(nets, nets.run(name, chosen), scores[name])
            for name, chosen in thresholds.items()
        },
        "ensemble": measured_policy(nets, nets.run("ensemble")),
        "oracle": measured_policy(nets, nets.oracle()),
        "random": {
            "accuracy": sum(map(share, right)) / len(STUDENTS),
            "macs": round(sum(nets.work[arch] for arch in STUDENTS) / len(STUDENTS)),
            **{f"share_{arch}": 1 / len(STUDENTS) for arch in STUDENTS[:-1]},
        },
    }
    areas = {name: facts["auroc"] for name, facts in policies.items() if "auroc" in facts}
    every, interval = auroc_apart(confidences(nets), right)
    if interval:
        areas[f"{BOTH} confidences"] = every
    alone = right & (right.sum(dim=0) == 1)
    teachers = {"teacher"} & nets.logits.keys()
    return {
        "images": len(nets.labels),
        **{name: measured(nets.right(name), nets.work[name]) for name in teachers},
        "better_student": {"name": better, **measured(nets.right(better), nets.work[better])},
        "students": {arch: measured(nets.right(arch), nets.work[arch]) for arch in STUDENTS},
        "policies": policies,
        "study": {
            "right": {
                BOTH: share(right.all(dim=0)),
                **{f"{arch} alone": share(alone[k]) for k, arch in enumerate(STUDENTS)},
                "neither" if len(STUDENTS) == 2 else "none": share(~right.any(dim=0)),
            },
            "auroc": areas,
            "curves": {name: curve(nets, name, thresholds) for name in CURVES},
        },
    }


def curve(
    nets: Networks, policy: str, thresholds: Mapping[str, Sequence[float]]
) -> dict[str, list[float]]:
    """Accuracy and MACs along the thresholds of a policy; "threshold" is the first of each."""
    saved = [chosen for name, chosen in thresholds.items() if name.startswith(policy)]
    positions = nets.along(policy, saved)
    outcomes = [nets.run(policy, each) for each in positions]
    return {
        "threshold": [each[0] for each in positions],
        "accuracy": [share(outcome.right) for outcome in outcomes],
        "macs": [round(outcome.macs) for outcome in outcomes],
    }


def print_report(routing: dict) -> None:
    """Print the policies as a table, and how often the students differ."""
    print(f"{'':<16}{'top-1 %':>8}{'MMACs':>8}{'student 1':>11}{'AUROC':>8}{'p':>11}")
    lines = {**routing["students"], **routing["policies"]}
    if "teacher" in routing:
        lines = {"teacher": routing["teacher"], **lines}
    for name, facts in lines.items():
        to_1, area, p = (facts.get(key) for key in (f"share_{STUDENTS[0]}", "auroc", "mcnemar_p"))
        print(
            f"{name:<16}{100 * facts['accuracy']:>8.2f}{facts['macs'] / 1e6:>8.1f}"
            f"{'' if to_1 is None else f'{to_1:.1%}':>11}"
            f"{'' if area is None else f'{area:.3f}':>8}{'' if p is None else f'{p:.2g}':>11}"
        )
    shares = (f"{name} {each:.1%}" for name, each in routing["study"]["right"].items())
    print(
        f"correct: {', '.join(shares)}; p: McNemar's test against "
        f"{routing['better_student']['name']}"
    )


# ------------------------------------------------------------------ your own router


def best_cut(scores: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> float:
    """The threshold with the highest accuracy, if student 1 answers for scores >= threshold.

    Of equally good thresholds, the highest, which runs student 1 on the fewest images. inf: student
    1 never runs.

    Args:
        scores: (N,).
        first, second: whether each student is correct, bool (N,).
    """
    ordered, order = scores.sort(descending=True)
    gains = (first.long() - second.long())[order].cumsum(0)  # if student 1 answers up to here
    ends = torch.ones_like(first)
    ends[:-1] = ordered[1:] != ordered[:-1]  # equal scores go to the same student
    ordered, gains = ordered[ends], gains[ends]
    best = gains.argmax()  # the first maximum
    return ordered[best].item() if gains[best] > 0 else math.inf


def own_router(
    path: Path, router_macs: float | None, val: Networks, test: Networks
) -> tuple[dict, str]:
    """Evaluate the scores at `path` on `test`, with the thresholds chosen on `val`.

    Returns the facts and a text. Raises UserError if the file does not have one number per image,
    or one per image and student.
    """
    scores = _read_scores(path, len(val.labels), len(test.labels))
    of_val, of_test = scores.split([len(val.labels), len(test.labels)])
    right = val.students_right(SELECTED)
    cuts = selector_thresholds(of_val, right, best_cut, lambda cut: -cut)
    lowered = of_test - torch.tensor([*cuts, 0.0])
    choice = F.one_hot(lowered.argmax(dim=1), len(SELECTED))
    outcome = test.routed(choice.float())
    outcome.macs += 1e6 * (router_macs or 0)
    facts = measured_policy(test, outcome, of_test)
    low, high = (100 * end for end in facts["interval"])
    area = "no AUROC"
    if "auroc" in facts:
        area = "AUROC {:.3f} (95 % interval {:.3f} to {:.3f})".format(
            facts["auroc"], *facts["auroc_interval"]
        )
    answers = [
        "never answers" if cut == math.inf else f"answers if the score is at least {cut:.6g}"
        for cut in cuts
    ]
    right = test.students_right(SELECTED)
    apart = (right.any(dim=0) & ~right.all(dim=0)).sum()
    told = [
        f"{shown(path)}: top-1 {100 * facts['accuracy']:.2f} % (95 % interval {low:.1f} to "
        f"{high:.1f})",
        *(
            f"student {STUDENTS.index(arch) + 1} {answer}"
            + ("" if len(SELECTED) == 2 else " above the highest of the others")
            + f", chosen on the {len(of_val):,} validation images"
            for arch, answer in zip(SELECTED, answers, strict=False)
        ),
        f"{area} on the {apart:,} test images where only some students are correct",
    ]
    if router_macs is None:
        told.append("the MACs are without the router: add its MACs with --macs")
    return facts, "\n  ".join(told)


def _read_scores(path: Path, val: int, test: int) -> torch.Tensor:
    """Read the .npy file of --scores, float64 (val + test, K); of two students also (N,)."""
    columns = "" if len(SELECTED) == 2 else f" x {len(SELECTED)}"
    wanted = (
        f"{val + test:,}{columns} scores are needed, one for each of the {val:,} validation "
        f"images, then one for each of the {test:,} test images"
    )
    try:
        scores = read_array(path)
    except UserError as error:
        raise UserError(f"--scores {error}") from error
    if scores.dtype.kind not in "fiub":
        raise UserError(f"--scores {path} must contain numbers: {wanted}")
    if scores.ndim == 1 and len(SELECTED) == 2:
        scores = np.stack([scores, np.zeros_like(scores)], axis=1)
    if scores.shape != (val + test, len(SELECTED)):
        raise UserError(f"--scores {path} has shape {scores.shape}: {wanted}")
    if wrong := (~np.isfinite(scores)).sum():
        raise UserError(f"--scores {path}: {wrong} of its scores are NaN or infinite: {wanted}")
    return torch.from_numpy(scores.astype(np.float64))


# ------------------------------------------------------------------ logits.npz


def collect(args: argparse.Namespace) -> None:
    """Compute the logits of all networks for validation and test images; write logits.npz.

    Raises UserError if a student, the selector or the data set is not available, or if the selector
    was trained for other students.
    """
    device = pick_device(args.device)
    try_folder(args.out)
    paths = {name: args.checkpoint_dir / file for name, file in FILES.items()}
    if not paths["teacher"].exists():
        del paths["teacher"]
    parts = load_parts(lambda file: args.checkpoint_dir / file, tuple(paths))
    nets = {arch: net for arch, (net, _) in parts.items()}
    facts = {arch: info for arch, (_, info) in parts.items()}
    _, *splits = load_splits(args.data, args.subset, device, facts[STUDENTS[0]])
    for arch, path in paths.items():
        check_data(path, facts[arch], splits[0].data)
    splits = [in_context(split, args.context) for split in splits]
    print(f"computing logits for {described(*splits)}, {args.context}", flush=True)
    about = {
        "classes": facts[STUDENTS[0]]["classes"],
        "weights": {arch: fingerprint_of(net) for arch, net in nets.items()},
        "macs": {arch: macs(net, splits[0].data.size) for arch, net in nets.items()},
        "thresholds": thresholds_of(facts["selector"]),
        "context": args.context,
    }
    arrays = {
        "labels": np.concatenate([split.labels.cpu().numpy() for split in splits]),
        "indices": np.concatenate([split.indices for split in splits]),
        "validation": len(splits[0]),
        "about": json.dumps(about),
    }
    images = replace(splits[0], images=torch.cat([split.images for split in splits]))
    for arch, net in nets.items():
        logits = predict(for_inference(net, device), images, arch, args.batch_size)
        arrays[arch] = logits.half().cpu().numpy()
        if not np.isfinite(arrays[arch]).all():
            raise UserError(
                f"{FILES[arch]}: its logits are not finite in half precision; train it again"
            )
    with replacing(args.out / "logits.npz") as file:
        np.savez_compressed(file, **arrays)
    print(f"wrote {shown(args.out / 'logits.npz')}: {sum(map(len, splits)):,} images\n")


def collected(path: Path) -> tuple[Networks, Networks, dict[str, list[float]]]:
    """Read the logits for the validation and test images, and the thresholds of the policies.

    Raises UserError if the file is missing, damaged, or was not written by `collect`.
    """
    try:
        held = read_arrays(path, ["validation", "about"])
        about, middle = json.loads(str(held["about"])), int(held["validation"])
        names = [name for name in FILES if name != "teacher" or name in about["macs"]]
        work = {name: int(about["macs"][name]) for name in names}
        thresholds = {
            name: [float(each) for each in np.atleast_1d(about["thresholds"][name])]
            for name in {**dict.fromkeys(CURVES), **about["thresholds"]}
        }
        classes = len(about["classes"])
        shapes = dict.fromkeys(names, ("N", classes)) | {"labels": ("N",)}
        old = (
            read_arrays(path, ["selector"])["selector"].ndim == 1
        )  # the logits of student 1 of two
        shapes["selector"] = ("N",) if old else ("N", len(SELECTED))
        logits = read_logits(path, shapes, classes)
        if old:
            logits["selector"] = F.pad(logits["selector"][:, None], (0, 1))
        labels = logits.pop("labels")
        if not 0 < middle < len(labels):
            raise ValueError("it has no validation images or no test images")
    except (UserError, LookupError, TypeError, ValueError, OverflowError) as error:
        reason = str(error)
        if not isinstance(error, UserError):
            reason = f"{path} is not a file written by --collect: {brief(reason)}"
        raise UserError(
            f"{reason}; make it with: python -m studies.policies --collect --out "
            f"{shown(path.parent)}"
        ) from error
    val, test = (
        Networks({arch: each[part] for arch, each in logits.items()}, work, labels[part])
        for part in (slice(middle), slice(middle, None))
    )
    return val, test, thresholds


def main() -> None:
    parser = cli.common_parser(__doc__, globals())
    cli.add_flag(parser, "CONTEXT", "clean", "context of the images, see utils/contexts.py")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--collect",
        action="store_true",
        help="compute the logits of the networks in --checkpoint-dir first, and write logits.npz; "
        "the flags above are for this",
    )
    what.add_argument(
        "--scores",
        type=Path,
        metavar="PATH",
        help="evaluate your own router with the scores in this .npy file; no file is written",
    )
    parser.add_argument(
        "--macs",
        type=cli.flag("MACS"),
        metavar="M",
        help="MACs per image of the router of --scores, in millions",
    )
    cli.add_out(parser, OUT, "logits.npz (read), routing.json and routing.png (written)")
    args = parser.parse_args()
    if args.macs is not None and not args.scores:
        parser.error("--macs needs --scores: it is the cost of your own router")
    figures = None if args.scores else figures_into(args.out)
    if args.collect:
        collect(args)
    val, test, thresholds = collected(args.out / "logits.npz")
    routing = report(test, thresholds)
    if args.scores:
        facts, told = own_router(args.scores, args.macs, val, test)
        routing["policies"]["your router"] = facts
        print_report(routing)
        print(f"\n{told}")
        return
    print_report(routing)
    written = [args.out / name for name in ("routing.json", "routing.png")]
    write_json(written[0], routing)
    from studies.figures import accuracy_against_work  # which needs Matplotlib

    figures.save(accuracy_against_work(routing), written[1])
    print(f"wrote {', '.join(map(shown, written))}")


if __name__ == "__main__":
    cli.run(main)
