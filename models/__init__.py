"""The networks: the teacher and the students, the selector, and all of them put together."""

from models.multistudent import MultiStudent
from models.networks import ARCHS, STEMS, network
from models.selector import Selector

__all__ = ["ARCHS", "STEMS", "MultiStudent", "Selector", "network"]
