"""Sizes and outputs of the networks, training of the selector, and routing of the systems."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import (
    NETWORKS,
    STEMS,
    Cascade,
    MoreConfident,
    MultiStudent,
    Recorded,
    Selector,
    network,
    offsets_of,
)
from utils.data import normalize


@pytest.fixture(scope="module")
def images(sample):
    """Four real images, normalized."""
    return normalize(sample.images[:4])


# ------------------------------------------------------------------ teacher and students


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("arch", NETWORKS)
def test_a_row_is_a_classifier_of_torchvision_for_small_images(arch, stem):
    row = NETWORKS[arch]
    with torch.device("meta"):  # without numbers, which would take long
        net, plain = network(arch, stem), row.constructor(num_classes=10)
        three = network(arch, stem, classes=3).state_dict()
        logits = net(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 10)
    conv = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    assert net.get_submodule(row.first) is conv
    assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
    if row.pool:
        pool = nn.Identity if stem == "cifar" else nn.MaxPool2d
        assert isinstance(net.get_submodule(row.pool), pool)
    ours, theirs = net.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs)
    other = [name for name in ours if ours[name].shape != theirs[name].shape]
    assert other in ([], [f"{row.first}.weight"])  # 3x3 instead of 7x7
    differ = [name for name in ours if ours[name].shape != three[name].shape]
    assert differ == list(ours)[-2:]  # the last weight and bias


TWO = [nn.Identity(), nn.Identity()]


@pytest.mark.parametrize(
    "function, arguments, named",
    [
        (network, ["vgg16"], "vgg16"),
        (network, ["googlenet", "imagenet"], "imagenet"),
        (Selector, [0], "depth is 0"),
        (Selector, [5], "depth is 5"),
        (MultiStudent, [TWO, nn.Identity(), offsets_of([0.5, 0.5])], "2 students, but 3 offsets"),
        (Cascade, [TWO, [0.5, 0.5]], "2 students, but 2 thresholds"),
    ],
)
def test_what_no_network_or_system_can_be_made_of_is_refused(function, arguments, named):
    with pytest.raises(ValueError, match=named):
        function(*arguments)


# ------------------------------------------------------------------ the selector


@pytest.mark.parametrize("depth, batch_norm", [(1, True), (3, False), (4, True)])
def test_selector_gives_a_logit_for_each_student(depth, batch_norm, images):
    assert Selector(depth, batch_norm)(images).shape == (4, 2)
    assert Selector(depth, batch_norm, 3).eval()(images[:1]).shape == (1, 3)


# ------------------------------------------------------------------ selector and students together


class Saying(nn.Module):
    """A fake network whose logits are in the image; it records the number of images."""

    def __init__(self, channel):
        super().__init__()
        self.channel, self.given = channel, 0

    def forward(self, images):
        self.given += len(images)
        return images[:, self.channel]


@pytest.fixture
def pair():
    return Saying(0), Saying(1)


def scored(scores):
    """Images (N, 3, 2): random logits of two students, and the selector's: the score and 0."""
    images = torch.randn(len(scores), 3, 2)
    images[:, 2] = F.pad(torch.tensor(scores)[:, None], (0, 1))
    return images


@pytest.mark.parametrize("scores", [[1.0, -1.0, -2.0, 2.0, 3.0, -3.0, 0.5], []])
def test_each_image_is_answered_in_its_place_by_its_own_student_alone(scores, pair):
    images = scored(scores)
    logits, choice = MultiStudent(pair, Saying(2))(images)
    assert choice.tolist() == [int(score < 0) for score in scores]
    assert [student.given for student in pair] == [(choice == k).sum() for k in (0, 1)]
    assert torch.equal(logits, images[torch.arange(len(images)), choice])


@pytest.mark.parametrize(
    "threshold, expected",
    [(0, [0, 0, 0, 0, 0]), (0.5, [1, 0, 0, 0, 0]), (0.7, [1, 1, 1, 0, 0]), (1.1, [1, 1, 1, 1, 1])],
)
def test_threshold_is_compared_with_the_probability(threshold, expected, pair):
    images = scored([-200.0, 0.0, 0.8, 0.9, 200.0])  # sigmoid: 0, 0.5, 0.690, 0.711, 1
    system = MultiStudent(pair, Saying(2), offsets_of([threshold]))
    assert system(images)[1].tolist() == expected


