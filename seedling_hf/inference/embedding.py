"""Pooled features of images in a Parquet file, for search and for finding near-duplicates, in constant memory."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Features, List, Value
from pyarrow import parquet
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf.data.images import list_images
from seedling_hf.errors import InputError
from seedling_hf.files import replacing
from seedling_hf.inference.answers import Answer
from seedling_hf.inference.journal import prepare
from seedling_hf.inference.nearest import METADATA_KEY
from seedling_hf.inference.prediction import forward
from seedling_hf.inference.predictor import ImageLoader

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
    failed, path = [], Path(embeddings_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(prefix="embed-") as folder,
        replacing(path) as temporary,
        EmbeddingsWriter(temporary, paths, weights_hash, normalize) as writer,
    ):
        # The list of images is on the disk, since there may be millions.
        journal = prepare(Path(folder), map(str, list_images(paths)), identity={}, batch_size=batch_size, num_parts=1)
        load_batch = ImageLoader(image_processor).load_batch
        for batch in DataLoader(journal, batch_size=None, collate_fn=load_batch, num_workers=num_workers):
            rows = list(zip(batch["file"], batch["reason"], strict=True))
            failed += [Answer(file, [], reason) for file, reason in rows if reason is not None]
            if failed and not skip_bad_images:
                raise InputError(
                    f"expected images that can be decoded, found {failed[0].file} ({failed[0].reason}); remove it, or "
                    "skip such images with --skip_bad_images"
                )
            if files := [file for file, reason in rows if reason is None]:
                writer.write(files, embed_batch(model, batch["pixel_values"], accelerator))
        if writer.count == 0:
            raise InputError(f"expected images that can be decoded in {', '.join(paths)}, found none")
    return writer.count, failed


class EmbeddingsWriter:
    """Writes batches in row groups of some thousand rows: a file of many small ones is large and slow to open.

    See `write_embeddings`; `count` is the number of rows so far.
    """

    def __init__(self, path: Path, paths: Sequence[str], weights_hash: str, normalize: bool) -> None:
        self.path, self.normalize, self.count = path, normalize, 0
        self.about = {"weights_sha256": weights_hash, "normalize": normalize}
        self.class_names = find_class_names(paths)
        self.label_of = {Path(paths[0], name): number for number, name in enumerate(self.class_names)}
        self.tables: list[pa.Table] = []
        self.opened = ExitStack()

    def __enter__(self) -> Self:
        return self

    def write(self, files: Sequence[str], embeddings: Tensor) -> None:
        """Adds rows; an image beside the class folders has no label."""
        if self.count == 0:
            self.schema = self._schema(embeddings.shape[1])
            self.writer = self.opened.enter_context(parquet.ParquetWriter(self.path, self.schema))
        if self.normalize:
            embeddings = torch.nn.functional.normalize(embeddings, dim=1)
        columns = {
            "file": files,
            "label": [self.label_of.get(Path(file).parent) for file in files],
            "embedding": pa.FixedSizeListArray.from_arrays(
                pa.array(embeddings.numpy().reshape(-1)), embeddings.shape[1]
            ),
        }
        self.tables.append(pa.table({name: columns[name] for name in self.schema.names}, schema=self.schema))
        self.count += len(files)
        if sum(map(len, self.tables)) >= ROWS_OF_A_GROUP:
            self._flush()

    def __exit__(self, kind: type | None, *_: object) -> None:
        with self.opened:
            if kind is None:
                self._flush()

    def _flush(self) -> None:
        if self.tables:
            self.writer.write_table(pa.concat_tables(self.tables))
            self.tables = []

    def _schema(self, length: int) -> pa.Schema:
        """The columns with what `datasets` and `check_embeddings` read of them."""
        label = {"label": ClassLabel(names=self.class_names)} if self.class_names else {}
        features = Features({"file": Value("string"), **label, "embedding": List(Value("float32"), length=length)})
        schema = features.arrow_schema
        return schema.with_metadata({**schema.metadata, METADATA_KEY: json.dumps(self.about).encode()})
