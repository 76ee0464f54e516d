"""Answers the requests of Hugging Face Inference Endpoints. seedling_hf writes this file; its copy is beside a model.

The service imports it from the folder of the model, makes one `EndpointHandler`, and calls it with each request. An
answer is that of the task image-classification, a list of `{"label", "score"}` from the most probable class on, so that
widgets and `InferenceClient.image_classification` read it. Its first entry has a third key where the model can say so
much: `certainty`, which is `unfamiliar` for an image that does not look like those of the training, whatever its score,
else `sure` from the score on that `confidence_threshold` in config.json names, else `not sure`.

It needs torch, torchvision and transformers, and no other file of seedling_hf than those in the folder.
"""

import base64
import binascii
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

TOP_K = 5  # as in the pipeline of transformers
BATCH_SIZE = 16
LONGEST = 100  # longer side as a multiple of the shorter one, which is what is resized to the size of the model
FUNCTIONS = {"softmax": lambda logits: logits.softmax(-1), "sigmoid": torch.sigmoid, "none": lambda logits: logits}
# Those that hold photographs and that Pillow decodes itself: EPS would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000")
FAMILIARITY = "familiarity.safetensors"


class EndpointHandler:
    """The model in the folder `path`, or in that of this file, on a GPU if there is one."""

    def __init__(self, path: str = "") -> None:
        path = path or str(Path(__file__).parent)
        trust = {"trust_remote_code": True}  # it is beside this file
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = AutoModelForImageClassification.from_pretrained(path, **trust).float().eval()
        if hasattr(self.model, "fuse_batch_norms"):
            self.model.fuse_batch_norms()  # faster, with the same predictions
        self.image_processor = AutoImageProcessor.from_pretrained(path, **trust)
        found = Path(path, FAMILIARITY)
        self.familiarity = Familiarity(found, self.model.config.hidden_sizes) if found.is_file() else None
        for module in filter(None, (self.model, self.familiarity)):
            module.to(self.device)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """The answer to a request, or a list of answers to one of several images.

        Args:
            data: `inputs`, an image as its bytes, as these in base64, or decoded by Pillow, or a list of them; and
                `parameters`, if any, with `top_k`, how many classes are named (default: 5), and `function_to_apply`,
                what makes scores of logits: softmax (default), sigmoid or none.

        Raises:
            ValueError: for anything else; the service answers with its message and the status 400.
        """
        if not isinstance(data, dict) or "inputs" not in data:
            raise ValueError('expected a request with "inputs", found none; send {"inputs": IMAGE IN BASE64}')
        top_k, function = self._read_parameters(data.get("parameters"))
        inputs = data["inputs"]
        if not isinstance(inputs, list):
            return self._answer([read_image(inputs, "inputs")], top_k, function)[0]
        if not inputs:
            raise ValueError("expected at least one image in inputs, found an empty list")
        images = [read_image(value, f"inputs[{number}]") for number, value in enumerate(inputs)]
        return self._answer(images, top_k, function)

    def _read_parameters(self, parameters: Any) -> tuple[int, str]:
        parameters = {} if parameters is None else parameters
        if not isinstance(parameters, dict):
            raise ValueError(f"expected parameters to be an object, found {type(parameters).__name__}")
        given = {name: value for name, value in parameters.items() if value is not None}
        if unknown := given.keys() - {"top_k", "function_to_apply"}:
            raise ValueError(
                f"expected the parameters top_k and function_to_apply, found {', '.join(sorted(map(str, unknown)))}; "
                "leave it out"
            )
        top_k = given.get("top_k", TOP_K)
        if type(top_k) is not int or top_k < 1:
            raise ValueError(f"expected top_k to be a whole number from 1 on, found {top_k!r}")
        config = self.model.config
        has_many = config.problem_type == "multi_label_classification" or config.num_labels == 1
        function = given.get("function_to_apply", "sigmoid" if has_many else "softmax")
        if not isinstance(function, str) or function.lower() not in FUNCTIONS:
            raise ValueError(f"expected function_to_apply to be {', '.join(FUNCTIONS)}, found {function!r}")
        return min(top_k, config.num_labels), function.lower()

    @torch.inference_mode()
    def _answer(self, images: list[Image.Image], top_k: int, function: str) -> list[list[dict[str, Any]]]:
        answers = []
        for start in range(0, len(images), BATCH_SIZE):
            prepared = self.image_processor(images[start : start + BATCH_SIZE], return_tensors="pt")
            pixel_values = prepared["pixel_values"].to(self.device)
            outputs = self.model(pixel_values=pixel_values, output_hidden_states=self.familiarity is not None)
            logits = outputs.logits.double().cpu()
            scores = FUNCTIONS[function](logits).topk(top_k)
            certainties = self._certainties(logits, outputs)
            for indices, values in zip(scores.indices.tolist(), scores.values.tolist(), strict=True):
                names = [self.model.config.id2label[index] for index in indices]
                answer = [{"label": name, "score": value} for name, value in zip(names, values, strict=True)]
                if certainty := next(certainties):
                    answer[0]["certainty"] = certainty
                answers.append(answer)
        return answers

    def _certainties(self, logits: Tensor, outputs: Any) -> Iterator[str | None]:
        """How far to trust the first class of each image; None where the model does not know."""
        threshold = getattr(self.model.config, "confidence_threshold", None)
        far = [False] * len(logits) if self.familiarity is None else (self.familiarity(outputs) > 1).tolist()
        for is_far, probability in zip(far, logits.softmax(-1).amax(-1).tolist(), strict=True):
            if is_far:
                yield "unfamiliar"
            elif threshold is None:
                yield None
            else:
                yield "sure" if probability >= threshold else "not sure"


