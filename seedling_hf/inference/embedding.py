"""Pooled features of images in a Parquet file, for search and for finding near-duplicates, in constant memory."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Features, List, Value
from pyarrow import parquet
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf.data.listing import MISNAMED, is_utf8, list_images
from seedling_hf.data.loading import Loader
from seedling_hf.errors import InputError
from seedling_hf.escaping import one_line
from seedling_hf.files import replacing
from seedling_hf.inference.answers import Answer
from seedling_hf.inference.batch_memory import EVAL_ADVICE, check_memory, image_side
from seedling_hf.inference.journal import prepare
from seedling_hf.inference.nearest import METADATA_KEY
from seedling_hf.inference.prediction import forward
from seedling_hf.inference.predictor import ImageLoader
from seedling_hf.progress import Progress

ROWS_OF_A_GROUP = 4096


def hash_weights(model: PreTrainedModel) -> str:
    """SHA-256 of the names and values of a model's weights, which stays the same until the model is merged."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def embed_batch(model: PreTrainedModel, pixel_values: Tensor, accelerator: Accelerator) -> Tensor:
    """The pooled features (N, C) of `pixel_values` (N, 3, H, W), in float32 on the CPU.

    Raises:
        InputError: for a model that has no pooled features.
    """
    backbone = getattr(model, model.base_model_prefix, None)
    is_model = isinstance(backbone, PreTrainedModel)
    outputs = forward(backbone, pixel_values, accelerator.autocast) if is_model else {}
    if outputs.get("pooler_output") is None:
        raise InputError(
            f"expected a model with pooled features (pooler_output), found a {type(model).__name__}; use a RepLKNet"
        )
    return outputs["pooler_output"].flatten(1).float().cpu()


def embed_image(
    model: PreTrainedModel, image_processor: BaseImageProcessor, file: str, accelerator: Accelerator
) -> np.ndarray:
    """The pooled features (C,) of one image.

    Raises:
        InputError: if it cannot be decoded.
    """
    pixel_values = ImageLoader(image_processor)(file)
    if isinstance(pixel_values, str):
        raise InputError(f"expected an image that can be decoded, found {file} ({pixel_values})")
    return embed_batch(model, pixel_values[None], accelerator)[0].numpy()


def find_class_names(paths: Sequence[str]) -> list[str]:
    """The class folders, sorted, if `paths` is one folder of folders with no folder inside; otherwise none."""
    if len(paths) != 1 or not Path(paths[0]).is_dir():
        return []
    inside = [entry for entry in os.scandir(paths[0]) if entry.is_dir() and not entry.name.startswith(".")]
    inside = [entry for entry in inside if is_utf8(entry.name)]
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
    num_workers: int,
    normalize: bool,
    skip_bad_images: bool,
) -> tuple[int, list[Answer]]:
    """Writes the features of images as Parquet for `datasets`, batch by batch, whole or not at all.

    Columns: `file`; `label`, if the images are in class folders; `embedding`, a list of float32 of fixed length.

    Args:
        model: Classifier on the accelerator's device, in evaluation mode.
        paths: Images, or folders that are searched for images; a single folder of class folders gives labels.
        weights_hash: Of `hash_weights`; kept in the file, so that it is searched with the same model only.
        normalize: Give every embedding the length 1.

    Returns:
        How many images were written, and those that failed, with reasons.

    Raises:
        InputError: for an image that cannot be decoded, unless it may be skipped, or where there are none.
    """
    embedder = _Embedder(model, accelerator, normalize=normalize, skip_bad_images=skip_bad_images)
    with TemporaryDirectory(prefix="embed-") as folder, replacing(embeddings_file) as temporary:
        # The list of images is on the disk, since there may be millions.
        named = embedder.list_named(paths)
        journal = prepare(Path(folder), named, identity={}, batch_size=batch_size, num_parts=1)
        images = min(batch_size, journal.num_images)
        check_memory(model, images, image_side(image_processor), EVAL_ADVICE)
        load_batch = ImageLoader(image_processor).load_batch
        about = {"weights_sha256": weights_hash, "normalize": normalize}
        with (
            closing(Loader(journal, batch_size=None, collate_fn=load_batch, num_workers=num_workers)) as batches,
            Progress("embedding", journal.num_images) as progress,
        ):
            count = _write_parquet(temporary, embedder.embed(batches, progress), paths, about)
        if count == 0:
            raise InputError(f"expected images that can be decoded in {', '.join(paths)}, found none")
    return count, embedder.failed


