"""Frozen, validated options: the command line builds them, and they are the Python API."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from curconvert.base.checks import at_least, check_device, one_of, proper_share, within
from curconvert.base.device import CPU
from curconvert.base.errors import InputError
from curconvert.base.forms import Basis
from curconvert.options.calibration import BUILTIN, CalibrationOptions
from curconvert.options.choices import APPROXIMATIONS, BASIS_SELECTORS, IMPORTANCES, LINKS, SELECTORS
from curconvert.options.quantization import Quantization
from curconvert_runtime.format.modules import MODULAR

DType = Literal["float32", "float16", "bfloat16"]
Method = Literal[
    "cur", "curing", "row-id", "pifa", "svd-llm", "asvd", "fwsvd", "svd", "neurons", "modegpt", "soco", "auto", "dense"
]
DTYPES: tuple[str, ...] = get_args(DType)
METHODS: tuple[str, ...] = get_args(Method)
TARGETS = ("cpu", "cuda")
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DEFAULT_TARGETS = ("q_proj", "k_proj", "gate_proj")  # CURing, §4

_MAX_RIDGE = 1e6  # far beyond any use: the diagonal alone decides long before

DEFAULT_SELF_TEXT = 0.5
# What a method means; explicit options override single entries.
_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "cur": {"form": "cur", "stored": "cur", "selector": "qr", "importance": "output", "link": "full"},
    "curing": {"form": "cur", "stored": "cur", "selector": "deim", "importance": "wanda", "link": "plain"},
    "row-id": {"form": "interpolative", "approximation": "rows"},
    "pifa": {"form": "interpolative", "approximation": "subspace"},
    "svd-llm": {"form": "two_factor", "approximation": "svd_llm"},
    "asvd": {"form": "two_factor", "approximation": "asvd"},
    "fwsvd": {"form": "two_factor", "approximation": "fwsvd"},
    "svd": {"form": "two_factor", "approximation": "svd"},
    "neurons": {"form": "modular", "targets": tuple(MODULAR)},
    "modegpt": {"form": "modules", "targets": LINEARS},
    "soco": {"form": "learned", "layers": "all", "targets": LINEARS, "steps": 200},
    "auto": {"form": "auto", "layers": "all", "targets": LINEARS, "self_text": DEFAULT_SELF_TEXT},
    "dense": {"form": "dense", "layers": "all", "targets": LINEARS},
}
_APPROXIMATIONS = {"interpolative": get_args(Basis), "two_factor": APPROXIMATIONS}
STORED: Mapping[str, tuple[str, ...]] = {
    "cur": ("cur",),
    "folded": ("two_factor",),
    "interpolative": ("interpolative",),
    "auto": ("cur", "two_factor", "interpolative"),
}
"""How a product C·U·R may be stored: as it is, as C·U and R, as rows and coefficients, or whichever is smallest."""
_FORMS = ("cur", "interpolative", "two_factor", "modular", "modules", "learned", "auto", "dense")
_MODULES = (("q_proj", "k_proj"), ("v_proj", "o_proj"), tuple(MODULAR))  # linears that get smaller together
DEFAULT_RANK = 128
DEFAULT_KEEP = 0.9
_BUDGETS = ("keep", "target_parameters", "target_bytes", "max_kl")
DEFAULT_DENSITY = 0.75  # of smaller modules: the sizes of models differ too much for one number


@dataclass(frozen=True)
class ConvertOptions:
    """Everything that decides a conversion's result.

    Build it with `ConvertOptions.for_method`, which fills the preset's values in.

    Attributes:
        method: Name of the preset, for the record.
        form: How compressed matrices are stored, see `curconvert_runtime.format.forms`; `modular` stands for the two
            forms of a smaller MLP, `modules` for those of a smaller MLP and a smaller attention, `auto` for what serves
            each matrix best; `dense` compresses none, and only quantises.
        rank: Largest rank of a compressed matrix, or number of neurons to keep; None where `density` decides.
        density: Largest share of a compressed matrix's numbers to keep; None where `rank` decides.
        keep: Share of the model's parameters to keep, embedding included; `auto` and `soco` only, as the next two.
        target_parameters: Parameters to keep.
        target_bytes: Size of the weights' file at most.
        max_kl: `auto` only: find the smallest model whose mean KL on held-out calibration text stays within it, nats
            per token.
        rank_multiple: Ranks and numbers of neurons are multiples of it.
        approximation: What the form stores: for `interpolative` rows of W (`rows`) or of its best rank-r
            approximation (`subspace`); for `two_factor` the approximation itself. None for the others.
        layers: `angular[:N]`, `influence[:N]`, `rank[:N]`, `all`, or numbers and ranges.
        targets: Linears to compress within those layers.
        selector: See `curconvert.selection.indices`; `cur` only, as the next two.
        importance: See `curconvert.selection.indices`.
        link: Metric in which U is optimal.
        stored: How C·U·R is stored, one of `STORED`; `cur` only.
        exact_svd: Take the singular vectors of `deim`, `qdeim` and `leverage` from a full SVD.
        ridge: λ of `H + λ diag(H)`, wherever the Gram matrix is solved with.
        sequential: Calibrate each block on the outputs of the compressed blocks before it; see `mixes_targets`.
        self_text: Share of the calibration sequences that the model writes itself: `curconvert.calibration.sampled`.
        dtype: Deployed dtype; None keeps the checkpoint's (float32 for quantised GGUF), or is float16 for `cuda`.
        target: Where it will be served: `cpu`, or `cuda`, whose fused graph computes in float16.
        quantization: How stored matrices are quantised; None leaves them float.
        steps: Of learning; `soco` only.
        share: Let neighbouring layers' matrices have one basis where it pays; `auto` only.
        scored: Write what `resize` needs to cut the artifact to any smaller size; `auto` only, without `share` and
            `quantization`.
        seed: Seeds every random choice, together with the tensor's name.
        device: Where blocks run and products with large weights are computed: `cpu`, `cuda` or `cuda:N`. Solves and
            decompositions of thin matrices stay on the CPU, in float64.
        calibration: The text.
    """

    method: str
    form: str
    rank: int | None = None
    density: float | None = None
    keep: float | None = None
    target_parameters: int | None = None
    target_bytes: int | None = None
    max_kl: float | None = None
    rank_multiple: int = 16
    approximation: str | None = None
    selector: str | None = None
    importance: str | None = None
    link: str | None = None
    stored: str | None = None
    exact_svd: bool = False
    sequential: bool = False
    layers: str = "angular"
    targets: tuple[str, ...] = DEFAULT_TARGETS
    ridge: float = 1e-2
    self_text: float = 0.0
    dtype: str | None = None
    target: str = "cpu"
    quantization: Quantization | None = None
    steps: int | None = None
    share: bool = False
    scored: bool = False
    seed: int = 0
    device: str = CPU
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)

    @classmethod
    def for_method(cls, method: str | None = None, **values: Any) -> ConvertOptions:
        """Return a preset's options with some of them replaced; None means the preset's or the default value.

        Without a method it is `auto` where a size of the whole model is given, or `max_kl`, and `cur` otherwise.
        Another selector than the preset's `qr` works on `activation` unless an importance is given with it.
        """
        given = {key: value for key, value in values.items() if value is not None}
        if method is None:
            method = "auto" if given.keys() & set(_BUDGETS) and not given.keys() & {"rank", "density"} else "cur"
        one_of("--method", method, METHODS)
        if method == "cur" and given.get("selector", "qr") != "qr":
            given.setdefault("importance", "activation")
        default = {
            "neurons": {"density": DEFAULT_DENSITY},
            "modegpt": {"density": DEFAULT_DENSITY},
            "auto": {"keep": DEFAULT_KEEP},
            "soco": {"keep": DEFAULT_KEEP},
        }
        sized = method == "dense" or given.keys() & {"density", "rank", *_BUDGETS}
        size = {} if sized else default.get(method, {"rank": DEFAULT_RANK})
        return cls(**{"method": method, **size, **_PRESETS[method], **given})

    def __post_init__(self) -> None:
        one_of("--method", self.method, METHODS)
        one_of("form", self.form, _FORMS)
        self._check_size()
        at_least("--seed", self.seed, 0)
        cur = {
            "--select": (self.selector, SELECTORS),
            "--importance": (self.importance, IMPORTANCES),
            "--link": (self.link, LINKS),
            "--form": (self.stored, tuple(STORED)),
        }
        for option, (value, allowed) in cur.items():
            if self.form == "cur":
                one_of(option, str(value), allowed)
            elif value is not None:
                raise InputError(f"{option} {value}: belongs to --method cur and curing, not to {self.method}")
        if self.importance == "output" and self.selector != "qr":
            raise InputError(f"--importance output goes with --select qr, not {self.selector}")
        if self.exact_svd and self.selector not in BASIS_SELECTORS:
            expected = ", ".join(BASIS_SELECTORS)
            raise InputError(f"--exact-svd: there is nothing to take singular vectors for; use --select {expected}")
        if self.form in _APPROXIMATIONS:
            one_of("approximation", str(self.approximation), _APPROXIMATIONS[self.form])
        if self.dtype is not None:
            one_of("--dtype", self.dtype, DTYPES)
        arithmetic_of(self.target, self.dtype, self.quantization)
        within("--ridge", self.ridge, 0, _MAX_RIDGE)
        within("--self-text", self.self_text, 0, 1)
        self._check_targets()
        self._check_dense()
        check_device(self.device)
        self._check_whole()
        if self.share and self.form != "auto":
            raise InputError(f"--share: belongs to --method auto, not to {self.method}")
        if self.scored and (self.form != "auto" or self.share or self.quantization is not None):
            raise InputError("--scored: goes with --method auto, and neither with --share nor with --quantize")

    def _check_whole(self) -> None:
        if self.form == "learned":
            at_least("--steps", self.steps, 1)
        elif self.steps is not None:
            raise InputError(f"--steps: belongs to --method soco, not to {self.method}")
        if self.device != CPU and (self.goes_back or self.self_text or self.form == "learned"):
            raise InputError(
                f"--device {self.device}: --method auto, soco, fwsvd, --bits-per-weight and --self-text run on the "
                "CPU only"
            )
        if self.sized_whole and (self.layers != "all" or self.sequential):
            raise InputError(f"--layers and --sequential: --method {self.method} chooses among all layers by itself")

    def _check_dense(self) -> None:
        if self.form == "dense" and (self.quantization is None or self.layers != "all"):
            raise InputError("--method dense compresses no layer, it only quantises: give --quantize, and no --layers")
        if self.quantization is not None and self.target_bytes is not None:
            raise InputError(
                "--target-bytes counts numbers of one size; with --quantize give --keep or --target-params"
            )
        if self.mixes_widths and self.max_kl is not None:
            raise InputError("--max-kl: widths are chosen for a size; with --bits-per-weight give --keep")

    def _check_targets(self) -> None:
        if not self.targets:
            raise InputError(f"--targets is empty: expected all, or some of {', '.join(LINEARS)}")
        for target in self.targets:
            one_of("--targets", target, LINEARS)
        if self.form == "modular" and set(self.targets) != set(MODULAR):
            raise InputError(f"--targets {','.join(self.targets)}: --method {self.method} takes {','.join(MODULAR)}")
        if self.form == "modules" and any(set(part) - set(self.targets) not in (set(), set(part)) for part in _MODULES):
            parts = " and ".join(",".join(part) for part in _MODULES)
            raise InputError(f"--targets {','.join(self.targets)}: --method {self.method} takes whole ones of {parts}")

    def _check_size(self) -> None:
        at_least("--rank-multiple", self.rank_multiple, 1)
        sizes = {name: getattr(self, name) for name in ("rank", "density", *_BUDGETS)}
        given = [name for name, value in sizes.items() if value is not None]
        allowed = {"auto": _BUDGETS, "learned": _BUDGETS[:3], "modules": ("density",), "dense": ()}.get(
            self.form, ("rank", "density")
        )
        flags = {name: "--" + name.replace("parameters", "params").replace("_", "-") for name in sizes}
        if self.form == "dense" and given:
            raise InputError(f"{flags[given[0]]}: --method dense keeps every number; it takes no size")
        if allowed and (len(given) != 1 or given[0] not in allowed):
            found = ", ".join(flags[name] for name in given) or "none"
            expected = ", ".join(flags[name] for name in allowed)
            raise InputError(f"--method {self.method} takes one size of {expected}; found {found}")
        for name in ("rank", "target_parameters", "target_bytes"):
            if sizes[name] is not None:
                at_least(flags[name], sizes[name], 1)
        for name in ("density", "keep"):
            if sizes[name] is not None:
                proper_share(flags[name], sizes[name])
        if self.max_kl is not None and not 0 < self.max_kl < math.inf:
            raise InputError(f"--max-kl {self.max_kl}: expected nats per token, above 0")

    @property
    def arithmetic(self) -> str:
        """What the fused graph computes in."""
        return arithmetic_of(self.target, self.dtype, self.quantization)

    @property
    def mixes_widths(self) -> bool:
        """Whether each matrix is to be quantised with a width of its own."""
        return self.quantization is not None and self.quantization.mixed

    @property
    def goes_back(self) -> bool:
        """Whether gradients of the original are needed."""
        return self.form == "auto" or self.approximation == "fwsvd" or self.mixes_widths

    @property
    def sized_whole(self) -> bool:
        """Whether the size is one of the whole model, and each matrix's follows."""
        return self.form in ("auto", "learned")

    @property
    def full_metric(self) -> bool:
        """Whether matrices are approximated for the outputs, in the metric of the full Gram matrix.

        Only then a bias makes up for the mean of what is lost. The other methods stay what their papers define.
        """
        full_forms = ("interpolative", "modular", "modules", "learned", "auto")
        return self.form in full_forms or self.link == "full" or self.approximation == "svd_llm"

    @property
    def mixes_targets(self) -> bool:
        """Whether factors make up for a share of what the compressed blocks before theirs have lost.

        With the sequential rule, where matrices are factorized one by one in the full metric.
        """
        return self.sequential and self.full_metric and self.form in ("cur", *_APPROXIMATIONS)

    def to_json(self) -> dict[str, Any]:
        """Return the options as plain JSON, without anything that names this machine."""
        values = asdict(self)
        values["targets"] = list(self.targets)
        values["quantization"] = None if self.quantization is None else self.quantization.to_json()
        if self.calibration.source != BUILTIN:
            values["calibration"]["source"] = Path(self.calibration.source).name
        return values


def arithmetic_of(target: str, dtype: str | None, quantization: Quantization | None) -> str:
    """Return what the fused graph computes in for a target.

    Raises:
        InputError: An unknown target, or one that cannot have this dtype or quantised weights.
    """
    one_of("--target", target, TARGETS)
    if target == "cpu":
        return "float32"
    if dtype not in (None, "float16"):
        raise InputError(f"--target cuda: its graph computes in float16, not {dtype}; leave --dtype out")
    if quantization is not None:
        raise InputError("--target cuda: computes with float16 weights; --quantize is for --target cpu")
    return "float16"


def parse_targets(text: str) -> tuple[str, ...]:
    """Parse `all` or a comma-separated list of linears; order and repetition do not matter."""
    if text.strip() == "all":
        return LINEARS
    names = {part.strip() for part in text.split(",") if part.strip()}
    unknown = sorted(names - set(LINEARS))
    if unknown:
        raise InputError(
            f"--targets: {', '.join(unknown)} matches nothing; expected all, or some of {', '.join(LINEARS)}"
        )
    return tuple(name for name in LINEARS if name in names)
