"""The context study: routing between specialized students on images from several contexts.

    python -m studies.contexts    writes contexts.json and three figures to results/
    make reproduce-contexts       trains all networks first
    make reproduce-contexts EPOCHS=1 SUBSET=500    quick test, in runs/quick/

All networks start from the weights in checkpoints/, which are trained on clean images. Specialists
are trained further on degraded images, and a selector sends each image to a specialist or to the
student that stays as it is. Generalists are trained further on mixed images (half of each). "Twice
as long" is for 24 epochs, like the specialist of the shipped system, else for 12. All are evaluated
on the test images: clean, degraded in six ways, mixed, and degraded in three ways that were not
used for training (unseen). Thresholds and the best generalist are chosen on mixed validation
images.

The shipped system is in checkpoints/contexts/, all other networks are in runs/contexts/. The logits
of each are stored in results/contexts/ and are enough: the checkpoints in runs/ may be missing.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from evaluation.policies import Networks, Outcome, assemble
from evaluation.significance import mcnemar_p
from evaluation.testset import LABELS
from models import NETWORKS, SELECTED, STUDENTS, TEACHER, macs
from studies import OUT, figures, number, write
from studies.policies import network_facts, policy_facts
from utils import cli
from utils.checkpoint import FILES, QUICK, fingerprint_of, load_network, load_system
from utils.contexts import CONTEXTS, GROUPS, KINDS, image_seeds, in_context, kinds
from utils.data import Split, data_facts, described, fingerprint, normalize
from utils.device import for_inference, pick_device
from utils.files import UserError, replacing, shown, try_folder
from utils.logits import predict, top1
from utils.method import cascade_thresholds, selector_thresholds, share
from utils.safe_load import read_arrays, read_logits

BATCH_SIZE = 500  # images per step
OTHERS = Path("runs/contexts")  # has a folder for each kind of network that is not shipped
TESTED = ("clean", "degraded", "unseen")
CALIBRATION = 10_000  # mixed training images for the batch norm of averaged weights
REMEDY = "run make reproduce-contexts"
MADE = ("context", "epochs", "data", "init")  # hyperparameters in contexts.json

FIRST, *_, LAST = SELECTED  # the student that is trained on degraded images, and the smaller one
TRAINED_ON = dict.fromkeys(SELECTED, "clean") | {FIRST: "degraded"}  # the shipped system


class Row(NamedTuple):
    """A network of the study: architecture, context of its images, and folder in OTHERS."""

    arch: str
    context: str
    folder: str = ""  # the shipped networks are elsewhere


SPECIALISTS = {f"{arch}, degraded": Row(arch, "degraded", "degraded") for arch in SELECTED}
GENERALISTS = {
    f"{arch}, {stage}": Row(arch, "mixed", stage)
    for arch in SELECTED
    for stage in ("once", "twice")
}
AVERAGED = f"{FIRST}, averaged"
NETS = {
    "teacher": Row(TEACHER, "clean"),
    **{arch: Row(arch, context) for arch, context in TRAINED_ON.items()},
    **SPECIALISTS,
    **GENERALISTS,
    AVERAGED: Row(FIRST, "both"),
    "selector": Row("selector", "mixed"),
    "published": Row("selector", "mixed", "published"),
}
PAIR = f"two {NETWORKS[LAST].title}s, routed"
POLICIES = {  # label, policy, and networks in place of the shipped ones
    "selector": ("**shipped system, routed**", "selector", {}),
    "selector, once": ("routed, half as long", "selector", {FIRST: f"{FIRST}, degraded"}),
    "selector, pair": (PAIR, "selector", {FIRST: f"{LAST}, degraded"}),
    "selector, published labels": (
        "routed by published labels",
        "selector",
        {"selector": "published"},
    ),
    "cascade": (LABELS["cascade"], "cascade", {}),
    "generalists, cascade": (
        "generalists as a cascade",
        "cascade",
        {k: f"{k}, once" for k in SELECTED},
    ),
    "oracle": (LABELS["oracle"], "oracle", {}),
}


def label_of(name: str) -> str:
    """The words for a row of the table: a key of NETS or POLICIES."""
    if name in POLICIES:
        return POLICIES[name][0]
    arch, context, folder = NETS[name]
    if name == AVERAGED:
        return f"{NETWORKS[arch].title}, mean of the clean and the degraded weights"
    images = "both" if context == "mixed" else f"{context} images"
    longer = ", twice as long" if folder.endswith("twice") or name == FIRST else ""
    title = f"{LABELS[name]}," if name in LABELS else NETWORKS[arch].title
    return f"{title} trained on {images}{longer}"


class Stored(NamedTuple):
    """Outputs of a network, float32 (N, K), by set of images; and facts about the network."""

    logits: dict[str, torch.Tensor]
    facts: dict[str, Any]


def main() -> None:
    parser = cli.common_parser(__doc__, globals(), quick=True)
    cli.add_out(parser, OUT, "contexts.json, the figures, and contexts/ with the logits")
    args = parser.parse_args()
    device = pick_device(args.device)
    try_folder(args.out)
    folder, names = args.checkpoint_dir / "contexts", (*STUDENTS, "selector")
    parts, (train, val, test) = load_system(folder.joinpath, names, args.data, args.subset, device)
    ready = {name: for_inference(net, device) for name, (net, _) in parts.items()}
    system = assemble("selector", parts, ready)
    print(f"computing logits for {described(val, test)}", flush=True)
    splits = {"val": in_context(val, "mixed"), "test": tested(test)}
    made = {"images": key_of(val, test), "data": data_facts(train.images, train.labels)}
    stored = {name: stored_logits(name, args, splits, train, made) for name in NETS}
    labels = {split: each.labels.cpu() for split, each in splits.items()}
    results = report(stored, labels, rows_by_context(test), system.thresholds)
    print(cli.aligned(*table(results)))
    write(
        args.out,
        "contexts",
        results,
        contexts_accuracy=figures.contexts_accuracy(results, label_of),
        contexts_share=figures.contexts_shares(results),
        contexts_pictures=figures.contexts_pictures(system.net, test),
    )


# ------------------------------------------------------------------ images


def tested(test: Split) -> Split:
    """The test images in all contexts of TESTED, one after the other."""
    images = torch.cat([in_context(test, context).images for context in TESTED])
    return replace(test, images=images, labels=test.labels.repeat(len(TESTED)))


def key_of(*splits: Split) -> str:
    """The fingerprint of the clean images and of the definition of the contexts.

    Degraded pixels are left out, because processors round them differently.
    """
    definition = repr((CONTEXTS, {kind: strengths for kind, (_, strengths) in KINDS.items()}))
    text = torch.tensor(list(definition.encode()))
    return fingerprint([*(split.images for split in splits), text])


def rows_by_context(test: Split) -> dict[str, torch.Tensor]:
    """For each group and kind of context, the indices of its images among the `tested` images."""
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


# ------------------------------------------------------------------ networks and their logits


def files(name: str, args: argparse.Namespace) -> list[Path]:
    """The checkpoints of a network of NETS; of several, the mean of the weights counts."""
    row = NETS[name]
    if name == "teacher":
        return [cli.found(args, FILES[name])]
    if row.folder:
        others = OTHERS if args.subset is None else QUICK / "others"
        return [others / row.folder / FILES[row.arch]]
    shipped = args.checkpoint_dir / "contexts" / FILES[row.arch]
    return [cli.found(args, FILES[row.arch]), shipped] if name == AVERAGED else [shipped]


def stored_logits(
    name: str, args: argparse.Namespace, splits: Mapping[str, Split], train: Split, made: dict
) -> Stored:
    """The outputs of a network of NETS, stored in half precision in results/contexts/.

    They are computed if they are missing or of other weights than the checkpoint. Without a
    checkpoint, the stored ones are enough. Raises UserError if both are missing, or if the network
    was trained from other weights or on other images. `made` has the fingerprint of the splits,
    "images", and that of the training images, "data".
    """
    row, paths = NETS[name], files(name, args)
    saved = args.out / "contexts" / f"{name.replace(', ', '-')}.npz"
    facts: dict[str, Any] = {"images": made["images"]}
    if row.context in ("degraded", "mixed"):  # trained for this study
        facts |= {"context": row.context, "data": made["data"]}
        if row.arch != "selector":
            start, _ = load_network(cli.found(args, FILES[row.arch]), row.arch)
            facts["init"] = fingerprint_of(start)
    missing = [path for path in paths if not path.exists()]
    if not missing:
        nets, checkpoints = zip(*(load_network(path, row.arch) for path in paths), strict=True)
        recipe = {"context": "clean"} | checkpoints[-1]["hyperparameters"]
        own = {"weights": "-".join(map(fingerprint_of, nets))}
        own |= {fact: recipe.get(fact) for fact in MADE}
        if not facts.items() <= (facts | own).items():
            raise UserError(f"{shown(paths[0])} is of other weights or images: {REMEDY}")
        facts |= own
    outputs = len(SELECTED) if row.arch == "selector" else len(train.classes)
    try:
        found = json.loads(str(read_arrays(saved, ["facts"])["facts"]))
        if not facts.items() <= found.items():
            raise UserError(f"{shown(saved)} is of other weights or images")
        return Stored(read_logits(saved, {k: (len(v), outputs) for k, v in splits.items()}), found)
    except (UserError, LookupError, ValueError) as error:
        if missing:
            raise UserError(f"{shown(missing[0])} is missing ({error}): {REMEDY}") from error
    net = averaged(nets, train) if len(nets) > 1 else nets[0]
    facts["macs"] = macs(net, train.data.size)
    net = for_inference(net, train.images.device)
    logits = {
        split: predict(net, each, f"{name}, {split}", args.batch_size).half().cpu()
        for split, each in splits.items()
    }
    with replacing(saved) as file:
        np.savez(file, facts=json.dumps(facts), **{k: each.numpy() for k, each in logits.items()})
    return Stored({split: each.float() for split, each in logits.items()}, facts)


def averaged(nets: Sequence[nn.Module], train: Split) -> nn.Module:
    """A network with the mean of the weights, and statistics of mixed images in its batch norm."""
    states = [net.state_dict() for net in nets]
    net = nets[0]
    net.load_state_dict(
        {name: sum(each[name] for each in states) / len(nets) for name in states[0]}
    )
    images = in_context(train.take(slice(CALIBRATION)), "mixed").images
    net.to(images.device)
    update_bn((normalize(batch, train.data) for batch in images.split(BATCH_SIZE)), net)
    return net.eval()


# ------------------------------------------------------------------ results


def report(
    stored: Mapping[str, Stored],
    labels: Mapping[str, torch.Tensor],
    rows: Mapping[str, torch.Tensor],
    shipped: Sequence[float],
) -> dict:
    """The content of contexts.json: accuracies, shares and intervals by context, in [0, 1].

    MACs (mean per image), AUROC and McNemar's p are for mixed images. val_accuracy is for mixed
    validation images; all else is for test images.

    Args:
        stored: the outputs of NETS.
        labels: of the "val" and "test" images, int64 (N,).
        rows: from `rows_by_context`.
        shipped: thresholds of the policy "selector"; those of the others are chosen on validation.
    """
    right, on_val = {}, {}
    for name in [name for name, row in NETS.items() if row.arch != "selector"]:
        right[name] = stored[name].logits["test"].argmax(dim=1) == labels["test"]
        on_val[name] = top1(stored[name].logits["val"], labels["val"])
    best = max(GENERALISTS, key=on_val.get)

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

    def policy(name: str, instead: Mapping[str, str], thresholds: Sequence[float] = ()) -> dict:
        own = {role: stored[instead.get(role, role)] for role in (*SELECTED, "selector")}
        work = {role: each.facts["macs"] for role, each in own.items()}
        nets = {
            split: Networks({role: own[role].logits[split] for role in own}, work, true)
            for split, true in labels.items()
        }
        thresholds = thresholds or chosen(name, nets["val"])

        def run(nets: Networks) -> Outcome:
            return nets.oracle() if name == "oracle" else nets.run(name, thresholds)

        found, right_in = {}, {}
        for context, places in rows.items():
            seen = nets["test"].take(places)
            outcome, scores = run(seen), seen.logits["selector"] if name == "selector" else None
            found[context] = policy_facts(seen, outcome, scores)
            right_in[context] = outcome.right
        mixed = found["mixed"]
        shares = [f"share_{arch}" for arch in STUDENTS[:-1]]
        facts = by_context(found, "accuracy", "interval", "macs", *shares)
        facts["val_accuracy"] = share(run(nets["val"]).right)
        facts["macs_by_context"], facts["macs"] = facts["macs"], mixed["macs"]
        facts |= {name: mixed[name] for name in ("auroc", "auroc_interval") if name in mixed}
        answers, places = right_in["mixed"], rows["mixed"]
        p = {rival: mcnemar_p(answers, each[places]) for rival, each in right.items()}
        return {**facts, "mcnemar_p": p[best], "mcnemar_p_against": p}

    return {
        "images": len(rows["clean"]),
        "best_generalist": best,
        "teacher": network("teacher"),
        "students": {name: network(name) for name in SELECTED},
        "specialists": {name: network(name) for name in (*SPECIALISTS, AVERAGED)},
        "generalists": {name: network(name) for name in GENERALISTS},
        "policies": {
            key: policy(name, instead, shipped if key == "selector" else ())
            for key, (_, name, instead) in POLICIES.items()
        },
    }


def chosen(policy: str, val: Networks) -> list[float]:
    """The thresholds of a policy for these validation images; empty if it has none."""
    if policy == "selector":
        return selector_thresholds(val.logits[policy], val.students_right())
    logits, work = ([each[arch] for arch in SELECTED] for each in (val.logits, val.work))
    return cascade_thresholds(logits, val.labels, work) if policy == "cascade" else []


def by_context(found: Mapping[str, dict], *names: str) -> dict:
    """The facts `names`, by fact and context in place of context and fact."""
    return {name: {context: facts[name] for context, facts in found.items()} for name in names}


def table(results: dict, names: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table.

    `names` are keys of NETS and POLICIES to show, with accuracies and MACs only. Default: all.
    """
    found = {"teacher": results["teacher"]}
    for group in ("students", "specialists", "generalists", "policies"):
        found |= results[group]
    rows = [
        [
            label_of(name),
            *(f"{100 * found[name]['accuracy'][group]:.1f}" for group in GROUPS),
            f"{100 * found[name]['macs'] / results['teacher']['macs']:.0f} %",
            number(found[name].get("mcnemar_p"), ".1g"),
        ]
        for name in names or found
    ]
    heads = ["top-1, %", *GROUPS, "MACs of the teacher's", "p"]
    kept = 2 + len(GROUPS) if names else len(heads)
    return heads[:kept], [row[:kept] for row in rows]


if __name__ == "__main__":
    cli.run(main)
