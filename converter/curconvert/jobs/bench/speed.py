"""Times a session's requests, and computes how many bytes a decoding step reads."""

from __future__ import annotations

import bisect
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curconvert.options.bench import Workload
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.onnx_external import external_tensors
from curconvert_runtime.serve.decoding import Decoder
from curconvert_runtime.serve.session import Session

_EMBEDDING, _HEAD = "model.embed_tokens.", "lm_head."


@dataclass(frozen=True)
class Timing:
    """Times of one request.

    Attributes:
        first_token: Seconds from the prompts to the first token of each row.
        decode: Seconds of all later steps.
    """

    first_token: float
    decode: float


def measure(session: Session, workload: Workload) -> Timing:
    """Run one request with random prompts and return its times."""
    shape = (workload.batch, workload.prompt_tokens)
    prompts = np.random.default_rng(0).integers(0, session.vocab_size, shape)
    begin = time.perf_counter()
    decoder = Decoder(session, list(prompts), workload.generated_tokens + 1)
    tokens = decoder.prefill().argmax(axis=-1)
    first = time.perf_counter()
    for _ in range(workload.generated_tokens):
        tokens = decoder.step(tokens).argmax(axis=-1)
    return Timing(first - begin, time.perf_counter() - first)


def weight_bytes(artifact: Artifact, graph: str) -> int:
    """Return how many bytes of weights a decoding step reads from memory.

    16-bit weights count as float32, because that is how they are in memory, unless the graph computes in float16. An
    untied embedding does not count, because a step reads only a few of its rows. Quantized weights count as they are
    stored. onnxruntime's kernels read more: on x86 a float32 sum per block, which is half a bit per weight in blocks
    of 64.

    Args:
        artifact: The model.
        graph: `portable` or `fused`.
    """
    references = list(external_tensors(artifact.graphs[graph]))
    own_head = any(tensor.name.startswith(_HEAD) for tensor in references)
    read = {
        (tensor.location, tensor.offset): tensor.length
        for tensor in references
        if not (own_head and tensor.name.startswith(_EMBEDDING))
    }
    headers = sorted(artifact.tensors.values(), key=lambda header: (header.file, header.offset))
    places = [(header.file, header.offset) for header in headers]
    widened = 1 if artifact.arithmetic(graph) == "float16" else 2
    total = 0
    for (location, offset), length in read.items():
        # An initializer can be a part of a stored tensor.
        header = headers[bisect.bisect_right(places, (artifact.path / Path(location), offset)) - 1]
        total += length * (widened if header.dtype in ("F16", "BF16") else 1)
    return total


def step_bytes(artifact: Artifact, graph: str, workload: Workload) -> float:
    """Return how many bytes an average decoding step reads: weights, and the keys and values in the cache."""
    model = artifact.model
    cached = 2 * model["num_hidden_layers"] * model["num_key_value_heads"] * model["head_dim"]
    cached *= np.dtype(artifact.arithmetic(graph)).itemsize
    length = workload.prompt_tokens + (workload.generated_tokens + 1) / 2
    return float(weight_bytes(artifact, graph) + workload.batch * length * cached)
