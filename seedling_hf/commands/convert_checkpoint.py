"""`convert_checkpoint`: converts the authors' .pth weights to a folder for `from_pretrained`."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass

from seedling_hf.arguments import ArgumentGroup, option, parse_arguments
from seedling_hf.locks import lock_file


@dataclass(kw_only=True)
class ConvertArguments(ArgumentGroup):
    """Convert the authors' .pth weights of RepLKNet to a folder for from_pretrained.

    Examples:
        seedling-hf convert_checkpoint --checkpoint_path RepLKNet-31B_ImageNet-1K_224.pth --output_dir replknet-31b
        seedling-hf convert_checkpoint --checkpoint_path 31B.pth --output_dir replknet-12 --num_labels 12
    """

    _argument_group_name = "Conversion"

    checkpoint_path: str = option(MISSING, "the authors' .pth file")
    output_dir: str = option(MISSING, "folder to write, new or empty", writable=True)
    num_labels: int | None = option(
        None, "number of classes of a new, untrained head (default: keep the head)", least=1
    )
    checkpoint_key: str | None = option(
        None,
        "part of the file to read (default: the first one present)",
        choices=["model", "model_ema", "state_dict"],
    )
    image_size: int | None = option(
        None, "side of the processor's images (default: that of the authors' run, or 224)", least=32
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(ConvertArguments, argv, prog="convert_checkpoint")

    from seedling_hf.export.conversion import convert_checkpoint, variant_name
    from seedling_hf.verbosity import hide_library_bars

    hide_library_bars()
    lock_file(args.output_dir)
    model = convert_checkpoint(**vars(args))
    config = model.config
    head = f"{config.num_labels} classes" if hasattr(model, "classifier") else "no head"
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{type(model).__name__}, variant {variant_name(config) or 'unnamed'}, {millions:.1f} M parameters, {head}")
    print(f"SHA-256 of the file: {config.source_sha256}")
    print(f"Written to {args.output_dir}; fine-tune it with train --model_name_or_path {args.output_dir}")
