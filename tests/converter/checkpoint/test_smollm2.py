"""The real GGUF file: its weights and its tokenizer together make a language model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from curconvert.checkpoint import Checkpoint, open_checkpoint

MODEL = Path(__file__).resolve().parents[3] / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PROSE = (
    "The river rises in the hills to the north of the town and flows for about forty miles before it reaches the sea. "
    "In summer it is shallow enough to cross on foot, but after the winter rains it often floods the fields on both "
    "sides, and for several weeks the farmers have to move their animals to higher ground. A stone bridge was built in "
    "1784, and most of it is still standing today."
)
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def smollm2() -> Checkpoint:
    """The file that `make model` fetches."""
    return open_checkpoint(MODEL)


@pytest.fixture(scope="module")
def tokenizer(smollm2: Checkpoint) -> Tokenizer:
    """The tokenizer rebuilt from it."""
    return Tokenizer.from_str(smollm2.companions().written["tokenizer.json"].decode())


def test_the_config_is_that_of_the_published_model(smollm2: Checkpoint) -> None:
    """The sizes of SmolLM2-135M."""
    expected = {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-05,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    assert {key: smollm2.config[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, we can use", [19556, 28, 392, 416, 722]),
        ("Hello world! 123", [19556, 905, 17, 216, 33, 34, 35]),
        ("Café déjà vu.", [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]),
        ("  multiple   spaces", [216, 2701, 256, 5600]),
        ("<|im_start|>user\n", [1, 4093, 198]),
    ],
)
def test_the_tokenizer_gives_the_published_ids(text: str, ids: list[int], tokenizer: Tokenizer) -> None:
    """Ids of the original tokenizer: single digits, byte-level accents, runs of spaces, control tokens."""
    assert tokenizer.encode(text).ids == ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_plain_prose_is_likely(smollm2: Checkpoint, tokenizer: Tokenizer) -> None:
    """Perplexity of simple English: 16, and 73 with q and k left permuted."""
    values = {key: value for key, value in smollm2.config.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**values))
    model.load_state_dict({name: smollm2.read(name) for name in smollm2.tensors}, strict=False)
    model.tie_weights()
    ids = torch.tensor([tokenizer.encode(PROSE).ids])
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model.eval()(ids).logits[0, :-1], ids[0, 1:])
    assert loss.exp() < 20
