"""ash: neural networks whose wiring is learned.

A wiring decides, for every batch, which entries of a weight tensor exist and what they are worth; a host applies
that sparse weight to its input. Loading this package loads torch and nothing optional; `ash.plot` is apart.
"""

from ash.checks import BackendUnavailable, UserError
from ash.codebook import Codebook
from ash.contexts import Context
from ash.contract import contract
from ash.count import count
from ash.diagnose import diagnose
from ash.glimpses import ConvLocator, glimpse_wiring
from ash.growth import DenseGradient, Factors, Score
from ash.hypernets import ConvHypernetwork, MLPHypernetwork, SetHypernetwork
from ash.kernels import Gaussian, Kernel, StudentT
from ash.layers.conv import SparseConv2d
from ash.layers.linear import SparseLayer, SparseLinear
from ash.losses import Reconstruction, gate_penalty, reconstruction_loss, scale_penalty
from ash.optim import clear_state, parameter_groups
from ash.pairs import PairHypernetwork
from ash.sampling import Sampling
from ash.schedules import Anneal
from ash.sorting import PermutationWiring, Quicksort, RankHypernetwork
from ash.template import Admissible, Boxes, Everything, Mask, SourceBeforeTarget, Template, block_structure
from ash.tuples import IndexTuples
from ash.weight import SparseWeight
from ash.wirings.base import RewireReport, Wiring
from ash.wirings.gates import GateWiring, HardConcreteGate
from ash.wirings.gaussian import GaussianWiring
from ash.wirings.hyper import HyperWiring
from ash.wirings.rescue import Rescue
from ash.wirings.static import StaticWiring

__version__ = "0.1.0"

__all__ = [
    "Admissible",
    "Anneal",
    "BackendUnavailable",
    "Boxes",
    "Codebook",
    "Context",
    "ConvHypernetwork",
    "ConvLocator",
    "DenseGradient",
    "Everything",
    "Factors",
    "GateWiring",
    "Gaussian",
    "GaussianWiring",
    "HardConcreteGate",
    "HyperWiring",
    "IndexTuples",
    "Kernel",
    "MLPHypernetwork",
    "Mask",
    "PairHypernetwork",
    "PermutationWiring",
    "Quicksort",
    "RankHypernetwork",
    "Reconstruction",
    "Rescue",
    "RewireReport",
    "Sampling",
    "Score",
    "SetHypernetwork",
    "SourceBeforeTarget",
    "SparseConv2d",
    "SparseLayer",
    "SparseLinear",
    "SparseWeight",
    "StaticWiring",
    "StudentT",
    "Template",
    "UserError",
    "Wiring",
    "block_structure",
    "clear_state",
    "contract",
    "count",
    "diagnose",
    "gate_penalty",
    "glimpse_wiring",
    "parameter_groups",
    "reconstruction_loss",
    "scale_penalty",
]
