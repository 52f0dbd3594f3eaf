"""Names array types by their meaning, which shape and dtype do not show."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
Indices = NDArray[np.int32]
"""Indices of rows or columns, in the stored dtype."""
Ids = NDArray[np.int64]
"""Token ids."""
