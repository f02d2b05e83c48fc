"""The networks: teacher, students, selector, and the systems that combine them."""

from models.cascade import Cascade, MoreConfident, confidence
from models.cost import macs, parameters
from models.multistudent import Mean, MultiStudent, Recorded, offsets_of
from models.networks import (
    CLASS_COUNTS,
    NETWORKS,
    SELECTED,
    STEMS,
    STUDENTS,
    TEACHER,
    check_images,
    network,
)
from models.selector import Selector
