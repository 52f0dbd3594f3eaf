"""Loads an artifact for inference: `load` and the `Session` that it returns."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from curconvert_runtime.errors import InputError
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.files import GENERATION_CONFIG
from curconvert_runtime.serve.generation import Completion, GenerationOptions, OnText, generate
from curconvert_runtime.serve.providers import ProviderOptions, provider_named, provider_options
from curconvert_runtime.serve.runner import Runner
from curconvert_runtime.serve.sampling import generation_settings
from curconvert_schemas.generation import rare_settings

logger = logging.getLogger(__name__)


class Session(Runner):
    """A loaded artifact that generates text. Make it with `load`. Use it from one thread at a time."""

    def generate(
        self, prompt: Any, options: GenerationOptions | None = None, on_text: OnText | None = None
    ) -> Completion | list[Completion]:
        """Generate text for one prompt or a batch; see `curconvert_runtime.generate`."""
        return generate(self, prompt, options, on_text)


def load(
    path: str | Path,
    *,
    provider: str = "cpu",
    graph: Literal["auto", "portable", "fused"] = "auto",
    threads: int | None = None,
    options: ProviderOptions | None = None,
    full_check: bool = False,
) -> Session:
    """Check an artifact and load it for inference.

    Args:
        path: An artifact folder.
        provider: Execution provider, `cpu` or `cuda`. It never falls back to another one.
        graph: `auto` takes the fused graph if the artifact has one, otherwise the portable graph.
        threads: Threads per operator; None is onnxruntime's default.
        options: `CpuOptions` or `CudaOptions`, to match the provider; None takes the defaults.
        full_check: Hash every file, even if it is unchanged since the last check.

    Raises:
        InputError: The folder, the provider, the graph or the options are wrong.
        IntegrityError: The contents of the folder differ from the manifest.
        BackendError: onnxruntime or the provider is missing or cannot run the graph.
    """
    if graph not in ("auto", "portable", "fused"):
        raise InputError(f"graph {graph!r}: expected auto, portable or fused")
    provider_options(provider, options)
    artifact = Artifact.open(path, full=full_check)
    graphs, usual = artifact.graphs, provider_named(provider).graph
    chosen = (usual if usual in graphs else "portable") if graph == "auto" else graph
    if chosen not in graphs:
        raise InputError(f"{artifact.path}: the artifact has no {chosen} graph, only {', '.join(graphs)}")
    if names := rare_settings(generation_settings(artifact)):
        logger.warning("%s: %s: not followed, transformers does", artifact.path / GENERATION_CONFIG, ", ".join(names))
    return Session(artifact, chosen, provider, threads, options)
