"""The context study: routing between specialized students on images from several contexts.

    python -m studies.contexts            writes contexts.json and three figures to results/
    python -m studies.contexts --train    first trains the networks that are missing
    python -m studies.contexts --train --epochs 1 --subset 500    quick test, in runs/quick/

All networks start from the weights in checkpoints/, which are trained on clean images. Student 1 is
trained further on degraded images, the others stay as they are, and the selector sends each image
to one of them. The baselines are generalists: the same networks, trained further on mixed images
for the same number of epochs as student 1 (once), or twice as many (twice). All are evaluated on
the test images: clean, degraded in six ways, mixed (half of each), and degraded in three ways that
were not used for training (unseen). Thresholds and the best generalist are chosen on mixed
validation images.

The system is in checkpoints/contexts/, the generalists are in runs/contexts/. Networks that were
trained from other weights, on other data or for another number of epochs are not used; --train
trains them again, and keeps the earlier files as NAME.previous.pth. After Ctrl-C, --train
continues. The study itself trains only selectors, in less than a minute each. The logits of each
network are stored in results/contexts/, so a study that was stopped continues with the next
network. For the teacher and the generalists, the stored logits are enough: their checkpoints may be
missing, and --train does not train them again.
"""

import argparse
import json
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from evaluation import figures_into
from evaluation.policies import Networks, Outcome, thresholds_of
from evaluation.significance import mcnemar_p
from models import SELECTED, STUDENTS, TEACHER, MultiStudent, macs, offsets_of
from studies.policies import confidences, doubts, measured, measured_policy
from studies.selectors import STEP, fit, lesson
from utils import cli
from utils.augment import Augmentation, Batches
from utils.checkpoint import (
    FILES,
    QUICK,
    check_data,
    check_students,
    fingerprint_of,
    load_network,
    read_checkpoint,
)
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
from utils.data import CIFAR10, Split, data_facts, described, fingerprint, load_splits
from utils.device import for_inference, pick_device
from utils.files import UserError, move, previous, replacing, shown, write_json
from utils.logits import predict, top1
from utils.method import cascade_thresholds, selector_thresholds, share
from utils.safe_load import brief, read_arrays, read_logits

# ------------------------------------------------------------------ settings

BATCH_SIZE = 500  # images per step
SEEDS = 5  # runs per selector trained here
IMAGES = 10_000  # number of training images for these selectors, from the first on
SELECTOR_EPOCHS = 12  # of these selectors
AUGMENTATION = Augmentation(crop=0, flip=True)  # their labels are of the whole image
OUT = Path("results")  # for contexts.json, the figures, and contexts/ with the answers
EPOCHS = 12  # of student 1 and of the generalists that are trained once
LEARNING_RATE = 2.5e-3  # of these trainings
GENERALISTS = Path("runs/contexts")  # contains a folder for each number of epochs
STAGES = {"once": 1, "twice": 2}  # epochs of a generalist, relative to student 1
MADE = ("epochs", "data", "init")  # hyperparameters in contexts.json, besides the context
TESTED = ("clean", "degraded", "unseen")  # mixed images are from the first two


