"""Policies that choose between the students, made of networks or of their stored logits."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

from models import (
    SELECTED,
    STUDENTS,
    Cascade,
    MoreConfident,
    MultiStudent,
    Recorded,
    confidence,
    macs,
    offsets_of,
)
from utils.data import CIFAR10
from utils.files import UserError
from utils.method import share

BOTH = "both" if len(SELECTED) == 2 else "all"  # of SELECTED
POLICIES = {  # name: description for --help
    "selector": "the student that the selector chooses",
    "cascade": "the cheapest student first, the next one only where the answer is not confident",
    "cascade_teacher": "the cascade at the accuracy of the teacher",
    **{arch: f"student {k}" for k, arch in enumerate(STUDENTS, 1)},
    "more_confident": f"{' and '.join(SELECTED)} run, and the most confident one answers",
    "ensemble": f"the mean of the logits of {' and '.join(SELECTED)}",
}
TARGETS = {"best": "cascade", "teacher": "cascade_teacher"}  # of --target: its policy
THRESHOLDS = {  # their key in the selector's checkpoint, and what they are without it
    "selector": ("thresholds", [0.5] * (len(SELECTED) - 1)),
    "cascade": ("cascade_thresholds", [0.9] * (len(STUDENTS) - 1)),
    "cascade_teacher": ("cascade_teacher_thresholds", None),
}


@dataclass
class System:
    """A policy made of networks."""

    net: nn.Module  # images -> logits (N, classes), an index into the next two, int64 (N,)
    ran: list[tuple[str, ...]]  # the names of the networks that run
    answered: list[tuple[str, ...]]  # the students whose mean logits are the answer
    thresholds: Sequence[float] = ()
    temperatures: Sequence[float] = ()  # for calibrated probabilities, one per entry of `answered`

    @property
    def names(self) -> list[str]:
        """Who answers, for each entry of `answered`: a student, or BOTH of SELECTED."""
        return [BOTH if {*archs} == {*SELECTED} else "+".join(archs) for archs in self.answered]

    def probabilities(self, logits: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
        """Calibrated probabilities (N, classes) from the outputs of `net`."""
        temperatures = torch.tensor(self.temperatures, device=logits.device)
        return (logits / temperatures[choice, None]).softmax(dim=1)


def add_policy(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --policy, with the help text `what`, and --target."""
    names = [name for name in POLICIES if name != "cascade_teacher"]  # that is --target teacher
    parser.add_argument(
        "--policy",
        choices=names,
        default="selector",
        help=f"{what}: {'; '.join(f'{name}: {POLICIES[name]}' for name in names)} "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--target",
        choices=TARGETS,
        help="--policy cascade: the cheapest thresholds that are as accurate on the validation "
        "images as the best ones, or as the teacher (default: best)",
    )


def policy_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """The policy of --policy and --target: a key of POLICIES."""
    if args.target and args.policy != "cascade":
        parser.error(f"--target: --policy {args.policy} has none, leave it out")
    return TARGETS[args.target] if args.target else args.policy


def thresholds_of(facts: Mapping[str, Any]) -> dict[str, list[float]]:
    """The thresholds of each policy that has some, from the selector's checkpoint dictionary."""
    found = {policy: facts.get(*key) for policy, key in THRESHOLDS.items()}
    return {policy: thresholds for policy, thresholds in found.items() if thresholds}


