"""The networks: the teacher and the students, the selector, and all of them put together."""

from models.cascade import Cascade, confidence
from models.cost import macs, parameters
from models.multistudent import MultiStudent
from models.networks import ARCHS, CLASS_COUNTS, NAMES, STEMS, STUDENTS, check_images, network
from models.selector import Selector

__all__ = [
    "ARCHS",
    "CLASS_COUNTS",
    "NAMES",
    "STEMS",
    "STUDENTS",
    "Cascade",
    "MultiStudent",
    "Selector",
    "check_images",
    "confidence",
    "macs",
    "network",
    "parameters",
]