class _Embedder:
    """Files in, features out; what has none is kept in `failed`, or refused at once."""

    def __init__(
        self, model: PreTrainedModel, accelerator: Accelerator, *, normalize: bool, skip_bad_images: bool
    ) -> None:
        self.model, self.accelerator = model, accelerator
        self.normalize, self.skip_bad_images = normalize, skip_bad_images
        self.failed: list[Answer] = []

    def list_named(self, paths: Sequence[str]) -> Iterator[str]:
        """The images in `paths` whose names Parquet can hold."""
        for path in list_images(paths):
            if is_utf8(path):
                yield str(path)
            else:
                self._fail(str(path), MISNAMED)

    def embed(self, batches: Loader, progress: Progress) -> Iterator[tuple[list[str], Tensor]]:
        """The decoded files of each of the batches of an `ImageLoader`, and their features (N, C) in float32."""
        for batch in batches:
            rows = list(zip(batch["file"], batch["reason"], strict=True))
            progress.update(len(rows))
            for file, reason in rows:
                if reason is not None:
                    self._fail(file, reason)
            if files := [file for file, reason in rows if reason is None]:
                embeddings = embed_batch(self.model, batch["pixel_values"], self.accelerator)
                if self.normalize:  # in float64, since squares of large features are infinite in float32
                    embeddings = torch.nn.functional.normalize(embeddings.double(), dim=1).float()
                yield files, embeddings

    def _fail(self, file: str, reason: str) -> None:
        if not self.skip_bad_images:
            raise InputError(
                f"expected images that can be decoded, found {one_line(file)} ({reason}); remove it, or skip such "
                "images with --skip_bad_images"
            )
        self.failed.append(Answer(file, [], reason))


def _write_parquet(
    path: Path, batches: Iterator[tuple[list[str], Tensor]], paths: Sequence[str], about: dict[str, Any]
) -> int:
    """Writes files and their embeddings (N, C), labelled by the class folders of `paths`; returns how many."""
    first = next(batches, None)
    if first is None:
        return 0
    class_names = find_class_names(paths)
    label_of = {Path(paths[0], name): number for number, name in enumerate(class_names)}
    schema = _build_schema(class_names, first[1].shape[1], about)
    count, tables = 0, []
    with parquet.ParquetWriter(path, schema, write_page_checksum=True) as writer:
        for files, embeddings in chain([first], batches):
            columns = {
                "file": files,
                "label": [label_of.get(Path(file).parent) for file in files],  # none beside the class folders
                "embedding": pa.FixedSizeListArray.from_arrays(embeddings.numpy().reshape(-1), embeddings.shape[1]),
            }
            tables.append(pa.table({name: columns[name] for name in schema.names}, schema=schema))
            count += len(files)
            # A file of many small row groups is large and slow to open.
            if sum(map(len, tables)) >= ROWS_OF_A_GROUP:
                writer.write_table(pa.concat_tables(tables))
                tables = []
        if tables:
            writer.write_table(pa.concat_tables(tables))
    return count


def _build_schema(class_names: list[str], length: int, about: dict[str, Any]) -> pa.Schema:
    """The columns with what `datasets` and `check_embeddings` read of them."""
    label = {"label": ClassLabel(names=class_names)} if class_names else {}
    features = Features({"file": Value("string"), **label, "embedding": List(Value("float32"), length=length)})
    schema = features.arrow_schema
    return schema.with_metadata({**schema.metadata, METADATA_KEY: json.dumps(about).encode()})
