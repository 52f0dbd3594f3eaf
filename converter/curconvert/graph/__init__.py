"""Builds the ONNX graphs of a model from its config and tensor table, without tracing it or reading weights."""

from __future__ import annotations

from curconvert.graph.build import Graphs, build_graphs, save_graphs
from curconvert.graph.genai import genai_config

__all__ = ["Graphs", "build_graphs", "genai_config", "save_graphs"]
