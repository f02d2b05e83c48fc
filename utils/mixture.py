"""Train both students and the selector together, as a mixture of experts, from the shipped ones.

    python -m utils.mixture            writes both students and the selector into runs/mixture/
    python -m utils.mixture --resume   goes on where Ctrl-C stopped it

An image teaches a student the more, the more the selector trusts it there and the nearer it already
is to the teacher's logits, and the selector learns to trust that one (Jacobs, Jordan, Nowlan and
Hinton, "Adaptive mixtures of local experts", Neural Computation 3 (1991), equation 1.3).
Copy a teacher.pth beside them, and python -m utils.routing_study --checkpoint-dir runs/mixture
measures what came of it.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from models import STUDENTS, confidence
from utils import cli
from utils.checkpoint import FILES, amend_checkpoint, load_network, save_checkpoint
from utils.data import Augmentation, fingerprint, load_splits
from utils.device import autocast, for_inference, pick_device, seed_everything, to_device
from utils.distillation import best_threshold, routed_accuracy
from utils.files import claim, shown
from utils.safe_load import read_dict
from utils.train import Recipe, Trainer, predict

EPOCHS = 2
BATCH_SIZE = 128  # images a step
LEARNING_RATE = 1e-3  # the highest, at the end of the warm-up
WARMUP = 0.1  # share of all steps; a cosine down to 0 follows
SEED = 3
OUT = Path("runs/mixture")


class Mixture(nn.Module):
    """Two students and the selector: images (N, 3, 32, 32) -> (N, 2 classes + 1).

    The columns are the logits of student 1, those of student 2, and the selector's logit.
    """

    def __init__(self, students: list[nn.Module], selector: nn.Module) -> None:
        super().__init__()
        self.students, self.selector = nn.ModuleList(students), selector

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = [student(images) for student in self.students]
        return torch.cat([*logits, self.selector(images)[:, None]], dim=1)


def apart(outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A `Mixture`'s outputs as both students' logits, (N, classes), and the selector's, (N,)."""
    classes = outputs.shape[1] // 2
    first, second, gate = outputs.float().split([classes, classes, 1], dim=1)
    return first, second, gate.squeeze(1)


def mixture_loss(outputs: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """-log sum over students of p exp(-d^2 / 2), a scalar: the mean over the images.

    p is the selector's probability of the student, d the distance of its logits to the teacher's.
    """
    *logits, gate = apart(outputs)
    chances = F.logsigmoid(gate), F.logsigmoid(-gate)
    scores = [
        chance - (each - teacher_logits.float()).square().sum(dim=1) / 2
        for chance, each in zip(chances, logits, strict=True)
    ]
    return -torch.stack(scores).logsumexp(dim=0).mean()


def main() -> None:
    parser = cli.training_parser(__doc__, globals())
    cli.add_out(parser, OUT, "both students and the selector")
    args = parser.parse_args()
    device = pick_device(args.device)
    path = args.out / "mixture.pth"
    claim(path)
    nets, facts = {}, {}
    for arch, file in FILES.items():
        nets[arch], facts[arch] = load_network(args.checkpoint_dir / file, arch)
    train, val, _ = load_splits(args.data_dir, args.subset, device)
    seed_everything(args.seed)
    start = fingerprint(
        tensor for arch in (*STUDENTS, "selector") for tensor in nets[arch].state_dict().values()
    )
    mixture = Mixture([nets[arch] for arch in STUDENTS], nets["selector"])
    mixture = to_device(mixture, device).requires_grad_()
    cli.announce(
        "Training both students and the selector together",
        **cli.training_facts(args, device, mixture, len(train), len(val), path),
    )
    taught_by = fingerprint(nets["resnet50"].state_dict().values())
    teacher = for_inference(nets["resnet50"], device)

    def loss(images: torch.Tensor, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), autocast(device):
            teacher_logits = teacher(images)
        return mixture_loss(outputs, teacher_logits)

    def right(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        first, second, gate = apart(outputs)
        return torch.where(gate[:, None] >= 0, first, second).argmax(dim=1) == labels

    def validate(outputs: torch.Tensor) -> tuple[float, float]:
        first, second, gate = apart(outputs)
        chosen = torch.where(gate[:, None] >= 0, first, second)
        accuracy = right(outputs, val.labels).double().mean().item()
        return F.cross_entropy(chosen, val.labels).item(), accuracy

    recipe = Recipe(
        args.epochs, args.batch_size, args.lr, "adamw", 0.9, 0.05, WARMUP, args.seed,
        Augmentation(4, True),
    )  # fmt: skip
    trainer = Trainer(
        mixture, path, "mixture", None, recipe, {"init": start, "teacher": taught_by},
        train.images, train.labels, loss=loss, correct=right, val_images=val.images,
        validate=validate,
    )  # fmt: skip
    trainer.fit(args.resume)

    best = read_dict(path)
    mixture.load_state_dict(best["state_dict"])
    first, second, gate = apart(predict(mixture, val.images, "validation"))
    of_both = [logits.argmax(dim=1) == val.labels for logits in (first, second)]
    both = (first + second).argmax(dim=1) == val.labels
    threshold = best_threshold(gate.sigmoid(), *of_both)
    routed = routed_accuracy(threshold, gate.sigmoid(), *of_both)
    alone = [correct.double().mean().item() for correct in of_both]
    for arch, net, accuracy in zip(
        (*STUDENTS, "selector"), (*mixture.students, mixture.selector), (*alone, routed),
        strict=True,
    ):  # fmt: skip
        hyperparameters = best["hyperparameters"]
        if arch == "selector":
            hyperparameters |= {
                name: facts[arch]["hyperparameters"][name] for name in ("depth", "batch_norm")
            }
        save_checkpoint(
            args.out / FILES[arch], net, arch, facts[arch]["stem"], hyperparameters, best["epoch"],
            accuracy,
        )  # fmt: skip
    amend_checkpoint(
        args.out / FILES["selector"], threshold=threshold,
        cascade_threshold=best_threshold(confidence(second), of_both[1], both),
    )  # fmt: skip
    share = (gate.sigmoid() >= threshold).double().mean()
    print(
        f"\nvalidation: {STUDENTS[0]} {alone[0]:.2%}, {STUDENTS[1]} {alone[1]:.2%}, routed "
        f"{routed:.2%}, {share:.1%} to {STUDENTS[0]}; wrote {shown(args.out)}"
    )


if __name__ == "__main__":
    cli.run(main)
