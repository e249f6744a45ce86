"""ash: neural networks whose wiring is learned.

A wiring decides, for every batch, which entries of a weight tensor exist and what they are worth; a host applies
that sparse weight to its input. Loading this package loads torch and nothing optional; `ash.plot` is apart.
"""

from ash.agreement import check_same_topology
from ash.checks import BackendUnavailable, UserError
from ash.codebook import Codebook
from ash.contexts import Context
from ash.contract import contract
from ash.convert.freeze import freeze
from ash.convert.sparsify import sparsify
from ash.convert.strip import strip_dead_units
from ash.count import count
from ash.diagnose import diagnose
from ash.distributions import LayerSize, allot
from ash.edge_hypernets import EdgeHypernetwork
from ash.edge_index import EdgeIndex
from ash.edge_weight import EdgeWeight
from ash.glimpses import ConvLocator, glimpse_wiring
from ash.growth import DenseGradient, Factors, Score
from ash.hypernets import ConvHypernetwork, MLPHypernetwork, SetHypernetwork
from ash.interchange import as_sparse_batch
from ash.kernels import Gaussian, Kernel, StudentT
from ash.layers.conv import SparseConv2d
from ash.layers.edge import EdgeLayer
from ash.layers.layer_graph import LayerGraph
from ash.layers.linear import SparseLayer, SparseLinear
from ash.layers.node_dynamics import Continuous, Discrete, Dynamics, Static
from ash.layers.node_function import ChannelFunction, NodeFunction
from ash.layers.node_graph import NodeGraph
from ash.losses import Reconstruction, gate_penalty, reconstruction_loss, scale_penalty
from ash.optim import clear_state, parameter_groups, reorder_state
from ash.pairs import PairHypernetwork
from ash.ranks import data_parallel
from ash.rewirer import RewireEvent, Rewirer
from ash.sampling import Sampling
from ash.schedules import Anneal
from ash.sites import Sites, entry_sites, path_sites
from ash.sorting import PermutationWiring, Quicksort, RankHypernetwork
from ash.sparse_batch import SparseBatch
from ash.sparse_losses import EdgeScores, edge_scores, sparse_loss
from ash.template import Admissible, Boxes, Everything, Mask, SourceBeforeTarget, Template, block_structure
from ash.tuples import IndexTuples
from ash.weight import SparseWeight
from ash.wirings.base import RewireReport, Wiring
from ash.wirings.choice import TopKBudget
from ash.wirings.dynamic import DynamicWiring, RigLWiring, SETWiring
from ash.wirings.edge import EdgeWiring
from ash.wirings.exchanging import DSRWiring, SNFSWiring
from ash.wirings.gates import GateWiring, HardConcreteGate
from ash.wirings.gaussian import GaussianWiring
from ash.wirings.hyper import HyperWiring
from ash.wirings.positions import PositionWiring
from ash.wirings.rescue import Rescue
from ash.wirings.static import StaticWiring
from ash.wirings.top_k import TopKWiring

__version__ = "0.1.0"

__all__ = [
    "Admissible",
    "Anneal",
    "BackendUnavailable",
    "Boxes",
    "ChannelFunction",
    "Codebook",
    "Context",
    "Continuous",
    "ConvHypernetwork",
    "ConvLocator",
    "DSRWiring",
    "DenseGradient",
    "Discrete",
    "DynamicWiring",
    "Dynamics",
    "EdgeHypernetwork",
    "EdgeIndex",
    "EdgeLayer",
    "EdgeScores",
    "EdgeWeight",
    "EdgeWiring",
    "Everything",
    "Factors",
    "GateWiring",
    "Gaussian",
    "GaussianWiring",
    "HardConcreteGate",
    "HyperWiring",
    "IndexTuples",
    "Kernel",
    "LayerSize",
    "LayerGraph",
    "MLPHypernetwork",
    "Mask",
    "NodeFunction",
    "NodeGraph",
    "PairHypernetwork",
    "PermutationWiring",
    "PositionWiring",
    "Quicksort",
    "RankHypernetwork",
    "Reconstruction",
    "Rescue",
    "RewireEvent",
    "RewireReport",
    "Rewirer",
    "RigLWiring",
    "SETWiring",
    "SNFSWiring",
    "Sampling",
    "Score",
    "SetHypernetwork",
    "Sites",
    "SourceBeforeTarget",
    "SparseBatch",
    "SparseConv2d",
    "SparseLayer",
    "SparseLinear",
    "SparseWeight",
    "Static",
    "StaticWiring",
    "StudentT",
    "Template",
    "TopKBudget",
    "TopKWiring",
    "UserError",
    "Wiring",
    "allot",
    "as_sparse_batch",
    "block_structure",
    "check_same_topology",
    "clear_state",
    "contract",
    "count",
    "data_parallel",
    "diagnose",
    "edge_scores",
    "entry_sites",
    "freeze",
    "gate_penalty",
    "glimpse_wiring",
    "parameter_groups",
    "path_sites",
    "reconstruction_loss",
    "reorder_state",
    "scale_penalty",
    "sparse_loss",
    "sparsify",
    "strip_dead_units",
]
