"""The files of a model folder, which strangers write: checked before a library reads them or memory is allocated."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from seedling_hf.errors import InputError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
FAMILIARITY = "familiarity.safetensors"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
LARGEST_JSON = 64 * 2**20  # bytes; 22,000 class names take one million
LARGEST_SIDE = 8192  # pixels of an image as a processor gives it, of which a batch holds many
FLOATS, INTEGERS = frozenset({"F64", "F32", "F16", "BF16"}), frozenset({"I64", "I32", "I16", "I8", "U8"})
DTYPES = (None, "float64", "float32", "float16", "bfloat16")
EXPECTED = {
    "model_type": "model_type to be a name",
    "architectures": "architectures to be a list of names",
    "id2label": "id2label to name the classes 0, 1, … without a gap",
    "auto_map": "auto_map to be an object",
    "dtype": "dtype to be a type of floating point",
    "torch_dtype": "torch_dtype to be a type of floating point",
    # Compressed weights need other packages.
    "quantization_config": "plain weights, without quantization_config,",
    "problem_type": "problem_type to be that of a classifier",
    "calibration_temperature": "calibration_temperature to be a finite number above 0",
    "confidence_threshold": "confidence_threshold to be a number from 0 to 1",
}


class TensorForm(NamedTuple):
    """How a safetensors file describes a tensor; `dtype` is a name such as F32."""

    dtype: str
    shape: tuple[int, ...]


def check_file(path: Path, what: str) -> None:
    """Refuses what is often met in place of a file: a folder, a device, nothing, a Git LFS pointer, a web page.

    Raises:
        InputError: with `what` was expected.
    """
    remedy = "copy or download the file again"
    if not path.is_file():
        found = "a folder" if path.is_dir() else "a pipe, a socket or a device" if path.exists() else "none"
    else:
        try:
            with path.open("rb") as file:
                head = file.read(1024)
        except OSError as error:
            raise InputError(f"expected {what} at {path}, found: {error.strerror}; make the file readable") from error
        text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        if head.startswith(b"version https://git-lfs"):
            found, remedy = "a pointer of Git LFS in its place", "run git lfs pull in that repository"
        elif text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")):
            found, remedy = "a web page (HTML) in its place", "download the file itself"
        elif not head:
            found = "an empty file"
        else:
            return
    raise InputError(f"expected {what} at {path}, found {found}; {remedy}")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file of a model; InputError if it is anything else."""
    check_file(path, what)
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"a {type(values).__name__} in place of an object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"expected {what} in JSON at {path}, found: {first_line(error)}; copy or download the file again"
        ) from error
    return values


def check_config(path: Path) -> None:
    """Refuses a config.json, of whatever architecture, that cannot be that of a classifier which works here.

    Raises:
        InputError: names the field.
    """
    values = read_json(path, "the configuration of a model")
    names, architectures = values.get("id2label"), values.get("architectures")
    is_right = {
        "model_type": isinstance(values.get("model_type", ""), str),
        "architectures": architectures is None
        or (isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)),
        "id2label": names is None or _is_numbering(names),
        "auto_map": isinstance(values.get("auto_map", {}), dict),
        "dtype": values.get("dtype") in DTYPES,
        "torch_dtype": values.get("torch_dtype") in DTYPES,
        "quantization_config": values.get("quantization_config") is None,
        "problem_type": values.get("problem_type")
        in (None, "single_label_classification", "multi_label_classification"),
        "calibration_temperature": values.get("calibration_temperature") is None
        or _are_numbers([values["calibration_temperature"]], above_zero=True),
        "confidence_threshold": values.get("confidence_threshold") is None
        or (
            _are_numbers([values["confidence_threshold"]], above_zero=False)
            and 0 <= values["confidence_threshold"] <= 1
        ),
    }
    for name, expected in EXPECTED.items():
        if not is_right[name]:
            raise InputError(
                f"expected {expected} in {path}, found {_shorten(values[name])}; correct it, or get the model again"
            )


def _is_numbering(names: Any) -> bool:
    return (
        isinstance(names, dict)
        and len(names) > 0
        and names.keys() == {str(i) for i in range(len(names))}
        and all(isinstance(name, str) for name in names.values())
    )


def check_processor(path: Path) -> None:
    """Refuses the file of an image processor whose numbers would exhaust memory or divide by zero.

    Raises:
        InputError: names the field.
    """
    values = read_json(path, "the configuration of an image processor")
    values = values.get("image_processor", values)
    if not isinstance(values, dict):
        raise InputError(f"expected image_processor in {path} to be an object, found {type(values).__name__}")
    for name, value in values.items():
        if value is None:
            continue
        expected = None
        if name in ("size", "crop_size", "pad_size") and not _are_sides(value):
            expected = f"pixels from 1 to {LARGEST_SIDE:,}"
        elif name in ("image_mean", "image_std") and not (
            isinstance(value, list) and value and _are_numbers(value, above_zero=name == "image_std")
        ):
            expected = f"finite numbers{' above 0' if name == 'image_std' else ''}, one for each channel,"
        elif name == "rescale_factor" and not _are_numbers([value], above_zero=True):
            expected = "a finite number above 0"
        elif name == "resample" and not (type(value) is int and 0 <= value <= 5):
            expected = "a filter of Pillow from 0 to 5"
        elif name.startswith("do_") and type(value) is not bool:
            expected = "true or false"
        if expected:
            raise InputError(
                f"expected {expected} for {name} in {path}, found {_shorten(value)}; correct the file, or get "
                "the model again"
            )


