"""What a chain costs a stock QEMU, foreseen from its metadata: a model of a dozen parameters, each with a meaning.

``shape_of`` makes of a chain's summary what the model looks at, ``predict`` foresees, ``find_parameters`` returns those
that were calibrated on this host or, without, the shipped ones scaled to it. docs/cost.md explains the model.
"""

from chainlift.cost.figures import Cost, Figure
from chainlift.cost.model import predict
from chainlift.cost.parameters import Parameters
from chainlift.cost.shape import Lift, Shape, shape_of
from chainlift.cost.store import find_parameters

__all__ = ["Cost", "Figure", "Lift", "Parameters", "Shape", "find_parameters", "predict", "shape_of"]
