"""Knows the fields of `generation_config.json` with which transformers changes the choice of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Beyond temperature, top-k, top-p, min-p and the repetition penalty. Null and the values listed here have no effect.
_RARE: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("no_repeat_ngram_size", "min_length", "min_new_tokens", "epsilon_cutoff", "eta_cutoff"), (0,)),
    **dict.fromkeys(("typical_p", "top_h", "guidance_scale", "num_beams"), (1,)),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"), ([], {})),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), ()),
    **dict.fromkeys(("stop_strings", "watermarking_config", "penalty_alpha", "dola_layers"), ([],)),
}


def rare_settings(settings: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings in effect that go beyond temperature, cut-offs and the repetition penalty."""
    return [name for name, neutral in _RARE.items() if settings.get(name) not in (None, *neutral)]
