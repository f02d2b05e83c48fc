"""The context study: routing between specialized students on images from several contexts.

    python -m studies.contexts    writes contexts.json and three figures to results/
    make reproduce-contexts       trains all networks first
    make reproduce-contexts EPOCHS=1 SUBSET=500    quick test, in runs/quick/

All networks start from the weights in checkpoints/, which are trained on clean images. Student 1 is
trained further on degraded images, the others stay as they are, and the selector sends each image
to one of them. The baselines are generalists: the same networks, trained further on mixed images
for the same number of epochs as student 1 (once), or twice as many (twice). All are evaluated on
the test images: clean, degraded in six ways, mixed (half of each), and degraded in three ways that
were not used for training (unseen). Thresholds and the best generalist are chosen on mixed
validation images.

The system is in checkpoints/contexts/, the generalists are in runs/contexts/. The study itself
trains only selectors, in less than a minute each. The logits of each network are stored in
results/contexts/; for the teacher and the generalists, these are enough: their checkpoints may be
missing.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from evaluation.policies import BOTH, Networks, Outcome, assemble
from evaluation.significance import mcnemar_p
from evaluation.testset import LABELS
from models import NETWORKS, SELECTED, STUDENTS, TEACHER, macs
from studies import figures, number, write
from studies.policies import confidences, first_confidence, network_facts, policy_facts
from studies.selectors import Images, fit, lesson, thresholds_of
from utils import cli
from utils.augment import Augmentation
from utils.checkpoint import FILES, QUICK, fingerprint_of, load_network, load_system
from utils.contexts import (
    CONTEXTS,
    DEGRADED,
    GROUPS,
    KINDS,
    UNSEEN,
    context_labels,
    image_seeds,
    in_context,
    kinds,
)
from utils.data import Split, data_facts, described, fingerprint
from utils.device import for_inference, pick_device
from utils.files import UserError, replacing, shown, try_folder
from utils.logits import predict, top1
from utils.method import cascade_thresholds, share
from utils.safe_load import read_arrays, read_logits

BATCH_SIZE = 500  # images per step
SEEDS = 5  # runs per selector trained here
IMAGES = 10_000  # number of training images for these selectors, from the first on
SELECTOR_EPOCHS = 12  # of these selectors
AUGMENTATION = Augmentation(crop=0, flip=True)  # their labels are of the whole image
OUT = Path("results")  # for contexts.json, the figures, and contexts/ with the logits
GENERALISTS = Path("runs/contexts")  # contains the folders once and twice
STAGES = {"once": "", "twice": ", twice as long"}  # epochs of a generalist, in the table's words
TRAINED_ON = dict.fromkeys(SELECTED, "clean") | {SELECTED[0]: "degraded"}  # of the system
TESTED = {"clean": "clean", "degraded": "degraded", "unseen": "degraded"}  # and its true context
REMEDY = "run make reproduce-contexts"
MADE = ("context", "epochs", "data", "init")  # hyperparameters in contexts.json

ROWS = {  # of the table: name in contexts.json, label
    **{
        name: f"{LABELS[name]}, trained on {context} images"
        for name, context in {"teacher": "clean", **TRAINED_ON}.items()
    },
    **{
        f"{arch}, {stage}": f"{NETWORKS[arch].title} trained on both{longer}"
        for arch in SELECTED
        for stage, longer in STAGES.items()
    },
    "selector": "**routed by the shipped selector**",
    "selector, published labels": "selector: published labels",
    "selector, weighted labels": "selector: weighted labels",
    "selector, taught the context": "selector: labels from the true context",
    "true context": "routed by the true context",
    "more confident": f"{BOTH} students, the more confident one answers",
    "cascade": LABELS["cascade"],
    "ensemble": LABELS["ensemble"],
    "generalists, selector": "both trained on both, with a selector",
    "generalists, cascade": f"{BOTH} trained on both, as a cascade",
    "generalists, ensemble": f"{BOTH} trained on both, mean of their logits",
    "oracle": LABELS["oracle"],
}

Rule = Callable[[Networks], tuple[Outcome, torch.Tensor | None]]  # scores (N, K), for the AUROC
Policy = tuple[dict[str, Networks], Rule]  # with the logits for "val" and "test"


class Network(NamedTuple):
    """A checkpoint: its path, its architecture, and hyperparameters that it must have."""

    path: Path
    arch: str
    made: dict[str, Any]


class Stored(NamedTuple):
    """Logits of a network, float32 (N, classes), by set of images; and facts about the network."""

    logits: dict[str, torch.Tensor]
    facts: dict[str, Any]


# ------------------------------------------------------------------ main program


def main() -> None:
    parser = cli.common_parser(__doc__, globals(), quick=True)
    cli.add_flag(parser, "SEEDS", SEEDS, "number of runs per selector of the study")
    cli.add_out(parser, OUT, "contexts.json, the figures, and contexts/ with the logits")
    args = parser.parse_args()
    device = pick_device(args.device)
    try_folder(args.out)

    folder, names = args.checkpoint_dir / "contexts", (*STUDENTS, "selector")
    parts, (train, val, test) = load_system(folder.joinpath, names, args.data, args.subset, device)
    ready = {name: for_inference(net, device) for name, (net, _) in parts.items()}
    system = assemble("selector", parts, ready)
    selector, thresholds = ready["selector"], system.thresholds
    print(f"computing logits for {described(train, val, test)}", flush=True)
    networks = planned(args, data_facts(train.images, train.labels))
    train = train.take(slice(IMAGES))
    splits, key = in_contexts(train, val, test), key_of(train, val, test)
    stored = {}
    for name, network in networks.items():
        path = args.out / "contexts" / f"{name.replace(', ', '-')}.npz"
        stored[name] = stored_logits(name, network, path, splits, key, args.batch_size)
    own, general = (
        paired(splits, {arch: stored[f"{arch}{stage}"] for arch in SELECTED}, macs(selector))
        for stage in ("", ", once")
    )
    own["val"].nets.logits["context"] = F.one_hot(true_context(val, "mixed"), len(SELECTED))
    own["test"].nets.logits["context"] = F.one_hot(
        torch.cat([true_context(test, context) for context in TESTED]), len(SELECTED)
    )

    def selectors(students: dict[str, Images], *labels: torch.Tensor) -> list[Policy]:
        """Train a selector per seed on these labels and weights; thresholds are of validation."""
        runs = []
        for seed in tqdm(range(args.seeds), unit="selector", leave=False):
            net = fit(students["train"], *labels, seed, SELECTOR_EPOCHS, AUGMENTATION)
            nets = {split: students[split].scored(net) for split in ("val", "test")}
            runs.append((nets, routing(thresholds_of(nets["val"]))))
        return runs

    def one(students: dict[str, Images], rule: Rule) -> list[Policy]:
        return [({split: students[split].nets for split in ("val", "test")}, rule)]

    shipped = {split: own[split].scored(selector, "selector") for split in ("val", "test")}
    context = true_context(train, "mixed"), torch.ones(len(train))
    policies = {
        "selector": [(shipped, routing(thresholds))],
        "selector, published labels": selectors(own, *lesson(own["train"].nets)),
        "selector, weighted labels": selectors(own, *lesson(own["train"].nets, True)),
        "selector, taught the context": selectors(own, *context),
        "more confident": one(own, lambda nets: (nets.run("more_confident"), confidences(nets))),
        "cascade": one(own, cascading(own["val"].nets)),
        "ensemble": one(own, lambda nets: (nets.run("ensemble"), None)),
        "true context": one(own, lambda nets: (nets.routed(nets.logits["context"].float()), None)),
        "oracle": one(own, lambda nets: (nets.oracle(), None)),
        "generalists, selector": selectors(general, *lesson(general["train"].nets, True)),
        "generalists, cascade": one(general, cascading(general["val"].nets)),
        "generalists, ensemble": one(general, lambda nets: (nets.run("ensemble"), None)),
    }
    results = report(stored, splits, rows_by_context(test), policies)
    print(cli.aligned(*table(results)))
    write(
        args.out,
        "contexts",
        results,
        contexts_accuracy=figures.contexts_accuracy(results),
        contexts_share=figures.contexts_shares(results),
        contexts_pictures=figures.contexts_pictures(system.net, test),
    )


# ------------------------------------------------------------------ networks and their logits


def planned(args: argparse.Namespace, data: str) -> dict[str, Network]:
    """All networks of the study; those that are trained in it, on images that `data` describes."""
    generalists = GENERALISTS if args.subset is None else QUICK / "generalists"
    rows = {"teacher": (cli.found(args, FILES["teacher"]), TEACHER, "clean")}
    for arch, context in TRAINED_ON.items():
        rows[arch] = args.checkpoint_dir / "contexts" / FILES[arch], arch, context
    for stage in STAGES:
        for arch in SELECTED:
            rows[f"{arch}, {stage}"] = generalists / stage / FILES[arch], arch, "mixed"
    networks = {}
    for name, (path, arch, context) in rows.items():
        made = {}
        if context != "clean":
            init = fingerprint_of(load_network(cli.found(args, FILES[arch]), arch)[0])
            made = {"context": context, "data": data, "init": init}
        networks[name] = Network(path, arch, made)
    return networks


def in_contexts(train: Split, val: Split, test: Split) -> dict[str, Split]:
    """The images to compute logits for: mixed "train" and "val", and "test", all of TESTED."""
    tested = [in_context(test, context) for context in TESTED]
    images, labels = (
        torch.cat([getattr(split, what) for split in tested]) for what in ("images", "labels")
    )
    return {
        "train": in_context(train, "mixed"),
        "val": in_context(val, "mixed"),
        "test": replace(test, images=images, labels=labels),
    }


def key_of(*splits: Split) -> str:
    """The fingerprint of the clean images and of the definition of the contexts.

    Degraded pixels are left out, because processors round them differently.
    """
    definition = repr((CONTEXTS, {kind: strengths for kind, (_, strengths) in KINDS.items()}))
    text = torch.tensor(list(definition.encode()))
    return fingerprint([*(split.images for split in splits), text])


def rows_by_context(test: Split) -> dict[str, torch.Tensor]:
    """For each group and kind of context, the indices of its images among the "test" images."""
    places, seeds, rows = torch.arange(len(test)), image_seeds(test), {}
    for k, group in enumerate(TESTED):
        rows[group] = places + k * len(test)
        seen = kinds(group, seeds)
        for kind in CONTEXTS[group]:
            own = torch.tensor([each == kind for each in seen])
            if own.any():
                rows[kind] = rows[group][own]
    degraded = torch.tensor([kind != "clean" for kind in kinds("mixed", seeds)])
    return rows | {"mixed": torch.where(degraded, rows["degraded"], rows["clean"])}


def true_context(split: Split, context: str) -> torch.Tensor:
    """The index in SELECTED of the student that was trained on each image's context: int64 (N,)."""
    trained_on = [TRAINED_ON[arch] for arch in SELECTED]
    return context_labels(TESTED.get(context, context), image_seeds(split), trained_on)


