"""Update the tables in the README files and in docs/, each between two markers, and all.csv.

python -m studies.tables     reads results/*.json and checkpoints/*.pth
"""

import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import deploy
from benchmarks.subjects import SUBJECTS
from evaluation.policies import BOTH
from evaluation.testset import LABELS
from models import NETWORKS, SELECTED, STEMS, STUDENTS, TEACHER, macs, parameters
from studies import contexts, distillation, ends, markdown, number, policies, selectors
from studies.all_results import all_results, bare
from utils import cli
from utils.checkpoint import COMMANDS, FILES, ROOT, load_network, read_checkpoint
from utils.files import UserError, read_json, replacing, shown

HUYVNPHAN = "https://github.com/huyvnphan/PyTorch_CIFAR10"
KUANGLIU = "https://github.com/kuangliu/pytorch-cifar"
PUBLISHED_TOP1 = {"teacher": "81", "densenet121": "74.19", "googlenet": "73.21", "routed": "79.67"}
OTHERS_TOP1 = {  # results of others with the same architecture
    "teacher": f"[93.65]({HUYVNPHAN})",
    "densenet121": f"[94.06]({HUYVNPHAN}), [95.04]({KUANGLIU})",
    "googlenet": f"[92.85]({HUYVNPHAN})",
}
# Published reductions relative to ResNet-50, in %: parameters, size on disk, in eight bits, MACs.
# From github.com/Vidya1899/Multistudent-Knowledge-distilation
PUBLISHED = {
    "DenseNet-121": (87.3, 68.4, None, 21.0),
    "GoogLeNet": (76.3, 74.5, None, 68.1),
    "DenseNet-121 + selector": (85.17, 66, None, None),
    "GoogLeNet + selector": (74.15, 72.23, None, None),
    "both + selector": (61.4, 40.6, None, None),
}
if (TEACHER, SELECTED) != ("resnet50", ("densenet121", "googlenet")):
    PUBLISHED = PUBLISHED_TOP1 = OTHERS_TOP1 = {}  # they are of other networks
CHOSEN = {  # chosen on the validation images: name in the table, key in the checkpoint
    "threshold": "thresholds",
    "threshold of the cascade": "cascade_thresholds",
    "threshold of the cascade at the teacher's accuracy": "cascade_teacher_thresholds",
    "temperature of the probabilities": "temperature",
}
# Hyperparameters in the table of the checkpoints.
RECIPE = ("init", "epochs", "batch_size", "optimizer", "learning_rate", "weight_decay", "warmup")
RECIPE += ("seed", "crop", "flip", "cutout", "teacher_views", "distill_loss", "alpha")
RECIPE += ("depth", "batch_norm", "label_rule")
OLDER = {"learning_rate": "lr", "teacher_views": "views"}  # their names in older checkpoints
SHORT = ("teacher", *STUDENTS, "routed", "cascade", "cascade_teacher", "oracle")  # for the README
SHORT_IN_CONTEXTS = (*SELECTED, "selector", *(f"{arch}, twice" for arch in SELECTED))
SHORT_IN_CONTEXTS += ("selector, pair", f"{SELECTED[-1]}, once")


# ------------------------------------------------------------------ results


def results(metrics: dict, wide: dict, names: Sequence[str] = ()) -> str:
    """Table of the accuracies in metrics.json, beside published results.

    Args:
        metrics: the content of metrics.json.
        wide: the same of networks without max-pool, for one more column.
        names: keys of LABELS to show, if measured or published. Default: all but the better
            student, which has a row, with intervals and the results of others.
    """
    rows = []
    for name in names or [name for name in LABELS if name != "better_student"]:
        published, theirs = PUBLISHED_TOP1.get(name, ""), OTHERS_TOP1.get(name, "")
        accuracy, interval = (metrics[key].get(name) for key in ("accuracy", "accuracy_interval"))
        if accuracy is None and not published:
            continue
        work = metrics["macs_per_image"].get(name)
        row = [LABELS[name], published, percent(accuracy), number(work and work / 1e6, ".1f")]
        row.append(percent(wide["accuracy"].get(name)))
        rows.append(row if names else [*row, ends(interval, ".1f", 100), theirs])
    heads = ["", "published", "ours, %", "MMACs", "without max-pool, %"]
    return markdown(heads if names else [*heads, "95 % interval of ours", "others"], rows)


def percent(share: float | None) -> str:
    return number(share and 100 * share, ".2f")


def speed(benchmarks: dict) -> str:
    """Table of images/s of both sides and their ratio, from python -m benchmarks."""
    rows = []
    order = list(SUBJECTS)
    for run in sorted(benchmarks["runs"], key=lambda run: order.index(run["subject"])):
        row = [SUBJECTS[run["subject"]].label, *(f"{run[side]:,.0f}" for side in ("ours", "plain"))]
        spread = f"{run['ratio_min']:.2f} to {run['ratio_max']:.2f}"
        rows.append([*row, f"{run['ratio']:.1f}", spread])
    return markdown(["images/s", "ours", "plain", "ratio", "spread"], rows)


# ------------------------------------------------------------------ networks


