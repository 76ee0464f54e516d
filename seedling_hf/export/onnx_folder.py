"""ONNX files in the layout that transformers.js and optimum look for, with what they read beside them.

The names are those of https://huggingface.co/docs/transformers.js/custom_usage: `onnx/model.onnx` is float32,
`onnx/model_fp16.onnx` float16, and `onnx/model_quantized.onnx` int8, which a browser loads unless it is told otherwise.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn
from transformers import BaseImageProcessor

from seedling_hf.export.preprocessing import describe_preprocessing
from seedling_hf.export.programs import export_classifier
from seedling_hf.files import creating_folder, write_text
from seedling_hf.inference.classifier import list_classes

ONNX_FILE = "onnx/model.onnx"
SUFFIXES = {"float16": "_fp16.onnx", "int8": "_quantized.onnx"}
# Both libraries take a model for what this names and refuse `replknet`. They read no more of it than the classes: the
# network is in the ONNX file.
MODEL_TYPE = "resnet"
# In transformers it resizes, crops, scales and normalizes as ours does, and transformers.js knows it.
IMAGE_PROCESSOR = "CLIPImageProcessor"
CARD = """---
library_name: transformers.js
pipeline_tag: image-classification
tags: [onnx, replknet]
---

A RepLKNet as ONNX, written by `seedling-hf export --format onnx_folder`: `onnx/model.onnx` in float32,
`onnx/model_fp16.onnx` in float16 and `onnx/model_quantized.onnx` in int8.

```js
import { pipeline } from "@huggingface/transformers";

const classify = await pipeline("image-classification", "user/this-repository", { dtype: "fp32" });
console.log(await classify("image.jpg"));
```

`model_type` in config.json is `resnet` so that libraries load the file. Nothing of a ResNet is used.
"""


def export_folder(
    model: nn.Module, image_processor: BaseImageProcessor, folder: Path, **options: Any
) -> list[dict[str, Any]]:
    """Writes a classifier as a folder in float32, float16 and int8, once its logits agree with PyTorch's.

    Args:
        folder: New or empty; it appears when it is complete.
        options: As of `export_classifier`: `float16` and `calibration_files` give the two smaller files.

    Returns:
        As `export_classifier`.

    Raises:
        InputError: as `export_classifier`; nothing is written then.
    """
    preprocessing = describe_preprocessing(image_processor)
    with creating_folder(folder) as building:
        (building / ONNX_FILE).parent.mkdir()
        rows = export_classifier(model, image_processor, building / ONNX_FILE, suffixes=SUFFIXES, **options)
        write_text(building / "config.json", _json(describe_model(model.config)))
        write_text(building / "preprocessor_config.json", _json(describe_processor(preprocessing)))
        write_text(building / "README.md", CARD)
    for row in rows:
        if row["file"]:
            row["file"] = str(folder / Path(row["file"]).relative_to(building))
    return rows


def describe_model(config: Any) -> dict[str, Any]:
    """The config.json: classes, and how far to trust an answer."""
    class_names = list_classes(config)
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["RepLKNetForImageClassification"],
        "id2label": {str(number): name for number, name in enumerate(class_names)},
        "label2id": {name: number for number, name in enumerate(class_names)},
        "calibration_temperature": getattr(config, "calibration_temperature", None),
        "confidence_threshold": getattr(config, "confidence_threshold", None),
    }


def describe_processor(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessor_config.json of what `describe_preprocessing` returns."""
    height, width = preprocessing["image_size"]
    edge, target = preprocessing["shortest_edge"], {"height": height, "width": width}
    return {
        "image_processor_type": IMAGE_PROCESSOR,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": edge} if edge else target,
        "resample": Image.Resampling[preprocessing["resample"]].value,
        "do_center_crop": bool(edge),
        "crop_size": target,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocessing["mean"],
        "image_std": preprocessing["std"],
    }


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