def _are_sides(value: Any) -> bool:
    sides = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return len(sides) > 0 and all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in sides if side is not None)


def _are_numbers(values: list[Any], *, above_zero: bool) -> bool:
    return all(
        type(x) in (int, float) and math.isfinite(x) and abs(x) < 1e30 and (x > 1e-30 or not above_zero) for x in values
    )


def check_image_processor(image_processor: Any, num_channels: int | None, name: str) -> None:
    """Prepares a small image, so that whatever an image processor cannot do comes out before the first real one.

    Raises:
        InputError: with what came out of it.
    """
    import torch
    from PIL import Image

    from seedling_hf.data.transforms import EvalTransform

    data = getattr(image_processor, "data_config", None)
    if data is not None and not _are_sides(list(data["input_size"])):  # timm's, which is in config.json
        raise InputError(f"expected images of at most {LARGEST_SIDE:,} pixels, found {data['input_size']} in {name}")
    try:
        pixel_values = EvalTransform(image_processor)(Image.linear_gradient("L").resize((64, 48)).convert("RGB"))
        found = f"a tensor of shape {tuple(pixel_values.shape)}"
        well = pixel_values.ndim == 3 and min(pixel_values.shape) > 0 and pixel_values.is_floating_point()
        if well and num_channels is not None:
            well = pixel_values.shape[0] == num_channels
        if well and not torch.isfinite(pixel_values).all():
            well, found = False, "values that are not finite"
    except Exception as error:  # anything can be wrong with a stranger's processor
        well, found = False, first_line(error)
    if not well:
        raise InputError(
            f"expected an image processor that prepares images of {num_channels or 3} channels in {name}, found: "
            f"{found}; correct its {PROCESSORS[0]}, or get the model again"
        )


def read_index(path: Path) -> list[str]:
    """The names of the weight files that an index lists, which lie beside it; InputError for any other."""
    files = read_json(path, "an index of weight files").get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
        raise InputError(f"expected weight_map in {path} to name the file of each tensor; get the model again")
    names = sorted(set(files.values()))
    for name in names:
        if name != Path(name).name or "\\" in name or name in ("", ".", ".."):
            raise InputError(
                f"expected files beside {path} in it, found {name!r}; nothing was read, get the model again"
            )
    return names


def read_forms(files: Iterable[Path]) -> dict[str, TensorForm]:
    """Type and shape of every tensor in safetensors files, by name; no tensor is read.

    Raises:
        InputError: for a file that is damaged or something else, or numbers of another type than weights have.
    """
    from safetensors import SafetensorError, safe_open

    forms = {}
    for path in files:
        check_file(path, "weights in safetensors")
        try:
            with safe_open(path, framework="pt") as content:
                slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118, no mapping
                forms |= {name: TensorForm(s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(
                f"expected whole weights in safetensors at {path}, found a damaged file ({first_line(error)}); copy or "
                "download it again"
            ) from error
    for name, form in forms.items():
        if form.dtype not in (INTEGERS if name.endswith("num_batches_tracked") else FLOATS):
            raise InputError(
                f"expected weights in floating point of 16 to 64 bits, found {name} in {form.dtype} in {path.parent}; "
                "get the weights as they were before they were compressed"
            )
    return forms


def read_tensors(files: Iterable[Path]) -> dict[str, Any]:
    """The tensors of safetensors files that `read_forms` has read, by name."""
    from safetensors.torch import load_file

    return {name: tensor for path in files for name, tensor in load_file(path).items()}


def plain_name(name: str) -> str:
    """The name of a weight in the model itself; `torch.compile` and DDP put a prefix before it."""
    return name.replace("_orig_mod.", "").removeprefix("module.")


def find_misfits(forms: Mapping[str, TensorForm], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The weights that are missing or of another shape, with both shapes."""
    return [
        name if name not in forms else f"{name} (expected {shape}, found {forms[name].shape})"
        for name, shape in expected.items()
        if name not in forms or forms[name].shape != shape
    ]


def check_finite(tensors: Mapping[str, Any], source: str) -> None:
    """Refuses weights that are NaN or infinite, and variances below zero, whose root is NaN.

    Raises:
        InputError: names the first such tensor.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        if not tensor.isfinite().all():
            found = "NaN" if tensor.isnan().any() else "infinite values"
        elif name.endswith("running_var") and (tensor < 0).any():
            found = "a variance below 0"
        else:
            continue
        raise InputError(
            f"expected finite weights in {source}, found {found} in {name}; use an earlier checkpoint, or get the "
            "model again"
        )


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}…"


def first_line(error: BaseException) -> str:
    """What went wrong, without the types that a value could have had."""
    from huggingface_hub.errors import StrictDataclassError

    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". Errors: ")[0]
