"""Registers the forms in which a matrix can be stored: which tensors, of which shapes, and how they multiply.

Each module here has one form, or several similar forms; `form.py` defines what a form must state.
"""

from __future__ import annotations

from curconvert_runtime.format.forms import cur, dense, interpolative, parts, two_factor
from curconvert_runtime.format.forms.form import Form

FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        dense.FORM, cur.FORM, interpolative.FORM, two_factor.FORM,
        parts.MODULAR_ROWS, parts.MODULAR_COLUMNS, parts.SPARSE_ROWS, parts.SPARSE_COLUMNS,
    )
}  # fmt: skip
"""All forms by name."""


def form_of(name: str) -> Form:
    """Return the form of a name.

    Raises:
        ValueError: Unknown name; the message lists the compressed forms.
    """
    if name not in FORMS:
        compressed = ", ".join(form.name for form in FORMS.values() if form.is_compressed)
        raise ValueError(f"form {name!r}: expected one of {compressed}")
    return FORMS[name]