def saved_for(policy: str, thresholds: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Of the thresholds of policies, those of "selector", or of "cascade" with each target."""
    names = TARGETS.values() if policy == "cascade" else [policy]
    return {name: list(thresholds[name]) for name in names if name in thresholds}


def parts_of(policy: str, thresholds: Sequence[float] | None = None) -> tuple[str, ...]:
    """The networks to load for a policy. The selector's checkpoint also contains the thresholds."""
    if policy == "selector":
        return (*SELECTED, policy)
    if policy in TARGETS.values() and not thresholds:
        return (*STUDENTS, "selector")
    return STUDENTS if policy in TARGETS.values() else (policy,) if policy in STUDENTS else SELECTED


def system_of(
    policy: str,
    nets: Mapping[str, nn.Module],
    work: Mapping[str, float],
    thresholds: Sequence[float] | None = None,
) -> System:
    """The system of a policy, a key of POLICIES.

    Args:
        nets: the networks, by name; also `Recorded` ones.
        work: MACs of the students, for the cascade: the cheapest student runs first.
        thresholds: of the selector (see `offsets_of`) or the cascade.
    """
    if policy == "selector":
        net = MultiStudent([nets[arch] for arch in SELECTED], nets[policy], offsets_of(thresholds))
        ran = [(arch, policy) for arch in SELECTED]
        return System(net, ran, [(arch,) for arch in SELECTED], thresholds)
    if policy == "more_confident":
        net = MoreConfident([nets[arch] for arch in SELECTED])
        return System(net, [SELECTED] * len(SELECTED), [(arch,) for arch in SELECTED])
    if policy in TARGETS.values():
        order = tuple(sorted((arch for arch in STUDENTS if arch in nets), key=work.get))
        net = Cascade([nets[arch] for arch in order], thresholds)
    else:
        order = SELECTED if policy == "ensemble" else (policy,)
        net = Cascade([nets[arch] for arch in order], [torch.inf] * (len(order) - 1), alone=0)
    ran = [order[: k + 1] for k in range(len(order))]
    answered = [archs[min(k, net.alone) :] for k, archs in enumerate(ran)]
    return System(net, ran, answered, thresholds or ())


def temperature_of(facts: Mapping[str, Any]) -> float:
    """The temperature in a checkpoint dictionary; 1.0 if none was chosen."""
    return facts.get("temperature", 1.0)


def assemble(
    policy: str,
    trained: Mapping[str, tuple[nn.Module, dict[str, Any]]],
    ready: Mapping[str, nn.Module],
    thresholds: Sequence[float] | None = None,
) -> System:
    """Assemble the system of a policy, a key of POLICIES, from checkpoints.

    Raises UserError if there are no thresholds for --target teacher.

    Args:
        trained: for each network in `parts_of(policy)`: the network and its checkpoint dictionary,
            as returned by `utils.checkpoint.load_parts`.
        ready: the same networks, prepared by `for_inference` on one device.
        thresholds: override those in the selector's checkpoint.
    """
    if policy in THRESHOLDS and not thresholds:
        thresholds = thresholds_of(trained["selector"][1]).get(policy)
        if not thresholds:
            raise UserError(
                "no thresholds for --target teacher: run trainSelector.py again, with teacher.pth "
                "beside the students"
            )
    work = {
        arch: macs(net, facts.get("size", CIFAR10.size))
        for arch, (net, facts) in trained.items()
        if policy in TARGETS.values() and arch in STUDENTS
    }
    system = system_of(policy, ready, work, thresholds)
    # For a mean of logits, a temperature chosen on the validation images is not better.
    system.temperatures = [
        fmean(temperature_of(trained[arch][1]) for arch in archs) for archs in system.answered
    ]
    system.net.eval()
    return system


# ------------------------------------------------------------------ policies on stored logits


@dataclass
class Outcome:
    """The result of a policy on N images."""

    logits: torch.Tensor  # (N, classes), of the answers
    choice: torch.Tensor  # int64 (N,), the second output of the system
    right: torch.Tensor  # bool (N,), whether the prediction is correct
    ran: dict[str, torch.Tensor]  # for each student, bool (N,): whether it runs
    macs: float  # mean per image


@dataclass
class Networks:
    """Logits of the networks for N images, and their costs."""

    logits: dict[str, torch.Tensor]  # (N, classes) of classifiers, (N, K) of "selector"
    work: dict[str, float]  # MACs per image of each network
    labels: torch.Tensor  # int64 (N,)

    def right(self, name: str) -> torch.Tensor:
        """Whether the network's prediction is correct: bool (N,)."""
        return self.logits[name].argmax(dim=1) == self.labels

    def students_right(self, archs: Sequence[str] = SELECTED) -> torch.Tensor:
        """Whether each of these students is correct: bool (K, N)."""
        return torch.stack([self.right(arch) for arch in archs])

    def better_student(self) -> str:
        """The one of SELECTED with the highest accuracy."""
        return max(SELECTED, key=lambda arch: self.right(arch).sum().item())

    def take(self, places: slice | torch.Tensor) -> "Networks":
        """These images only."""
        logits = {name: each[places] for name, each in self.logits.items()}
        return Networks(logits, self.work, self.labels[places])

    def system(self, policy: str, thresholds: Sequence[float] | None = None) -> System:
        """The system of a policy, made of the stored logits."""
        nets = {name: Recorded(logits) for name, logits in self.logits.items()}
        return system_of(policy, nets, self.work, thresholds)

    def run(self, policy: str | System, thresholds: Sequence[float] | None = None) -> Outcome:
        """Run a policy on all images."""
        system = policy if isinstance(policy, System) else self.system(policy, thresholds)
        logits, choice = system.net(torch.arange(len(self.labels), device=self.labels.device))
        costs = [sum(self.work[name] for name in names) for names in system.ran]
        times = choice.bincount(minlength=len(costs)).tolist()
        ran = {
            arch: choice.new_tensor([arch in names for names in system.ran])[choice] > 0
            for arch in STUDENTS
        }
        work = sum(cost * time for cost, time in zip(costs, times, strict=True)) / len(choice)
        return Outcome(logits, choice, logits.argmax(dim=1) == self.labels, ran, work)

    def scores(self, policy: str, thresholds: Sequence[float]) -> list[torch.Tensor]:
        """For each of the thresholds, what is compared with it: a list of scores in [0, 1], (N,).

        The answer is the first one of `System.answered` whose score reaches its threshold, or the
        last one. The score of a student is the selector's probability for it, against the best one
        behind it (float64, below 1); that of a step of the cascade is the confidence (float32).
        """
        steps = range(len(thresholds))
        if policy == "selector":
            logits = self.logits[policy].double()
            others = logits + offsets_of(thresholds)
            margins = [logits[:, k] - others[:, k + 1 :].amax(dim=1) for k in steps]
            return [margin.sigmoid().clamp(max=1 - 2**-53) for margin in margins]
        sure = [[torch.inf] * k + [0.0] * (len(steps) - k) for k in steps]
        return [confidence(self.run(policy, each).logits) for each in sure]

    def along(self, policy: str, saved: Sequence[Sequence[float]]) -> list[list[float]]:
        """Thresholds at which a policy's share of images goes from 0 to 1 in steps of 0.01.

        For "selector", it is the share that student 1 answers; the other thresholds stay as they
        are. For "cascade", it is the share on which a second student runs; the shares on which the
        further ones run grow with it, from 0 through those of `saved` to 1. The thresholds `saved`
        for the policy are included; of the selector, there is one.
        """
        scores = [score.double() for score in self.scores(policy, saved[0])]
        if policy == "selector":
            del scores[1:]
        below = [
            [share(score < t) for score, t in zip(scores, each, strict=False)] for each in saved
        ]
        known = np.array(sorted([[0.0] * len(scores), *below, [1.0] * len(scores)]))
        found = [(each[0], [*thresholds]) for each, thresholds in zip(below, saved, strict=True)]
        for first in {*np.linspace(0, 1, 101)} - {each[0] for each in below}:
            shares = [np.interp(first, known[:, 0], step) for step in known.T]
            moved = map(_threshold_at, scores, shares)
            found.append((first, [*moved, *saved[0][len(scores) :]]))
        return [thresholds for _, thresholds in sorted(found, reverse=policy == "selector")]

    def routed(self, scores: torch.Tensor) -> Outcome:
        """That of SELECTED with the highest score, (N, K), answers; without a router's MACs."""
        students = [Recorded(self.logits[arch]) for arch in SELECTED]
        alone = [(arch,) for arch in SELECTED]
        return self.run(System(MultiStudent(students, Recorded(scores)), alone, alone))

    def oracle(self) -> Outcome:
        """The cheapest one of SELECTED that is correct; the cheapest of all if none is."""
        work = torch.tensor([self.work[arch] for arch in SELECTED], device=self.labels.device)
        return self.routed(self.students_right().T.float() - work / (2 * work.max()))


def _threshold_at(scores: torch.Tensor, share: float) -> float:
    """The threshold in [0, 1.01] below which this share of the scores lies."""
    ends = torch.tensor([-torch.inf, torch.inf], dtype=scores.dtype)
    ranked = torch.cat([ends, scores.cpu()]).sort().values
    below = round(share * len(scores))
    return ranked[below : below + 2].mean().clamp(0, 1.01).item()