class Familiarity(nn.Module):
    """How far images lie from those of the training: their distance to the nearest class mean (arXiv 1807.03888).

    Args:
        path: `center` (D,), `whitening` (D, D), `class_means` (K, D) and `threshold` (), for D features.
        sizes: How many features each stage of the network has.

    Raises:
        ValueError: if the file is that of another network.
    """

    def __init__(self, path: Path, sizes: list[int]) -> None:
        super().__init__()
        for name, tensor in load_file(path).items():
            self.register_buffer(name, tensor)
        if self.center.shape != (sum(sizes),):
            raise ValueError(
                f"expected {sum(sizes)} features of this network in {path.name}, found {len(self.center)} of another; "
                "push the model again"
            )

    def forward(self, outputs: Any) -> Tensor:
        """The distance of each image as a multiple of the largest familiar one, (N,)."""
        features = torch.cat([state.mean((-2, -1)) for state in outputs.hidden_states[1:]], dim=1)  # without the stem
        whitened = (features - self.center) @ self.whitening
        squares = whitened.square().sum(1, keepdim=True) + self.class_means.square().sum(1)
        return (squares - 2 * whitened @ self.class_means.T).amin(1).clamp(min=0) / self.threshold


def read_image(value: Any, name: str) -> Image.Image:
    """An image of a request, upright and in RGB.

    Args:
        name: Where it stands in the request, for the message.

    Raises:
        ValueError: if it is none, damaged, too large, or too long and thin.
    """
    if isinstance(value, str):
        value = decode_text(value, name)
    if isinstance(value, bytes | bytearray):
        value = open_image(value, name)
    if not isinstance(value, Image.Image):
        raise ValueError(f"expected an image in {name}, found {type(value).__name__}; send its bytes, or base64")
    width, height = value.size
    if width * height > Image.MAX_IMAGE_PIXELS or max(width, height) > LONGEST * min(width, height):
        raise ValueError(
            f"expected an image of at most {Image.MAX_IMAGE_PIXELS:,} pixels in {name}, and at most {LONGEST} times as "
            f"long as wide, found {width}×{height}; make it smaller"
        )
    try:
        value.load()
    except Exception as error:  # decoders of damaged files raise all kinds of errors
        raise ValueError(f"expected a whole image in {name}, found that it is damaged ({error})") from error
    return in_rgb(upright(value))


def open_image(content: bytes | bytearray, name: str) -> Image.Image:
    """An image whose pixels are not decoded yet; ValueError for anything else."""
    Image.init()
    formats = [each for each in FORMATS if each in Image.OPEN]  # AVIF is new
    try:
        return Image.open(BytesIO(content), formats=formats)
    except UnidentifiedImageError as error:
        raise ValueError(
            f"expected an image in {name}, found {len(content):,} bytes that are none of {', '.join(formats)}"
        ) from error
    except Exception as error:
        raise ValueError(f"expected a whole image in {name}, found that it is damaged ({error})") from error


def decode_text(text: str, name: str) -> bytes:
    """The bytes of an image in base64, or in a data URL; an address would let requests read the service's network."""
    expected = f"expected an image in base64 in {name}"
    if text.startswith("data:"):
        text = text.partition(",")[2]
    elif "://" in text[:16]:
        raise ValueError(f"{expected}, found an address; download it, and send the image itself")
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{expected}, found other text ({error})") from error
    if not content:
        raise ValueError(f"{expected}, found nothing")
    return content


def upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says, which cameras write."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken metadata around whole pixels
        return image


def in_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB; 16-bit grey is scaled to 8 bits, which Pillow would clip."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "PA" or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
    return image.convert("RGB")