def compression(metrics: dict, stem: str, deployed: Sequence[dict]) -> str:
    """Table of reductions relative to the teacher in %, ours and published.

    Files have half precision. The MACs of the routed system, where only one student runs per image,
    and of the cascade are those in `metrics`; `deployed`, the content of deploy.json, has the sizes
    of ONNX files in eight bits.
    """
    int8 = {row["system"]: row["bytes"] for row in deployed if row["runtime"] == "ONNX int8"}
    # The size of the system "selector" includes its students.
    int8["selector"] -= sum(int8[arch] for arch in SELECTED)
    parts = {name: costs(name, stem, int8[name]) for name in ("selector", *STUDENTS)}
    title, routed = {arch: NETWORKS[arch].title for arch in STUDENTS}, f"{BOTH} + selector"
    systems = {
        **{title[arch]: [arch] for arch in STUDENTS},
        **{f"{title[arch]} + selector": [arch, "selector"] for arch in SELECTED},
        routed: [*SELECTED, "selector"],
        "cascade of all students": STUDENTS,
    }
    measured = {routed: "routed", "cascade of all students": "cascade"}
    whole, rows = costs(TEACHER, stem), []
    for name, members in systems.items():
        ours = [sum(column) for column in zip(*map(parts.get, members), strict=True)]
        if name in measured:
            ours[-1] = metrics["macs_per_image"][measured[name]]
        cells = []
        for mine, of, theirs in zip(ours, whole, PUBLISHED.get(name, (None,) * 4), strict=True):
            published = "" if theirs is None else f" ({theirs:.1f})"
            cells.append(f"{100 * (1 - mine / of):.1f}{published}")
        rows.append([name, *cells])
    heads = ["reduction, % (published)", "parameters", "size on disk", "size in eight bits", "MACs"]
    return markdown(heads, rows)


def costs(name: str, stem: str, int8: int | None = None) -> list[float]:
    """Parameters in millions, bytes on disk in half precision, then `int8`, and MACs per image."""
    net, file = bare(name, stem), io.BytesIO()
    torch.save({name: tensor.half() for name, tensor in net.state_dict().items()}, file)
    return [parameters(net), file.tell(), int8 or file.tell(), macs(net)]


def networks() -> str:
    """Table of all networks: parameters, and MACs for one 32x32 image with each stem."""
    rows = []
    for arch in NETWORKS:
        nets = [bare(arch, stem) for stem in STEMS]
        work = [f"{macs(net) / 1e6:.1f}" for net in nets]
        rows.append([f"`{arch}`", f"{parameters(nets[0]):.2f}", *work])
    return markdown(["name", "M parameters", *(f"MMACs, `{stem}`" for stem in STEMS)], rows)


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
    test, recipe = info["test_accuracy"], info["hyperparameters"]
    recipe = recipe | recipe.get("augmentation", {})  # a dictionary in older checkpoints
    values = {name: recipe.get(name, recipe.get(OLDER.get(name))) for name in RECIPE}
    return {
        "architecture": info["arch"],
        "stem": info["stem"] or "",
        "parameters": f"{1e6 * parameters(net):,.0f}",
        "bytes": f"{path.stat().st_size:,}",
        "validation top-1, %": f"{100 * info['val_accuracy']:.2f}",
        "test top-1, %": "" if test is None else f"{100 * test:.2f}",
        "PyTorch": info["torch_version"],
        "made by": f"`{COMMANDS[path.stem]}`",
        "epoch of the weights": str(info["epoch"]),
        **{f"`{name}`": str(value) for name, value in values.items() if value is not None},
        **{name: str(info[key]).strip("[]") for name, key in CHOSEN.items() if key in info},
    }


def fill(path: Path, tables: dict[str, str]) -> str:
    """The text of `path` with each table put between <!-- NAME ... --> and <!-- end of NAME -->.

    Raises UserError if a marker is missing.
    """
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        block = re.compile(rf"(<!-- {name}\b[^\n]*-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        text, count = block.subn(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
        if not count:
            raise UserError(f"{path} lacks <!-- {name} --> and <!-- end of {name} -->")
    return text


def stored(name: str) -> Any:
    """The content of results/NAME.json. Raises UserError if it is missing or damaged."""
    kind = list if name in ("distillation", "deploy") else dict
    return read_json(ROOT / "results" / f"{name}.json", kind)


def texts() -> dict[Path, str]:
    """The files to write, and their new texts."""
    folder = ROOT / "checkpoints"
    paths = [folder / name for name in FILES.values()]
    stem = read_checkpoint(paths[0])["stem"]
    metrics, wide, in_contexts = map(stored, ("metrics", "cifar/metrics", "contexts"))
    variants = stored("selectors")["variants"]
    shipped = {"variants": [row for row in variants if row["depth"] == 3 and row["batch_norm"]]}
    deployed = stored("deploy")
    tables = {
        ROOT / "README.md": {
            "results": results(metrics, wide, SHORT),
            "contexts": markdown(*contexts.table(in_contexts, SHORT_IN_CONTEXTS)),
        },
        ROOT / "docs" / "results.md": {
            "compression": compression(metrics, stem, deployed),
            "results": results(metrics, wide),
            "distillation": markdown(*distillation.table(stored("distillation"))),
            "routing": markdown(*policies.table(stored("routing"))),
            "contexts": markdown(*contexts.table(in_contexts)),
        },
        ROOT / "docs" / "networks.md": {"networks": networks()},
        ROOT / "docs" / "deployment.md": {"deployment": markdown(*deploy.table(deployed))},
        ROOT / "docs" / "speed.md": {"speed": speed(stored("benchmarks"))},
        ROOT / "docs" / "tried.md": {"selectors": markdown(*selectors.table(shipped))},
        folder / "README.md": {"checkpoints": checkpoints(paths)},
    }
    filled = {path: fill(path, those) for path, those in tables.items()}
    return filled | {ROOT / "results" / "all.csv": all_results()}


def main() -> None:
    for path, text in texts().items():
        with replacing(path, binary=False) as file:
            file.write(text)
        print(f"wrote {shown(path)}")


if __name__ == "__main__":
    cli.run(main)
