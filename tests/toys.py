"""Small networks in place of teacher and students, so that tests run the scripts in seconds.

    python tests/toys.py script.py [its flags]

runs a script with them as a program.
"""

import sys
from functools import partial

import fault_driver
import torch
from torch import nn

from models import NETWORKS, STUDENTS, TEACHER, network
from models.selector import SmallCNN
from utils.checkpoint import EXPECTED, FILES, save_checkpoint


class Toy(SmallCNN):
    """A small CNN with dropout, which draws random numbers."""

    def __init__(self, num_classes: int, depth: int) -> None:
        super().__init__(num_classes, depth)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        return self.head(self.dropout(self.blocks(images).mean(dim=(2, 3))))


TOYS = {  # the last student has the fewest MACs, as GoogLeNet has
    arch: NETWORKS[arch]._replace(
        constructor=partial(Toy, depth=depth), first="blocks.0", pool="blocks.3"
    )
    for arch, depth in zip((TEACHER, *STUDENTS), (4, 3, 2, 1), strict=False)
}


def save_networks(folder, *names) -> None:
    """Write untrained networks to `folder`, as if the scripts had."""
    torch.manual_seed(0)
    for name in names:
        facts = {"arch": EXPECTED[name], "stem": "cifar-pool"}
        save_checkpoint(folder / FILES[name], network(facts["arch"]), facts, 1, 0.1)


def use_toys() -> None:
    """Replace the rows of teacher and students in this process."""
    NETWORKS.update(TOYS)


if __name__ == "__main__":
    import toys  # processes can exchange networks of a module, not of a program

    toys.use_toys()
    fault_driver.run(*sys.argv[1:])
