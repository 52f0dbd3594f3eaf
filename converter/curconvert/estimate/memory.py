"""Estimates the peak memory of a conversion, from what each of its stages holds."""

from __future__ import annotations

from curconvert.base.names import layer_of
from curconvert.calibration.backward import GRADIENT_ROWS, GRADIENT_TOKENS
from curconvert.calibration.original import BATCH, LOGIT_ROWS, LOGITS
from curconvert.calibration.probes import PARITY_LENGTHS
from curconvert.estimate.workload import Workload
from curconvert.options.calibration import BUILTIN
from curconvert.training.spectrum import SEQUENCES_AT_ONCE

_START = 465e6  # torch, transformers and the interpreter with an open model, measured on Linux x86-64
_LIBRARIES = 60e6  # buffers of BLAS libraries and threads during factorizations, measured likewise
_TOKEN = 1000  # bytes of a tokenizer per token of its vocabulary
_ACTIVATIONS = 6  # tensors of a linear's input or output that a running block holds at once
_ARENAS = 1.6  # memory held by the threads' allocators after some blocks, over memory in use; measured with glibc
_LOGITS = 6  # copies of logits that a divergence and its gradient hold
_PLANE = 3.5  # bytes for each weight that onnxruntime holds for each plane that it joins, until all are joined
_ANSWERS = 5  # copies of logits on the parity sequences that a verification holds


def peak(work: Workload, workers: int, *, spilled: bool = False) -> float:
    """Return the peak of resident memory before the verification, bytes.

    Args:
        work: The conversion.
        workers: Number of matrices factorized at the same time.
        spilled: Whether all but one batch of the calibration tokens' hidden states are on disk.
    """
    kept = min(BATCH * work.length, work.tokens) if spilled else work.tokens
    stages = [_answering(work, kept), _gathering(work, kept), _compressing(work, kept, workers)]
    if work.options.needs.gradients:
        stages.append(_going_back(work))
    if work.options.needs.resident:
        stages.append(_learning(work))
    return _START + _tokenizer(work) + max(*stages, work.resident + work.cache)


def verification(work: Workload, parameters: int) -> float:
    """Return the peak of resident memory in the verification, bytes: torch's model, a session and their outputs.

    Args:
        work: The conversion.
        parameters: Parameters of the artifact.
    """
    answers = 4.0 * len(PARITY_LENGTHS) * max(PARITY_LENGTHS) * work.vocabulary
    quantization = work.options.quantization
    planes = len(quantization.layout.planes) if quantization else 1
    joining = _PLANE * planes * parameters if planes > 1 else 0.0
    return _START + _LIBRARIES + _tokenizer(work) + 2 * 4.0 * parameters + joining + _ANSWERS * answers


def _tokenizer(work: Workload) -> float:
    reads = work.options.calibration.source == BUILTIN or not work.options.calibration.source.endswith(".safetensors")
    return float(_TOKEN * work.vocabulary * reads)


def _states(work: Workload, kept: int) -> float:
    """Return the bytes of the hidden states of `kept` calibration tokens and of the probes."""
    return 4.0 * work.hidden * (kept + work.probes)


def _forward(work: Workload) -> float:
    """Return the bytes of a block's activations for one batch."""
    return float(_ACTIVATIONS * 4 * BATCH * work.length * work.widest)


def _answering(work: Workload, kept: int) -> float:
    """Return the bytes to compute the original's outputs on the probes: the lm_head, and logits, partly in float64."""
    logits = 4.0 * min(LOGITS, work.length * work.vocabulary)
    wide = 5.0 * 8 * LOGIT_ROWS * work.vocabulary
    return _states(work, kept if work.calibrates_first else 0) + work.table + 2 * logits + wide


def _gathering(work: Workload, kept: int) -> float:
    """Return the bytes to run the calibration text through the original's blocks and form Gram matrices."""
    if not work.knows_statistics:
        return 0.0
    return _LIBRARIES + _states(work, kept) + 4.0 * work.block + _forward(work) + _grams(work) + _inputs(work)


def _going_back(work: Workload) -> float:
    """Return the bytes of the backward pass: gradients of a batch's logits, or of a block and its linears."""
    logits = 4 * 4.0 * BATCH * GRADIENT_ROWS * work.vocabulary
    tokens = min(GRADIENT_TOKENS, work.tokens)
    priced = 6 * 8.0 * work.widest**2 if work.options.needs.curves else 0.0
    samples = 4.0 * tokens * sum(sum(m.shape) for m in work.compressed) / max(1, len(work.changed_layers))
    return _states(work, tokens) + max(work.table + logits, 4.0 * work.block + 2 * samples + priced) + _LIBRARIES


def _learning(work: Workload) -> float:
    """Return the bytes of learning: two models, and for a part of a batch the saved activations and the logits."""
    tokens = SEQUENCES_AT_ONCE * work.length
    activations = 4.0 * _ACTIVATIONS * tokens * work.widest * work.layers
    return _LIBRARIES + work.learning + activations + _LOGITS * 4.0 * tokens * work.vocabulary


def _compressing(work: Workload, kept: int, workers: int) -> float:
    """Return the bytes to compress a block: its weights, its input statistics and the parallel factorizations."""
    layers = max(1, len(work.changed_layers))
    states = _states(work, 0 if work.knows_statistics else kept) + 4.0 * work.hidden * work.probes
    held = max((_together(work, layer, workers) for layer in work.changed_layers), default=0.0)
    grams = _grams(work)
    if work.options.compares_inputs:  # one input at a time, with its drift and a held-out part
        states += 4.0 * (kept * work.hidden + work.tokens * sum(work.grams) / layers)
        grams = 4 * 8.0 * max(work.grams, default=0) ** 2
    # A block's weights are read again for factorization; bfloat16 products need a copy of them.
    read = (2 if work.sixteen_bits else 4) * sum(m.parameters_before for m in work.changed) / layers
    weights = 4.0 * work.block + read + (2.0 * work.block if work.sixteen_bits else 0)
    # Sums become means in new memory before factorization starts.
    used = max(grams + _forward(work), _ARENAS * held)
    return _LIBRARIES + states + weights + grams + _inputs(work) + used


def _grams(work: Workload) -> float:
    """Return the average bytes of the Gram matrices of a block."""
    return 8.0 * sum(n**2 for n in work.grams) / max(1, len(work.changed_layers))


def _inputs(work: Workload) -> float:
    """Return the bytes of inputs that are stored instead of a Gram matrix, for one block."""
    return 4.0 * work.tokens * sum(work.samples)


def _together(work: Workload, layer: int, workers: int) -> float:
    """Return the most bytes that `workers` simultaneous factorizations of one layer hold."""
    method = work.options.method
    held = (method.cost(m, work.tokens).held for m in work.changed if layer_of(m.name) == layer)
    return sum(sorted(held, reverse=True)[:workers])
