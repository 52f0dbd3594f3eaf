"""`curconvert bench`: speed and memory of an artifact, alone or in turn with another one. Needs no torch."""

from curconvert.bench.options import BenchOptions
from curconvert.bench.result import Bench
from curconvert.bench.run import bench

__all__ = ["Bench", "BenchOptions", "bench"]
