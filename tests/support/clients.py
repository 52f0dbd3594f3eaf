"""Other people's software that serves an artifact: onnxruntime-genai, and optimum and transformers 4 in their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime_genai

_OPTIMUM_PYTHON = Path(__file__).resolve().parents[2] / ".venv-optimum" / "bin" / "python"

_OPTIMUM = """
import json, sys, torch
from optimum.onnxruntime import ORTModelForCausalLM
request = json.loads(sys.argv[1])
answers = []
for folder in request["folders"]:
    model = ORTModelForCausalLM.from_pretrained(folder, file_name="model.onnx", use_cache=True)
    out = model.generate(
        input_ids=torch.tensor(request["ids"]), attention_mask=torch.tensor(request["mask"]),
        max_new_tokens=request["new"], do_sample=False, pad_token_id=0,
    )
    answers.append(out[:, len(request["ids"][0]):].tolist())
print(json.dumps(answers))
"""

_TRANSFORMERS = """
import json, sys, torch, transformers, curconvert
assert transformers.__version__.startswith("4.57")
request = json.loads(sys.argv[1])
answers = []
for folder in request["folders"]:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    rows = []
    for row in request["ids"]:
        ids = torch.tensor([row])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=request["new"], do_sample=False, pad_token_id=0
        )
        rows.append(out[0, len(row):].tolist())
    answers.append(rows)
print(json.dumps(answers))
"""

_GENAI = """
import json, sys
import onnxruntime_genai as og
request = json.loads(sys.argv[1])
answers = []
for folder in request["folders"]:
    model = og.Model(folder)
    rows = []
    for row in request["ids"]:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(row) + request["new"], do_sample=False)
        generator = og.Generator(model, params)
        generator.append_tokens(row)
        while not generator.is_done():
            generator.generate_next_token()
        rows.append([int(token) for token in generator.get_sequence(0)[len(row):]])
    answers.append(rows)
print(json.dumps(answers))
"""

Tokens = list[list[int]]


def optimum(folders: Sequence[Path], prompts: Tokens, new: int) -> list[Tokens]:
    """Continue prompts greedily with optimum's ORTModelForCausalLM: one left-padded batch for each folder.

    Args:
        folders: Artifacts; their portable graph is served.
        prompts: Token ids, rows of any lengths.
        new: Tokens to generate.

    Returns:
        The new tokens, by folder and prompt.
    """
    width = max(map(len, prompts))
    ids = [[0] * (width - len(row)) + row for row in prompts]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in prompts]
    return _run(_OPTIMUM_PYTHON, _OPTIMUM, {"folders": [*map(str, folders)], "ids": ids, "mask": mask, "new": new})


def transformers4(folders: Sequence[Path], prompts: Tokens, new: int) -> list[Tokens]:
    """Continue prompts greedily with transformers 4.57, one by one; it loads the factors into its own model."""
    return _run(_OPTIMUM_PYTHON, _TRANSFORMERS, {"folders": [*map(str, folders)], "ids": prompts, "new": new})


def genai(folders: Sequence[Path], prompts: Tokens, new: int) -> list[Tokens]:
    """Continue prompts greedily with onnxruntime-genai, one by one; it serves the fused graph."""
    return _run(sys.executable, _GENAI, {"folders": [*map(str, folders)], "ids": prompts, "new": new})


def genai_here(model: onnxruntime_genai.Model, prompt: Sequence[int], new: int) -> list[int]:
    """Continue a prompt greedily with onnxruntime-genai, in this process."""
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + new, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(list(prompt))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]


def _run(python: Path | str, code: str, request: dict[str, Any]) -> list[Tokens]:
    """Run a client in its own process."""
    done = subprocess.run(
        [python, "-c", code, json.dumps(request)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))
