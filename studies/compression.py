"""Compression: parameters, size on disk and MACs, relative to the teacher.

    python -m studies.compression                   the stem of the weights in checkpoints/
    python -m studies.compression --stem cifar      the stem without max-pool

The numbers are computed from the networks; no weights are needed. The published reductions are
shown for comparison.
"""

import argparse
import io

import torch
from torch import nn

from evaluation.policies import BOTH
from models import NETWORKS, STEMS, STUDENTS, TEACHER, Selector, macs, network, parameters

STEM = "cifar-pool"
# Published reductions relative to ResNet-50, in %: parameters, size on disk, MACs. From
# github.com/Vidya1899/Multistudent-Knowledge-distilation
PUBLISHED = {
    "densenet121": (87.3, 68.4, 21.0),
    "googlenet": (76.3, 74.5, 68.1),
    "densenet121 + selector": (85.17, 66, None),
    "googlenet + selector": (74.15, 72.23, None),
    "both + selector": (61.4, 40.6, None),
}
if (TEACHER, STUDENTS) != ("resnet50", ("densenet121", "googlenet")):
    PUBLISHED = {}  # it is of other networks


def megabytes(*nets: nn.Module) -> float:
    """Total size of the networks' weights on disk in half precision, in 10^6 bytes."""
    total = 0
    for net in nets:
        file = io.BytesIO()
        torch.save({name: tensor.half() for name, tensor in net.state_dict().items()}, file)
        total += file.tell()
    return total / 1e6


def costs(*nets: nn.Module) -> tuple[float, float, float]:
    """Parameters in millions, size on disk in MB, and MMACs per image if all `nets` run."""
    return sum(map(parameters, nets)), megabytes(*nets), sum(map(macs, nets)) / 1e6


def all_costs(stem: str) -> dict[str, tuple[float, float, float]]:
    """`costs` of the teacher, each student, each student + selector, and both + selector."""
    selector = Selector(outputs=len(STUDENTS))
    students = {arch: network(arch, stem) for arch in STUDENTS}
    systems = {
        "teacher": (network(TEACHER, stem),),
        **{arch: (net,) for arch, net in students.items()},
        **{f"{arch} + selector": (net, selector) for arch, net in students.items()},
        f"{BOTH} + selector": (*students.values(), selector),
    }
    return {name: costs(*nets) for name, nets in systems.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stem", choices=STEMS, default=STEM, help="default: %(default)s")
    stem = parser.parse_args().stem
    systems = all_costs(stem)
    base = systems.pop("teacher")
    teacher = f"{NETWORKS[TEACHER].title} with the {stem} stem"
    print(f"Reduction relative to the teacher, {teacher}: ours (published)\n")
    print(f"{'':<24}{'parameters':>24}{'size on disk':>26}{'MACs per image':>26}")
    print(f"{'teacher':<24}{base[0]:>13.2f} M{base[1]:>23.2f} MB{base[2]:>24.1f} M")
    for name, costs_of in systems.items():
        cells = []
        for ours, of, theirs, unit in zip(
            costs_of, base, PUBLISHED.get(name, (None,) * 3), ("M", "MB", "M"), strict=True
        ):
            published = "-" if theirs is None else f"{theirs:.1f}"
            cells.append(f"{ours:.2f} {unit}  {100 * (1 - ours / of):.1f} % ({published})")
        print(f"{name:<24}" + "".join(f"{cell:>26}" for cell in cells))

    least, *_, most = sorted(systems[f"{arch} + selector"][2] for arch in STUDENTS)
    print(
        f"\nWith routing, the selector and one student run: {least:.1f} to {most:.1f} MMACs per "
        f"image, {100 * (1 - most / base[2]):.1f} to {100 * (1 - least / base[2]):.1f} % fewer "
        "than the teacher. The published inference runs all students on every image."
    )
    if not PUBLISHED:
        return
    densenet = systems["densenet121"][0]
    print(
        f"The published reductions of 87.3 % and 61.4 % in parameters are not possible with "
        f"DenseNet-121: its {densenet:.2f} M parameters are {100 * densenet / base[0]:.1f} % of "
        "the teacher's. The published reduction of 21 % in MACs is not possible either."
    )


if __name__ == "__main__":
    main()
