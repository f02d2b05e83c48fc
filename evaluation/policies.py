"""Who answers for an image: the policies, what each gives and costs, and how one is assembled."""

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

    who: who answers, for --help.
    students: those that may run, in the order in which they run or are named.
    threshold: its name in the selector's checkpoint, and its value where there is none.
    """

    who: str
    students: tuple[str, ...]
    threshold: tuple[str, float] | None = None


POLICIES = {
    "selector": Policy(
        "the student that the selector chooses", STUDENTS, threshold=("threshold", 0.5)
    ),
    "cascade": Policy(
        "student 2; where it is not sure, the mean of both",
        STUDENTS[::-1],
        threshold=("cascade_threshold", 0.9),
    ),
    **{arch: Policy(f"student {k}", (arch,)) for k, arch in enumerate(STUDENTS, 1)},
    "ensemble": Policy("the mean of both students' logits", STUDENTS),
}


# ------------------------------------------------------------------ a system that runs


@dataclass
class System:
    """Networks under a policy.

    net: normalized images (N, 3, 32, 32) -> logits (N, classes), and the place in `names` of who
        gave them, int64 (N,).
    names: of those who answer.
    threshold: of the policy, None where it has none.
    made_of: all that an answer depends on, but for the image.
    temperatures: of each of `names`, 1.0 where none was chosen.
    """

    net: nn.Module
    names: tuple[str, ...]
    threshold: float | None
    made_of: dict[str, Any]
    temperatures: tuple[float, ...] = (1.0, 1.0)

    def probabilities(self, logits: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
        """Those to show to people, (N, classes), from what `net` returned."""
        return (logits / logits.new_tensor(self.temperatures)[choice, None]).softmax(dim=1)


def parts_of(policy: str, threshold: float | None = None) -> tuple[str, ...]:
    """The networks to load for a policy; the selector's checkpoint has the thresholds, too."""
    students, named = POLICIES[policy].students, POLICIES[policy].threshold
    selector = policy == "selector" or (named and threshold is None)
    return (*students, "selector") if selector else students


def temperature_of(facts: Mapping[str, Any]) -> float:
    """The temperature in a checkpoint's dictionary; 1.0 where none was chosen."""
    return facts.get("temperature", 1.0)


def mean_temperature(students: Iterable[float]) -> float:
    """The temperature of the mean of the students' logits.

    One chosen for it on the validation images differs by a few hundredths, and helps no more.
    """
    return fmean(students)


def assemble(
    policy: str,
    trained: Mapping[str, tuple[nn.Module, dict[str, Any]]],
    ready: Mapping[str, nn.Module],
    device: torch.device,
    threshold: float | None = None,
) -> System:
    """A system that answers under a policy.

    Args:
        policy: a key of POLICIES.
        trained: of each of `parts_of` it, the network and the dictionary of its checkpoint, as
            `utils.checkpoint.load_parts` gives them.
        ready: the same networks, made for inference on `device`.
        threshold: in place of the one in the selector's checkpoint.
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


# ------------------------------------------------------------------ what a policy gives


@dataclass
class Networks:
    """What the networks say of N images, and what each costs.

    Args:
        logits: (N, classes) of "resnet50" and of both students, (N,) of the "selector".
        work: MACs of each for one image.
        labels: int64 (N,).
    """

    logits: dict[str, torch.Tensor]
    work: dict[str, int]
    labels: torch.Tensor

    def right(self, arch: str) -> torch.Tensor:
        """Where the network's answer is the label: bool (N,)."""
        return self.logits[arch].argmax(dim=1) == self.labels

    def students_right(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where student 1 is right, and where student 2 is: two bool (N,)."""
        return self.right(STUDENTS[0]), self.right(STUDENTS[1])

    def better_student(self) -> str:
        """The student that is right on more of the images."""
        return max(STUDENTS, key=lambda arch: self.right(arch).sum().item())


@dataclass
class Outcome:
    """What a policy does on N images.

    right: bool (N,), where its answer is the label.
    first_ran: bool (N,), where student 1 runs.
    macs: for one image, on average.
    """

    right: torch.Tensor
    first_ran: torch.Tensor
    macs: float


def routed(nets: Networks, to_first: torch.Tensor, router_macs: float) -> Outcome:
    """Student 1 where `to_first`, bool (N,), else student 2; the router runs on every image."""
    first, second = nets.students_right()
    to_1 = share(to_first)
    work = to_1 * nets.work[STUDENTS[0]] + (1 - to_1) * nets.work[STUDENTS[1]]
    return Outcome(torch.where(to_first, first, second), to_first, work + router_macs)


def selector(nets: Networks, threshold: float) -> Outcome:
    """Student 1 where the selector gives it at least this probability, else student 2."""
    to_first = nets.logits["selector"].sigmoid() >= threshold
    return routed(nets, to_first, nets.work["selector"])


def oracle(nets: Networks) -> Outcome:
    """The student that is right, where one is; the second where both are or neither."""
    first, second = nets.students_right()
    return routed(nets, first & ~second, 0)


def cascade(nets: Networks, threshold: float) -> Outcome:
    """Student 2; where its largest probability is below the threshold, the mean of both."""
    first, second = (nets.logits[arch] for arch in STUDENTS)
    both = ((first + second) / 2).argmax(dim=1) == nets.labels
    unsure = confidence(second) < threshold
    return Outcome(
        torch.where(unsure, both, nets.right(STUDENTS[1])),
        unsure,
        nets.work[STUDENTS[1]] + share(unsure) * nets.work[STUDENTS[0]],
    )


def ensemble(nets: Networks) -> Outcome:
    """The mean of both students' logits, on every image."""
    return cascade(nets, 1.01)
