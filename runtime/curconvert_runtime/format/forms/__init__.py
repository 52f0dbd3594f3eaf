"""The forms in which a matrix can be stored: which tensors, of which shapes, and how they multiply.

Each module here is one form, or some of one kind; `form.py` says what an entry is.
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
"""Every form by its name."""


def form_of(name: str) -> Form:
    """Return the entry of a form.

    Raises:
        ValueError: There is none; the message lists those that make something of a matrix.
    """
    if name not in FORMS:
        compressed = ", ".join(form.name for form in FORMS.values() if form.is_compressed)
        raise ValueError(f"form {name!r}: expected one of {compressed}")
    return FORMS[name]
