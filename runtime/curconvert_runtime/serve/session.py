"""Loads an artifact for inference: `load` and the `Session` that it returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from curconvert_runtime.errors import InputError
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.serve.generation import Completion, GenerationOptions, OnText, generate
from curconvert_runtime.serve.providers import ProviderOptions, provider_named, provider_options
from curconvert_runtime.serve.runner import Runner


class Session(Runner):
    """A model that answers requests. Made by `load`; safe to use from one thread at a time."""

    def generate(
        self, prompt: Any, options: GenerationOptions | None = None, on_text: OnText | None = None
    ) -> Completion | list[Completion]:
        """Continue a prompt or a batch of prompts; see `curconvert_runtime.generate`."""
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
        path: Artifact folder.
        provider: One of `PROVIDERS`, such as `cpu` or `cuda`; the one asked for or an error.
        graph: `auto` takes the provider's where the artifact has it: the fused one on `cpu` and `cuda`.
        threads: Threads of one operator; None leaves the choice to onnxruntime.
        options: `CpuOptions` or `CudaOptions`, as the provider is; None takes the defaults.
        full_check: Hash every file, even those hashed before and unchanged since.

    Raises:
        InputError: No such folder, an unknown provider or graph, or options of another provider.
        IntegrityError: The folder's contents are not what its manifest says.
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
    return Session(artifact, chosen, provider, threads, options)
