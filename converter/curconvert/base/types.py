"""Types of arrays, which say what an array means where its shape and dtype do not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
Indices = NDArray[np.int32]
"""Numbers of rows or columns, as they are stored."""
Ids = NDArray[np.int64]
"""Token ids."""
