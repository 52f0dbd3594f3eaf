"""Runs the original model for its probe outputs, its layers' scores and the statistics of its linears' inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from curconvert.base.dtypes import dtype_name, torch_dtype
from curconvert.base.names import CPU
from curconvert.base.progress import silent
from curconvert.base.types import Ids, Vector
from curconvert.blocks.precision import calibration_dtype
from curconvert.blocks.stream import BlockStream, Recorder
from curconvert.calibration.backward import BackwardPass
from curconvert.calibration.batches import IN_MEMORY, Batches, StateStore
from curconvert.calibration.gathering import Gathering
from curconvert.calibration.probes import OriginalOutputs, fidelity_probe
from curconvert.calibration.statistics import StatisticsCollector
from curconvert.calibration.text import CalibrationTokens
from curconvert.checkpoint.types import Checkpoint
from curconvert.families.skeleton import HEAD
from curconvert.journal.store import UNRECORDED, Journal, State
from curconvert.linalg.statistics import InputStatistics
from curconvert.selection.scores import LayerScorer
from curconvert_runtime.checks.fidelity import Progress

BATCH = 8  # sequences per forward pass: large enough for fast matmuls, small enough for memory
LOGITS = 2**24
"""Logits held at once, 64 MB; a 16-bit head is converted to float32 once for all of them."""
LOGIT_ROWS = 32  # positions whose full-vocabulary log-probabilities are held in float64 at once


@dataclass(frozen=True)
class OriginalPass:
    """Holds the results of the pass over the original model.

    Attributes:
        scores: The requested scores of the layers, (layers,), by the name of the score.
        outputs: The outputs at the probe positions, in order.
        states: The last block's output on the probes, batches of (sequences, tokens, hidden_size).
        head: Statistics of the lm_head's input on the calibration tokens; None unless requested.
    """

    scores: Mapping[str, Vector]
    outputs: list[OriginalOutputs]
    states: Batches
    head: InputStatistics | None = None


@dataclass(frozen=True)
class Watched:
    """Says what to measure on the calibration tokens.

    Attributes:
        scores: Names of layer scores to measure, see `curconvert.selection.scores`.
        gathering: Stores the statistics of linears' inputs.
        backward: Runs the backward pass afterwards.
        head: Whether to collect statistics of the lm_head's input.
    """

    scores: Collection[str] = ()
    gathering: Gathering | None = None
    backward: BackwardPass | None = None
    head: bool = False


_NOTHING = Watched()


def run_original(
    checkpoint: Checkpoint,
    tokens: CalibrationTokens,
    watched: Watched = _NOTHING,
    *,
    device: str = CPU,
    store: StateStore = IN_MEMORY,
    progress: Progress = silent,
    journal: Journal = UNRECORDED,
) -> OriginalPass:
    """Run the original model on the probes, and on the calibration tokens if `watched` needs them.

    Args:
        checkpoint: The original.
        tokens: Calibration and probe sequences.
        watched: What to measure on the calibration tokens.
        device: Where blocks run.
        store: Keeps the hidden states of the calibration tokens.
        progress: Called after each block.
        journal: Records each block.
    """
    gathering, backward = watched.gathering, watched.backward
    stream = BlockStream(checkpoint, device=torch.device(device))
    probes = embedded(stream, tokens.probes)  # a resumed pass needs this call for the masks and positions
    wanted = bool(watched.scores or watched.gathering or watched.backward or watched.head)
    hidden = embedded(stream, tokens.calibration if wanted else tokens.calibration[:0], store)
    scorers = {name: LayerScorer(name) for name in sorted(watched.scores)}
    done, dtype = 0, torch.float32
    if state := journal.recall("original"):
        done, probes = state.data["blocks"], state.restored("probes")
        hidden = store.keep(state.tensors.get("hidden", ()))
        dtype = torch_dtype(state.data["dtype"])
        for name, scorer in scorers.items():
            scorer.scores.extend(state.data["scores"][name])
    durable = [part.commit for part in (gathering, backward) if part]
    for index in range(done, stream.num_layers):
        with stream.block(index) as block:
            block.advance(probes)
            if index == 0 and hidden and not backward:
                dtype = calibration_dtype(checkpoint, block, hidden[0])
            with ExitStack() as stack:
                for scorer in scorers.values():
                    stack.enter_context(scorer.watching(block.layer))
                if gathering:
                    stack.enter_context(gathering.watching(block))
                if backward:
                    backward.advance(block, hidden)
                else:
                    block.advance(hidden, dtype=dtype)
        found = {name: scorer.scores for name, scorer in scorers.items()}
        carried = {"probes": probes, "hidden": hidden}
        data = {"blocks": index + 1, "scores": found, "dtype": dtype_name(dtype)}
        journal.record("original", State(data, carried), durable)
        progress("original", index + 1, stream.num_layers)
    outputs = _probe_outputs(stream, probes, tokens.probes)
    seen = _head_statistics(stream, hidden) if watched.head else None
    if backward:
        backward.finish(stream, hidden)
    stream.release_table()  # reference cycles keep the stream alive until Python's next collection
    return OriginalPass({name: np.array(scorer.scores) for name, scorer in scorers.items()}, outputs, probes, seen)


def _head_statistics(stream: BlockStream, hidden: Batches) -> InputStatistics:
    recorder = Recorder()
    collector = StatisticsCollector({HEAD: recorder})
    with collector.collecting():
        for batch in hidden:
            stream.record_head(batch, recorder)
    ((_, statistics),) = collector.groups()
    return statistics


def _probe_outputs(stream: BlockStream, hidden: Batches, ids: Ids) -> list[OriginalOutputs]:
    outputs, step = [], max(1, LOGITS // stream.vocab_size)
    sequences = [row for batch in hidden for row in batch]
    for row, states in zip(ids, sequences, strict=True):
        following = np.append(row[1:], row[-1])  # the last position has no next token; pack_probes drops it
        for start in range(0, len(row), step):
            part = slice(start, start + step)
            logits = stream.logits(states[None, part])[0]
            both = (logits, torch.from_numpy(following[part]))
            rows = zip(*(torch.split(tensor, LOGIT_ROWS) for tensor in both), strict=True)
            outputs += [fidelity_probe(scores.numpy(), wanted.numpy()) for scores, wanted in rows]
    return outputs


def embedded(stream: BlockStream, ids: Ids, store: StateStore = IN_MEMORY) -> Batches:
    """Return the hidden states that enter the first block, in batches.

    Args:
        stream: The model.
        ids: Token ids, (sequences, tokens).
        store: Keeps the batches.
    """
    return store.keep(stream.embed(torch.from_numpy(ids[i : i + BATCH])) for i in range(0, len(ids), BATCH))
