"""`benchmark`: times the large-kernel convolution, whole models and loading, beside other ways to do the same."""

import json
import logging
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from seedling_hf.arguments import ArgumentGroup, check_range, option, parse_arguments
from seedling_hf.errors import InputError
from seedling_hf.files import check_writable_folder, write_text

PARTS = ("layers", "training", "inference", "memory", "growth", "loading")


@dataclass(kw_only=True)
class BenchmarkArguments(ArgumentGroup):
    """Flags of `benchmark`."""

    output_dir: str = option(MISSING, "folder for benchmark.json, benchmark.md and growth.png")
    variant: str = option("31B", "model", choices=["nano", "tiny", "31B", "31L", "XL"])
    parts: str = option("layers,training,inference,memory", f"what to measure, of {', '.join(PARTS)}, by commas")
    train_dir: str | None = option(None, "class folders for the part loading")
    cache_images: int | None = option(None, "shorter side in its cache (default: 1.5 times image_size)")
    image_size: int = option(224, "side of the images in pixels")
    batch_size: int = option(4, "images of a step")
    repeats: int = option(5, "rounds that are counted, after one that is not")
    dtype: str = option("float32", "precision of layers and training", choices=["float32", "bfloat16"])
    device: str | None = option(None, "cpu or cuda (default: a GPU if there is one)", choices=["cpu", "cuda"])
    num_threads: int | None = option(None, "threads on a CPU (default: as torch says)")
    seed: int = option(0, "seed of weights and images")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "image_size", least=32)
        for name in ("batch_size", "repeats", "num_threads"):
            check_range(self, name, least=1)
        unknown = set(self.parts.split(",")) - set(PARTS)
        if unknown:
            raise InputError(f"expected --parts of {', '.join(PARTS)}, found {', '.join(sorted(unknown))}")
        if "loading" in self.parts.split(",") and self.train_dir is None:
            raise InputError("expected --train_dir with --parts loading, found none; name class folders of images")
        check_writable_folder(Path(self.output_dir), "--output_dir")


def main(argv: Sequence[str] | None = None) -> int | None:
    """Layers, training, inference, memory, growth, loading → table, JSON, plot."""
    arguments = parse_arguments(
        BenchmarkArguments, argv, prog="benchmark", description="Times the convolution and whole models."
    )
    import torch

    from seedling_hf.plots import plot_growth
    from seedling_hf.speed import timing as benchmark
    from seedling_hf.speed.loading import loading_row

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("seedling_hf").setLevel(logging.INFO)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("expected a GPU for --device cuda, found none; use --device cpu")
    if arguments.num_threads:
        torch.set_num_threads(arguments.num_threads)
    # TF32 has 10 bits of float32's 23, and not every way uses it: all are to compute the same.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    dtype = getattr(torch, arguments.dtype)
    parts, variant, seed = arguments.parts.split(","), arguments.variant, arguments.seed
    size, batch, repeats = arguments.image_size, arguments.batch_size, arguments.repeats

    results = {"machine": benchmark.describe_machine(device), "dtype": arguments.dtype, "rows": []}
    if "layers" in parts:
        results["rows"] += benchmark.depthwise_rows(
            benchmark.layer_shapes(variant, size), batch, repeats, device, dtype
        )  # fmt: skip
    if "training" in parts:
        results["rows"].append(benchmark.training_row(variant, size, batch, repeats, device, dtype, seed))
    if "inference" in parts:
        results["rows"].append(benchmark.inference_row(variant, size, batch, repeats, device, seed))
    if "memory" in parts:
        results["memory"] = benchmark.memory_row(variant, size, batch, device, seed)
    if "growth" in parts:
        results["growth"] = benchmark.growth_rows(variant, size, batch, repeats, device, seed)
    if "loading" in parts:
        side = arguments.cache_images or size * 3 // 2
        results["rows"].append(loading_row(arguments.train_dir, size, batch, repeats, side, seed))

    text = benchmark.format_results(results)
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "benchmark.json", json.dumps(results, indent=2) + "\n")
    write_text(folder / "benchmark.md", text + "\n")
    if "growth" in parts:
        plot_growth(results["growth"], folder / "growth.png")
    print(text)
    print(f"\nThe figures are in {folder}.")
