"""The card of a model: the template `model_card.md`, filled only from the files of the run."""

import json
import math
import os
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined, TemplateError
from safetensors import SafetensorError, safe_open

from seedling_hf.data.splits import hash_split
from seedling_hf.escaping import Markdown, finish_markdown
from seedling_hf.evaluation.metrics import PLANT_SEEDLINGS
from seedling_hf.files import write_text
from seedling_hf.hub.cards import check_card, count_split, describe_split, fence, merge_cards
from seedling_hf.hub.outbox import CARD, OUT_OF_FOLD, model_files
from seedling_hf.inference.classifier import parse_hub_name
from seedling_hf.inference.model_files import FAMILIARITY

NUM_WEAKEST = 3
MOST_LISTED = 60  # classes in a sentence; the tables have all
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def write_card(output_dir: str | os.PathLike, *, results: bool = True) -> Path:
    """Writes the card of a model folder, README.md, and keeps what people wrote into an existing one.

    The card skips what missing files of a run would add, and without `results` report and timing, which then belong to
    other weights.

    Raises:
        ValueError: if the Hub would refuse the card, or a file of the run is not as it was written.
    """
    path = Path(output_dir) / CARD
    try:
        text = render_card(output_dir, results=results)
    except (LookupError, TypeError, AttributeError, yaml.YAMLError, TemplateError, SafetensorError) as error:
        raise ValueError(f"a file of the run in {output_dir} is not as it was written ({error!r})") from error
    if path.exists():
        text = merge_cards(path.read_text(encoding="utf-8"), text)
    check_card(text)
    write_text(path, text)
    return path


def render_card(output_dir: str | os.PathLike, *, results: bool = True) -> str:
    """The text of the card of a folder without one."""
    # Installed, the template is beside this module; in a checkout, at the root of the repository.
    here = Path(__file__).resolve().parent
    path = next(p for p in (here / "model_card.md", here.parents[1] / "model_card.md") if p.is_file())
    environment = Environment(undefined=StrictUndefined, finalize=finish_markdown, keep_trailing_newline=True)
    environment.filters |= {"percent": "{:.1%}".format, "duration": _duration}
    template = environment.from_string(_read_text(path))
    return template.render(card_values(Path(output_dir), results=results))


def card_values(folder: Path, *, results: bool) -> dict[str, Any]:
    """What the template needs, by name; None for what the run lacks."""
    config = _read_json(folder / "config.json")
    processor = _read_json(folder / "preprocessor_config.json")
    report = _read_json(folder / "report.json") if results else None
    training = _read_json(folder / "train_results.json") if results else None
    arguments_text = _read_text(folder / "arguments.yaml")
    arguments = yaml.safe_load(arguments_text) or {}
    records = _read_text(folder / "metrics.jsonl").splitlines()
    class_names = _class_names(config)
    has_split = (split := folder / "split.csv").exists()

    repo_id = arguments.get("hub_model_id") or folder.resolve().name
    model_name = repo_id.split("/")[-1]
    dataset, data_name = _names_of_data(arguments, report)
    base_model, _ = parse_hub_name(arguments.get("model_name_or_path") or "") or (None, None)
    ranked = sorted(report["per_class"].items(), key=lambda item: item[1]["f1"])[:NUM_WEAKEST] if report else []
    card_data = ModelCardData(
        language="en",
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=[config["architecture"] if _is_timm(config) else "replknet", "seedlings", "plants"],
        datasets=[arguments["dataset_name"]] if arguments.get("dataset_name") else None,
        base_model=base_model,
        metrics=["accuracy", "f1"] if report else None,
        model_name=model_name if report else None,  # of the results
        eval_results=_eval_results(report, arguments, dataset) if report else None,
    )
    return {
        "card_data": Markdown(card_data.to_yaml()),
        "model_name": model_name,
        "address": Markdown(json.dumps(arguments.get("hub_model_id") or str(folder), ensure_ascii=False)),
        "config": config,
        "class_names": class_names,
        "listed_classes": Markdown.join_all(class_names, ", ") if len(class_names) <= MOST_LISTED else "listed below",
        "image_size": _image_size(processor or {}),
        "num_parameters": _count_parameters(folder),
        "familiar_distance": _familiar_distance(folder),
        "start": _describe_start(arguments, base_model),
        "arguments_text": fence(arguments_text.strip(), "yaml") if arguments_text else "",
        "report": report,
        "is_on_all_images": arguments.get("train_val_split") == 0,
        "out_of_fold": _read_json(folder / OUT_OF_FOLD) if results else None,
        "data_name": data_name,
        "weakest": [(name, row) for name, row in ranked if round(row["f1"], 2) < 1],
        "training": training,
        "versions": ((report or {}).get("provenance") or training or {}).get("versions", {}),
        "shared_images": _read_json(folder / "near_duplicates.json"),
        "last_record": _parse_json(records[-1], folder / "metrics.jsonl") if records else None,
        "is_plant_seedlings": set(class_names) <= PLANT_SEEDLINGS,
        "counts": count_split(split) if has_split else None,
        "split_hash": hash_split(split) if has_split else None,
        "split_description": describe_split(arguments) if has_split else None,
    }


