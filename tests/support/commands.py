"""Every command that makes an output, as a job on tiny inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from curconvert.jobs.convert import convert
from curconvert.jobs.export import export
from curconvert.jobs.heal import heal
from curconvert.jobs.resize import resize
from curconvert.jobs.sweep.options import SweepOptions
from curconvert.jobs.sweep.run import sweep
from curconvert.options.calibration import CalibrationOptions
from curconvert.options.heal import HealOptions
from curconvert.options.resize import ResizeOptions
from curconvert.options.source import SourceOptions
from curconvert_runtime.checks.verification import VerifyOptions
from support.families import make_checkpoint
from support.tiny_runs import LENGTH, add_tokenizer, tiny_options, token_file

NAMES = ("export", "resize", "heal", "convert", "sweep")


@dataclass(frozen=True)
class Commands:
    """A checkpoint, a scored artifact and a healable one, for jobs with a given output."""

    home: Path

    @classmethod
    def with_inputs(cls, home: Path) -> Self:
        """Make the inputs in a folder."""
        add_tokenizer(make_checkpoint(home / "model", "llama", num_hidden_layers=3).folder)
        tokens, source = token_file(home / "ids.safetensors"), SourceOptions(str(home / "model"))
        convert(source, home / "cur", tiny_options(tokens))
        scored = {"keep": 0.9, "scored": True, "rank_multiple": 2}
        convert(source, home / "scored", tiny_options(tokens, "auto", rank=None, **scored))
        return cls(home)

    @property
    def source(self) -> SourceOptions:
        """The checkpoint."""
        return SourceOptions(str(self.home / "model"))

    def job(self, name: str, out: Path) -> Callable[[], Any]:
        """Return a command with its arguments."""
        tokens = self.home / "ids.safetensors"
        text = CalibrationOptions(source=str(tokens), sequences=12, tokens_per_sequence=LENGTH, probe_sequences=2)
        gates = VerifyOptions()
        if name == "convert":
            return partial(convert, self.source, out, tiny_options(tokens), overwrite=True, verification=gates)
        if name == "export":
            return partial(export, self.source, out, overwrite=True)
        if name == "resize":
            return partial(resize, self.home / "scored", out, ResizeOptions(0.7), overwrite=True, verification=gates)
        if name == "heal":
            options = HealOptions(steps=6, batch=4, warmup=1, evaluate_every=2, data=text)
            return partial(
                heal, self.home / "cur", self.source, out, options, overwrite=True, verification=gates
            )  # fmt: skip
        asked = SweepOptions((0.8,), ("svd-llm", "row-id"), keep_artifacts=True, settings={"calibration": text})
        return partial(sweep, self.source, out, asked, overwrite=True)
