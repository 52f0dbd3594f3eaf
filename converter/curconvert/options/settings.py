"""Defines the settings that every method takes, and the arithmetic of a target's fused graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from curconvert.base.checks import at_least, check_device, one_of, within
from curconvert.base.errors import InputError
from curconvert.base.names import CPU
from curconvert.base.roles import Role
from curconvert.options.calibration import CalibrationOptions
from curconvert.options.quantization import Quantization
from curconvert.options.targets import DEFAULT_TARGETS, LINEARS, target_roles
from curconvert_runtime.serve.providers import PROVIDERS

DType = Literal["float32", "float16", "bfloat16"]
DTYPES: tuple[str, ...] = get_args(DType)

_MAX_RIDGE = 1e6  # far above useful values: the diagonal alone dominates long before


@dataclass(frozen=True)
class Settings:
    """The settings of a conversion that do not depend on the method.

    Attributes:
        layers: Layers to compress: `all`, numbers and ranges such as `3,8-12`, or N layers chosen by a score:
            `angular[:N]`, `influence[:N]`, `rank[:N]`.
        targets: Matrices to compress in these layers, such as `q_proj`.
        ridge: λ of `H + λ diag(H)` in each solve with a Gram matrix H.
        rank_multiple: Round ranks and neuron counts to a multiple of this, if the method chooses them.
        sequential: Calibrate each block on the outputs of the compressed blocks before it.
        self_text: Share of the calibration sequences that the model generates itself.
        dtype: Stored dtype: `float32`, `float16` or `bfloat16`. None keeps the dtype of the checkpoint (float32 for
            quantized GGUF), or takes float16 for `cuda`.
        target: Where the artifact will run: `cpu`, or `cuda` with a float16 fused graph.
        quantization: How to quantize the stored matrices; None does not quantize.
        seed: Seed of all random choices, together with the name of the tensor.
        device: Device for forward passes and large matrix products: `cpu`, `cuda` or `cuda:N`. Solves and
            decompositions of small matrices run on the CPU, in float64.
        calibration: The calibration text.

    Raises:
        InputError: A value is out of range or unknown.
    """

    layers: str = "angular"
    targets: tuple[str, ...] = DEFAULT_TARGETS
    ridge: float = 1e-2
    rank_multiple: int = 16
    sequential: bool = False
    self_text: float = 0.0
    dtype: str | None = None
    target: str = "cpu"
    quantization: Quantization | None = None
    seed: int = 0
    device: str = CPU
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)

    def __post_init__(self) -> None:
        at_least("--rank-multiple", self.rank_multiple, 1)
        at_least("--seed", self.seed, 0)
        if self.dtype is not None:
            one_of("--dtype", self.dtype, DTYPES)
        arithmetic_of(self.target, self.dtype, self.quantization)
        within("--ridge", self.ridge, 0, _MAX_RIDGE)
        within("--self-text", self.self_text, 0, 1)
        if not self.targets:
            raise InputError(f"--targets is empty: expected all, or some of {', '.join(LINEARS)}")
        for target in self.targets:
            one_of("--targets", target, LINEARS)
        check_device(self.device)

    @property
    def roles(self) -> frozenset[Role]:
        """Roles of the matrices to compress."""
        return target_roles(self.targets)

    @property
    def arithmetic(self) -> str:
        """Dtype of the fused graph's arithmetic."""
        return arithmetic_of(self.target, self.dtype, self.quantization)

    @property
    def mixes_bits(self) -> bool:
        """Whether the bits are chosen for each matrix."""
        return self.quantization is not None and self.quantization.mixed


def arithmetic_of(target: str, dtype: str | None, quantization: Quantization | None) -> str:
    """Return the type in which a target's fused graph computes.

    Raises:
        InputError: The target is unknown, or does not support this dtype or quantized weights.
    """
    one_of("--target", target, PROVIDERS)
    provider = PROVIDERS[target]
    if provider.arithmetic == "float16" and dtype not in (None, "float16"):
        raise InputError(f"--target {target}: its graph computes in float16, not {dtype}; leave --dtype out")
    if quantization is not None and not provider.quantized:
        others = " or ".join(name for name, other in PROVIDERS.items() if other.quantized)
        raise InputError(
            f"--target {target}: computes with {provider.arithmetic} weights; --quantize is for --target {others}"
        )
    return provider.arithmetic
