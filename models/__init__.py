"""The networks: teacher, students, selector, and the systems that combine them."""

from models.cascade import Cascade, confidence
from models.cost import macs, parameters
from models.multistudent import MultiStudent
from models.networks import (
    CLASS_COUNTS,
    NETWORKS,
    STEMS,
    STUDENTS,
    TEACHER,
    check_images,
    network,
)
from models.selector import Selector

__all__ = [
    "CLASS_COUNTS",
    "NETWORKS",
    "STEMS",
    "STUDENTS",
    "TEACHER",
    "Cascade",
    "MultiStudent",
    "Selector",
    "check_images",
    "confidence",
    "macs",
    "network",
    "parameters",
]
