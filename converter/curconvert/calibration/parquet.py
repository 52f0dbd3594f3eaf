"""Reads rows of a parquet file, if pyarrow is installed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from curconvert.base.errors import BackendError, InputError

_ROWS = 256  # rows that are decoded at a time


def parquet_rows(path: Path, columns: Collection[str], limit: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the location (for messages) and the values of each row.

    Args:
        path: A parquet file.
        columns: Columns to read; those that the file lacks are left out.
        limit: Maximum size of these columns in memory, in bytes.

    Raises:
        BackendError: pyarrow is not installed.
        InputError: The file is malformed or too large, or it has none of the columns.
    """
    try:
        import pyarrow  # noqa: PLC0415 - optional
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        raise BackendError(
            f"{path}: reading parquet needs pyarrow; run: pip install pyarrow, or give the text as .jsonl"
        ) from None
    read, number = 0, 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = [name for name in dict.fromkeys(columns) if name in names]
            if not wanted:
                raise InputError(
                    f"{path}: no column {' or '.join(dict.fromkeys(columns))} (columns: {', '.join(names)})"
                )
            for batch in file.iter_batches(batch_size=_ROWS, columns=wanted):
                read += batch.nbytes
                if read > limit:
                    raise InputError(f"{path}: over {limit >> 20} MiB of calibration text; give a smaller sample")
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file: {' '.join(str(error).split())}") from error
