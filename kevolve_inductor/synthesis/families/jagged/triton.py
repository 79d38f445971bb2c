from ....kernel import Argument, Kernel
from ...family import Schedule
from .plan import JaggedPlan


def launches_of(plan: JaggedPlan, arguments: tuple[Argument, ...], schedule: Schedule) -> Kernel:
    raise NotImplementedError
