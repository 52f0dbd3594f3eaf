"""Options of a conversion, for the command line and the Python API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curconvert.base.errors import InputError
from curconvert.base.names import CPU
from curconvert.methods.core.method import SIZES, Method, Needs
from curconvert.methods.core.registry import method_named, methods
from curconvert.options.calibration import BUILTIN
from curconvert.options.settings import Settings

if TYPE_CHECKING:
    from curconvert.checkpoint.types import Checkpoint

_WHOLE_SIZES = ("keep", "target_parameters", "target_bytes", "max_kl")


@dataclass(frozen=True)
class ConvertOptions(Settings):
    """All options that decide the result of a conversion.

    Make it with `ConvertOptions.for_method`, which sets the defaults of the method.

    Attributes:
        method: The method, with its own options.
    """

    method: Method = field(kw_only=True)

    @classmethod
    def for_method(cls, method: str | None = None, **values: Any) -> ConvertOptions:
        """Return the options of a method. A value of None means the default.

        Without a method it is `auto` if `values` has `keep`, `target_parameters`, `target_bytes` or `max_kl`, but
        neither `rank` nor `density`. Otherwise it is `cur`.

        Args:
            method: Name of the method.
            values: Options of the method, and settings such as `layers` and `calibration`.

        Raises:
            InputError: A value is wrong, or an option belongs to another method.
            TypeError: No method has such an option.
        """
        given = {name: value for name, value in values.items() if value is not None}
        if method is None:
            asked = [flag for size, flag in SIZES.items() if size in given]
            if len(asked) > 1:
                raise InputError(f"{' and '.join(asked)}: each is a size; give one of them")
            method = "auto" if given.keys() & set(_WHOLE_SIZES) and not given.keys() & {"rank", "density"} else "cur"
        entry = method_named(method)
        settings = {part.name for part in fields(Settings)}
        own = {name: value for name, value in given.items() if name not in settings}
        return cls(
            method=entry.of(_without_foreign(entry, own)),
            **{**entry.defaults, **{name: value for name, value in given.items() if name in settings}},
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.method.check(self)
        needs = self.needs
        if self.device != CPU and (needs.gradients or needs.resident or self.self_text):
            raise InputError(
                f"--device {self.device}: --method auto, soco, fwsvd, --bits-per-weight and --self-text run on the "
                "CPU only"
            )
        if self.method.sizes_whole and (self.layers != "all" or self.sequential):
            raise InputError(
                f"--layers and --sequential: --method {self.method.name} chooses among all layers; leave them out"
            )

    @property
    def needs(self) -> Needs:
        """What to measure on the original, for the method and for mixed quantization."""
        return self.method.needs | Needs(fisher_rows=self.mixes_bits, statistics=self.mixes_bits)

    @property
    def compares_inputs(self) -> bool:
        """Whether factors also correct a share of the error of earlier compressed blocks."""
        return self.sequential and self.method.compares_inputs

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON, without paths of this machine."""
        values: dict[str, Any] = {part.name: getattr(self, part.name) for part in fields(Settings)}
        values["targets"] = list(self.targets)
        values["quantization"] = None if self.quantization is None else self.quantization.to_json()
        values["calibration"] = asdict(self.calibration)
        if self.calibration.source != BUILTIN:
            values["calibration"]["source"] = Path(self.calibration.source).name
        # The method comes first: when two conversions differ, the first different entry is reported.
        return {"method": self.method.name, **_absent(), **values, **self.method.record()}


def options_for_size(checkpoint: Checkpoint, method: str, target: int, **values: Any) -> ConvertOptions:
    """Return a method's options for a size of the whole model, so that methods can be compared.

    Args:
        checkpoint: The opened model.
        method: Name of a method.
        target: Parameters of the whole model.
        values: Further options.

    Raises:
        InputError: The method cannot make the model that small.
    """
    return ConvertOptions.for_method(method, **method_named(method).for_size(checkpoint, target), **values)


def _without_foreign(entry: type[Method], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's own options; reject those of other methods, except flags that are not set."""
    own = {part.name for part in fields(entry)}
    found = {}
    for name, value in values.items():
        if name in own or name in SIZES:
            found[name] = value
        elif value is not False:
            flag, owners = _owners(name)
            shown = f"{flag} {value}" if value is not True else flag
            raise InputError(f"{shown}: belongs to --method {' and '.join(owners)}, not to {entry.name}")
    return found


def _owners(name: str) -> tuple[str, list[str]]:
    """Return the flag of an option, and the names of its methods."""
    parts = {method.name: part for method in methods().values() for part in fields(method) if part.name == name}
    if not parts:
        raise TypeError(f"{name!r} is not an option of a conversion")
    return next(iter(parts.values())).metadata["flag"], list(parts)


def _absent() -> dict[str, Any]:
    """Return every method's options with the values that are recorded for other methods."""
    parts = [part for method in methods().values() for part in fields(method)]
    return {
        **dict.fromkeys(SIZES), "form": None, "approximation": None,
        **{part.name: False if isinstance(part.default, bool) else None for part in parts},
    }  # fmt: skip
