"""ONNX graphs of a model, built from its config and tensor table alone: no tracing, no weights read.

mobius gives one dense graph per family; `lowering` rewrites it into a portable and a fused graph whose every weight
points into the safetensors file (`binding`). What mobius 0.1 gets wrong (attention scale, sliding windows, rotary
tables, embedding scale) never reaches the result: those facts are taken from transformers' own modules (`facts`).
"""

from __future__ import annotations

from curconvert.graph.build import Graphs, build_graphs, save_graphs
from curconvert.graph.genai import genai_config

__all__ = ["Graphs", "build_graphs", "genai_config", "save_graphs"]
