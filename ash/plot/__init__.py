"""Pictures of wirings and of their training.

The pictures take numbers alone (arrays or tensors), never a wiring, so they serve every wiring alike.
Matplotlib and pillow load when the first picture is drawn, not before; pyplot and its state stay untouched.
"""

from ash.plot.animate import History, animate, row
from ash.plot.curves import curves, image_grid, save
from ash.plot.frames import frame_of
from ash.plot.means import Frame, means

__all__ = ["Frame", "History", "animate", "curves", "frame_of", "image_grid", "means", "row", "save"]
