"""The baseline of the benchmarks: common practice, as in widely copied CIFAR-10 loops.

torchvision's dataset with one transform per image, a DataLoader with two workers, float32,
PyTorch's default memory format, SGD.
"""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from utils.data import Split

WORKERS = 2


class Cifar10(torchvision.datasets.CIFAR10):
    """torchvision's dataset with images that are in memory already, not in its pickle files."""

    def __init__(self, split: Split, transform: transforms.Compose) -> None:
        self.data, self.targets = split.images.cpu().numpy(), split.labels.tolist()
        self.transform, self.target_transform = transform, None


def loader(split: Split, batch_size: int, cutout: int = 0) -> DataLoader:
    """Shuffled batches with the same augmentation as in `utils.augment.Batches`."""
    data = split.data
    steps = [
        transforms.RandomCrop(data.size, padding=4, padding_mode="reflect"),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(data.mean, data.std),
    ]
    if cutout:
        area = cutout**2 / data.size**2
        steps.append(transforms.RandomErasing(p=1.0, scale=(area, area), ratio=(1.0, 1.0)))
    return DataLoader(
        Cifar10(split, transforms.Compose(steps)), batch_size, shuffle=True, num_workers=WORKERS
    )


class Loop:
    """A usual training loop. With a teacher, the student learns its logits."""

    def __init__(self, net: nn.Module, device: torch.device, teacher: nn.Module | None = None):
        self.net, self.device, self.teacher = net.to(device), device, teacher
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        if teacher:
            teacher.to(device).eval()

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.net.train()
        images, labels = images.to(self.device), labels.to(self.device)
        self.optimizer.zero_grad()
        logits = self.net(images)
        if self.teacher:
            with torch.no_grad():
                target = self.teacher(images)
            loss = F.mse_loss(logits, target)
        else:
            loss = F.cross_entropy(logits, labels)
        loss.backward()
        self.optimizer.step()
        loss.item()  # for the progress line
        (logits.argmax(1) == labels).sum().item()
