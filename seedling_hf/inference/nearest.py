"""Search in a file of embeddings: the images whose features are most alike, in constant memory."""

import heapq
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features
from pyarrow import parquet

from seedling_hf.errors import InputError
from seedling_hf.escaping import one_line, pad, width_of
from seedling_hf.origin import SOFTWARE

METADATA_KEY = SOFTWARE.encode()
ROWS_AT_ONCE = 4096


def check_embeddings(embeddings_file: str | os.PathLike, weights_hash: str | None = None) -> None:
    """Refuses a file that `write_embeddings` did not write, or wrote with another model.

    Raises:
        InputError: says which.
    """
    if not Path(embeddings_file).is_file():
        found = "something else" if Path(embeddings_file).exists() else "nothing there"
        raise InputError(f"expected embeddings at {embeddings_file}, found {found}; write them with --images FOLDER")
    with _explaining_damage(embeddings_file):
        metadata = parquet.read_schema(embeddings_file).metadata or {}
        if METADATA_KEY not in metadata:
            raise InputError(f"expected embeddings that `embed` wrote in {embeddings_file}, found another Parquet file")
        found_hash = json.loads(metadata[METADATA_KEY])["weights_sha256"]
    if weights_hash not in (None, found_hash):
        raise InputError(
            f"expected {embeddings_file} to be of the same model, found it written with other weights; write it again "
            "with this model"
        )


def find_nearest(embeddings_file: str | os.PathLike, query: np.ndarray, top_k: int) -> list[dict[str, Any]]:
    """The images whose embeddings have the largest cosine similarity to `query` (C,), the most alike first.

    Equal similarities stay in the file's order.

    Returns:
        For each `file`, `similarity` (-1 to 1), and `label` (the class's name or None) if the file has labels.
    """
    check_embeddings(embeddings_file)
    reading = parquet.ParquetFile(embeddings_file, page_checksum_verification=True)
    with _explaining_damage(embeddings_file), reading as file:
        label_feature = Features.from_arrow_schema(file.schema_arrow).get("label")
        best, position = [], 0
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
            similarities = _cosine(batch["embedding"].flatten().to_numpy().reshape(len(batch), -1), query)
            if not np.isfinite(similarities).all():
                raise ValueError("features that are NaN or infinite")
            for i in np.argsort(-similarities, kind="stable")[:top_k]:
                row = {"file": batch["file"][i].as_py(), "similarity": float(similarities[i])}
                if label_feature is not None:
                    number = batch["label"][i].as_py()
                    row["label"] = None if number is None else label_feature.int2str(number)
                best.append((row["similarity"], -(position + int(i)), row))
            best = heapq.nlargest(top_k, best)
            position += len(batch)
    return [row for _, _, row in best]


@contextmanager
def _explaining_damage(embeddings_file: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"expected embeddings that `embed` wrote in {embeddings_file}, found something else or a damaged file "
            f"({' '.join(str(error).split())[:200]}); write them again with --images FOLDER"
        ) from error


def format_nearest(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `find_nearest` for a terminal."""
    files = [one_line(row["file"]) for row in rows]
    width = max(map(width_of, files))
    return "\n".join(
        f"{row['similarity']:.4f}  {pad(file, width)}  {one_line(row.get('label') or '')}".rstrip()
        for file, row in zip(files, rows, strict=True)
    )


def _cosine(embeddings: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Cosines (N,) of embeddings (N, C) and a query (C,), in float64; a length of 0 gives 0."""
    embeddings, query = embeddings.astype(np.float64), query.astype(np.float64)
    lengths = np.linalg.norm(embeddings, axis=1) * np.linalg.norm(query)
    return np.divide(embeddings @ query, lengths, out=np.zeros(len(embeddings)), where=lengths != 0)
