"""Builds the commands that messages give to users: they write the safetensors of a model that is stored otherwise."""

from __future__ import annotations

import json
import shlex
from pathlib import Path


def save_pretrained(source: str | Path, target: str | Path, *, tokenizer: bool = False) -> str:
    """Return the command that loads a model with transformers and writes it, with its tokenizer on request."""
    model, out = json.dumps(str(source)), json.dumps(str(target))
    code = (
        "from transformers import AutoModelForCausalLM as M; "
        f'M.from_pretrained({model}, dtype="auto").save_pretrained({out})'
    )
    if tokenizer:
        code += f"; from transformers import AutoTokenizer as T; T.from_pretrained({model}).save_pretrained({out})"
    return f"python -c {shlex.quote(code)}"


def save_file(source: Path, target: Path) -> str:
    """Return the command that writes the tensors of a pickle as safetensors, without running its code."""
    code = (
        f'import torch; d = torch.load(open({json.dumps(str(source))}, "rb"), map_location="cpu", weights_only=True); '
        "from safetensors.torch import save_file; "
        f'save_file({{k: v.clone() for k, v in d.get("state_dict", d).items()}}, {json.dumps(str(target))})'
    )
    return f"python -c {shlex.quote(code)}"
