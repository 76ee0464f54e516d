"""A model and images in, logits out: each image once, in order, on any number of processes."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor

from seedling_hf.data.images import to_rgb
from seedling_hf.data.loading import Loader
from seedling_hf.data.transforms import EvalTransform
from seedling_hf.errors import InputError, require_finite
from seedling_hf.inference.judgement import FamiliarOutput
from seedling_hf.inference.model_files import first_line
from seedling_hf.inference.waiting import WaitingTogether, deal
from seedling_hf.machine import has_bfloat16_instructions
from seedling_hf.progress import Progress

CHOICES_VARIABLE = "SEEDLING_HF_CONV_CHOICES"

T = TypeVar("T")

logger = logging.getLogger(__name__)


def build_accelerator(mixed_precision: str | None = None, timeout: int = 600, **kwargs: Any) -> Accelerator:
    """The `Accelerator` of every command, with several processes on a CPU too.

    Args:
        mixed_precision: `no`, `fp16` or `bf16`; None leaves the choice to `accelerate launch`.
        timeout: Seconds that processes wait for one that hangs.

    Raises:
        InputError: for fp16 on a CPU, which accelerate would accept and ignore, or choices that cannot be read.
    """
    _read_choices()
    cpu = not torch.accelerator.is_available()
    # Not by InitProcessGroupKwargs, which empties `os.environ` for a moment: threads of native libraries may read it.
    PartialState(cpu=cpu, timeout=timedelta(seconds=timeout))
    accelerator = Accelerator(cpu=cpu, mixed_precision=mixed_precision, **kwargs)
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("expected a GPU for --mixed_precision fp16, found a CPU only; use bf16 or no")
    is_slow = accelerator.mixed_precision == "bf16" and accelerator.device.type == "cpu"
    if is_slow and not has_bfloat16_instructions():
        logger.warning(
            "this CPU has no instructions for bfloat16 (AVX512_BF16 or AMX): bf16 takes about five times as long as "
            "float32 here; use --mixed_precision no"
        )
    return accelerator


def _read_choices() -> None:
    """Takes the choices of the large convolution from the file of the environment variable, if there is one already."""
    path = os.environ.get(CHOICES_VARIABLE)
    if not path or not os.path.lexists(path):
        return
    from seedling_hf.replknet.large_kernel_conv import load_choices

    try:
        load_choices(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"expected choices of the large convolution in {path}, which {CHOICES_VARIABLE} names, found "
            f"{first_line(error)}; delete the file, and train writes it again"
        ) from error


def on_main_process(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """The result of `work` on the main process, for all processes; an `InputError` is raised on all of them."""
    result: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            result[0] = work()
        except InputError as error:
            result[1] = str(error)
    broadcast_object_list(result)
    if result[1] is not None:
        raise InputError(result[1])
    return result[0]


class InferenceTransform:
    """Makes `pixel_values` and `index` of the rows of a dataset, labelled or not, for `Dataset.with_transform`."""

    def __init__(self, image_processor: BaseImageProcessor) -> None:
        self.transform = EvalTransform(image_processor)

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"pixel_values": [self.transform(to_rgb(image)) for image in rows["image"]], "index": rows["index"]}


def collate_numbered(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """`pixel_values` (N, C, H, W) and `index` (N,); PyTorch's own collation needs /dev/shm."""
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "index": torch.tensor([example["index"] for example in examples]),
    }


def build_dataloader(
    dataset: Dataset,
    image_processor: BaseImageProcessor,
    accelerator: Accelerator,
    *,
    batch_size: int,
    num_workers: int,
    transform: Callable[..., Any] | None = None,
) -> DataLoader:
    """Batches of a dataset's images as the image processor gives them, distributed among the processes.

    Args:
        dataset: Columns `image` and `index`.
        batch_size, num_workers: Of each process.
        transform: Makes `pixel_values` and `index` of rows, in place of the image processor.
    """
    loader = Loader(
        dataset.with_transform(transform or InferenceTransform(image_processor)),
        num_workers=num_workers,
        collate_fn=collate_numbered,
        waiting=WaitingTogether(accelerator),
        batch_size=batch_size,
        pin_memory=accelerator.device.type == "cuda",
    )
    return deal(loader, accelerator)


