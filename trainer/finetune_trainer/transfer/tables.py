"""Parquet files of artifacts, which anyone may have written: the number of rows and the decoded size are bounded."""

from __future__ import annotations

import io
from typing import Any

MOST_ROWS = 20_000_000
"""Of all models together. A few bytes can claim any number."""
MOST_BYTES = 4 << 30
"""Decoded, up to one batch more."""
_AT_ONCE = 256
"""Rows: what is decoded before the size is known."""


def read_table(content: bytes) -> Any:
    """pyarrow.Table with the schema's metadata. ValueError for a file that is too large or damaged."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(io.BytesIO(content))
        if file.metadata.num_rows > MOST_ROWS:
            raise ValueError(f"it has {file.metadata.num_rows:,} rows, and at most {MOST_ROWS:,} are read")
        batches, size = [], 0
        for batch in file.iter_batches(_AT_ONCE, use_threads=False):
            batches.append(batch)
            size += batch.nbytes
            if size > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES:,} bytes, which is the most that is read")
        return pyarrow.Table.from_batches(batches, file.schema_arrow)
    except (pyarrow.ArrowException, OSError) as error:  # OSError: damaged pages
        raise ValueError(str(error)) from error
