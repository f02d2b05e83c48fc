"""Policies that choose a student for each image: assembly, accuracy and cost."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import nn

from models import STUDENTS, Cascade, MultiStudent, confidence
from utils.checkpoint import fingerprint_of
from utils.device import precision
from utils.method import share


@dataclass(frozen=True)
class Policy:
    """A way to choose between the students.

    who: description for --help.
    students: the students that may run, in the order in which they run or are named.
    threshold: the key of its threshold in the selector's checkpoint, and the default value.
    """

    who: str
    students: tuple[str, ...]
    threshold: tuple[str, float] | None = None


POLICIES = {
    "selector": Policy(
        "the student that the selector chooses", STUDENTS, threshold=("threshold", 0.5)
    ),
    "cascade": Policy(
        "student 2, or the mean of both if it is not confident",
        STUDENTS[::-1],
        threshold=("cascade_threshold", 0.9),
    ),
    **{arch: Policy(f"student {k}", (arch,)) for k, arch in enumerate(STUDENTS, 1)},
    "ensemble": Policy("the mean of both students' logits", STUDENTS),
}


# ------------------------------------------------------------------ systems


@dataclass
class System:
    """The networks of a policy, ready for inference.

    net: maps normalized images (N, 3, 32, 32) to logits (N, classes), and an index into `names` for
        each image, int64 (N,).
    names: names of the students; "both" for the mean.
    threshold: of the policy; None if it has none.
    made_of: everything that the predictions depend on, except the images.
    temperatures: one per entry of `names`; 1.0 if none was chosen.
    """

    net: nn.Module
    names: tuple[str, ...]
    threshold: float | None
    made_of: dict[str, Any]
    temperatures: tuple[float, ...] = (1.0, 1.0)

    def probabilities(self, logits: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
        """Calibrated probabilities (N, classes) from the outputs of `net`."""
        return (logits / logits.new_tensor(self.temperatures)[choice, None]).softmax(dim=1)


def parts_of(policy: str, threshold: float | None = None) -> tuple[str, ...]:
    """The networks to load for a policy. The selector's checkpoint also contains the thresholds."""
    students, named = POLICIES[policy].students, POLICIES[policy].threshold
    selector = policy == "selector" or (named and threshold is None)
    return (*students, "selector") if selector else students


def temperature_of(facts: Mapping[str, Any]) -> float:
    """The temperature in a checkpoint dictionary; 1.0 if none was chosen."""
    return facts.get("temperature", 1.0)


def mean_temperature(students: Iterable[float]) -> float:
    """The temperature for the mean of the students' logits.

    A temperature chosen on the validation images differs by a few hundredths and is not better.
    """
    return fmean(students)


def assemble(
    policy: str,
    trained: Mapping[str, tuple[nn.Module, dict[str, Any]]],
    ready: Mapping[str, nn.Module],
    device: torch.device,
    threshold: float | None = None,
) -> System:
    """Assemble the system of a policy.

    Args:
        policy: a key of POLICIES.
        trained: for each network in `parts_of(policy)`: the network and its checkpoint dictionary,
            as returned by `utils.checkpoint.load_parts`.
        ready: the same networks, prepared by `for_inference` on `device`.
        device: the device of `ready`.
        threshold: overrides the threshold in the selector's checkpoint.
    """
    archs, named = POLICIES[policy].students, POLICIES[policy].threshold
    students = [ready[arch] for arch in archs]
    if named and threshold is None:
        threshold = trained["selector"][1].get(*named)
    nets = {arch: trained[arch][0] for arch in STUDENTS if arch in archs}
    if policy == "selector":
        system, names = MultiStudent(students, ready["selector"], threshold), archs
        nets["selector"] = trained["selector"][0]
    elif policy == "cascade":
        system, names = Cascade(students, threshold), (archs[0], "both")
    elif policy == "ensemble":
        system, names = Cascade(students, 1.01), ("both", "both")
    else:
        system, names = Cascade(students, 0), archs
    facts = trained[archs[0]][1]
    chosen = {arch: temperature_of(trained[arch][1]) for arch in archs}
    chosen["both"] = mean_temperature(chosen.values())
    temperatures = tuple(chosen[name] for name in names)
    made_of = {
        "policy": policy,
        "threshold": threshold,
        "temperatures": temperatures,
        "device": f"{device.type}, {precision(device)}",
        **{name: facts[name] for name in ("classes", "mean", "std")},
        **{arch: fingerprint_of(net) for arch, net in nets.items()},
    }
    return System(system.eval(), names, threshold, made_of, temperatures)


# ------------------------------------------------------------------ accuracy and cost of a policy


@dataclass
class Networks:
    """Logits of the networks for N images, and their costs.

    Args:
        logits: (N, classes) of both students and other classifiers, (N,) of "selector".
        work: MACs per image of each network.
        labels: int64 (N,).
    """

    logits: dict[str, torch.Tensor]
    work: dict[str, int]
    labels: torch.Tensor

    def right(self, arch: str) -> torch.Tensor:
        """Whether the network's prediction is correct: bool (N,)."""
        return self.logits[arch].argmax(dim=1) == self.labels

    def students_right(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether student 1 and student 2 are correct: two bool (N,)."""
        return self.right(STUDENTS[0]), self.right(STUDENTS[1])

    def mean_logits(self) -> torch.Tensor:
        """The mean of both students' logits: (N, classes)."""
        return sum(self.logits[arch] for arch in STUDENTS) / 2

    def better_student(self) -> str:
        """The student with the higher accuracy."""
        return max(STUDENTS, key=lambda arch: self.right(arch).sum().item())


@dataclass
class Outcome:
    """The result of a policy on N images.

    right: bool (N,), whether the prediction is correct.
    first_ran: bool (N,), whether student 1 runs.
    macs: mean MACs per image.
    """

    right: torch.Tensor
    first_ran: torch.Tensor
    macs: float


def routed(nets: Networks, to_first: torch.Tensor, router_macs: float) -> Outcome:
    """Student 1 if `to_first`, bool (N,), else student 2. The router runs on every image."""
    first, second = nets.students_right()
    to_1 = share(to_first)
    work = to_1 * nets.work[STUDENTS[0]] + (1 - to_1) * nets.work[STUDENTS[1]]
    return Outcome(torch.where(to_first, first, second), to_first, work + router_macs)


def selector(nets: Networks, threshold: float) -> Outcome:
    """Student 1 if its probability from the selector is at least `threshold`, else student 2."""
    to_first = nets.logits["selector"].sigmoid() >= threshold
    return routed(nets, to_first, nets.work["selector"])


def oracle(nets: Networks) -> Outcome:
    """The student that is correct; student 2 if both or neither are."""
    first, second = nets.students_right()
    return routed(nets, first & ~second, 0)


def cascade(nets: Networks, threshold: float) -> Outcome:
    """Student 2; the mean of both if the confidence of student 2 is below the threshold."""
    both = nets.mean_logits().argmax(dim=1) == nets.labels
    unsure = confidence(nets.logits[STUDENTS[1]]) < threshold
    return Outcome(
        torch.where(unsure, both, nets.right(STUDENTS[1])),
        unsure,
        nets.work[STUDENTS[1]] + share(unsure) * nets.work[STUDENTS[0]],
    )


def ensemble(nets: Networks) -> Outcome:
    """The mean of both students' logits, on every image."""
    return cascade(nets, 1.01)