def stored_logits(
    name: str,
    network: Network,
    saved: Path,
    splits: Mapping[str, Split],
    key: str,
    batch_size: int,
) -> Stored:
    """The logits of a network for the images with this key, stored in half precision at `saved`.

    They are computed if they are missing or of other weights than the checkpoint. Without a
    checkpoint, the stored logits are enough. Raises UserError if both are missing, or if the
    network was trained from other weights or on other images.
    """
    path, arch, made = network
    if name == "teacher" or name.endswith("twice"):  # selectors are not trained for these
        splits = {split: splits[split] for split in ("val", "test")}
    facts = {"images": key, **made}
    if path.exists():
        net, checkpoint = load_network(path, arch)
        recipe = {"context": "clean"} | checkpoint["hyperparameters"]
        facts = {"images": key, "weights": fingerprint_of(net)}
        facts |= {fact: recipe.get(fact) for fact in MADE}
        if not made.items() <= facts.items():
            raise UserError(f"{shown(path)} is of other weights or images: {REMEDY}")
    try:
        found = json.loads(str(read_arrays(saved, ["facts"])["facts"]))
        if not facts.items() <= found.items():
            raise UserError(f"{shown(saved)} is of other weights or images")
        shapes = {split: (len(each), len(each.classes)) for split, each in splits.items()}
        return Stored(read_logits(saved, shapes), found)
    except (UserError, LookupError, ValueError) as error:
        if not path.exists():
            raise UserError(f"{shown(path)} is missing ({error}): {REMEDY}") from error
    facts["macs"] = macs(net, splits["test"].data.size)
    net = for_inference(net, splits["test"].images.device)
    logits = {
        split: predict(net, each, f"{name}, {split}", batch_size).half().cpu()
        for split, each in splits.items()
    }
    with replacing(saved) as file:
        np.savez(file, facts=json.dumps(facts), **{k: each.numpy() for k, each in logits.items()})
    return Stored({split: each.float() for split, each in logits.items()}, facts)


