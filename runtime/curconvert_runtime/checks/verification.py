"""Verifies an artifact in four steps, without torch.

Integrity checks every byte. Structure checks that the parts agree. Parity compares both graphs with the stored outputs
of the compressed torch model and with each other. Fidelity compares with the stored outputs of the original, or runs
it. `curconvert.jobs.parity` adds checks that need torch and the source model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curconvert_runtime.checks import parity
from curconvert_runtime.checks.fidelity import Progress, check_reference, exact_fidelity, probe_fidelity, text_windows
from curconvert_runtime.checks.metrics import Fidelity
from curconvert_runtime.checks.report import Check, VerificationReport, at_least, at_most
from curconvert_runtime.checks.structure import structure_checks
from curconvert_runtime.errors import InputError, check_integer
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.probes import CompressedProbe, Probes
from curconvert_runtime.serve.providers import provider_named
from curconvert_runtime.serve.session import Session
from curconvert_runtime.version import installed_versions, version


@dataclass(frozen=True)
class VerifyOptions:
    """What to check, and which limits to apply. A limit of None does not apply.

    Attributes:
        max_kl: Maximum mean KL(original ‖ compressed), in nats per token.
        min_top1: Minimum share of positions with the same most likely token.
        max_ppl_ratio: Maximum perplexity(compressed) / perplexity(original).
        max_parity: Maximum difference between a graph and torch, of logits and keys, relative to torch's largest one.
        against: The original, as a folder from `curconvert export`. Fidelity is then exact.
        text: UTF-8 text to measure on, in place of the stored sequences. Needs `against`.
        window: Tokens per window of `text`.
        max_tokens: Maximum number of tokens of `text`.
        begin: Whether windows of `text` start with the tokenizer's begin token; None does what the artifact records.
        provider: Execution provider, `cpu` or `cuda`.
        threads: Threads per operator; None is onnxruntime's default.
    """

    max_kl: float | None = None
    min_top1: float | None = None
    max_ppl_ratio: float | None = None
    max_parity: float = parity.MAX_PARITY
    against: Path | None = None
    text: Path | None = None
    window: int = 512
    max_tokens: int = 16384
    begin: bool | None = None
    provider: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_kl", "min_top1", "max_ppl_ratio", "max_parity"):
            value = getattr(self, name)
            if value is None:
                continue
            option = f"--{name.replace('_', '-')} {value}"
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise InputError(f"{option}: expected a finite number of at least 0")
            if name == "min_top1" and value > 1:
                raise InputError(f"{option}: expected a share of at most 1")
        for name in ("window", "max_tokens"):
            value = getattr(self, name)
            check_integer(f"--{name.replace('_', '-')}", value, 2)


def verify(
    path: str | Path, options: VerifyOptions | None = None, progress: Progress | None = None
) -> VerificationReport:
    """Verify an artifact without torch.

    Args:
        path: An artifact folder.
        options: What to check and which limits to apply.
        progress: Called with (stage, done, total).

    Returns:
        The report. It holds failed checks too; `raise_for_failures` raises them.

    Raises:
        IntegrityError: The contents of the folder differ from the manifest.
        InputError: A path or an option is wrong.
        BackendError: onnxruntime is missing or cannot run a graph.
    """
    options = options or VerifyOptions()
    if options.text is not None and options.against is None:
        raise InputError("--text needs --against: the artifact stores no outputs of the original for this text")
    if options.text is None and options.begin is not None:
        raise InputError("--begin and --no-begin need --text: the stored sequences are those of the conversion")
    artifact = Artifact.open(path, full=True)
    probes = Probes.load(artifact)
    files = len(artifact.manifest["files"])
    checks = [Check("integrity.files", True, f"{files} files have the size and sha256 of the manifest")]
    checks += structure_checks(artifact, probes.compressed)
    checks += _parity_checks(artifact, probes.compressed, options, progress)
    measured, text = _fidelity(artifact, probes, options, progress)
    checks += _fidelity_checks(measured, options)
    environment = {"curconvert": version(), **installed_versions(), "provider": options.provider}
    return VerificationReport(str(path), tuple(checks), measured, text, environment)


def _parity_checks(
    artifact: Artifact, probe: CompressedProbe, options: VerifyOptions, progress: Progress | None = None
) -> list[Check]:
    """Run every graph on the parity sequences; compare it with torch's stored outputs and the other graph."""
    checks: list[Check] = []
    answers: dict[str, parity.Outputs] = {}
    kinds = sorted(artifact.graphs, reverse=True)
    for done, kind in enumerate(kinds):
        answers[kind] = graph_outputs(artifact, kind, probe, options)
        limit = parity.limit_of(artifact.arithmetic(kind), options.max_parity)
        checks += parity.compare_with_probe(f"parity.{kind}", answers[kind], probe, limit)
        if progress:
            progress("parity", done + 1, len(kinds))
    if len(answers) == 2:
        real = parity.real_positions(probe.lengths)
        difference = parity.relative_difference(answers["fused"].logits, answers["portable"].logits, real)
        # Each graph may differ from torch by the limit, in opposite directions.
        limit = 2 * parity.limit_of(artifact.arithmetic("fused"), options.max_parity)
        detail = "max |Δlogit| / max |logit| between the graphs, whole vocabulary:"
        checks.append(at_most("parity.between_graphs", difference, limit, detail))
    return checks