@dataclass
class Network:
    """A checkpoint of the study: its path, expected content, and the script that trains it.

    words: of the command, from the name of the script on; of a copy, the checkpoint to copy.
    made: the hyperparameters that it must have, as far as they matter here.
    paired: whether it is one of several students, whose logits for training images are needed.
    """

    path: Path
    arch: str
    words: tuple[str, ...]
    made: dict[str, Any]
    paired: bool = False

    @property
    def command(self) -> str:
        """What to type to get the checkpoint."""
        if self.words[0].endswith(".py"):
            return shlex.join(["python", *self.words])
        return shlex.join(["cp", *self.words, shown(self.path)])

    def differs(self, made: Mapping[str, Any]) -> str | None:
        """The first difference between `made` and `self.made`, in words; None if there is none."""
        for name, wanted in self.made.items():
            if (found := made.get(name, "clean" if name == "context" else None)) != wanted:
                return f"its {name} was {brief(found)}, not {brief(wanted)}"
        return None

    def make(self) -> None:
        """Run the command, unless the checkpoint is complete. Raises UserError if it fails.

        The files of another training are kept as NAME.previous.pth and NAME.previous.state.pth.
        """
        script, *flags = self.words
        if not script.endswith(".py"):
            content = Path(script).read_bytes()
            if self.path.exists() and self.path.read_bytes() != content:
                self._set_aside()
            with replacing(self.path) as file:
                file.write(content)
            return
        facts = read_checkpoint(self.path) if self.path.exists() else {}
        if facts.get("test_accuracy") is not None:
            if not self.differs(facts["hyperparameters"]):
                return
            self._set_aside()
        cli.run_script(script, flags)

    def _set_aside(self) -> None:
        for file in (self.path, self.path.with_suffix(".state.pth")):
            if file.exists():
                move(file, previous(file))

    def read(self) -> tuple[nn.Module, dict[str, Any]]:
        """As `load_network`. Raises UserError if missing or trained in another way."""
        if not self.path.exists():
            raise UserError(f"{shown(self.path)} is missing; make it with: {self.command}")
        net, facts = load_network(self.path, self.arch)
        if difference := self.differs(facts["hyperparameters"]):
            raise UserError(
                f"{shown(self.path)} was trained in another way, {difference}; make it with: "
                f"{self.command}"
            )
        return net, facts


@dataclass
class StoredLogits:
    """Logits of a network, float32 (N, classes), by set of images; and facts about the network."""

    logits: dict[str, torch.Tensor]
    facts: dict[str, Any]


Rule = Callable[[Networks], tuple[Outcome, torch.Tensor | None]]  # scores (N, K), for the AUROC
Evaluated = tuple[dict[str, Networks], Rule]  # "val" and "test"


# ------------------------------------------------------------------ main program


def main() -> None:
    parser = cli.common_parser(__doc__, globals(), quick=True)
    parser.add_argument("--train", action="store_true", help="train the networks that are missing")
    what = "number of epochs of student 1, and of the generalists that are trained once"
    cli.add_flag(parser, "EPOCHS", EPOCHS, what)
    cli.add_flag(parser, "SEEDS", SEEDS, "number of runs per selector of the study")
    cli.add_out(parser, OUT, "contexts.json, the figures, and contexts/ with the logits")
    args = parser.parse_args()
    device = pick_device(args.device)
    figures_into(args.out)

    # This study normalizes all images like CIFAR-10's, and refuses networks for other ones.
    train, val, test = load_splits(args.data, args.subset, device, asdict(CIFAR10))
    networks = planned(args, data_facts(train.images, train.labels))
    if args.train:
        for arch in STUDENTS:
            networks[arch].make()
    system, thresholds = assembled(networks, device, args.train)
    for path in [each.path for each in networks.values() if each.path.exists()]:
        check_data(path, read_checkpoint(path), test.data)
    print(f"computing logits for {described(train, val, test)}", flush=True)
    train = train.take(slice(IMAGES))
    images, rows = image_sets(train, val, test), rows_by_context(test)
    key = key_of(train, val, test)
    folder, classes = args.out / "contexts", len(test.classes)
    told = collect_logits(networks, images, key, classes, folder, args.batch_size, args.train)
    labels = {
        "train": train.labels.cpu(),
        "val": val.labels.cpu(),
        "test": test.labels.cpu().repeat(len(TESTED)),
    }
    work = macs(system.selector)
    specialists, generalists = (
        pair({arch: told[f"{arch}{stage}"] for arch in STUDENTS}, labels, work)
        for stage in ("", ", once")
    )

    def selectors(both: dict[str, Networks], *lesson: torch.Tensor) -> list[Evaluated]:
        """Train one selector per seed on the same labels and weights."""
        return [
            trained(both, *lesson, images, seed, args.batch_size)
            for seed in tqdm(range(args.seeds), unit="selector", leave=False)
        ]

    degraded = {
        "val": context_targets(val)[0] == 0,
        "test": torch.arange(len(images["test"])) >= len(test),
    }
    special = scored(specialists, system.selector, images, args.batch_size, "selector")
    special = {
        split: with_scores(nets, context=torch.stack([degraded[split], ~degraded[split]], dim=1))
        for split, nets in special.items()
    }
    policies = {
        "selector": [(special, routing(thresholds))],
        "selector, published labels": selectors(specialists, *lesson(specialists["train"])),
        "selector, weighted labels": selectors(specialists, *lesson(specialists["train"], True)),
        "selector, taught the context": selectors(specialists, *context_targets(train)),
        "more confident": [(special, lambda nets: (nets.run("more_confident"), confidences(nets)))],
        "cascade": [(special, cascading(specialists["val"]))],
        "ensemble": [(special, ensemble)],
        "true context": [(special, true_context)],
        "oracle": [(special, lambda nets: (nets.oracle(), None))],
        "generalists, selector": selectors(generalists, *lesson(generalists["train"], True)),
        "generalists, cascade": [(generalists, cascading(generalists["val"]))],
        "generalists, ensemble": [(generalists, ensemble)],
    }
    study = report(told, labels, rows, policies)
    print_report(study)
    write_json(args.out / "contexts.json", study)
    from studies import figures  # which needs Matplotlib

    written = figures.draw_contexts(args.out, study, system, test)
    print(f"wrote {', '.join(map(shown, [args.out / 'contexts.json', *written]))}")


