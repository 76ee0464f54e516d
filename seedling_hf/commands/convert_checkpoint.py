"""`convert_checkpoint`: converts published .pth weights to a folder for `from_pretrained`."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING

from seedling_hf.arguments import ArgumentGroup, option, parse_arguments
from seedling_hf.locks import lock_file

if TYPE_CHECKING:
    from seedling_hf.export.conversion import Conversion


@dataclass(kw_only=True)
class ConvertArguments(ArgumentGroup):
    """Convert published .pth weights of RepLKNet to a folder for from_pretrained.

    Reads the files of the authors, for segmentation and detection too, and those of mmpretrain.

    Examples:
        seedling-hf convert_checkpoint --checkpoint_path RepLKNet-31B_ImageNet-1K_224.pth --output_dir replknet-31b
        seedling-hf convert_checkpoint --checkpoint_path 31B.pth --output_dir replknet-12 --num_labels 12
    """

    _argument_group_name = "Conversion"

    checkpoint_path: str = option(MISSING, "the .pth file")
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

    from seedling_hf.export.conversion import convert_checkpoint
    from seedling_hf.verbosity import hide_library_bars

    hide_library_bars()
    lock_file(args.output_dir)
    for line in _report(convert_checkpoint(**vars(args)), args):
        print(line)


def _report(conversion: "Conversion", args: ConvertArguments) -> list[str]:
    from seedling_hf.export.conversion import variant_name

    model, config = conversion.model, conversion.model.config
    kind = type(model).__name__
    head = f"{config.num_labels:,} classes" if hasattr(model, "classifier") else "no head"
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    lines = [f"{kind}, variant {variant_name(config) or 'unnamed'}, {millions:.1f} M parameters, {head}"]
    if conversion.class_names:
        lines.append(f"Names of the classes: those of {conversion.class_names}, which has as many")
    if conversion.class_names == "ImageNet-22K":
        lines[-1] += ", and their order is unconfirmed: check it on images that you know"
    if conversion.left_out:
        lines.append(f"Left out: {_parts(conversion.left_out)}")
    lines.append(f"Images: {conversion.image_size} px on a side; --image_size sets another")
    lines.append(f"SHA-256 of the file: {config.source_sha256}")
    use = f"fine-tune it with train --model_name_or_path {args.output_dir}"
    if kind == "RepLKNetBackbone":
        use = f'load it with RepLKNetBackbone.from_pretrained("{args.output_dir}")'
    return [*lines, f"Written to {args.output_dir}; {use}"]


def _parts(names: list[str]) -> str:
    """The modules that the weights belong to, with their numbers: decode_head (42 weights), …"""
    counts: dict[str, int] = {}
    for name in names:
        module = name.partition(".")[0]
        counts[module] = counts.get(module, 0) + 1
    return ", ".join(f"{module} ({n:,} {'weight' if n == 1 else 'weights'})" for module, n in counts.items())
