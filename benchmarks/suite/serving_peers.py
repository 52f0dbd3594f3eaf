"""Serves a model with one runtime, in a separate process; it imports only this runtime.

The arguments are the peer, the artifact's folder and the number of threads. A line of input is `[batch, prompt tokens,
generated tokens]`. The answer, one line of JSON, has the seconds until the first token (prefill) and after it (decode),
and the peak memory of the process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Called with prompts (batch, tokens) and a number of new tokens; calls the function after each token of all rows.
Serve = Callable[[np.ndarray, int, Callable[[], None]], None]


def runtime(folder: str, threads: int) -> Serve:
    """Return a function that serves with this project's runtime on the fused graph."""
    from curconvert_runtime import load
    from curconvert_runtime.serve.decoding import Decoder

    session = load(folder, graph="fused", threads=threads)

    def serve(prompts: np.ndarray, new: int, chosen: Callable[[], None]) -> None:
        decoder = Decoder(session, list(prompts), new)
        tokens = decoder.prefill().argmax(-1)
        chosen()
        for _ in range(new - 1):
            tokens = decoder.step(tokens).argmax(-1)
            chosen()

    return serve


def genai(folder: str, threads: int) -> Serve:
    """Return a function that serves with onnxruntime-genai on the fused graph."""
    import onnxruntime_genai as og

    config = og.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)

    def serve(prompts: np.ndarray, new: int, chosen: Callable[[], None]) -> None:
        params = og.GeneratorParams(model)
        length = prompts.shape[1] + new
        params.set_search_options(batch_size=len(prompts), min_length=length, max_length=length, do_sample=False)
        generator = og.Generator(model, params)
        generator.append_tokens(prompts.astype(np.int32))
        for _ in range(new):
            generator.generate_next_token()
            chosen()

    return serve


def _transformers(model: Any) -> Serve:
    """Return a function that serves with a model that has transformers' `generate`."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Watch(StoppingCriteria):  # type: ignore[misc]  # transformers is not typed
        def __init__(self, chosen: Callable[[], None]) -> None:
            self._chosen = chosen

        def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
            self._chosen()
            return torch.zeros(len(ids), dtype=torch.bool)

    model.generation_config.eos_token_id = None

    def serve(prompts: np.ndarray, new: int, chosen: Callable[[], None]) -> None:
        ids = torch.from_numpy(prompts)
        with torch.no_grad():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([Watch(chosen)]),
            )  # fmt: skip

    return serve


def optimum(folder: str, threads: int) -> Serve:
    """Return a function that serves with optimum on the portable graph."""
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return _transformers(ORTModelForCausalLM.from_pretrained(folder, file_name="model.onnx", session_options=options))


def in_torch(folder: str, threads: int) -> Serve:
    """Return a function that serves with transformers' model in torch, with factored linears."""
    import torch

    from curconvert.blocks.stored import build_torch_model
    from curconvert_runtime import Artifact

    torch.set_num_threads(threads)
    model: Any = build_torch_model(Artifact.open(folder))
    model.config._attn_implementation = "sdpa"
    return _transformers(model)


PEERS: dict[str, Callable[[str, int], Serve]] = {
    "curconvert": runtime,
    "genai": genai,
    "optimum": optimum,
    "torch": in_torch,
}


def _peak() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Pin the process to as many cores as threads, load the model and answer requests."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    peer, folder, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    serve = PEERS[peer](folder, threads)
    vocabulary = int(json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    for line in sys.stdin:
        batch, prompt, generated = json.loads(line)
        prompts = np.random.default_rng(0).integers(vocabulary // 50, vocabulary // 2, (batch, prompt))
        marks = [time.perf_counter()]
        serve(prompts, generated + 1, lambda marks=marks: marks.append(time.perf_counter()))  # type: ignore[misc]
        assert len(marks) == generated + 2, f"{peer}: {len(marks) - 1} tokens, expected {generated + 1}"
        spans = {"prefill": marks[1] - marks[0], "decode": marks[-1] - marks[1]}
        answers.write(json.dumps({**spans, "peak": _peak()}) + "\n")


if __name__ == "__main__":
    main()
