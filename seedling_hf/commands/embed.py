"""`embed`: images go in, their features come out as Parquet; or one image goes in, and the most similar come out."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from seedling_hf.arguments import option, parse_arguments
from seedling_hf.errors import InputError
from seedling_hf.inference.compiled_batches import CompiledInferenceArguments
from seedling_hf.locks import lock_file
from seedling_hf.origin import check_ours


@dataclass(kw_only=True)
class EmbedArguments(CompiledInferenceArguments):
    """Write features of images, and find similar images.

    Examples:
        seedling-hf embed --images seedlings --embeddings_file features.parquet
        seedling-hf embed --embeddings_file features.parquet --query photo.jpg
    """

    _argument_group_name = "Embedding"

    embeddings_file: str = option(MISSING, "Parquet file to write or to search")
    images: list[str] = option(list, "images to embed, or folders that are searched for images", images=True)
    normalize: bool = option(False, "give every embedding the length 1")
    query: str | None = option(None, "image to search the Parquet file for: prints the most similar images", path=True)
    top_k: int = option(5, "number of similar images to print", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.images or self.query):
            raise InputError("expected --images to embed or --query to search for, found neither; give one of them")
        if self.query is not None and not Path(self.query).is_file():
            raise InputError(f"expected an image as --query, found none at {self.query}")
        if self.images:
            if Path(self.embeddings_file).is_dir():
                raise InputError(
                    f"expected a file as --embeddings_file, found the folder {self.embeddings_file}; add a name.parquet"
                )
            self.check_output("embeddings_file")
            check_ours(self.embeddings_file, "--embeddings_file", "features.parquet")


def main(argv: Sequence[str] | None = None) -> int | None:
    """Images → features → Parquet; an image → the most similar."""
    arguments = parse_arguments(EmbedArguments, argv, prog="embed")

    from seedling_hf.data.listing import list_images
    from seedling_hf.escaping import format_count
    from seedling_hf.inference.embedding import embed_image, hash_weights, write_embeddings
    from seedling_hf.inference.nearest import check_embeddings, find_nearest, format_nearest
    from seedling_hf.inference.output import print_failed
    from seedling_hf.inference.prediction import build_accelerator

    if arguments.images and next(list_images(arguments.images), None) is None:
        raise InputError(f"expected images in {', '.join(arguments.images)}, found none; name another folder")
    if not arguments.images:
        check_embeddings(arguments.embeddings_file)
    accelerator = build_accelerator(arguments.mixed_precision)
    if accelerator.num_processes > 1:
        raise InputError(f"expected one process, found {accelerator.num_processes}; start embed without torchrun")
    if arguments.images:
        lock_file(arguments.embeddings_file)
    model, image_processor = arguments.load(merge=False)
    weights_hash = hash_weights(model)
    if not arguments.no_merge and hasattr(model, "fuse_batch_norms"):
        model.fuse_batch_norms()
    model.to(accelerator.device)
    arguments.compile(getattr(model, model.base_model_prefix, model), accelerator)

    if arguments.images:
        written, failed = write_embeddings(
            model,
            image_processor,
            arguments.images,
            arguments.embeddings_file,
            accelerator,
            weights_hash=weights_hash,
            batch_size=arguments.per_device_eval_batch_size,
            num_workers=arguments.dataloader_num_workers,
            normalize=arguments.normalize,
            skip_bad_images=arguments.skip_bad_images,
        )
        print(f"embeddings of {format_count(written, 'image')} are in {arguments.embeddings_file}")
        print_failed(failed)
    if arguments.query:
        check_embeddings(arguments.embeddings_file, weights_hash)
        query = embed_image(model, image_processor, arguments.query, accelerator)
        print(format_nearest(find_nearest(arguments.embeddings_file, query, arguments.top_k)))
    accelerator.end_training()
