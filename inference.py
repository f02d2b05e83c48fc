"""Evaluate the whole system on the test set, or classify your own images.

    python inference.py                    evaluate on the test set: tables, figures, report.html
    python inference.py photo.jpg more/    classify your own images and folders of images
    python inference.py more/ --csv predictions.csv    write a CSV file, one row per image
    python inference.py more/ --policy cascade         choose between the students differently
    python inference.py more/ --policy cascade --target teacher    for less work
    python inference.py --context mixed --checkpoint-dir checkpoints/contexts    evaluate the system
                                           for several contexts; half of the images are degraded
    python inference.py --out results      write the results to another folder
    python inference.py --run NAME         evaluate the networks of a run, see docs/compare.md
    python inference.py --subset 500       quick test: 500 images; the same networks

Needs the students and selector.pth in checkpoints/. If present, teacher.pth and the students that
were trained without it (NAME_alone.pth) are evaluated as well. If the test set is not available,
the 1,000 test images of this repository are used.
"""

import argparse
import shlex
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

from evaluation import policies
from evaluation.classify import print_predictions, write_predictions
from evaluation.report import write_report
from evaluation.testset import measure, print_tables, save_predictions, test_images
from models import SELECTED, STUDENTS, TEACHER, macs, network
from utils import cli
from utils.checkpoint import (
    ALONE,
    FILES,
    check_data,
    data_of,
    fingerprint_of,
    load_network,
    load_parts,
)
from utils.contexts import image_seeds, in_context, kinds
from utils.data import listed
from utils.device import for_inference, pick_device, precision
from utils.files import shown, try_folder, write_json

# ------------------------------------------------------------------ settings

BATCH_SIZE = 1000  # images per step; the networks compute them in smaller parts
OUT = Path("runs/inference")  # for metrics.json, the figures and report.html

# ------------------------------------------------------------------ inference


def main() -> int:
    args = read_flags()
    return classify_images(args) if args.images else measure_test_set(args)


def read_flags() -> argparse.Namespace:
    """Parse the flags and refuse combinations that make no sense."""
    parser = cli.common_parser(__doc__, globals())
    parser.add_argument("images", nargs="*", type=Path, help="your own images, or folders of them")
    cli.add_out(parser, OUT, "metrics.json, the figures and report.html")
    what = "write the predictions for your own images to this file, one row per image"
    cli.add_path(parser, "--csv", what)
    policies.add_policy(parser, "which networks classify your own images")
    parser.add_argument(
        "--threshold",
        type=lambda text: [cli.flag("THRESHOLD")(each) for each in text.split(",")],
        metavar="P",
        help="--policy selector: student 1 answers if its probability is at least P; --policy "
        "cascade: the next student runs if the confidence so far, before temperature scaling, is "
        "below P; with more than two students: P,P... for all students but the last, or for each "
        "step of the cascade; default: chosen on the validation images",
    )
    cli.add_run(parser)
    what = "folder of the students (default: that of the other networks)"
    cli.add_path(parser, "--students", what)
    cli.add_flag(parser, "CONTEXT", "clean", "context of the test images, see utils/contexts.py")
    args = parser.parse_args()
    if args.threshold and args.target:
        parser.error("--threshold or --target, not both")
    args.policy = policies.policy_of(parser, args)
    count = {"selector": len(SELECTED) - 1, "cascade": len(STUDENTS) - 1}.get(args.policy, 0)
    if args.threshold and len(args.threshold) != count:
        parser.error(f"--threshold: --policy {args.policy} takes {count or 'no'} thresholds")
    if args.csv and not args.images:
        parser.error("--csv needs images: name files or folders")
    for name in ("context", "data", "subset", "out"):
        if args.images and name in args.typed:
            parser.error(f"--{name} is for the test set only: leave it out for your own images")
    return args


def classify_images(args: argparse.Namespace) -> int:
    """Classify the images named on the command line with the policy of --policy."""
    device = pick_device(args.device)
    parts = load_parts(partial(cli.found, args), policies.parts_of(args.policy, args.threshold))
    ready = {arch: for_inference(net, device) for arch, (net, _) in parts.items()}
    system = policies.assemble(args.policy, parts, ready, args.threshold)
    data = data_of(next(facts for arch, (_, facts) in parts.items() if arch in STUDENTS))
    if not args.csv:
        return print_predictions(system, args.images, data, args.batch_size, device)
    weights = ", ".join(f"{arch} {fingerprint_of(net)}" for arch, (net, _) in parts.items())
    thresholds = ", ".join(map(str, system.thresholds))
    made_by = (args.policy, thresholds, weights)
    return write_predictions(system, args.images, args.csv, made_by, data, args.batch_size, device)


