"""Lists the multimodal model types whose text part is a supported family, as data.

A multimodal checkpoint holds a language model beside towers for images, sound or video. Without such inputs it computes
what its language model computes. A model type is listed if a test has compared the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Wrapper:
    """What the code must know about a multimodal model type besides its config.

    Attributes:
        model_type: The config's `model_type`.
        flat: Whether older configs hold the fields of the text model themselves, without a `text_config`.
    """

    model_type: str
    flat: bool = False


_WRAPPERS = (
    Wrapper("audioflamingo3"),
    Wrapper("deepseek_vl"),
    Wrapper("deepseek_vl_hybrid"),
    Wrapper("gemma3"),
    Wrapper("glmasr"),
    Wrapper("got_ocr2"),
    Wrapper("granite_speech"),
    Wrapper("idefics2"),
    Wrapper("idefics3"),
    Wrapper("internvl"),
    Wrapper("janus"),
    Wrapper("lighton_ocr"),
    Wrapper("llava"),
    Wrapper("llava_next"),
    Wrapper("llava_next_video"),
    Wrapper("llava_onevision"),
    Wrapper("mistral3"),
    Wrapper("musicflamingo"),
    Wrapper("pp_chart2table"),
    Wrapper("qwen2_5_vl", flat=True),
    Wrapper("qwen2_audio"),
    Wrapper("qwen2_vl", flat=True),
    Wrapper("qwen3_asr"),
    Wrapper("qwen3_vl"),
    Wrapper("smolvlm"),
    Wrapper("video_llama_3"),
    Wrapper("video_llava"),
    Wrapper("vipllava"),
    Wrapper("voxtral"),
)

WRAPPERS: Mapping[str, Wrapper] = MappingProxyType({wrapper.model_type: wrapper for wrapper in _WRAPPERS})

TEXT_FAMILIES: Mapping[str, str] = MappingProxyType(
    {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
)
"""The family that computes the same on text, by the `model_type` of a text config, where the two names differ."""

IMAGE_ROTARY = ("mrope_section", "mrope_interleaved")
"""Rotary settings that divide a head among axes of an image. All axes of a text have the same positions."""

TEXT_STEMS = ("model.language_model.", "language_model.model.", "model.text_model.", "language_model.", "text_model.")
"""What begins the names of the language model's tensors in these checkpoints, before `layers`."""
