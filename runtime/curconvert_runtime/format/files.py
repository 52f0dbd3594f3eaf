"""Names of the files in an artifact's folder."""

from __future__ import annotations

MANIFEST = "curconvert.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PORTABLE_FILE = "model.onnx"
FUSED_FILE = "model.fused.onnx"
PROBES = "probes.safetensors"
SCORES = "components.json"
COMPONENTS = "components.safetensors"
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