# ------------------------------------------------------------------ networks and their logits


def planned(args: argparse.Namespace, data: str) -> dict[str, Network]:
    """All networks of the study on this data, in the order in which they are trained."""
    shipped = {arch: shown(cli.found(args, file)) for arch, file in FILES.items()}
    system = args.checkpoint_dir / "contexts"
    again = cli.retyped(args, "data", "device", "subset")
    generalists = GENERALISTS if args.subset is None else QUICK / "generalists"
    init = {
        arch: {"init": fingerprint_of(load_network(shipped[arch], arch)[0])}
        for arch in STUDENTS
        if Path(shipped[arch]).exists()
    }

    def student(arch: str, context: str, folder: Path, times: int) -> Network:
        made = {"context": context, "epochs": times * args.epochs, "data": data}
        made |= init.get(arch, {})
        flags = {
            "model": 1 + STUDENTS.index(arch),
            "context": context,
            "init": shipped[arch],
            "teacher": shipped["teacher"],
            "epochs": made["epochs"],
            "lr": LEARNING_RATE,
            "checkpoint-dir": shown(folder),
        }
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        words = ("StudentTrain.py", *words, *again)
        return Network(folder / FILES[arch], arch, words, made, paired=times == 1)

    first, *others = STUDENTS
    path, clean = Path(shipped["teacher"]), {"context": "clean"}
    words = ("teacherTrain.py", "--checkpoint-dir", shown(path.parent), *again)
    networks = {
        "teacher": Network(path, TEACHER, words, clean),
        first: student(first, "degraded", system, 1),
        **{
            arch: Network(system / FILES[arch], arch, (shipped[arch],), clean, paired=True)
            for arch in others
        },
    }
    words = ("trainSelector.py", "--context", "mixed", "--label-rule", "context")
    networks["selector"] = Network(
        system / FILES["selector"],
        "selector",
        (*words, "--checkpoint-dir", shown(system), *again),
        {"context": "mixed", "label_rule": "context", "label_weight": None},
    )
    for stage, times in STAGES.items():
        for arch in STUDENTS:
            folder = generalists / f"{times * args.epochs}-epochs"
            networks[f"{arch}, {stage}"] = student(arch, "mixed", folder, times)
    return networks


