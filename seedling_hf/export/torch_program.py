"""A classifier as a program of `torch.export`: what any exported file computes, and the `.pt2` file."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

METADATA_FILE = "metadata.json"

Run = Callable[[np.ndarray], list[np.ndarray]]


class ExportedClassifier(nn.Module):
    """Computes the logits (N, num_labels) of inputs in the form that the metadata describe.

    Where the model `knows_familiar`, unfamiliarity (N,) is the second output: above 1, an image is unfamiliar.

    With `include_preprocessing` it takes uint8 pixels (N, H, W, 3), as images are in memory, and normalizes them by
    `mean` and `std` of the three channels, which are for pixels from 0 to 1.
    """

    def __init__(
        self, model: nn.Module, mean: Sequence[float], std: Sequence[float], include_preprocessing: bool
    ) -> None:
        super().__init__()
        self.model, self.include_preprocessing = model, include_preprocessing
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def output_names(self) -> list[str]:
        return ["logits", "unfamiliarity"] if getattr(self.model, "knows_familiar", False) else ["logits"]

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.include_preprocessing:
            pixel_values = (pixel_values.permute(0, 3, 1, 2).float() - self.mean) / self.std
        outputs = self.model(pixel_values)
        return outputs.logits if len(self.output_names) == 1 else (outputs.logits, outputs.unfamiliarity)


def write_torch_export(
    classifier: ExportedClassifier, example: np.ndarray, path: Path, metadata: Mapping[str, Any]
) -> None:
    """Writes a classifier in evaluation mode as a `.pt2` for `torch.export.load`, its batch of any size.

    The height and width of `example`, two or more inputs, are fixed. The metadata become the extra file
    `metadata.json` inside.
    """
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), quiet():
        program = torch.export.export(classifier, (torch.from_numpy(example),), dynamic_shapes=({0: batch},))
        torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(metadata, ensure_ascii=False)})


def run_torch_export(path: Path) -> Run:
    """Loads a `.pt2`; returns inputs → its outputs."""
    module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(inputs: np.ndarray) -> list[np.ndarray]:
        outputs = module(torch.from_numpy(inputs))
        return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else [outputs])]

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """Hides what exporters print about their own future releases."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
