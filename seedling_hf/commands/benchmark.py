"""`benchmark`: times the large-kernel convolution, whole models and loading, compared with other implementations."""

import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from seedling_hf.arguments import LARGEST_SEED, MOST_WORKERS, ArgumentGroup, option, parse_arguments
from seedling_hf.errors import InputError
from seedling_hf.escaping import format_count
from seedling_hf.files import write_text
from seedling_hf.origin import TEXT_MARK, check_outputs
from seedling_hf.train_arguments import TREE

PARTS = ("layers", "training", "inference", "profile", "memory", "growth", "loading")


@dataclass(kw_only=True)
class BenchmarkArguments(ArgumentGroup):
    """Time the convolution, whole models and image loading, and profile a training step.

    Examples:
        seedling-hf benchmark --variant nano --image_size 96 --batch_size 4 --output_dir outputs/benchmark
        seedling-hf benchmark --variant 31B --parts layers,training --output_dir outputs/benchmark
    """

    output_dir: str = option(
        MISSING,
        "folder for benchmark.json, benchmark.md and growth.png",
        writable=True,
        files=("benchmark.json", "benchmark.md"),
    )
    variant: str = option("31B", "model", choices=["nano", "tiny", "31B", "31L", "XL"])
    parts: str = option("layers,training,inference,memory", f"what to measure, separated by commas: {', '.join(PARTS)}")
    train_dir: str | None = option(None, f"{TREE}, for the part `loading`", images=True)
    cache_images: int | None = option(
        None, "shorter side of the images in its cache (default: 1.5 times image_size)", least=32
    )
    image_size: int = option(224, "side of the images in pixels", least=32)
    batch_size: int = option(4, "images in a batch", least=1)
    repeats: int = option(5, "measured rounds, after one for warm-up", least=1)
    dtype: str = option("float32", "precision of layers, training and inference", choices=["float32", "bfloat16"])
    torch_compile_mode: str | None = option(
        None,
        "time our form compiled by torch.compile in this mode too",
        choices=["default", "reduce-overhead", "max-autotune"],
    )
    device: str | None = option(None, "device (default: a GPU if available)", choices=["cpu", "cuda"])
    num_threads: int | None = option(None, "CPU threads (default: torch's own number)", least=1, most=MOST_WORKERS)
    seed: int = option(0, "seed of weights and images", least=0, most=LARGEST_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = set(self.parts.split(",")) - set(PARTS)
        if unknown:
            raise InputError(f"expected --parts of {', '.join(PARTS)}, found {', '.join(sorted(unknown))}")
        if "loading" in self.parts.split(",") and self.train_dir is None:
            raise InputError("expected --train_dir with --parts loading, found none; give a folder of labelled images")
        if "growth" in self.parts.split(","):
            check_outputs(self.output_dir, ["growth.png"], "--output_dir")


def main(argv: Sequence[str] | None = None) -> int | None:
    """The chosen parts → table, JSON, plot."""
    arguments = parse_arguments(BenchmarkArguments, argv, prog="benchmark")
    arguments.lock_outputs()
    import torch

    from seedling_hf.inference.batch_memory import LEAST_BYTES, refuse_beyond
    from seedling_hf.machine import memory_size
    from seedling_hf.plots.curves import plot_growth
    from seedling_hf.speed import measurements
    from seedling_hf.speed.forms import Setting
    from seedling_hf.speed.results import describe_machine, format_results

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("expected a GPU for --device cuda, found none; use --device cpu")
    if arguments.num_threads:
        torch.set_num_threads(arguments.num_threads)
    # TF32 has 10 of float32's 23 bits, and not every form uses it; all must compute the same.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    names = ("variant", "image_size", "batch_size", "repeats", "seed", "torch_compile_mode")
    setting = Setting(
        **{name: getattr(arguments, name) for name in names}, device=device, dtype=getattr(torch, arguments.dtype)
    )
    pixels = setting.batch_size * setting.image_size**2
    what = f"{format_count(setting.batch_size, 'image')} of {setting.image_size:,}×{setting.image_size:,} pixels"
    refuse_beyond(memory_size(device), LEAST_BYTES * pixels, what, "lower --image_size or --batch_size", device)
    parts = arguments.parts.split(",")
    results = {"machine": describe_machine(device), "dtype": arguments.dtype, "rows": []}
    if "layers" in parts:
        results["rows"] += measurements.depthwise_rows(setting)
    if "training" in parts:
        results["rows"].append(measurements.training_row(setting))
    if "inference" in parts:
        results["rows"].append(measurements.inference_row(setting))
    if "profile" in parts:
        from seedling_hf.speed.profile import profile_training

        results["profile"] = profile_training(setting)
    if "memory" in parts:
        results["memory"] = measurements.memory_row(setting)
    if "growth" in parts:
        results["growth"] = measurements.growth_rows(setting)
    if "loading" in parts:
        from seedling_hf.speed.loading import loading_row  # needs datasets, which the other parts do not

        side = arguments.cache_images or arguments.image_size * 3 // 2
        results["rows"].append(loading_row(setting, arguments.train_dir, side))

    text = format_results(results)
    folder = Path(arguments.output_dir)
    write_text(folder / "benchmark.json", json.dumps(results, indent=2) + "\n")
    write_text(folder / "benchmark.md", f"{text}\n\n<!-- {TEXT_MARK.decode()} -->\n")
    if "growth" in parts:
        plot_growth(results["growth"], folder / "growth.png")
    print(text)
    print(f"\nWritten to {folder}.")