def paired(
    splits: Mapping[str, Split], stored: Mapping[str, Stored], selector_macs: int
) -> dict[str, Images]:
    """The images of each set with the logits of the students in `stored`, and the MACs."""
    work = {arch: each.facts["macs"] for arch, each in stored.items()}
    work["selector"] = selector_macs
    found = {}
    for split, images in splits.items():
        logits = {arch: each.logits[split] for arch, each in stored.items()}
        found[split] = Images(images, Networks(logits, work, images.labels.cpu()))
    return found


# ------------------------------------------------------------------ policies


def routing(thresholds: Sequence[float]) -> Rule:
    """The student that the selector chooses."""
    return lambda nets: (nets.run("selector", thresholds), nets.logits["selector"])


def cascading(val: Networks) -> Rule:
    """The cascade, with thresholds chosen on `val`."""
    logits, work = ([each[arch] for arch in SELECTED] for each in (val.logits, val.work))
    thresholds = cascade_thresholds(logits, val.labels, work)
    return lambda nets: (nets.run("cascade", thresholds), first_confidence(nets))


# ------------------------------------------------------------------ results


def report(
    stored: Mapping[str, Stored],
    splits: Mapping[str, Split],
    rows: Mapping[str, torch.Tensor],
    policies: Mapping[str, list[Policy]],
) -> dict:
    """The content of contexts.json: accuracies, shares and intervals by context, in [0, 1].

    MACs (mean per image), AUROC and McNemar's p are for mixed images. val_accuracy is for mixed
    validation images; all else is for test images.
    """
    labels = {split: each.labels.cpu() for split, each in splits.items()}
    right = {
        name: logits["test"].argmax(dim=1) == labels["test"] for name, (logits, _) in stored.items()
    }
    on_val = {name: top1(logits["val"], labels["val"]) for name, (logits, _) in stored.items()}
    stages = [f"{arch}, {stage}" for arch in SELECTED for stage in STAGES]
    best, better = max(stages, key=on_val.get), max(SELECTED, key=on_val.get)
    rivals = {name: right[name][rows["mixed"]] for name in (*SELECTED, *stages)}

    def network(name: str) -> dict:
        facts = stored[name].facts
        found = {
            context: network_facts(right[name][places], facts["macs"])
            for context, places in rows.items()
        }
        return {
            **by_context(found, "accuracy", "interval"),
            "val_accuracy": on_val[name],
            "macs": facts["macs"],
            "trained": {key: facts[key] for key in MADE},
        }

    def policy(nets: dict[str, Networks], rule: Rule) -> dict:
        found = {}
        for context, places in rows.items():
            own = nets["test"].take(places)
            found[context] = policy_facts(own, *rule(own))
        names = ("accuracy", "interval", "macs", *(f"share_{arch}" for arch in STUDENTS[:-1]))
        facts, mixed = by_context(found, *names), found["mixed"]
        facts["val_accuracy"] = share(rule(nets["val"])[0].right)
        facts["macs_by_context"], facts["macs"] = facts["macs"], mixed["macs"]
        facts |= {name: mixed[name] for name in ("auroc", "auroc_interval") if name in mixed}
        outcome, _ = rule(nets["test"].take(rows["mixed"]))
        p = {name: mcnemar_p(outcome.right, rival) for name, rival in rivals.items()}
        return {**facts, "mcnemar_p": p[best], "mcnemar_p_against": p}

    return {
        "images": len(rows["clean"]),
        "degraded": list(DEGRADED),
        "unseen": list(UNSEEN),
        "better_student": better,
        "best_generalist": best,
        "teacher": network("teacher"),
        "students": {name: network(name) for name in SELECTED},
        "generalists": {name: network(name) for name in stages},
        "policies": {
            name: averaged([policy(*run) for run in runs]) for name, runs in policies.items()
        },
    }