def assembled(
    networks: dict[str, Network], device: torch.device, train: bool
) -> tuple[MultiStudent, list[float]]:
    """The specialists with their selector, which is removed from `networks`; and its thresholds.

    With `train`, the selector is trained if it is missing or of other students. Raises UserError if
    a network of the system is missing or does not belong to it.
    """
    router = networks.pop("selector")
    students = {arch: networks[arch].read()[0] for arch in STUDENTS}
    if train:
        router.made["students"] = [fingerprint_of(student) for student in students.values()]
        router.make()
    net, facts = router.read()
    check_students(router.path, facts, students)
    chosen = [for_inference(students[arch], device) for arch in SELECTED]
    thresholds = thresholds_of(facts)["selector"]
    system = MultiStudent(chosen, for_inference(net, device), offsets_of(thresholds))
    return system.eval(), thresholds


def image_sets(train: Split, val: Split, test: Split) -> dict[str, torch.Tensor]:
    """The images to compute logits for: mixed "train" and "val", and "test", all of TESTED."""
    return {
        "train": in_context(train, "mixed").images,
        "val": in_context(val, "mixed").images,
        "test": torch.cat([in_context(test, context).images for context in TESTED]),
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


def collect_logits(
    networks: Mapping[str, Network],
    images: dict[str, torch.Tensor],
    key: str,
    classes: int,
    folder: Path,
    batch_size: int,
    train: bool,
) -> dict[str, StoredLogits]:
    """The logits of each network for the images with this key, stored in half precision.

    With `train`, networks are trained if both checkpoint and logits are missing, one by one: the
    logits of each are stored before the next is trained. Otherwise raises UserError, before any
    computation.
    """
    sets, told, nets = {}, {}, {}
    paths = {name: folder / f"{name.replace(', ', '-')}.npz" for name in networks}
    for name, network in networks.items():
        sets[name] = {k: v for k, v in images.items() if k != "train" or network.paired}
        told[name] = read_stored(paths[name], key, sets[name], classes)
        if told[name] and (difference := network.differs(told[name].facts)):
            print(f"{shown(paths[name])} is of another network, {difference}: not used")
            told[name] = None
        if told[name] is None and train:
            continue  # trained and read below
        if told[name] is None or network.path.exists():
            nets[name] = network.read()
    for name, network in networks.items():
        if told[name] is None and train:
            network.make()
            nets[name] = network.read()
        if name not in nets:
            continue
        net, facts = nets[name]
        weights = fingerprint_of(net)
        if told[name] is None or told[name].facts["weights"] != weights:
            made = facts["hyperparameters"]
            facts = {
                "images": key,
                "weights": weights,
                "macs": macs(net),
                "context": network.made["context"],
                **{fact: made.get(fact) for fact in MADE},
            }
            told[name] = StoredLogits(
                logits_of(name, net, network.path, sets[name], batch_size), facts
            )
            store(paths[name], told[name])
    return told


def logits_of(
    name: str, net: nn.Module, path: Path, images: Mapping[str, torch.Tensor], batch_size: int
) -> dict[str, torch.Tensor]:
    """The logits of `net` by set of images, as stored: rounded to half precision.

    Raises UserError, which names the checkpoint `path`, if they are not finite.
    """
    net = for_inference(net, images["test"].device)
    logits = {
        split: predict(net, each, f"{name}, {split}", batch_size).half().cpu()
        for split, each in images.items()
    }
    if not all(each.isfinite().all() for each in logits.values()):
        raise UserError(
            f"{shown(path)}: its logits are not finite in half precision; train it again"
        )
    return {split: each.float() for split, each in logits.items()}


def store(path: Path, told: StoredLogits) -> None:
    """Store logits and facts at `path`, for `read_stored`."""
    logits = {split: each.half().numpy() for split, each in told.logits.items()}
    with replacing(path) as file:
        np.savez(file, facts=json.dumps(told.facts), **logits)


def read_stored(
    path: Path, key: str, images: Mapping[str, torch.Tensor], classes: int
) -> StoredLogits | None:
    """The stored logits at `path`; None if there are none for these images."""
    if not path.exists():
        return None
    try:
        facts = dict(json.loads(str(read_arrays(path, ["facts"])["facts"])))
        shapes = {split: (len(each), classes) for split, each in images.items()}
        logits = read_logits(path, shapes)
        if type(facts["macs"]) is not int or not {"weights", "context", *MADE} <= set(facts):
            raise ValueError("it does not say which network was used")
        if facts["images"] != key:
            print(f"{shown(path)} is for other images: computing the logits again")
            return None
        return StoredLogits(logits, facts)
    except (UserError, LookupError, TypeError, ValueError) as error:
        print(f"{shown(path)} cannot be used ({error}): computing the logits again")
        return None


def pair(
    both: Mapping[str, StoredLogits], labels: Mapping[str, torch.Tensor], selector_work: int
) -> dict[str, Networks]:
    """The students, by set of images, in the form that the policies use."""
    work = {arch: each.facts["macs"] for arch, each in both.items()} | {"selector": selector_work}
    return {
        split: Networks({arch: each.logits[split] for arch, each in both.items()}, work, own)
        for split, own in labels.items()
    }


def with_scores(nets: Networks, **scores: torch.Tensor) -> Networks:
    """A copy of `nets` with more scores, each (N,)."""
    return replace(nets, logits=nets.logits | scores)


def scored(
    both: Mapping[str, Networks],
    router: nn.Module,
    images: Mapping[str, torch.Tensor],
    batch_size: int,
    title: str | None = None,
) -> dict[str, Networks]:
    """`both` with the scores of a selector, for the sets of images "val" and "test"."""
    return {
        split: with_scores(
            both[split], selector=predict(router, images[split], title, batch_size).cpu()
        )
        for split in ("val", "test")
    }


# ------------------------------------------------------------------ policies


def routing(thresholds: Sequence[float]) -> Rule:
    """The student that the selector chooses."""
    return lambda nets: (nets.run("selector", thresholds), nets.logits["selector"])


def cascading(val: Networks) -> Rule:
    """The cascade, with thresholds chosen on `val`."""
    logits, work = ([each[arch] for arch in STUDENTS] for each in (val.logits, val.work))
    thresholds = cascade_thresholds(logits, val.labels, work)
    return lambda nets: (nets.run("cascade", thresholds), doubts(nets))


def ensemble(nets: Networks) -> tuple[Outcome, None]:
    """The mean of all students' logits."""
    return nets.run("ensemble"), None


def true_context(nets: Networks) -> tuple[Outcome, None]:
    """Student 1 for degraded images, student 2 for clean images; uses the true context."""
    return nets.routed(nets.logits["context"].float(), among=STUDENTS[:2]), None


# ------------------------------------------------------------------ selectors


def context_targets(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """As `lesson`, but the label is the student that was trained on the true context."""
    trained_on = ["degraded" if arch == STUDENTS[0] else "clean" for arch in SELECTED]
    labels = context_labels("mixed", image_seeds(split), trained_on)
    return labels, torch.ones(len(labels))


def trained(
    both: dict[str, Networks],
    labels: torch.Tensor,
    weights: torch.Tensor,
    images: dict[str, torch.Tensor],
    seed: int,
    batch_size: int,
) -> Evaluated:
    """Train a selector on these labels, and choose its threshold on the validation images."""
    batches = Batches(images["train"], STEP, seed, AUGMENTATION)
    device = images["train"].device
    net = fit(batches, labels.to(device), weights.to(device), SELECTOR_EPOCHS)
    nets = scored(both, net, images, batch_size)
    val = nets["val"]
    thresholds = selector_thresholds(val.logits["selector"], val.students_right(SELECTED))
    return nets, routing(thresholds)


# ------------------------------------------------------------------ results


def report(
    told: Mapping[str, StoredLogits],
    labels: Mapping[str, torch.Tensor],
    rows: Mapping[str, torch.Tensor],
    policies: Mapping[str, list[Evaluated]],
) -> dict:
    """The content of contexts.json: accuracies, shares and intervals by context, in [0, 1].

    MACs (mean per image), AUROC and McNemar's p are for mixed images. val_accuracy is for mixed
    validation images; all else is for test images.
    """
    right = {
        name: each.logits["test"].argmax(dim=1) == labels["test"] for name, each in told.items()
    }
    on_val = {name: top1(each.logits["val"], labels["val"]) for name, each in told.items()}
    stages = [f"{arch}, {stage}" for arch in STUDENTS for stage in STAGES]
    best, better = max(stages, key=on_val.get), max(STUDENTS, key=on_val.get)
    rivals = {name: right[name][rows["mixed"]] for name in (*STUDENTS, *stages)}

    def alone(name: str) -> dict:
        facts = told[name].facts
        found = [measured(right[name][places], facts["macs"]) for places in rows.values()]
        made = {key: facts[key] for key in ("context", *MADE)}
        return {
            **by_context(found, rows, "accuracy", "interval"),
            "val_accuracy": on_val[name],
            "macs": facts["macs"],
            "trained": made,
        }

    def run(nets: dict[str, Networks], policy: Rule) -> dict:
        found = []
        for places in rows.values():
            own = nets["test"].take(places)
            found.append(measured_policy(own, *policy(own)))
        names = ("accuracy", "interval", "macs", *(f"share_{arch}" for arch in STUDENTS[:-1]))
        facts = by_context(found, rows, *names)
        mixed = dict(zip(rows, found, strict=True))["mixed"]
        facts["val_accuracy"] = share(policy(nets["val"])[0].right)
        facts["macs_by_context"], facts["macs"] = facts["macs"], mixed["macs"]
        if "auroc" in mixed:
            facts |= {name: mixed[name] for name in ("auroc", "auroc_interval")}
        outcome, _ = policy(nets["test"].take(rows["mixed"]))
        p = {name: mcnemar_p(outcome.right, rival) for name, rival in rivals.items()}
        return {**facts, "mcnemar_p": p[best], "mcnemar_p_against": p}

    return {
        "images": len(rows["clean"]),
        "degraded": list(DEGRADED),
        "unseen": list(UNSEEN),
        "better_student": better,
        "best_generalist": best,
        "teacher": alone("teacher"),
        "students": {name: alone(name) for name in STUDENTS},
        "generalists": {name: alone(name) for name in stages},
        "policies": {
            name: averaged([run(nets, policy) for nets, policy in runs])
            for name, runs in policies.items()
        },
    }


def by_context(found: list[dict], rows: Mapping[str, torch.Tensor], *names: str) -> dict:
    """The facts `names` of each context, by fact and context."""
    return {
        name: {context: facts[name] for context, facts in zip(rows, found, strict=True)}
        for name in names
    }


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


def print_report(study: dict) -> None:
    """Print the accuracies of all networks and policies by group of contexts."""
    print(f"\n{'top-1 %':<30}" + "".join(f"{group:>10}" for group in GROUPS), end="")
    print(f"{'val':>10}{'MMACs':>8}{'AUROC':>8}{'p':>10}")
    lines = {"teacher": study["teacher"], **study["students"], **study["generalists"]}
    for name, facts in {**lines, **study["policies"]}.items():
        area, p = facts.get("auroc"), facts.get("mcnemar_p")
        print(
            f"{name:<30}"
            + "".join(f"{100 * facts['accuracy'][group]:>10.2f}" for group in GROUPS)
            + f"{100 * facts['val_accuracy']:>10.2f}{facts['macs'] / 1e6:>8.1f}"
            + f"{'' if area is None else f'{area:.3f}':>8}{'' if p is None else f'{p:.1g}':>10}"
        )
    print("val: mixed validation images")
    print(f"p: McNemar's test against {study['best_generalist']}, on mixed images\n")


if __name__ == "__main__":
    cli.run(main)
