"""Pooled features of images in a Parquet file, for search and for finding near-duplicates, in constant memory."""

import hashlib
import heapq
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Features, List, Value
from PIL import Image, ImageOps
from pyarrow import parquet
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf.data.images import find_bad_images, list_images
from seedling_hf.data.transforms import build_eval_transform, to_rgb
from seedling_hf.errors import InputError
from seedling_hf.files import replacing, temporary_path

METADATA_KEY = b"seedling_hf"
ROWS_OF_A_PART = 4096


class ImageStream(IterableDataset):
    """Batches of images as they are found in folders, none of them held: for a `DataLoader` of `batch_size=None`.

    Each worker walks the folders and takes its share of the batches, in an order that does not depend on their number.

    Yields:
        Files, their `pixel_values` (N, 3, H, W) or None, and the bad images of the batch with their reasons.

    Args:
        paths: Images, and folders that are searched for images.
        image_processor: What the images go through.
        batch_size: Images in a batch, the bad ones among them.
    """

    def __init__(self, paths: Sequence[str], image_processor: BaseImageProcessor, batch_size: int) -> None:
        self.paths, self.batch_size = paths, batch_size
        self.transform = build_eval_transform(image_processor)

    def __iter__(self) -> Iterator[tuple[list[str], Tensor | None, list[tuple[str, str]]]]:
        worker = get_worker_info()
        share, number = (worker.id, worker.num_workers) if worker else (0, 1)
        batch = []
        for i, file in enumerate(list_images(self.paths)):
            if i // self.batch_size % number == share:
                batch.append(file)
            if len(batch) == self.batch_size:
                yield self._load(batch)
                batch = []
        if batch:
            yield self._load(batch)

    def _load(self, batch: list[Path]) -> tuple[list[str], Tensor | None, list[tuple[str, str]]]:
        files, images, bad = [], [], []
        for file in batch:
            try:
                images.append(self._open(file))
                files.append(str(file))
            except Exception:  # decoders of damaged files raise whatever they stumble over
                reasons = list(find_bad_images([file]))
                if not reasons:
                    raise
                bad.append((str(file), reasons[0][1]))
        return files, torch.stack(images) if images else None, bad

    def _open(self, file: Path) -> Tensor:
        with Image.open(file) as image:  # as `datasets` decodes it
            return self.transform(to_rgb(ImageOps.exif_transpose(image)))