def by_context(found: Mapping[str, dict], *names: str) -> dict:
    """The facts `names`, by fact and context in place of context and fact."""
    return {name: {context: facts[name] for context, facts in found.items()} for name in names}


def averaged(runs: list[dict]) -> dict:
    """Average several runs; a single run is returned unchanged.

    Numbers and intervals are averaged; p is the median. The result also contains the runs.
    """
    if len(runs) == 1:
        return runs[0]

    def mean(values: list) -> Any:
        if isinstance(values[0], dict):
            return {key: mean([each[key] for each in values]) for key in values[0]}
        if isinstance(values[0], tuple):
            return [statistics.mean(each) for each in zip(*values, strict=True)]
        return statistics.mean(values)

    middle = {"mcnemar_p": statistics.median(run["mcnemar_p"] for run in runs)}
    deviation = {
        group: statistics.stdev(run["accuracy"][group] for run in runs) for group in GROUPS
    }
    return {**mean(runs), **middle, "deviation": deviation, "runs": runs}


def table(results: dict, names: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table.

    `names` are the keys of ROWS to show, with accuracies and MACs only. Default: everything.
    """
    found = {"teacher": results["teacher"], **results["students"], **results["generalists"]}
    found |= results["policies"]
    rows = []
    for name in [name for name in names or ROWS if name in found]:
        facts = found[name]
        rows.append(
            [
                ROWS[name],
                *(f"{100 * facts['accuracy'][group]:.1f}" for group in GROUPS),
                f"{100 * facts['macs'] / results['teacher']['macs']:.0f} %",
                number(facts.get("mcnemar_p"), ".1g"),
            ]
        )
    heads = ["top-1, %", *GROUPS, "MACs of the teacher's", "p"]
    kept = 2 + len(GROUPS) if names else len(heads)
    return heads[:kept], [row[:kept] for row in rows]


if __name__ == "__main__":
    cli.run(main)
