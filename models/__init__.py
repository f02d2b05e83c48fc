"""The networks: the teacher and the students, the selector, and all of them put together."""

from models.cost import macs, parameters
from models.multistudent import MultiStudent
from models.networks import ARCHS, STEMS, STUDENTS, network
from models.selector import Selector

__all__ = [
    "ARCHS",
    "STEMS",
    "STUDENTS",
    "MultiStudent",
    "Selector",
    "macs",
    "network",
    "parameters",
]
