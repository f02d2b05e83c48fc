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

from evaluation.policies import BOTH, THRESHOLDS, Networks, Outcome, saved_for, thresholds_of
from evaluation.significance import auroc_apart, mcnemar_p, wilson_interval
from evaluation.testset import LABELS, ROUTED
from models import NETWORKS, SELECTED, STUDENTS, macs
from studies import OUT, figures, number, write
from utils import cli
from utils.checkpoint import FILES, fingerprint_of, load_system
from utils.contexts import in_context
from utils.data import described
from utils.device import for_inference, pick_device
from utils.files import UserError, replacing, shown, try_folder
from utils.logits import predict
from utils.method import selector_thresholds, share
from utils.safe_load import read_array, read_arrays, read_logits

BATCH_SIZE = 500  # images per step
CURVES = ("selector", "cascade")  # policies to draw with all thresholds
ROWS = (*THRESHOLDS, "ensemble", "oracle", "your router")


# ------------------------------------------------------------------ results


def network_facts(right: torch.Tensor, work: float) -> dict:
    """Facts for routing.json about a network; `right`: whether it is correct, bool (N,)."""
    accuracy = share(right)
    interval = wilson_interval(accuracy, len(right))
    return {"accuracy": accuracy, "interval": interval, "macs": round(work)}


def policy_facts(nets: Networks, outcome: Outcome, scores: torch.Tensor | None = None) -> dict:
    """Facts for routing.json about a policy, with McNemar's p against better student and teacher.

    The shares are those of the images on which a student runs, for all students but the last.
    `scores` of a router, (N, K), are high if a student is preferred. There is no AUROC without
    them, or if `auroc_apart` gives none.
    """
    facts = {
        **network_facts(outcome.right, outcome.macs),
        **{f"share_{arch}": share(outcome.ran[arch]) for arch in STUDENTS[:-1]},
        "mcnemar_p": mcnemar_p(outcome.right, nets.right(nets.better_student())),
    }
    if "teacher" in nets.logits:
        facts["mcnemar_p_teacher"] = mcnemar_p(outcome.right, nets.right("teacher"))
    if scores is not None:
        area, interval = auroc_apart(scores, nets.students_right())
        if interval:
            facts |= {"auroc": area, "auroc_interval": interval}
    return facts


def report(nets: Networks, thresholds: Mapping[str, Sequence[float]]) -> dict:
    """The content of routing.json: accuracies and shares in [0, 1], mean MACs per image."""
    right, better = nets.students_right(), nets.better_student()
    policies = {
        **{
            name: policy_facts(nets, nets.run(name, chosen), nets.logits.get(name))
            for name, chosen in thresholds.items()
        },
        "ensemble": policy_facts(nets, nets.run("ensemble")),
        "oracle": policy_facts(nets, nets.oracle()),
        "random": {
            "accuracy": sum(map(share, right)) / len(SELECTED),
            "macs": round(sum(nets.work[arch] for arch in SELECTED) / len(SELECTED)),
            **{f"share_{arch}": 1 / len(SELECTED) for arch in SELECTED[:-1]},
        },
    }
    alone = right & (right.sum(dim=0) == 1)
    networks = {
        name: network_facts(nets.right(name), nets.work[name])
        for name in ("teacher", *STUDENTS)
        if name in nets.logits
    }
    return {
        "images": len(nets.labels),
        **{name: networks[name] for name in networks if name == "teacher"},
        "better_student": {"name": better, **networks[better]},
        "students": {arch: networks[arch] for arch in STUDENTS},
        "policies": policies,
        "study": {
            "right": {
                BOTH: share(right.all(dim=0)),
                **{f"{arch} alone": share(alone[k]) for k, arch in enumerate(SELECTED)},
                "neither" if len(SELECTED) == 2 else "none": share(~right.any(dim=0)),
            },
            "curves": {name: curve(nets, name, thresholds) for name in CURVES},
        },
    }


def curve(
    nets: Networks, policy: str, thresholds: Mapping[str, Sequence[float]]
) -> dict[str, list[float]]:
    """Accuracy and MACs along the thresholds of a policy; "threshold" is the first of each."""
    positions = nets.along(policy, list(saved_for(policy, thresholds).values()))
    outcomes = [nets.run(policy, each) for each in positions]
    return {
        "threshold": [each[0] for each in positions],
        "accuracy": [share(outcome.right) for outcome in outcomes],
        "macs": [round(outcome.macs) for outcome in outcomes],
    }


def table(routing: dict) -> tuple[list[str], list[list[str]]]:
    """The policies as a table: heads and rows."""
    teacher, rows = routing.get("teacher"), []
    for name in (name for name in ROWS if name in routing["policies"]):
        facts = routing["policies"][name]
        rows.append(
            [
                LABELS.get(ROUTED.get(name, name), name),
                f"{100 * facts['accuracy']:.2f}",
                f"{100 * facts['macs'] / teacher['macs']:.0f} %"
                if teacher
                else f"{facts['macs'] / 1e6:.1f}",
                number(facts.get(f"share_{STUDENTS[0]}"), ".1%").replace("%", " %"),
                number(facts.get("auroc"), ".2f"),
                number(facts.get("mcnemar_p"), ".2g"),
                number(facts.get("mcnemar_p_teacher"), ".2g"),
            ]
        )
    first = f"{NETWORKS[STUDENTS[0]].title} runs on"
    work = "MACs of the teacher's" if teacher else "MMACs"
    return ["", "top-1, %", work, first, "AUROC", "p", "p, teacher"], rows


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


