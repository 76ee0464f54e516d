"""A page in the browser: drop an image, and see its species, its probability and what the model looked at."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import torch
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf.data.formats import image_formats
from seedling_hf.data.images import ImageError, read_image, to_rgb
from seedling_hf.data.transforms import EvalTransform
from seedling_hf.errors import InputError, NonFiniteError
from seedling_hf.escaping import Markdown, one_line
from seedling_hf.inference.batch_memory import check_memory, image_side
from seedling_hf.inference.classifier import list_classes, load_classifier
from seedling_hf.inference.prediction import forward, rank_classes
from seedling_hf.network import without_proxies

OVERLAY_SIDE = 384
CACHE_SECONDS = 3600
LARGEST_UPLOAD = "64mb"
MOST_WAITING = 64  # images that wait for the one that is being classified
# Larger images are refused by their header; decoding takes 4 bytes a pixel, resizing in floats 15 more.
MOST_PIXELS = 64_000_000
MOST_PIXELS_AT_ONCE = 16_000_000
# Fonts of the system: those of gradio's own themes come from another site.
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}


class Verdict(NamedTuple):
    """What the page shows of an image: a sentence, a probability for each species, and the image with the map."""

    sentence: str
    probabilities: dict[str, float] | None
    overlay: Image.Image | None


class Demo:
    """Predicts one image after another with a classifier in evaluation mode; see `build_demo`."""

    def __init__(self, model: PreTrainedModel, image_processor: BaseImageProcessor, threshold: float) -> None:
        self.model, self.image_processor, self.threshold = model, image_processor, threshold
        self.transform = EvalTransform(image_processor)
        self.class_names = list_classes(model.config)

    def __call__(self, path: str | None) -> Verdict:
        """What to show for a file: only a sentence if it cannot be decoded."""
        if path is None:
            return Verdict("", None, None)
        try:
            width, height = read_size(path)
            if width * height > MOST_PIXELS:
                sentence = (
                    f"## The image is too large\n\nIt has {width:,} × {height:,} pixels, and this page takes up to "
                    f"{MOST_PIXELS // 1_000_000} million. Please drop a smaller one."
                )
                return Verdict(sentence, None, None)
            pixel_values = self.transform(shrink(to_rgb(read_image(Path(path)))))[None].to(self.model.device)
        except ImageError as error:
            reason = Markdown.of(error.reason)
            sentence = f"## The image cannot be read\n\nDecoding failed ({reason}). Please drop another image."
            return Verdict(sentence, None, None)
        try:
            logits = forward(self.model, pixel_values).logits.float().cpu()
        except NonFiniteError:
            sentence = (
                "## The model cannot answer\n\nIt computed NaN or infinity, so its weights are damaged or too large. "
                "Please start this page with another model."
            )
            return Verdict(sentence, None, None)
        (ranked,) = rank_classes(logits, self.class_names, len(self.class_names))
        return Verdict(self.sentence(*ranked[0]), {one_line(name): p for name, p in ranked}, self.overlay(pixel_values))

    def sentence(self, species: str, probability: float) -> str:
        species = Markdown.of(species)
        if probability >= self.threshold:
            return f"## {species}\n\nPredicted with a probability of {probability:.0%}."
        return (
            f"## Not sure\n\nMost likely {species}, but its probability of {probability:.0%} is below the threshold of "
            f"{self.threshold:.0%}."
        )

    def overlay(self, pixel_values: torch.Tensor) -> Image.Image | None:
        """What the model saw of the image, with what supports its prediction; None if there is no saliency map."""
        try:
            from seedling_hf.interpretation.saliency import overlay, saliency_maps

            (saliency,) = saliency_maps(self.model, pixel_values)
        except (ImportError, InputError):
            return None
        return overlay(seen_image(pixel_values[0], self.image_processor), saliency)


def read_size(path: str) -> tuple[int, int]:
    """Width and height of an image by its header; (0, 0) for what `read_image` will refuse with its reason."""
    try:
        with Image.open(path, formats=image_formats()) as image:
            return image.size
    except Exception:  # decoders of damaged files raise all kinds of errors
        return 0, 0


def shrink(image: Image.Image) -> Image.Image:
    """A very large image, averaged down to at most `MOST_PIXELS_AT_ONCE`; others as they are."""
    factor = math.ceil(math.sqrt(image.width * image.height / MOST_PIXELS_AT_ONCE))
    return image.reduce(factor) if factor > 1 and min(image.size) >= factor else image


def seen_image(pixel_values: torch.Tensor, image_processor: BaseImageProcessor) -> Image.Image:
    """The image that the model sees, (C, H, W) after resizing, cropping and normalising, large enough to look at."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (image_processor.image_mean, image_processor.image_std))
    array = ((pixel_values.cpu() * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(array)
    scale = max(1.0, OVERLAY_SIDE / min(image.size))
    return image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)


def build_demo(
    model_name_or_path: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    threshold: float = 0.5,
    top_k: int = 5,
    title: str = "Which seedling is it?",
) -> gr.Blocks:
    """The page of a model, for `launch`: `top_k` species, and "not sure" below the probability `threshold`.

    Raises:
        InputError: as `load_classifier` does.
    """
    model, image_processor = load_classifier(model_name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    check_memory(model, 1, image_side(image_processor), "use a model for smaller images", trains=True)  # of its map
    demo = Demo(model, image_processor, threshold)

    def show(path: str | None) -> tuple[str, Any, Any]:
        verdict = demo(path)
        return (
            verdict.sentence,
            gr.update(value=verdict.probabilities, visible=verdict.probabilities is not None),
            gr.update(value=verdict.overlay, visible=verdict.overlay is not None),
        )

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(CACHE_SECONDS, CACHE_SECONDS)) as page:
        gr.Markdown(f"# {Markdown.of(title)}\n\nDrop an image of one seedling, taken from above.")
        with gr.Row():
            image = gr.Image(label="Image", sources=["upload", "clipboard"], height=OVERLAY_SIDE)
            with gr.Column():
                sentence = gr.Markdown(elem_id="sentence")
                label = gr.Label(
                    num_top_classes=top_k, label="Species", show_heading=False, visible=False, elem_id="species"
                )
            overlay = gr.Image(
                label="What supports the prediction", visible=False, interactive=False, height=OVERLAY_SIDE,
                elem_id="overlay", buttons=[],
            )  # fmt: skip
        # gradio's own decoder shows a traceback for a broken image, so we decode the file.
        image.preprocess = lambda payload: payload.path if payload else None
        image.change(
            show, image, [sentence, label, overlay], show_progress="minimal", api_name="predict", concurrency_limit=1
        )
    return page.queue(max_size=MOST_WAITING)


def launch(page: gr.Blocks, **options: Any) -> Any:
    """Serves a page of `build_demo` from this machine, without a tunnel, statistics or anything from other sites."""
    theme = gr.themes.Default(**FONTS)
    with without_proxies():
        return page.launch(
            share=False, ssr_mode=False, show_error=True, footer_links=[], theme=theme, max_file_size=LARGEST_UPLOAD,
            **options,
        )  # fmt: skip
