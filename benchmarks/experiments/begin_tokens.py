"""Measures what the begin token is worth: in perplexity, and in the KL of models that were calibrated with and without.

A small Llama is trained here on the builtin text, in windows that start with `<s>`, as its tokenizer adds it. The last
fifth of the text is held out. Perplexity is measured on windows of the held-out text with and without the begin token.
Each method then converts the model twice, and KL is measured on windows with it, as the model is served. The tokenizer
of SmolLM2 adds no begin token, so both of its measurements read the same windows.

Decided: windows start with the begin token if the tokenizer adds one. Perplexity without it says little about the model
as it is served, and `auto` and `svd-llm` lose more if they are calibrated without it. `cur` barely changes here.
"""

from __future__ import annotations

import json
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import MODEL_NAME, Result, model_arguments, torch_threads
from curconvert import CalibrationOptions, ConvertOptions, SourceOptions, convert, export
from curconvert.base.types import Ids
from curconvert.calibration.text import builtin_text, load_tokens
from curconvert.checkpoint import open_checkpoint
from curconvert_runtime import load
from curconvert_runtime.checks.fidelity import exact_fidelity, text_windows
from curconvert_runtime.checks.metrics import log_softmax, perplexity
from curconvert_runtime.serve.session import Session

SMALL = "Llama of 0.1 million parameters, trained here"
WINDOW, VOCABULARY = 64, 384
METHODS: dict[str, dict[str, Any]] = {
    "auto": {"keep": 0.6, "rank_multiple": 4},
    "cur": {"density": 0.4, "layers": "all"},
    "svd-llm": {"density": 0.4, "layers": "all"},
}


def main() -> None:
    """Train, convert and measure."""
    given = arguments()
    setting = {
        "text": "the last fifth of the builtin text", "calibration": f"the first four fifths, 128 × {WINDOW} tokens",
        "window": WINDOW, "training steps": given.steps,
    }  # fmt: skip
    result = Result(given.out, setting, torch_threads())
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        trained(home, given.steps)
        result.add("perplexity", perplexities(home / "original", home / "held_out.txt"), model=SMALL)
        for method in METHODS:
            result.add("divergence", divergences(home, method), model=SMALL, method=method)
        if given.model.is_file():
            result.add("perplexity", smollm2(given.model, home), model=MODEL_NAME)


def trained(home: Path, steps: int) -> None:
    """Write a trained checkpoint (`model`), its export (`original`), and both parts of the text, into a folder."""
    text = builtin_text()
    cut = text.index("\n", 4 * len(text) // 5)
    (home / "text.txt").write_text(text[:cut], encoding="utf-8")
    (home / "held_out.txt").write_text(text[cut:], encoding="utf-8")
    tokenizer = tokenizer_of(text[:cut])
    ids = np.array(tokenizer.encode(text[:cut], add_special_tokens=False).ids)
    model = fitted(ids, steps)
    model.save_pretrained(home / "model")
    tokenizer.save(str(home / "model" / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<s>"}
    (home / "model" / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    export(SourceOptions(str(home / "model")), home / "original")


def tokenizer_of(text: str) -> Tokenizer:
    """Return a byte-level BPE tokenizer that is trained on a text and adds `<s>` before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def fitted(ids: Ids, steps: int) -> LlamaForCausalLM:
    """Return a small Llama, trained on windows from random places of a text, each with token 0 in front."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=2 * WINDOW, bos_token_id=0, eos_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer, peak = torch.optim.AdamW(model.parameters(), weight_decay=0.1), 6e-3
    random = np.random.default_rng(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = peak * min(1.0, (step + 1) / 20) * (1 - step / steps)
        starts = random.integers(0, len(ids) - WINDOW, 16)
        batch = torch.from_numpy(np.stack([[0, *ids[start : start + WINDOW - 1]] for start in starts]))
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def perplexities(exported: Path, text: Path, tokens: int = 10**6) -> dict[str, Any]:
    """Return an exported model's begin token, and its perplexity on windows with and without it."""
    session, content = load(exported, graph="portable"), text.read_text(encoding="utf-8")
    both = {name: text_windows(session.artifact, content, WINDOW, tokens, name == "with")[0] for name in _SIDES}
    found = {name: perplexity_of(session, windows) for name, windows in both.items()}
    begin = session.tokenizer.begin
    return {"begin": "none" if begin is None else f"id {begin}", **found}


def perplexity_of(session: Session, windows: Ids) -> float:
    """Return a model's perplexity on windows, from its logits in float64."""
    rows = [
        np.take_along_axis(log_softmax(np.asarray(session.logits(row))[:-1]), row[1:, None], -1)[:, 0]
        for row in windows
    ]
    return perplexity(np.stack(rows))


def divergences(home: Path, method: str) -> dict[str, Any]:
    """Return the KL of a method with and without the begin token in the calibration, on windows that start with it."""
    original = load(home / "original", graph="portable")
    text = (home / "held_out.txt").read_text(encoding="utf-8")
    windows, _ = text_windows(original.artifact, text, WINDOW, 10**6, begin=True)
    found: dict[str, Any] = {}
    for side in _SIDES:
        calibration = CalibrationOptions(
            str(home / "text.txt"), sequences=128, tokens_per_sequence=WINDOW, begin=side == "with"
        )
        options = ConvertOptions.for_method(method, calibration=calibration, **METHODS[method])
        out = home / f"{method}-{side}"
        convert(SourceOptions(str(home / "model")), out, options, verification=None)
        measured = exact_fidelity(load(out, graph="portable"), original, windows)
        found |= {side: measured.kl.mean, f"{side}_perplexity": measured.perplexity_compressed}
    return {**found, "saved": 1 - found["with"] / found["without"]}


def smollm2(model: Path, home: Path) -> dict[str, Any]:
    """Return the row of SmolLM2; calibration reads the same tokens with and without the option.

    Raises:
        AssertionError: It does not, so the conversions have to be measured as well.
    """
    companions = open_checkpoint(str(model)).companions()
    tokens = {load_tokens(CalibrationOptions(begin=begin), companions).sha256 for begin in (True, False)}
    assert len(tokens) == 1
    export(SourceOptions(str(model)), home / "smollm2")
    return perplexities(home / "smollm2", home / "held_out.txt", 32 * WINDOW)


def arguments() -> Namespace:
    """Read the command line."""
    parser = model_arguments("begin_tokens", __doc__)
    parser.add_argument("--steps", type=int, default=600, help="training steps of the small model")
    return parser.parse_args()


_SIDES = ("with", "without")

if __name__ == "__main__":
    main()