def own_router(path: Path, router_macs: float, val: Networks, test: Networks) -> dict:
    """Facts about the router with the scores at `path`, on `test`; its thresholds are from `val`.

    Raises UserError if the file does not have one number per image and student; one per image is
    enough for two students.
    """
    scores, wanted = read_array(path), (len(val.labels) + len(test.labels), len(SELECTED))
    if scores.ndim == 1 and len(SELECTED) == 2:
        scores = np.stack([scores, np.zeros_like(scores)], axis=1)
    if scores.shape != wanted or scores.dtype.kind not in "fiub" or not np.isfinite(scores).all():
        raise UserError(
            f"--scores {path} must have finite numbers of shape {wanted}, for the validation images"
            f" and then the test images, but has {scores.dtype} {scores.shape}"
        )
    scores = torch.from_numpy(scores.astype(np.float64))
    of_val, of_test = scores.split([len(val.labels), len(test.labels)])
    cuts = selector_thresholds(of_val, val.students_right(), best_cut, lambda cut: -cut)
    lowered = of_test - torch.tensor([*cuts, 0.0])
    outcome = test.routed(F.one_hot(lowered.argmax(dim=1), len(SELECTED)).float())
    outcome.macs += router_macs
    return {**policy_facts(test, outcome, of_test), "thresholds": cuts}


# ------------------------------------------------------------------ logits.npz


def collect(args: argparse.Namespace) -> None:
    """Compute the logits of all networks for validation and test images; write logits.npz.

    Raises UserError if a student, the selector or the data set is not available, or if the selector
    was trained for other students.
    """
    device = pick_device(args.device)
    taught = (args.checkpoint_dir / FILES["teacher"]).exists()
    names = [name for name in FILES if name != "teacher" or taught]
    parts, splits = load_system(args.checkpoint_dir.joinpath, names, args.data, args.subset, device)
    splits = [in_context(split, args.context) for split in splits[1:]]
    print(f"computing logits for {described(*splits)}, {args.context}", flush=True)
    about = {
        "classes": splits[0].classes,
        "weights": {name: fingerprint_of(net) for name, (net, _) in parts.items()},
        "macs": {name: macs(net, splits[0].data.size) for name, (net, _) in parts.items()},
        "thresholds": thresholds_of(parts["selector"][1]),
        "context": args.context,
    }
    arrays = {
        "labels": np.concatenate([split.labels.cpu().numpy() for split in splits]),
        "indices": np.concatenate([split.indices for split in splits]),
        "validation": len(splits[0]),
        "about": json.dumps(about),
    }
    images = replace(splits[0], images=torch.cat([split.images for split in splits]))
    for name, (net, _) in parts.items():
        logits = predict(for_inference(net, device), images, name, args.batch_size)
        arrays[name] = logits.half().cpu().numpy()
    with replacing(args.out / "logits.npz") as file:
        np.savez_compressed(file, **arrays)
    print(f"wrote {shown(args.out / 'logits.npz')}: {sum(map(len, splits)):,} images\n")


def collected(path: Path) -> tuple[Networks, Networks, dict[str, list[float]]]:
    """Read the logits for the validation and test images, and the thresholds of the policies.

    Raises UserError if the file is missing, damaged, or was not written by `collect`.
    """
    try:
        stored = read_arrays(path, ["validation", "about", "labels"])
        about, middle = json.loads(str(stored["about"])), int(stored["validation"])
        work, thresholds = about["macs"], about["thresholds"]
        labels = torch.from_numpy(stored["labels"].astype(np.int64))
        names = [name for name in FILES if name != "teacher" or name in work]
        shapes = dict.fromkeys(names, (len(labels), len(about["classes"])))
        logits = read_logits(path, shapes | {"selector": (len(labels), len(SELECTED))})
        if not 0 < middle < len(labels) or not set(names) <= set(work):
            raise ValueError("it has no validation images, no test images or no MACs")
    except (UserError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be used ({error}): make it with python -m studies.policies --collect "
            f"--out {shown(path.parent)}"
        ) from error
    val, test = (
        Networks({arch: each[part] for arch, each in logits.items()}, work, labels[part])
        for part in (slice(middle), slice(middle, None))
    )
    return val, test, thresholds


def main() -> None:
    parser = cli.common_parser(__doc__, globals())
    cli.add_flag(parser, "CONTEXT", "clean", "context of the images, see utils/contexts.py")
    what = "compute the logits with the networks in --checkpoint-dir first; the flags above are "
    parser.add_argument("--collect", action="store_true", help=f"{what}for this")
    what = "evaluate your own router with the scores in this .npy file; no file is written"
    parser.add_argument("--scores", type=Path, metavar="PATH", help=what)
    what = "MACs per image of the router of --scores, in millions (default: %(default)s)"
    parser.add_argument("--macs", type=cli.flag("MACS"), default=0, metavar="M", help=what)
    cli.add_out(parser, OUT, "logits.npz (read), routing.json and routing.png (written)")
    args = parser.parse_args()
    try_folder(args.out)
    if args.collect:
        collect(args)
    val, test, thresholds = collected(args.out / "logits.npz")
    routing = report(test, thresholds)
    if args.scores:
        facts = own_router(args.scores, 1e6 * args.macs, val, test)
        routing["policies"]["your router"] = facts
        print(cli.aligned(*table(routing)))
        for name in ("interval", "auroc_interval", "thresholds"):
            print(
                f"your router, {name}: {', '.join(f'{each:.6g}' for each in facts.get(name, ()))}"
            )
        return
    print(cli.aligned(*table(routing)))
    right = {name: test.right(name) for name in test.logits if name != "selector"}
    right |= {
        name: test.run(name, thresholds.get(name)).right for name in (*thresholds, "ensemble")
    }
    write(args.out, "routing", routing, routing=figures.accuracy_against_work(routing, right))


if __name__ == "__main__":
    cli.run(main)
