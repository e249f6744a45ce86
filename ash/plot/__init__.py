"""Pictures of wirings and of their training.

The pictures take numbers alone (arrays or tensors), never a wiring, so they serve every wiring alike.
Matplotlib, networkx and pillow load when the first picture is drawn, not before; pyplot and its state stay untouched.
"""

from ash.plot.adjacency import adjacency, chosen_inputs, node_graph, readers
from ash.plot.animate import History, animate, row
from ash.plot.boundary import boundaries
from ash.plot.curves import curves, image_grid, save
from ash.plot.frames import frame_of
from ash.plot.gates import gates
from ash.plot.graphs import adjacency_pair, graph_pair
from ash.plot.heat import heat_map
from ash.plot.means import Frame, means
from ash.plot.page import Link, page
from ash.plot.page_charts import Chart
from ash.plot.page_tracks import EdgeTrack, GateTrack, TupleTrack
from ash.plot.spread import spread
from ash.plot.topology import layer_weights, live_units, topology

__all__ = [
    "Chart",
    "EdgeTrack",
    "Frame",
    "GateTrack",
    "History",
    "Link",
    "TupleTrack",
    "adjacency",
    "adjacency_pair",
    "animate",
    "boundaries",
    "chosen_inputs",
    "curves",
    "frame_of",
    "gates",
    "graph_pair",
    "heat_map",
    "image_grid",
    "layer_weights",
    "live_units",
    "means",
    "node_graph",
    "page",
    "readers",
    "row",
    "save",
    "spread",
    "topology",
]
