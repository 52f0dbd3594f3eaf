"""The stages of a conversion: what `convert` runs once, and `sweep` once for the model and then for each size."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from curconvert.allocation.curves import Curve
from curconvert.allocation.plans import targets_of, uniform_plan
from curconvert.allocation.sensitivity import Sensitivity
from curconvert.artifact.manifest import build_manifest
from curconvert.artifact.model_files import tensor_specs, write_model_files
from curconvert.artifact.safetensors_writer import SafetensorsWriter, save_tensors
from curconvert.base.device import find_device
from curconvert.base.dtypes import torch_dtype
from curconvert.base.machine import peak_memory
from curconvert.base.names import layer_of, linear_of
from curconvert.base.plan import Plan
from curconvert.calibration.backward import BackwardPass
from curconvert.calibration.batches import Keeping
from curconvert.calibration.evidence import Evidence
from curconvert.calibration.gathering import Gathering
from curconvert.calibration.original import OriginalPass, run_original
from curconvert.calibration.probes import pack_probes, parity_batch
from curconvert.calibration.sampled import partly_sampled
from curconvert.calibration.text import CalibrationTokens, digest, load_tokens
from curconvert.checkpoint.dtypes import deployed_dtype
from curconvert.checkpoint.linears import decoder_linears
from curconvert.checkpoint.types import Checkpoint, Companions
from curconvert.execution.task import Executor
from curconvert.families.skeleton import EMBEDDING
from curconvert.jobs.compress import compress
from curconvert.jobs.seal import verify_and_seal
from curconvert.jobs.widths import check_widths, measured_costs, with_widths
from curconvert.journal.store import UNRECORDED, Journal, State
from curconvert.methods.planning import keeps_inputs, make_plan
from curconvert.methods.search import decide_plan
from curconvert.options.calibration import BUILTIN
from curconvert.options.convert import ConvertOptions
from curconvert.options.quantization import Quantization, stored_bytes
from curconvert.quantization.tensors import UNQUANTISED, Tables, quantised_tables, quantised_tensors, quantization_json
from curconvert.quantization.widths import RoundingCost
from curconvert.resizing.components import write_components
from curconvert.selection.layers import score_of, select_layers
from curconvert.training.learned_plan import check_resident, learned_plan
from curconvert_runtime.checks.fidelity import Progress
from curconvert_runtime.checks.report import VerificationReport
from curconvert_runtime.checks.verification import VerifyOptions
from curconvert_runtime.format.files import TOKENIZER


@dataclass(frozen=True)
class Prepared:
    """What every conversion of one model on one calibration text starts from.

    Attributes:
        checkpoint: The original.
        companions: Its files that are passed on.
        tokens: Calibration and probe sequences.
        dtype: Deployed dtype.
        keeping: Where hidden states on the calibration tokens are kept.
    """

    checkpoint: Checkpoint
    companions: Companions
    tokens: CalibrationTokens
    dtype: str
    keeping: Keeping = list

    @property
    def torch_dtype(self) -> torch.dtype:
        """The deployed dtype."""
        return torch_dtype(self.dtype)


@dataclass(frozen=True)
class Measured:
    """What the passes over the original gave; it serves conversions of any size.

    Attributes:
        original: Its answers, and the layers' scores where the options asked for them.
        evidence: Statistics of linears, those that the options need.
        curves: What each size of each module costs; empty unless `auto` asked for them.
        tables: Embedding and head where they are quantised.
    """

    original: OriginalPass
    evidence: Evidence
    curves: Sequence[Curve] = ()
    tables: Tables = UNQUANTISED


def first_plan(checkpoint: Checkpoint, options: ConvertOptions) -> Plan:
    """Plan what shapes alone can tell.

    Raises:
        InputError: The size cannot be had.
    """
    if options.form == "learned":
        check_resident(checkpoint)
    if options.sized_whole:
        return uniform_plan(checkpoint, options, bytes_per_number(checkpoint, options))
    plan = make_plan(checkpoint, options)
    if options.quantization and options.mixes_widths and not score_of(options.layers):
        check_widths(options.quantization, checkpoint, plan)
    return plan


def prepare(checkpoint: Checkpoint, options: ConvertOptions) -> Prepared:
    """Read the calibration text.

    Args:
        checkpoint: The original.
        options: Names the text, the deployed dtype and the device; the method does not matter.

    Raises:
        CurConvertError: The text, or the model's tokenizer, does not do, or the device is not there.
    """
    find_device(options.device)
    companions = checkpoint.companions()
    tokenizer = companions.written.get(TOKENIZER) or companions.copied.get(TOKENIZER)
    tokens = load_tokens(options.calibration, tokenizer, vocab_size=checkpoint.tensors[EMBEDDING].shape[0])
    parity_batch(tokens.probes)  # refuses sequences too short to verify on
    return Prepared(checkpoint, companions, tokens, deployed_dtype(checkpoint, options.dtype, options.arithmetic))


def sampled(prepared: Prepared, options: ConvertOptions, progress: Progress, journal: Journal = UNRECORDED) -> Prepared:
    """Let the model write its share of the calibration text.

    Args:
        prepared: The model and the given text.
        options: The share, and the seed of the sampling.
        progress: Called after each token that is written.
        journal: Keeps the text.
    """
    if state := journal.recall("sample"):
        calibration, probes = (ids.numpy() for ids in state.restored("ids"))
        tokens = replace(
            prepared.tokens, calibration=calibration, probes=probes, sha256=digest(calibration, probes),
            notices=tuple(state.data["notices"]),
        )  # fmt: skip
    else:
        tokens = partly_sampled(prepared.checkpoint, prepared.tokens, options.self_text, options.seed, progress)
        ids = [torch.from_numpy(part) for part in (tokens.calibration, tokens.probes)]
        journal.record("sample", State({"notices": tokens.notices}, {"ids": ids}))
    return replace(prepared, tokens=tokens)


def measure(
    prepared: Prepared,
    wanted: Sequence[ConvertOptions],
    scratch: Path,
    progress: Progress,
    journal: Journal = UNRECORDED,
) -> Measured:
    """Run the original model once forwards and, where gradients are needed, once back.

    Args:
        prepared: The model and its text.
        wanted: Options of every conversion that the result shall serve; their sizes do not matter.
        scratch: A folder that outlives the result's use: empty, or as an interrupted run has left it.
        progress: Called after each block.
        journal: Keeps each block.
    """
    checkpoint, evidence = prepared.checkpoint, Evidence(scratch)
    scores = {score for score in (score_of(options.layers) for options in wanted) if score}
    rows = {name for options in wanted for name in _fisher_targets(checkpoint, options)}
    mixed = any(options.mixes_widths for options in wanted)
    auto = next((options for options in wanted if options.form == "auto"), None)
    backward: BackwardPass | None = None
    if auto:
        backward = Sensitivity(checkpoint, targets_of(checkpoint, auto), auto, evidence, progress, rows, journal)
    elif rows:
        backward = BackwardPass(rows, wanted[0].seed, evidence, progress, journal)
    others = [options for options in wanted if options.form != "auto" and not options.sequential]
    gathering: Gathering | None = None
    # One conversion calibrates while it compresses, because only some layers may be its targets; but where the inputs
    # themselves are kept, that is cheaper than to run the model again.
    learned = any(options.form == "learned" for options in others)
    if auto or mixed or learned or len(others) > 1 or (others and keeps_inputs(checkpoint, others[0])):
        served = (*others, *([auto] if auto else []))
        targets = {name for options in served for name in targets_of(checkpoint, options)}
        # What is not compressed is quantised by its inputs, too.
        if mixed or any(options.quantization for options in served):
            targets |= decoder_linears(checkpoint).keys()
        # auto alone needs no exact products: each of its solves has a ridge, far above the rounding.
        ends = {name for name in targets if linear_of(name) == "down_proj"} if auto else set()
        gathering = Gathering(
            targets, evidence, exact=not auto or bool(others), tokens=prepared.tokens.calibration.size, split=ends
        )
    # A sweep has several options, and none that quantises.
    quantization = wanted[0].quantization
    feedback = quantization is not None and (quantization.uses_statistics or mixed)
    original = run_original(
        checkpoint, prepared.tokens, scores=scores, gathering=gathering, backward=backward, head=feedback,
        device=wanted[0].device, keeping=prepared.keeping, progress=progress, journal=journal,
    )  # fmt: skip
    tables = UNQUANTISED
    if quantization and not mixed:  # mixed widths are chosen when the plan is known
        tables = quantised_tables(checkpoint, quantization, original.head)
    return Measured(original, evidence, backward.curves if isinstance(backward, Sensitivity) else (), tables)


def _fisher_targets(checkpoint: Checkpoint, options: ConvertOptions) -> set[str]:
    """Return the weights whose rows' Fisher information is needed; all layers' where a score will choose some."""
    if options.mixes_widths:
        return set(decoder_linears(checkpoint))
    if options.approximation != "fwsvd":
        return set()
    num_layers = int(checkpoint.config["num_hidden_layers"])
    layers = select_layers("all" if score_of(options.layers) else options.layers, num_layers)
    return {name for name in targets_of(checkpoint, options) if layer_of(name) in layers}


def decide(
    prepared: Prepared,
    measured: Measured,
    options: ConvertOptions,
    executor: Executor,
    progress: Progress,
    journal: Journal = UNRECORDED,
) -> Plan:
    """Decide form and rank of every matrix.

    Args:
        prepared: The model and its text.
        measured: What the original gave, for options of this form.
        options: The size.
        executor: Factorizes for a search.
        progress: Called after each block of a search.
        journal: Keeps each block of a search.

    Raises:
        InputError: The size cannot be had.
    """
    checkpoint, original = prepared.checkpoint, measured.original
    if options.form == "dense":
        return make_plan(checkpoint, options)
    if options.form == "learned":
        return learned_plan(
            checkpoint, first_plan(checkpoint, options), prepared.tokens, options, prepared.torch_dtype,
            measured.evidence, progress, journal,
        )  # fmt: skip
    if options.form != "auto":
        num_layers, score = int(checkpoint.config["num_hidden_layers"]), score_of(options.layers)
        scores = original.scores[score] if score else None
        return make_plan(checkpoint, options, select_layers(options.layers, num_layers, scores))
    return decide_plan(
        checkpoint, first_plan(checkpoint, options), measured.curves, prepared.tokens, original, options,
        prepared.torch_dtype, measured.evidence, executor, progress, journal, measured.tables,
    )  # fmt: skip


def produce(
    work: Path,
    prepared: Prepared,
    measured: Measured,
    decided: Plan,
    options: ConvertOptions,
    executor: Executor,
    verification: VerifyOptions | None,
    progress: Progress,
    journal: Journal = UNRECORDED,
) -> tuple[VerificationReport | None, int | None]:
    """Fill a folder with the artifact, and verify it.

    Args:
        work: A folder: empty, or as an interrupted run has left it.
        prepared: The model and its text.
        measured: What the original gave.
        decided: Form and rank of every matrix.
        options: Method and numerics.
        executor: Factorizes.
        verification: Gates that the artifact must pass; None leaves verification out.
        progress: Called as work goes on.
        journal: Keeps each block.

    Returns:
        The verification, and the most resident memory before it.

    Raises:
        CurConvertError: What cannot be stored or does not pass.
    """
    checkpoint, tokens, dtype = prepared.checkpoint, prepared.tokens, prepared.torch_dtype
    quantization, tables, costs = options.quantization, measured.tables, list[RoundingCost]()
    if quantization and quantization.mixed:
        quantization, costs = _with_widths(prepared, measured, decided, options, executor, progress, journal)
        options = replace(options, quantization=quantization)
        tables = quantised_tables(checkpoint, quantization, measured.original.head)
    with SafetensorsWriter(work, tensor_specs(checkpoint, decided, dtype, quantization)) as writer:
        reports, parity = compress(
            checkpoint, decided, tokens, options, dtype, writer, measured.evidence, executor, progress, journal,
            tables, prepared.keeping,
        )  # fmt: skip
        writer.finish()
    if options.scored:
        write_components(
            work, checkpoint, decided, measured.curves, measured.evidence, options, dtype, executor, progress
        )  # fmt: skip
    probes = pack_probes(tokens.probes, measured.original.outputs, parity)
    save_tensors(work / "probes.safetensors", {name: torch.from_numpy(v) for name, v in probes.items()})
    quantised = quantised_tensors(checkpoint, decided, quantization) if quantization else {}
    write_model_files(
        work, checkpoint, prepared.companions, prepared.dtype, writer.tensors, decided.matrices, quantised,
        options.arithmetic,
    )  # fmt: skip
    described = quantization_json(quantization, quantised, tables.errors, costs) if quantization else None
    manifest = build_manifest(
        checkpoint, prepared.dtype, decided, reports, options, tokens, described, options.arithmetic
    )
    peak = peak_memory()
    return verify_and_seal(work, manifest, verification, progress), peak


def _with_widths(
    prepared: Prepared,
    measured: Measured,
    decided: Plan,
    options: ConvertOptions,
    executor: Executor,
    progress: Progress,
    journal: Journal,
) -> tuple[Quantization, list[RoundingCost]]:
    """Choose each matrix's width, and return what it was chosen by as well."""
    assert options.quantization is not None
    assert measured.original.head is not None
    check_widths(options.quantization, prepared.checkpoint, decided)
    checkpoint, dtype = prepared.checkpoint, prepared.torch_dtype
    costs = measured_costs(
        checkpoint, decided, prepared.tokens, measured.original.head, options, dtype, measured.evidence, executor,
        progress, journal,
    )  # fmt: skip
    return with_widths(options.quantization, checkpoint, decided, costs), costs


def inputs(checkpoint: Checkpoint, options: ConvertOptions) -> tuple[Path, ...]:
    """Return every path that a conversion reads, so that its output can keep away from them."""
    text = () if options.calibration.source == BUILTIN else (Path(options.calibration.source),)
    return (checkpoint.path, *checkpoint.files, *text)


@contextmanager
def scratch_beside(work: Path) -> Iterator[Path]:
    """Yield a folder beside the output, on the same disk, that goes when the work is done."""
    with tempfile.TemporaryDirectory(prefix=f"{work.name}.", dir=work.parent) as folder:
        yield Path(folder)


def bytes_per_number(checkpoint: Checkpoint, options: ConvertOptions) -> float:
    """Return the bytes of a number of the artifact's matrices."""
    return stored_bytes(
        torch_dtype(deployed_dtype(checkpoint, options.dtype, options.arithmetic)), options.quantization
    )