def _eval_results(report: dict[str, Any], arguments: dict[str, Any], dataset: str) -> list[EvalResult]:
    where = {
        "task_type": "image-classification",
        "task_name": "Image Classification",
        "dataset_type": arguments.get("dataset_name") or "imagefolder",
        "dataset_name": dataset,
        "dataset_config": arguments.get("dataset_config_name"),
        "dataset_revision": arguments.get("dataset_revision"),
    }
    return [
        EvalResult(**where, metric_type="accuracy", metric_name="Accuracy", metric_value=report["accuracy"]),
        EvalResult(
            **where, metric_type="f1", metric_name="Macro-F1", metric_value=report["macro_f1"],
            metric_args={"average": "macro"},
        ),
    ]  # fmt: skip


def _names_of_data(arguments: dict[str, Any], report: dict[str, Any] | None) -> tuple[str, str | None]:
    """The name of the dataset, and what the report is about, without the folders of this machine."""
    folder = arguments.get("train_dir")
    dataset = arguments.get("dataset_name") or (Path(folder).name if folder else "seedlings")
    data_name = report and (report.get("provenance") or {}).get("data", "labelled images")
    return dataset, data_name.replace(folder, dataset) if data_name and folder else data_name


def _describe_start(arguments: dict[str, Any], base_model: str | None) -> str | None:
    if base_model:
        return Markdown(f"[{base_model}](https://huggingface.co/{base_model})")
    if arguments.get("model_name_or_path"):
        return f"a model folder, {arguments['model_name_or_path']}"
    if arguments.get("variant") or arguments.get("timm_architecture"):
        return "random weights"
    return "nano, the model shipped with seedling_hf, with a new head" if arguments else None


def _is_timm(config: dict[str, Any]) -> bool:
    return config.get("model_type") == "timm_wrapper"


def _class_names(config: dict[str, Any]) -> list[str]:
    """The names in the order of their numbers; timm's wrapper keeps them as a list."""
    if _is_timm(config):
        return config["label_names"]
    return [config["id2label"][key] for key in sorted(config["id2label"], key=int)]


def _count_parameters(folder: Path) -> int:
    """Of the weights on the disk, without BatchNorm's statistics; only headers are read."""
    total = 0
    for name, path in model_files(folder).items():
        if not name.endswith(".safetensors") or name == FAMILIARITY:
            continue
        with safe_open(path, framework="np") as file:
            trained = [key for key in file.keys() if not key.endswith(_BUFFERS)]  # noqa: SIM118, not a dict
            total += sum(math.prod(file.get_slice(key).get_shape()) for key in trained)
    return total


def _familiar_distance(folder: Path) -> float | None:
    """The largest distance at which an image is familiar; None where the folder does not say."""
    path = folder / FAMILIARITY
    if not path.is_file():
        return None
    with safe_open(path, framework="np") as file:
        return float(file.get_tensor("threshold"))


def _image_size(processor: dict[str, Any]) -> int | None:
    size = processor.get("crop_size") if processor.get("do_center_crop", True) else processor.get("size")
    return (size or {}).get("height") or (size or {}).get("shortest_edge")


def _read_json(path: Path) -> dict[str, Any] | None:
    return _parse_json(path.read_text(encoding="utf-8"), path) if path.exists() else None


def _parse_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error})") from error


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