def test_three_students_answer_by_the_sum_of_logit_and_offset_from_stored_logits():
    logits = torch.arange(24.0).reshape(3, 4, 2)
    scores = torch.tensor([[3.0, 2, 0], [1, 2, 2], [0, 0, 0], [0, 1, 5]])
    system = MultiStudent(list(map(Recorded, logits)), Recorded(scores), torch.tensor([-1.5, 0, 1]))
    answers, choice = system(torch.tensor([3, 0, 2, 1]))
    assert choice.tolist() == [2, 1, 2, 2]
    assert answers.tolist() == [[22, 23], [8, 9], [20, 21], [18, 19]]


# ------------------------------------------------------------------ one student after the other


SURE, TORN = [4.0, 0.0], [0.1, 0.0]  # the largest probability is 0.982, 0.525
OTHER = [0.0, 3.0]


def said(*answers):
    """Images (N, students, 2); student k reads its logits from channel k."""
    return torch.tensor(answers).reshape(len(answers), -1, 2)


def test_only_an_unsure_student_is_helped_and_both_answer_together():
    first, second = Saying(0), Saying(1)
    images = said([SURE, OTHER], [TORN, OTHER], [SURE, SURE], [TORN, SURE])
    logits, last = Cascade([first, second], [0.9])(images)
    assert last.tolist() == [0, 1, 0, 1]
    assert logits.flatten().tolist() == pytest.approx([4, 0, 0.05, 1.5, 4, 0, 2.05, 0])
    assert (first.given, second.given) == (4, 2)


def test_three_students_stop_where_they_are_sure_together():
    students = [Saying(k) for k in range(3)]
    images = said([SURE, TORN, TORN], [TORN, SURE, TORN], [TORN, OTHER, SURE])
    logits, last = Cascade(students, [0.85, 0.85], alone=0)(images.clone())
    # After two: (4.1, 0) / 2 is sure with 0.886; (0.1, 3) / 2 is not, with 0.810.
    assert last.tolist() == [0, 1, 2]
    assert logits[2].tolist() == pytest.approx([4.1 / 3, 1.0])
    assert [student.given for student in students] == [3, 2, 1]
    logits, last = Cascade(students, [0.85, 0.6])(images.clone())  # the first answers alone
    assert last.tolist() == [0, 1, 1] and logits[2].tolist() == OTHER
    logits, last = Cascade(students, [0.5, 1.01])(images.clone())  # sure enough for the first step
    assert last.tolist() == [0, 0, 0]
    logits, last = Cascade(students, [1.01, 1.01])(images)
    assert logits[2].tolist() == pytest.approx([2.0, 1.5])  # the mean of the last two


def test_the_most_confident_student_answers_and_of_equal_ones_the_first():
    students = [Saying(k) for k in range(3)]
    images = said([TORN, SURE, OTHER], [OTHER, TORN, OTHER])
    logits, choice = MoreConfident(students)(images)
    assert choice.tolist() == [1, 0] and logits.tolist() == [SURE, OTHER]
    assert [student.given for student in students] == [2, 2, 2]


# ------------------------------------------------------------------ neither can be recorded

RECORDERS = {
    "trace": torch.jit.trace,
    "export": lambda system, images: torch.export.export(system, (images,)),
    "fx": lambda system, _: torch.fx.symbolic_trace(system),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recorder", RECORDERS)
@pytest.mark.parametrize("system", [MultiStudent(TWO, nn.Identity()), Cascade(TWO, [0.9])])
def test_what_runs_depends_on_the_image_so_that_no_trace_is_made(system, recorder):
    with pytest.raises(Exception, match=f"{type(system).__name__} cannot be traced"):
        RECORDERS[recorder](system.eval(), torch.randn(4, 2))
