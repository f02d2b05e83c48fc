"""Update the tables in the README files and in docs/, each between two markers, and all.csv.

python -m studies.tables     reads results/*.json, checkpoints/*.pth and studies.compression
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from evaluation.testset import LABELS
from models import NETWORKS, STEMS, STUDENTS, TEACHER, macs, network, parameters
from studies.all_results import all_results
from studies.compression import PUBLISHED, all_costs
from studies.distillation import cells, name_of, runs_of, summary
from utils import cli
from utils.checkpoint import COMMANDS, FILES, ROOT, load_network, read_checkpoint
from utils.contexts import GROUPS
from utils.files import UserError, read_json, replacing, shown

HUYVNPHAN = "https://github.com/huyvnphan/PyTorch_CIFAR10"
KUANGLIU = "https://github.com/kuangliu/pytorch-cifar"
PUBLISHED_TOP1 = {"teacher": "81", "densenet121": "74.19", "googlenet": "73.21", "routed": "79.67"}
OTHERS_TOP1 = {  # results of others with the same architecture
    "teacher": f"[93.65]({HUYVNPHAN})",
    "densenet121": f"[94.06]({HUYVNPHAN}), [95.04]({KUANGLIU})",
    "googlenet": f"[92.85]({HUYVNPHAN})",
}
if not PUBLISHED:  # other networks
    PUBLISHED_TOP1 = OTHERS_TOP1 = {}
POLICIES = ("better_student", "selector", "cascade", "cascade_teacher", "ensemble", "random")
POLICIES += ("oracle",)
SUBJECTS = {
    "data": "data: crop, flip, cutout, normalize",
    **{
        f"{subject} {arch}": f"{words}, {NETWORKS[arch].title}"
        for subject, words, archs in (
            ("step", "training step", (TEACHER, *STUDENTS)),
            ("epoch", "epoch with its data", (TEACHER, *STUDENTS)),
            ("distillation, training", "distillation beside training alone", STUDENTS),
            ("distillation", "distillation", STUDENTS),
        )
        for arch in archs
    },
    "routed, teacher": "routed beside the teacher",
    "routed, all": "routed beside selector and both students on every image",
    "one image": "routed beside the teacher, one image at a time",
    "ONNX Runtime, one image": "routed by ONNX Runtime beside PyTorch, one image at a time",
    "ONNX Runtime, 128 images": "routed by ONNX Runtime beside PyTorch, 128 images at a time",
}
CHOSEN = {  # chosen on the validation images: name in the table, key in the checkpoint
    "threshold": "thresholds",
    "threshold of the cascade": "cascade_thresholds",
    "threshold of the cascade at the teacher's accuracy": "cascade_teacher_thresholds",
    "temperature of the probabilities": "temperature",
}
SHORT = ("teacher", *STUDENTS, "routed", "cascade", "cascade_teacher", "oracle")  # for the README
IN_CONTEXTS = {  # rows of contexts.json: name there, label
    **{
        name: f"{LABELS[name]}, trained on {context} images"
        for name, context in zip(
            ("teacher", *STUDENTS), ("clean", "degraded", *["clean"] * len(STUDENTS)), strict=False
        )
    },
    **{
        f"{arch}, {stage}": f"{NETWORKS[arch].title} trained on both{longer}"
        for arch in STUDENTS
        for stage, longer in (("once", ""), ("twice", ", twice as long"))
    },
    "selector": "**routed by the shipped selector**",
    "selector, published labels": "selector: published labels",
    "selector, weighted labels": "selector: weighted labels",
    "selector, taught the context": "selector: labels from the true context",
    "true context": "routed by the true context",
    "more confident": "both students, the more confident one answers",
    "cascade": LABELS["cascade"],
    "ensemble": LABELS["ensemble"],
    "generalists, selector": "both trained on both, with a selector",
    "generalists, cascade": "both trained on both, as a cascade",
    "generalists, ensemble": "both trained on both, mean of their logits",
    "oracle": LABELS["oracle"],
}
SHORT_IN_CONTEXTS = (*STUDENTS, "selector", *(f"{arch}, twice" for arch in STUDENTS))


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, with the first column left-aligned and the others right-aligned."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def results(
    metrics: dict, names: Sequence[str] = (), others: bool = True, wide: dict | None = None
) -> str:
    """Table of the accuracies in metrics.json, with published results and those of others.

    Args:
        metrics: the content of metrics.json.
        wide: the same of networks without max-pool, for two more columns.
        names: keys of LABELS to show. Default: all that were measured or published.
        others: whether to show the column "others".
    """
    rows = []
    for name, label in LABELS.items():
        published, theirs = PUBLISHED_TOP1.get(name, ""), OTHERS_TOP1.get(name, "")
        accuracy, work = metrics["accuracy"].get(name), metrics["macs_per_image"].get(name)
        if (names and name not in names) or (accuracy is None and not published):
            continue
        row = [label, published, _percent(accuracy), _interval(metrics, name), _millions(work)]
        if wide:
            row += [_percent(wide["accuracy"].get(name))]
            row += [_millions(wide["macs_per_image"].get(name))]
        rows.append([*row, theirs] if others else row)
    heads = ["", "published", "ours, %", "95 % interval", "MMACs"]
    heads += ["without max-pool, %", "MMACs"] if wide else []
    return markdown([*heads, "others"] if others else heads, rows)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _millions(count: float | None) -> str:
    return "" if count is None else f"{count / 1e6:.1f}"


def routing(study: dict) -> str:
    """Table of the policies in routing.json, written by studies.policies."""
    rows = []
    facts_of = {"better_student": study["better_student"], **study["policies"]}
    for name in [name for name in POLICIES if name in facts_of]:
        facts = facts_of[name]
        share, area, *ps = (
            facts.get(key)
            for key in (f"share_{STUDENTS[0]}", "auroc", "mcnemar_p", "mcnemar_p_teacher")
        )
        rows.append(
            [
                LABELS["routed" if name == "selector" else name],
                f"{100 * facts['accuracy']:.2f}",
                f"{100 * facts['macs'] / study['teacher']['macs']:.0f} %",
                "" if share is None else f"{100 * share:.1f} %",
                "" if area is None else f"{area:.2f}",
                *("" if p is None else f"{p:.2g}" for p in ps),
            ]
        )
    heads = [
        "",
        "top-1, %",
        "MACs of the teacher's",
        f"{NETWORKS[STUDENTS[0]].title} runs on",
        "AUROC",
        "p",
    ]
    heads.append("p, teacher")
    return markdown(heads, rows)


def selectors(study: dict) -> str:
    """Table of selectors.json, written by studies.selectors: means over seeds, range of p."""
    rows = []
    for row in study["variants"]:
        accuracy, area, ps = (
            row["accuracy"],
            row["auroc"],
            [run["mcnemar_p"] for run in row["runs"]],
        )
        rows.append(
            [
                row["labels"] + (", weighted" if row["weighted"] else ""),
                str(row["depth"]) + ("" if row["batch_norm"] else ", no batch norm"),
                f"{100 * accuracy['mean']:.2f} ({_ends(accuracy['interval'], 100, 1)})",
                f"{area['mean']:.3f} ({_ends(area['interval'], 1, 2)})",
                f"{area['std']:.3f}",
                f"{100 * row[f'share_{STUDENTS[0]}']['mean']:.0f} %",
                f"{min(ps):.2g} to {max(ps):.2g}",
            ]
        )
    heads = [
        "labels",
        "blocks",
        "top-1, % (95 % interval)",
        "AUROC (95 % interval)",
        "its deviation",
        f"to {NETWORKS[STUDENTS[0]].title}",
        "p",
    ]
    return markdown(heads, rows)


def contexts(study: dict, names: Sequence[str] = ()) -> str:
    """Table of contexts.json, written by studies.contexts.

    `names` are the keys of IN_CONTEXTS to show, with accuracies and MACs only. Default: everything.
    """
    alone = {"teacher": study["teacher"], **study["students"], **study["generalists"]}
    rows = []
    for name in names or IN_CONTEXTS:
        facts = alone.get(name) or study["policies"][name]
        area, p = facts.get("auroc"), facts.get("mcnemar_p")
        rows.append(
            [
                IN_CONTEXTS[name],
                *(f"{100 * facts['accuracy'][group]:.1f}" for group in GROUPS),
                f"{100 * facts['macs'] / study['teacher']['macs']:.0f} %",
                f"{100 * facts['val_accuracy']:.1f}",
                "" if area is None else f"{area:.2f}",
                "" if p is None else f"{p:.1g}",
            ]
        )
    heads = ["top-1, %", *GROUPS, "MACs of the teacher's", "mixed, validation", "AUROC", "p"]
    kept = 2 + len(GROUPS) if names else len(heads)
    return markdown(heads[:kept], [row[:kept] for row in rows])


def sweep(benchmarks: dict) -> str:
    """Table of images/s of both sides for each setting, from python -m benchmarks."""
    settings = "batch_size", "threads", "images"
    rows = [
        [
            SUBJECTS[run["subject"]],
            *("" if run[name] is None else f"{run[name]:,}" for name in settings),
            *(f"{run[side]:,.0f}" for side in ("ours", "plain")),
            f"{run['ratio']:.1f}",
            " / ".join(f"{run[f'{side}_peak_mb']:,}" for side in ("ours", "plain")),
        ]
        for run in benchmarks["runs"]
    ]
    heads = ["", "batch", "threads", "images", "ours", "plain", "ratio", "memory, MB"]
    return markdown(heads, rows)


def distillation(runs: list[dict]) -> str:
    """Table of distillation.json, written by studies.distillation: means over seeds, and gains."""
    rows = [[name_of(row), str(row["seeds"]), *cells(row, "±")] for row in summary(runs_of(runs))]
    return markdown(["top-1, %", "seeds", "validation", "test", "gain on test (95 %)"], rows)


def _interval(metrics: dict, name: str) -> str:
    return _ends(metrics["accuracy_interval"].get(name, ()), 100, 1)


def _ends(interval: Sequence[float], times: int, decimals: int) -> str:
    return " to ".join(f"{times * end:.{decimals}f}" for end in interval)


def speed(benchmarks: dict) -> str:
    """Table of images/s of both sides and their ratio, from python -m benchmarks."""
    runs = {run["subject"]: run for run in benchmarks["runs"]}
    rows = [
        [
            label,
            *(f"{runs[subject][side]:,.0f}" for side in ("ours", "plain")),
            f"**{runs[subject]['ratio']:.1f}**",
            " to ".join(f"{runs[subject][end]:.2f}" for end in ("ratio_min", "ratio_max")),
            " / ".join(f"{runs[subject][f'{side}_peak_mb']:,}" for side in ("ours", "plain")),
        ]
        for subject, label in SUBJECTS.items()
        if subject in runs
    ]
    return markdown(["images/s", "ours", "plain", "ratio", "spread", "memory, MB"], rows)


def compression(metrics: dict, stem: str) -> str:
    """Table of reductions relative to the teacher in %, ours and published.

    The MACs of the routed system are read from `metrics`.
    """
    costs, rows = all_costs(stem), []
    routed = metrics["macs_per_image"]["routed"] / 1e6
    for name in [name for name in costs if name != "teacher"]:
        ours = [1 - each / of for each, of in zip(costs[name], costs["teacher"], strict=True)]
        if name == "both + selector":  # only one student runs per image
            ours[2] = 1 - routed / costs["teacher"][2]
        theirs = PUBLISHED.get(name, (None,) * 3)
        rows.append(
            [
                " + ".join(
                    NETWORKS[part].title if part in NETWORKS else part for part in name.split(" + ")
                ),
                *(
                    f"{100 * mine:.1f}" + ("" if each is None else f" ({each:.1f})")
                    for mine, each in zip(ours, theirs, strict=True)
                ),
            ]
        )
    heads = ["reduction, % (published)", "parameters", "size on disk", "MACs"]
    return markdown(heads, rows)


def networks() -> str:
    """Table of all networks: parameters, and MACs for one 32x32 image with each stem."""
    with torch.device("meta"):  # counting needs no weights
        nets = {arch: {stem: network(arch, stem) for stem in STEMS} for arch in NETWORKS}
        rows = [
            [
                f"`{arch}`",
                NETWORKS[arch].title,
                f"{parameters(stems[STEMS[0]]):.2f}",
                *(f"{macs(net) / 1e6:.1f}" for net in stems.values()),
            ]
            for arch, stems in nets.items()
        ]
    return markdown(["name", "", "M parameters", *(f"MMACs, `{stem}`" for stem in STEMS)], rows)


def checkpoints(paths: Sequence[Path]) -> str:
    """Table of the facts in the checkpoints, one column each; then SHA-256 as from sha256sum."""
    columns = [_facts(path) for path in paths]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, "") for column in columns)] for name in names]
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in paths]
    table = markdown(["", *(f"`{path.name}`" for path in paths)], rows)
    return "\n".join([table, "", "```", *sums, "```"])


def _facts(path: Path) -> dict[str, str]:
    net, info = load_network(path)
    test = info["test_accuracy"]
    return {
        "architecture": info["arch"],
        "stem": info["stem"] or "",
        "parameters": f"{1e6 * parameters(net):,.0f}",
        "bytes": f"{path.stat().st_size:,}",
        "validation top-1, %": f"{100 * info['val_accuracy']:.2f}",
        "test top-1, %": "" if test is None else f"{100 * test:.2f}",
        "PyTorch": info["torch_version"],
        "made by": f"`{command(path.stem, info)}`",
        "epoch of the weights": str(info["epoch"]),
        **{f"`{name}`": _plain(value) for name, value in info["hyperparameters"].items()},
        **{name: str(info[key]).strip("[]") for name, key in CHOSEN.items() if key in info},
    }


def command(name: str, info: dict) -> str:
    """The command that trained NAME.pth; initial weights, if any, are called FIRST.pth."""
    words, recipe = COMMANDS[name], info["hyperparameters"]
    if recipe.get("init"):
        rate = recipe.get("learning_rate", recipe.get("lr"))  # "lr" in older checkpoints
        flags = {"init": "FIRST.pth", "epochs": recipe["epochs"], "lr": rate}
        flags["seed"] = recipe["seed"]
        words += "".join(f" --{name} {value}" for name, value in flags.items())
    return words


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(each)}" for name, each in value.items())
    return str(value)


def fill(path: Path, tables: dict[str, str]) -> str:
    """The text of `path` with each table put between <!-- NAME ... --> and <!-- end of NAME -->.

    Raises UserError if a marker is missing.
    """
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        block = re.compile(rf"(<!-- {name}\b[^\n]*-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        if not block.search(text):
            raise UserError(
                f"{path} lacks <!-- {name} --> and <!-- end of {name} -->: add these two lines"
            )
        text = block.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
    return text


def table(function: Callable[..., str], name: str, **options: Any) -> str:
    """Call `function`, one of the above, with the content of results/NAME.json and the options.

    Raises UserError if the file is missing or is not what the programs of this project write.
    """
    path = ROOT / "results" / f"{name}.json"
    try:
        return function(read_json(path, list if name == "distillation" else dict), **options)
    except (UserError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{shown(path)} cannot be used ({type(error).__name__}: {error}); restore it with: git "
            f"checkout {shown(path)}"
        ) from error


def texts() -> dict[Path, str]:
    """The files to write, and their new texts."""
    folder = ROOT / "checkpoints"
    stem = read_checkpoint(folder / FILES["teacher"])["stem"]
    # Only the checkpoints that are in the repository, according to .gitignore.
    kept = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    paths = [folder / name for name in FILES.values() if f"!checkpoints/{name}" in kept]
    wide = table(dict, "cifar/metrics")
    tables = {
        ROOT / "README.md": {
            "results": table(results, "metrics", names=SHORT, others=False, wide=wide),
        },
        ROOT / "docs" / "results.md": {
            "compression": table(compression, "metrics", stem=stem),
            "results": table(results, "metrics", wide=wide),
            "distillation": table(distillation, "distillation"),
            "routing": table(routing, "routing"),
        },
        ROOT / "docs" / "networks.md": {"networks": networks()},
        ROOT / "docs" / "speed.md": {"speed": table(speed, "benchmarks")},
        ROOT / "docs" / "tried.md": {
            "selectors": table(selectors, "selectors"),
            "sweep_batches": table(sweep, "sweep_batches"),
            "sweep_images": table(sweep, "sweep_images"),
        },
        folder / "README.md": {"checkpoints": checkpoints(paths)},
    }
    if (ROOT / "results" / "contexts.json").exists():
        short = table(contexts, "contexts", names=SHORT_IN_CONTEXTS)
        tables[ROOT / "README.md"]["contexts"] = short
        tables[ROOT / "docs" / "results.md"]["contexts"] = table(contexts, "contexts")
    filled = {path: fill(path, those) for path, those in tables.items()}
    return filled | {ROOT / "results" / "all.csv": all_results()}


def main() -> None:
    for path, text in texts().items():
        with replacing(path, binary=False) as file:
            file.write(text)
        print(f"wrote {shown(path)}")


if __name__ == "__main__":
    cli.run(main)