def graph_outputs(artifact: Artifact, kind: str, probe: CompressedProbe, options: VerifyOptions) -> parity.Outputs:
    """Return one graph's outputs on the parity sequences, from a session that is then released.

    Quantized products compute in float32 here, because rounded activations would hide a fault of the graph.
    """
    exact = provider_named(options.provider).options.exact() if artifact.quantized else None
    session = Session(artifact, kind, options.provider, options.threads, exact)
    return parity.teacher_forced(session, probe.ids, probe.lengths, session.padding)


def _fidelity(
    artifact: Artifact, probes: Probes, options: VerifyOptions, progress: Progress | None
) -> tuple[Fidelity, str]:
    """Measure fidelity on the stored sequences or a text; return it and a description of the text."""

    def session(folder: Artifact, kind: str) -> Session:
        return Session(folder, kind, options.provider, options.threads)

    # Measure the fused graph if it rounds activations or computes in float16: it then loses more.
    graphs = artifact.graphs
    rounds = "fused" in graphs and (artifact.quantized or artifact.arithmetic("fused") == "float16")
    kind = "portable" if "portable" in graphs and not rounds else "fused"
    count, length = probes.original.ids.shape
    stored = f"{count} stored sequence{'s' * (count != 1)} of {length} tokens"
    if options.against is None:
        return probe_fidelity(session(artifact, kind), probes.original, progress), stored
    reference = Artifact.open(options.against)
    check_reference(artifact, reference)
    ids, text = probes.original.ids.astype(np.int64), stored
    if options.text is not None:
        sizes = options.window, options.max_tokens
        ids, text = text_windows(artifact, read_text(options.text), *sizes, options.begin)
        text = f"{options.text.name}: {text}"
    original = session(reference, kind if kind in reference.graphs else next(iter(reference.graphs)))
    return exact_fidelity(session(artifact, kind), original, ids, progress), text


def read_text(path: Path) -> str:
    """Return the text of a file; raise `InputError` if it is unreadable or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--text {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"--text {path}: not UTF-8 text") from None


def _fidelity_checks(measured: Fidelity, options: VerifyOptions) -> list[Check]:
    """Return the fidelity checks: all numbers are finite, and one check per given threshold."""
    kl = measured.kl
    numbers = [kl.mean, kl.max, measured.top1, measured.perplexity_original, measured.perplexity_compressed]
    finite = all(math.isfinite(number) for number in numbers) and measured.tokens > 0
    found = f"{measured.tokens} tokens compared"
    checks = [Check("fidelity.finite", finite, found if finite else f"{found}: NaN or infinity in the outputs")]
    if options.max_kl is not None:
        name = "kl" if measured.exact else "kl_lower_bound"
        checks.append(at_most(f"fidelity.{name}", kl.mean, options.max_kl, "mean KL(original ‖ compressed)"))
    if options.min_top1 is not None:
        checks.append(at_least("fidelity.top1", measured.top1, options.min_top1, "same most likely token"))
    if options.max_ppl_ratio is not None:
        ratio = measured.perplexity_ratio
        checks.append(at_most("fidelity.perplexity_ratio", ratio, options.max_ppl_ratio, "perplexity ratio"))
    return checks