def forward(
    model: torch.nn.Module, pixel_values: Tensor, autocast: Callable[[], AbstractContextManager] = nullcontext
) -> Any:
    """The outputs of a model for `pixel_values` (N, C, H, W), moved to its device, without gradients.

    The model is in evaluation mode; `autocast` is that of an accelerator, for its precision.

    Raises:
        NonFiniteError: for logits or features that are not finite, of which no probability or distance can be written.
    """
    outputs = _compute(model, pixel_values, autocast)
    for name in ("logits", "unfamiliarity", "pooler_output"):
        if (values := getattr(outputs, name, None)) is not None:
            require_finite(values, name, model)
    return outputs


def _compute(model: torch.nn.Module, pixel_values: Tensor, autocast: Callable[[], AbstractContextManager]) -> Any:
    with torch.inference_mode(), autocast():
        return model(pixel_values=pixel_values.to(next(model.parameters()).device))


def predict_batches(
    model: torch.nn.Module, dataloader: DataLoader, accelerator: Accelerator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Predicts the batches of all processes in evaluation mode and in the accelerator's precision.

    Args:
        model: Gives `logits` for `pixel_values`; on the accelerator's device. It keeps its own mode.
        dataloader: Prepared by the accelerator; its batches have `pixel_values` and `index`.

    Yields:
        Logits (N, C) in float32 and index (N,), both on the CPU and the same on every process.

    Raises:
        NonFiniteError: on every process, for logits that are not finite.
    """
    was_training = model.training
    model.eval()
    try:
        with Progress("classifying", len(dataloader.dataset)) as progress:
            for batch in dataloader:
                logits = _compute(model, batch["pixel_values"], accelerator.autocast).logits.float()
                logits, index = accelerator.gather_for_metrics((logits, batch["index"]))
                require_finite(logits, "logits", model)  # on every process, or the others would wait for this one
                progress.update(len(index))
                yield logits.cpu(), index.cpu()
    finally:
        model.train(was_training)


def predict(model: torch.nn.Module, dataloader: DataLoader, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """The logits of every example, in the order of their numbers; see `predict_batches`.

    Returns:
        Logits (N, C) in float32 and index (N,) in int64, on the CPU.

    Raises:
        RuntimeError: if not every example of the dataset came exactly once.
    """
    batches = list(predict_batches(model, dataloader, accelerator))
    if not batches:
        raise RuntimeError("expected at least one batch of images, found none")
    logits, index = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected, different = len(dataloader.dataset), len(index.unique())
    if not expected == len(index) == different:
        raise RuntimeError(
            f"expected each of {expected} examples once, found {len(index)} answers for {different} different examples "
            f"from {accelerator.num_processes} processes"
        )
    index, order = index.sort()
    return logits[order], index


class EightSymmetries(torch.nn.Module):
    """Test-time augmentation: the mean of the probabilities over the eight symmetries of the square.

    Images from above have no right way up, so each rotation and reflection is an equally good image. Unfamiliarity is
    the mean, too.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.name_or_path = model, getattr(model, "name_or_path", "")
        self.knows_familiar = getattr(model, "knows_familiar", False)
        self.train(model.training)

    def forward(self, pixel_values: Tensor) -> FamiliarOutput:
        """Logits (N, C), the logarithms of the mean probabilities, of square images (N, 3, S, S); unfamiliarity (N,).

        Raises:
            InputError: for images that are not square.
        """
        if pixel_values.shape[-1] != pixel_values.shape[-2]:
            raise InputError(
                "expected square images for test-time augmentation, found "
                f"{pixel_values.shape[-1]}×{pixel_values.shape[-2]} pixels; remove the flag"
            )
        turned = (
            image.rot90(quarter, (-2, -1)) for image in (pixel_values, pixel_values.flip(-1)) for quarter in range(4)
        )
        outputs = [self.model(pixel_values=p.contiguous()) for p in turned]
        mean = torch.stack([output.logits.double().softmax(-1) for output in outputs]).mean(0)
        unfamiliarity = torch.stack([o.unfamiliarity for o in outputs]).mean(0) if self.knows_familiar else None
        # A probability may be so small that its logarithm would be infinite.
        return FamiliarOutput(mean.clamp(min=torch.finfo(mean.dtype).tiny).log(), unfamiliarity)
