"""What a test needs to convert a tiny checkpoint in its own way: token ids, options, a tokenizer, the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from curconvert.methods.core.options import ConvertOptions
from curconvert.options.calibration import CalibrationOptions
from support.families import VOCABULARY

LENGTH = 24


def token_file(path: Path, sequences: int = 14, seed: int = 0) -> Path:
    """Write random token ids as a calibration source."""
    generator = torch.Generator().manual_seed(seed)
    save_file({"input_ids": torch.randint(3, VOCABULARY, (sequences, LENGTH), generator=generator)}, path)
    return path


def tiny_options(tokens: Path, method: str = "cur", **values: Any) -> ConvertOptions:
    """Return options fit for the models of `support.families`: rank 8, every sequence of the token file in use."""
    calibration = CalibrationOptions(source=str(tokens), sequences=12, tokens_per_sequence=LENGTH, probe_sequences=2)
    return ConvertOptions.for_method(method, **{"rank": 8, "layers": "all", "calibration": calibration, **values})


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Read every weight of an artifact."""
    return load_file(folder / "model.safetensors")


def manifest_of(folder: Path) -> dict[str, Any]:
    """Read an artifact's manifest."""
    content: dict[str, Any] = json.loads((folder / "curconvert.json").read_text(encoding="utf-8"))
    return content


def add_tokenizer(folder: Path, begin: str | None = None) -> None:
    """Give a tiny checkpoint a tokenizer: one token per printable character, after a begin token such as `<s>`."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2}
    words |= {chr(32 + number): number + 3 for number in range(VOCABULARY - 3)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    if begin is not None:
        both = (f"{begin} $A", [(begin, words[begin])])
        tokenizer.post_processor = processors.TemplateProcessing(single=both[0], special_tokens=both[1])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
