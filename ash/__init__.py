"""ash: neural networks whose wiring is learned."""

from ash.checks import BackendUnavailable, UserError
from ash.contexts import Context
from ash.contract import contract
from ash.growth import Factors
from ash.layers.linear import SparseLayer, SparseLinear
from ash.sampling import Sampling
from ash.schedules import Anneal
from ash.template import Admissible, Boxes, Everything, Mask, SourceBeforeTarget, Template, block_structure
from ash.tuples import IndexTuples
from ash.weight import SparseWeight
from ash.wirings.base import RewireReport, Wiring
from ash.wirings.gaussian import GaussianWiring
from ash.wirings.static import StaticWiring

__version__ = "0.1.0"