def measure_test_set(args: argparse.Namespace) -> int:
    """Evaluate all networks and policies on the test images: tables, figures, report."""
    device = pick_device(args.device)
    try_folder(args.out)
    from evaluation import figures  # takes a second, and is not needed for own images

    files = (*FILES.values(), *ALONE.values())
    paths = {Path(file).stem: cli.found(args, file) for file in files}
    histories = figures.read_histories(paths)
    parts = load_parts(partial(cli.found, args))
    first = parts[STUDENTS[0]][1]
    dataset, test = test_images(args.data, args.subset, device, first)
    if not paths["teacher"].exists():
        print(f"no teacher at {shown(paths['teacher'])}: it is not evaluated\n")
    for name, arch in {"teacher": TEACHER, **{f"{arch}_alone": arch for arch in ALONE}}.items():
        if paths[name].exists():
            parts[name] = load_network(paths[name], arch)
    facts = {name: each for name, (_, each) in parts.items() if name != "selector"}
    for name, each in facts.items():
        check_data(paths[name], each, test.data)
    networks = {name: for_inference(net, device) for name, (net, _) in parts.items()}
    weights = {name: fingerprint_of(net) for name, (net, _) in parts.items()}
    asked = {args.policy: args.threshold}
    systems = {
        name: policies.assemble(name, parts, networks, asked.get(name))
        for name in policies.thresholds_of(parts["selector"][1])
    }
    seen, test = kinds(args.context, image_seeds(test)), in_context(test, args.context)
    dataset += "" if args.context == "clean" else f", {args.context}"
    told = {name: ", ".join(map(str, system.thresholds)) for name, system in systems.items()}
    cli.announce(
        f"Evaluating on {len(test):,} images: {dataset}, {listed(test.classes)}",
        device=f"{device}, {precision(device)}",
        networks=", ".join(shown(paths[name]) for name in networks if name != "selector"),
        selector=f"{shown(paths['selector'])}, threshold {told['selector']}",
        cascade=f"{' then '.join(systems['cascade'].ran[-1])}, threshold {told['cascade']}",
        writes=shown(args.out),
    )

    temperatures = {name: policies.temperature_of(each) for name, each in facts.items()}
    results = measure(networks, systems, temperatures, test, seen, args.batch_size)
    if "teacher" not in networks:  # the report compares with its MACs
        teacher = network(TEACHER, first["stem"], len(test.classes))
        results.nets.work["teacher"] = macs(teacher, test.data.size)
    # Not imported above: `utils` must come before PyTorch, for Ctrl-C.
    packages = [import_module(name) for name in ("torch", "torchvision", "numpy")]
    recipes = {name: facts["hyperparameters"] for name, (_, facts) in parts.items()}
    results.metrics = {
        "dataset": dataset,
        "context": args.context,
        **results.metrics,
        "thresholds": results.thresholds,
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {each.__name__: each.__version__ for each in packages},
        "weights": weights,
        "seeds": {name: recipe.get("seed") for name, recipe in recipes.items()},
        "hyperparameters": recipes,
        "val_accuracy_per_epoch": {
            name: [row["val_accuracy"] for row in rows] for name, rows in histories.items()
        },
    }
    print_tables(results.metrics)
    write_json(args.out / "metrics.json", results.metrics)
    save_predictions(args.out / "predictions.npz", results)
    histories.pop("selector", None)  # its accuracy is that of the routed system
    written = figures.draw_all(args.out, results, histories)
    report = args.out / "report.html"
    write_report(report, results, f"{device}, {precision(device)}")
    names = ["metrics.json", "predictions.npz", *(path.name for path in written)]
    print(f"wrote {', '.join(names)} to {shown(args.out)}")
    print(f"and {shown(report)}: open it in a browser to see all of this")
    return 0


if __name__ == "__main__":
    cli.run(main)
