"""Turns the stored tensors of a checkpoint into plain weights, or says why that is not possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from curconvert.base.dtypes import dtype_name
from curconvert.base.errors import InputError, UnsupportedError
from curconvert.checkpoint.safetensors_file import DTYPES, is_plain
from curconvert.checkpoint.stored.compressed_tensors import decode_compressed_tensors
from curconvert.checkpoint.stored.fp8 import decode_fp8
from curconvert.checkpoint.stored.mxfp4 import decode_mxfp4
from curconvert.checkpoint.stored.recipe import Decoding, Scheme, Stored
from curconvert.checkpoint.types import TensorInfo

SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        "fp8": decode_fp8,
        "fbgemm_fp8": decode_fp8,
        "compressed-tensors": decode_compressed_tensors,
        "mxfp4": decode_mxfp4,
    }
)
"""Formats that are read, by `quant_method`."""

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "aqlm": "AQLM",
        "auto-round": "AutoRound",
        "awq": "AWQ",
        "bitnet": "BitNet",
        "bitsandbytes": "bitsandbytes",
        "eetq": "EETQ",
        "fp_quant": "FP-Quant",
        "gptq": "GPTQ",
        "higgs": "HIGGS",
        "hqq": "HQQ",
        "modelopt": "NVIDIA ModelOpt",
        "quanto": "quanto",
        "quark": "AMD Quark",
        "spqr": "SpQR",
        "torchao": "torchao",
        "vptq": "VPTQ",
    }
)
"""Formats that are recognized and not read, by `quant_method`, with their usual names."""

_KEY = "quantization_config"
_ReadInfo = Callable[[TensorInfo], torch.Tensor]


@dataclass(frozen=True)
class Plain:
    """Tensors of a checkpoint, quantized weights replaced by plain ones.

    Attributes:
        tensors: By stored name, or the name of the weight.
        read: Reads one of them; a quantized one is computed.
        notices: What was dequantized and left out.
    """

    tensors: Mapping[str, TensorInfo]
    read: _ReadInfo
    notices: tuple[str, ...] = ()


def plain_weights(tensors: Mapping[str, TensorInfo], read: _ReadInfo, config: Mapping[str, Any], source: str) -> Plain:
    """Return the tensors of a checkpoint, with quantized weights dequantized when they are read.

    Args:
        tensors: The stored tensors.
        read: Reads a stored tensor.
        config: The config as it is stored, with what the user changes in it.
        source: Name of the checkpoint in messages.

    Raises:
        InputError: The tensors contradict the `quantization_config`.
        UnsupportedError: The format is not read.
    """
    parts = [config, config["text_config"]] if isinstance(config.get("text_config"), dict) else [config]
    if isinstance(config.get("quantization"), dict) and "bits" in config["quantization"]:
        raise UnsupportedError(
            f"{source}: the weights are quantized by MLX, which is not read; give the unquantized model"
        )
    settings = next((found for part in parts if (found := part.get(_KEY))), None)
    if not settings:
        return Plain(tensors, read)
    scheme = _scheme(settings, tensors, source)
    decoding = scheme(Stored(tensors, lambda name: read(tensors[name]), source), settings)
    if twice := [name for name in decoding.weights if name in tensors and tensors[name].dtype in DTYPES]:
        raise InputError(f"{source}: tensor {twice[0]} is stored both quantized and as it is")
    taken = {*decoding.parts, *decoding.dropped, *decoding.weights}
    left = {name: info for name, info in tensors.items() if name not in taken}
    dtype = _dtype(parts, left)
    computed = {name: TensorInfo(name, dtype, recipe.shape) for name, recipe in decoding.weights.items()}

    def read_plain(info: TensorInfo) -> torch.Tensor:
        recipe = decoding.weights.get(info.name)
        return read(info) if recipe is None else recipe.compute(lambda name: read(tensors[name]), DTYPES[dtype])

    return Plain(left | computed, read_plain, tuple(_notices(settings, decoding, dtype)))


def _scheme(settings: Any, tensors: Mapping[str, TensorInfo], source: str) -> Scheme:
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method is None and isinstance(settings, dict) and {"load_in_4bit", "load_in_8bit"} & settings.keys():
        method = "bitsandbytes"
    if isinstance(method, str) and method in SCHEMES:
        return SCHEMES[method]
    name = REFUSED.get(str(method), f"{method!r:.60}")
    if all(map(is_plain, tensors.values())):
        raise UnsupportedError(
            f"{source}: config.json says that the weights are quantized with {name}, and none is; to read them as they "
            f"are, pass --config-set {_KEY}=null"
        )
    raise UnsupportedError(
        f"{source}: the weights are quantized with {name}, which is not read; give the unquantized model"
    )


def _dtype(configs: Sequence[Mapping[str, Any]], plain: Mapping[str, TensorInfo]) -> str:
    """Return the dtype of computed weights: the config's, as transformers dequantizes; or the widest stored one."""
    named = [config.get(key) for config in configs for key in ("dtype", "torch_dtype")]
    stored = {info.dtype for info in plain.values()}
    by_name = (code for code, dtype in DTYPES.items() if dtype_name(dtype) in named)
    return next(by_name, next((code for code in DTYPES if code in stored), "F32"))


def _notices(settings: Mapping[str, Any], decoding: Decoding, dtype: str) -> Iterator[str]:
    if decoding.weights:
        yield (
            f"{len(decoding.weights)} weights are quantized ({settings['quant_method']}); they are dequantized to "
            f"{dtype_name(DTYPES[dtype])}"
        )
    if decoding.dropped:
        yield f"{len(decoding.dropped)} scales of activations and caches are left out"