def hash_weights(model: PreTrainedModel) -> str:
    """SHA-256 of the names and the values of a model's weights: of one model before merging it is always the same."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def embed_batch(model: PreTrainedModel, pixel_values: Tensor, accelerator: Accelerator, *, normalize: bool) -> Tensor:
    """The pooled features (N, C) of images in float32 on the CPU, of length 1 if `normalize`.

    Raises:
        InputError: for a model that has no pooled features.
    """
    backbone = getattr(model, model.base_model_prefix, None)
    with accelerator.autocast():
        outputs = backbone(pixel_values.to(accelerator.device)) if isinstance(backbone, PreTrainedModel) else {}
    if outputs.get("pooler_output") is None:
        raise InputError(
            f"expected a model with pooled features (pooler_output), found a {type(model).__name__}; use a RepLKNet"
        )
    features = outputs["pooler_output"].flatten(1).float().cpu()
    return torch.nn.functional.normalize(features, dim=1) if normalize else features


def find_class_names(paths: Sequence[str]) -> list[str]:
    """The class folders, sorted, if `paths` is one folder of folders with no folder inside; otherwise none."""
    if len(paths) != 1 or not Path(paths[0]).is_dir():
        return []
    inside = [entry for entry in os.scandir(paths[0]) if entry.is_dir() and not entry.name.startswith(".")]
    deeper = any(child.is_dir() for entry in inside for child in os.scandir(entry))
    return [] if deeper else sorted(entry.name for entry in inside)


def write_embeddings(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    paths: Sequence[str],
    embeddings_file: str | os.PathLike,
    accelerator: Accelerator,
    *,
    weights_hash: str,
    batch_size: int,
    num_workers: int = 0,
    normalize: bool = False,
    skip_bad_images: bool = False,
) -> tuple[int, list[tuple[str, str]]]:
    """Writes the features of images as Parquet for `datasets`, batch by batch, whole or not at all.

    Columns: `file`; `label`, if the images are in class folders; `embedding`, a list of float32 of fixed length.

    Args:
        model: Classifier on the accelerator's device, in evaluation mode.
        image_processor: What the images go through.
        paths: Images, and folders that are searched for images.
        embeddings_file: The Parquet file.
        accelerator: Says precision and device.
        weights_hash: Of `hash_weights`; kept in the file, so that it is searched with the same model only.
        batch_size: Images in a batch.
        num_workers: Processes that load images.
        normalize: Give every embedding the length 1.
        skip_bad_images: Leave out what cannot be decoded.

    Returns:
        How many images were written, and those left out, with reasons.

    Raises:
        InputError: for an image that cannot be decoded, unless it may be left out, or where there are none.
    """
    class_names = find_class_names(paths)
    stream = ImageStream(paths, image_processor, batch_size)
    loader = DataLoader(stream, batch_size=None, num_workers=num_workers)
    written, left_out, path = 0, [], Path(embeddings_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as temporary, ExitStack() as stack:
            writer = None
            for files, pixel_values, bad in loader:
                if bad and not skip_bad_images:
                    raise InputError(
                        f"expected images that can be decoded, found {bad[0][0]} ({bad[0][1]}); remove it, or leave "
                        "out such images by --skip_bad_images"
                    )
                left_out += bad
                if not files:
                    continue
                embeddings = embed_batch(model, pixel_values, accelerator, normalize=normalize)
                if writer is None:
                    schema = _schema(class_names, embeddings.shape[1], weights_hash, normalize)
                    writer = stack.enter_context(_RowGroups(temporary, schema))
                writer.write(_table(files, embeddings.numpy(), paths[0], class_names, schema))
                written += len(files)
            if writer is None:
                raise InputError(f"expected images that can be decoded in {', '.join(paths)}, found none")
    except BaseException:
        temporary_path(path).unlink(missing_ok=True)
        raise
    return written, left_out


def embed_image(
    model: PreTrainedModel, image_processor: BaseImageProcessor, file: str, accelerator: Accelerator
) -> np.ndarray:
    """The pooled features (C,) of one image.

    Raises:
        InputError: if it cannot be decoded.
    """
    _, pixel_values, bad = next(iter(ImageStream([file], image_processor, 1)))
    if bad:
        raise InputError(f"expected an image that can be decoded, found {file} ({bad[0][1]})")
    return embed_batch(model, pixel_values, accelerator, normalize=False)[0].numpy()


def check_embeddings(embeddings_file: str | os.PathLike, weights_hash: str | None = None) -> None:
    """Refuses a file that `write_embeddings` did not write, or wrote with another model.

    Raises:
        InputError: says which.
    """
    try:
        metadata = parquet.read_schema(embeddings_file).metadata or {}
    except (OSError, pa.ArrowInvalid) as error:
        found = "nothing there" if isinstance(error, FileNotFoundError) else "something else"
        raise InputError(
            f"expected embeddings at {embeddings_file}, found {found}; write them by --images FOLDER"
        ) from error
    if METADATA_KEY not in metadata:
        raise InputError(f"expected embeddings that `embed` wrote in {embeddings_file}, found another Parquet file")
    if weights_hash not in (None, json.loads(metadata[METADATA_KEY])["weights_sha256"]):
        raise InputError(
            f"expected {embeddings_file} to be of the same model, found it written with other weights; write it anew "
            "with this model"
        )


def find_nearest(embeddings_file: str | os.PathLike, query: np.ndarray, top_k: int) -> list[dict[str, Any]]:
    """The images whose embeddings are most like `query` (C,), by cosine similarity, the most alike first.

    The file is read part by part. Equal similarities stay in the file's order.

    Returns:
        For each `file`, `similarity` (-1 to 1), and `label` (the class's name or None) if the file has labels.
    """
    check_embeddings(embeddings_file)
    with parquet.ParquetFile(embeddings_file) as file:
        label_feature = Features.from_arrow_schema(file.schema_arrow).get("label")
        best, position = [], 0
        for batch in file.iter_batches(batch_size=ROWS_OF_A_PART):
            embeddings = batch["embedding"].flatten().to_numpy().reshape(len(batch), -1)
            similarities = _cosine(embeddings, query)
            for i in np.argsort(-similarities, kind="stable")[:top_k]:
                row = {"file": batch["file"][i].as_py(), "similarity": float(similarities[i])}
                if label_feature is not None:
                    number = batch["label"][i].as_py()
                    row["label"] = None if number is None else label_feature.int2str(number)
                best.append((row["similarity"], -(position + int(i)), row))
            best = heapq.nlargest(top_k, best)
            position += len(batch)
    return [row for _, _, row in best]


def format_nearest(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `find_nearest` for a terminal."""
    width = max(len(row["file"]) for row in rows)
    return "\n".join(
        f"{row['similarity']:.4f}  {row['file']:<{width}}  {row.get('label') or ''}".rstrip() for row in rows
    )


def _cosine(embeddings: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Cosines (N,) of embeddings (N, C) and a query (C,), in float64; a length of 0 gives 0."""
    embeddings, query = embeddings.astype(np.float64), query.astype(np.float64)
    lengths = np.linalg.norm(embeddings, axis=1) * np.linalg.norm(query)
    return np.divide(embeddings @ query, lengths, out=np.zeros(len(embeddings)), where=lengths > 0)


class _RowGroups:
    """Gathers batches into parts of some thousand rows: a file of many small parts is large and slow to open."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.writer, self.tables = parquet.ParquetWriter(path, schema), []

    def __enter__(self) -> "_RowGroups":
        return self

    def write(self, table: pa.Table) -> None:
        self.tables.append(table)
        if sum(map(len, self.tables)) >= ROWS_OF_A_PART:
            self._flush()

    def _flush(self) -> None:
        if self.tables:
            self.writer.write_table(pa.concat_tables(self.tables))
            self.tables = []

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self.writer.close()


def _schema(class_names: Sequence[str], length: int, weights_hash: str, normalize: bool) -> pa.Schema:
    """The columns with what `datasets` and `check_embeddings` read of them."""
    label = {"label": ClassLabel(names=list(class_names))} if class_names else {}
    features = Features({"file": Value("string"), **label, "embedding": List(Value("float32"), length=length)})
    about = json.dumps({"weights_sha256": weights_hash, "normalize": normalize})
    schema = features.arrow_schema
    return schema.with_metadata({**schema.metadata, METADATA_KEY: about.encode()})


def _table(
    files: Sequence[str], embeddings: np.ndarray, root: str, class_names: Sequence[str], schema: pa.Schema
) -> pa.Table:
    """Rows of a batch; an image beside the class folders has no label."""
    folders = {Path(root, name): number for number, name in enumerate(class_names)}
    flat = pa.array(embeddings.reshape(-1))
    columns = {
        "file": files,
        "label": [folders.get(Path(file).parent) for file in files],
        "embedding": pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1]),
    }
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)
