"""Builds and writes `curconvert.json`: what the folder holds, its source, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curconvert.base.environment import environment
from curconvert.base.plan import MatrixPlan, Plan
from curconvert.calibration.text import CalibrationTokens
from curconvert.checkpoint.linears import total_parameters
from curconvert.checkpoint.types import Checkpoint
from curconvert.factorization.types import Factorization
from curconvert_runtime import __version__
from curconvert_runtime.format.files import MANIFEST
from curconvert_runtime.format.hashing import sha256
from curconvert_schemas import validate
from curconvert_schemas.folder import is_for_people

FORMAT_VERSION = "1.0"
UNKNOWN_ERRORS: Mapping[str, None] = {"relative_output_error": None, "relative_frobenius_error": None, "bound": None}
"""Error fields of a matrix that changed after its errors were measured."""
_PORTABLE = {"file": "model.onnx", "padding": "left"}
_FUSED = {"file": "model.fused.onnx", "padding": "right"}


def build_manifest(
    checkpoint: Checkpoint,
    dtype: str,
    plan: Plan | None = None,
    reports: Mapping[str, Factorization] | None = None,
    options: Mapping[str, Any] | None = None,
    tokens: CalibrationTokens | None = None,
    quantization: Mapping[str, Any] | None = None,
    arithmetic: str = "float32",
) -> dict[str, Any]:
    """Return the manifest without its file table and metrics.

    An exported, uncompressed checkpoint has no plan, reports, options or calibration. `quantization` comes from
    `curconvert.quantization.tensors.quantization_json`. The fused graph computes in `arithmetic`.
    """
    config = checkpoint.config
    stored = total_parameters(checkpoint)
    return {
        "format_version": FORMAT_VERSION,
        "generator": generator(),
        "source": {
            "kind": checkpoint.kind,
            "name": checkpoint.path.name,
            "files": checkpoint.files.hashes(),
            **({"ignore": list(checkpoint.ignore)} if checkpoint.ignore else {}),
        },
        "model": {
            "model_type": config["model_type"],
            "dtype": dtype,
            "parameters_before": stored,
            "parameters_after": stored if plan is None else plan.parameters_after,
            "tied_embeddings": bool(config["tie_word_embeddings"]),
            "vocab_size": config["vocab_size"],
            "num_hidden_layers": config["num_hidden_layers"],
            "num_key_value_heads": config["num_key_value_heads"],
            "head_dim": config["head_dim"],
            "max_position_embeddings": config["max_position_embeddings"],
            **checkpoint.companions().special_tokens.fields(),
        },
        "options": dict(options or {}),
        "calibration": None
        if tokens is None
        else {
            "source": tokens.source,
            "token_sha256": tokens.sha256,
            "sequences": len(tokens.calibration),
            "tokens_per_sequence": tokens.calibration.shape[1],
            "begin": tokens.begin,
        },
        "environment": environment(),
        "matrices": [_matrix(m, (reports or {}).get(m.name)) for m in (plan.matrices if plan else ())],
        "graphs": {
            "portable": _PORTABLE,
            "fused": _FUSED if arithmetic == "float32" else {**_FUSED, "arithmetic": arithmetic},
        },
        **({} if quantization is None else {"quantization": dict(quantization)}),
        "metrics": None,
    }


def generator() -> dict[str, str]:
    """Return name and version of the program that writes the artifact."""
    return {"name": "curconvert", "version": __version__}


def made_from(manifest: Mapping[str, Any], checkpoint: Checkpoint) -> bool:
    """Tell whether an artifact was made from a checkpoint's weights. Names of files do not count."""
    recorded, found = manifest["source"]["files"], checkpoint.files.hashes()
    return sorted(entry["sha256"] for entry in recorded) == sorted(entry["sha256"] for entry in found)


def _matrix(plan: MatrixPlan, report: Factorization | None) -> dict[str, Any]:
    bound = report.bound if report else None
    return {
        "name": plan.name,
        "form": plan.form,
        "shape": list(plan.shape),
        "rank": plan.rank,
        "basis": report.basis if report else None,
        "parameters_before": plan.parameters_before,
        "parameters_after": plan.parameters_after,
        "shared": plan.sharing,
        "corrected_bias": report is not None and report.corrected_bias,
        "teacher_share": report.teacher_share if report else None,
        "reason": plan.reason,
        "relative_output_error": report.relative_output_error if report else None,
        "relative_frobenius_error": report.relative_frobenius_error if report else None,
        "bound": None
        if bound is None
        else {
            "eta_rows": bound.eta_rows,
            "eta_columns": bound.eta_columns,
            "sigma_next": bound.sigma_next,
            "value": bound.value,
            "matrix": bound.matrix,
        },
    }


def seal(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, with size and sha256 of every other file in the folder that is not for people.

    Raises:
        SchemaError: The manifest does not meet its schema.
    """
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST and not is_for_people(path.name)
    }
    complete = {**manifest, "files": files}
    validate(complete, "manifest-1.0")
    text = json.dumps(complete, indent=1, sort_keys=True, allow_nan=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
