"""A training loop like that of the scripts, with hooks for tests; and two small networks."""

import numpy as np
import torch
from torch import nn

from utils.data import Split, data_facts
from utils.device import autocast
from utils.logits import predict
from utils.run import Run


class Pixels(nn.Module):
    """A linear classifier that counts the images it is called with."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(3072, 10)
        self.asked = 0

    def forward(self, images):
        self.asked += len(images)
        return self.fc(images.flatten(1))


class Tiny(nn.Module):
    """A classifier with batch norm and dropout, which make resuming difficult."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4)
        self.inner = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(256, 10)

    def forward(self, images):
        return self.fc(self.dropout(self.norm(self.inner(self.conv(images))).flatten(1)))


class Loop(Run):
    """A run that trains `net` on `rows`. Tests observe it through `loss` and `validate`."""

    def __init__(
        self, net, path, images, targets, loss, validate, val_images, rows=None, **changes
    ):
        more = {name: changes.pop(name) for name in ("layers", "resume") if name in changes}
        settings = {
            "arch": "resnet50",
            "stem": "cifar",
            "optimizer": "sgd",
            "learning_rate": 0.01,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "warmup": 0.25,
            "seed": 0,
            "crop": 4,
            "flip": True,
            "cutout": 8,
            "data": data_facts(images, targets),
        } | changes
        split = Split(images, targets, np.arange(len(images)))
        super().__init__(net, path, split, settings, **more)
        self.rows = [targets] if rows is None else rows
        self.loss, self.validate, self.val_images = loss, validate, val_images

    def fit(self):
        for _ in self.epochs():
            for images, labels, *more in self.batches(*self.rows):
                with autocast(images.device):
                    logits, *self.features = self.outputs(images)
                    loss = self.loss(logits.float(), labels, *more)
                self.step(loss, logits.argmax(1) == labels)
            outputs = predict(self.net, self.val_images, "validation", self.batch_size)
            self.end_epoch(*self.validate(outputs))
