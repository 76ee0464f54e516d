"""The flags of `predict`, checked, and what its predictions depend on."""

import hashlib
import os
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from seedling_hf.arguments import option
from seedling_hf.errors import InputError
from seedling_hf.files import fitting
from seedling_hf.inference.answers import FORMATS, choose_format
from seedling_hf.inference.compiled_batches import CompiledInferenceArguments
from seedling_hf.origin import check_ours


@dataclass(kw_only=True)
class PredictArguments(CompiledInferenceArguments):
    """Predict the class of each image, as CSV, JSON or JSON lines.

    Examples:
        seedling-hf predict a.jpg photos --output_file answers.csv --threshold 0.8
        seedling-hf predict tray.jpg --tiles --boxes_dir boxes --output_file plants.csv
    """

    _argument_group_name = "Prediction"
    _takes_several = True

    images: list[str] = option(
        MISSING, "images, or folders that are searched for images; the flag may be left out", images=True,
        positional=True,
    )  # fmt: skip
    output_file: str | None = option(
        None,
        "file to write (default: the terminal); the same command resumes a run that was stopped or killed",
        writable=True,
    )
    format: str | None = option(
        None,
        "csv: columns file,class,probability; jsonl: an object per image; json: a list of these objects; kaggle: "
        "file,species with bare file names (default: by the suffix of the file; csv on the terminal)",
        choices=list(FORMATS),
    )
    top_k: int = option(1, "classes to list for each image, the most probable first, with their rank")
    threshold: float | None = option(
        None,
        "probability below which a prediction is marked as not sure (default: the confidence_threshold of the model)",
        least=0,
        most=1,
    )
    no_certainty: bool = option(False, "leave out the column certainty: sure, not sure or unfamiliar")
    test_time_augmentation: bool = option(
        False, "predict the mean over the eight symmetries of the square, in eight times the time"
    )
    watch: bool = option(
        False, "keep running and predict images as they arrive in the folders, until SIGINT or SIGTERM"
    )
    tiles: bool = option(
        False, "classify each green plant of photographs of trays: adds its number and its box in pixels"
    )
    boxes_dir: str | None = option(
        None, "folder for the photographs of --tiles with boxes and classes drawn", writable=True, apart=True
    )
    min_plant_side: float | None = option(
        None,
        "smallest plant that --tiles classifies, as a fraction of the photograph's shorter side (default: 0.02)",
        above=0,
        most=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output_file is not None and Path(self.output_file).is_dir():
            raise InputError(f"expected a file as --output_file, found the folder {self.output_file}; add a name.csv")
        self.format = choose_format(self.output_file, self.format)
        if self.top_k < 1 or (self.format == "kaggle" and self.top_k > 1):
            most = "1, which is all that Kaggle takes" if self.format == "kaggle" else "1 or more"
            raise InputError(f"expected --top_k of {most}, found {self.top_k}")
        if self.format == "kaggle":
            for name in ("threshold", "watch", "tiles"):
                if getattr(self, name) not in (None, False):
                    raise InputError(f"expected no --{name} for Kaggle's file, found it; use csv or jsonl")
        if self.no_certainty and self.threshold is not None:
            raise InputError("expected --threshold or --no_certainty, found both; remove one of them")
        if self.watch and self.format == "json":
            raise InputError("expected a format that can grow for --watch, found json; use csv or jsonl")
        if self.watch and not any(Path(path).is_dir() for path in self.images):
            raise InputError(f"expected a folder to --watch, found {', '.join(self.images)}; name one")
        for name in ("boxes_dir", "min_plant_side"):
            if getattr(self, name) is not None and not self.tiles:
                raise InputError(f"expected --tiles for --{name}, found it without; add --tiles or remove --{name}")
        if self.output_path is not None:
            if not self.watch:  # which continues its own file only
                check_ours(self.output_file, "--output_file", "predictions")
            check_ours(failed_path(self.output_path), "--output_file", "failed files")

    @property
    def output_path(self) -> Path | None:
        """The file to write; None for the terminal."""
        return Path(self.output_file) if self.output_file else None

    @property
    def noun(self) -> str:
        return "photograph" if self.tiles else "image"

    @property
    def says_certainty(self) -> bool:
        """Whether answers have a certainty; Kaggle's file takes none."""
        return not self.no_certainty and self.format != "kaggle"

    @property
    def identity(self) -> dict[str, Any]:
        """All that the predictions depend on: flags, and the files of a model folder."""
        folders = [Path(name) for name in self.members if Path(name).is_dir()]
        files = [
            file for folder in folders for kind in ("*.json", "*.safetensors") for file in sorted(folder.glob(kind))
        ]
        models = [str(Path(name).resolve()) if Path(name).is_dir() else name for name in self.members]
        stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        names = (
            "model_revision", "mixed_precision", "no_merge", "test_time_augmentation", "top_k", "threshold",
            "no_certainty", "tiles", "min_plant_side", "format",
        )  # fmt: skip
        return {
            "--images": [os.path.abspath(path) for path in self.images],
            "--model_name_or_path": models[0] if len(models) == 1 else models,
            "the checksum of the model's files": hashlib.sha1(repr(stamps).encode()).hexdigest()[:8],
            "--boxes_dir": self.boxes_dir and os.path.abspath(self.boxes_dir),
            **{f"--{name}": getattr(self, name) for name in names},
        }


def failed_path(output_file: Path) -> Path:
    """The list of files that could not be decoded, beside the predictions."""
    return output_file.with_name(fitting(output_file.stem, ".failed.csv"))
