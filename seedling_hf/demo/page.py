"""The page that `demo` and a Space serve."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from torch import nn
from transformers import BaseImageProcessor

from seedling_hf.data.images import read_image, to_rgb
from seedling_hf.demo.facts import Facts, read_facts
from seedling_hf.demo.markup import CSS, SCRIPT, render_answer, render_facts, render_legend
from seedling_hf.demo.verdict import Demo, Verdict
from seedling_hf.demo.words import DEFAULT, TEXTS, Words, choose_language
from seedling_hf.escaping import Markdown, one_line
from seedling_hf.inference.batch_memory import check_memory, image_side
from seedling_hf.inference.classifier import Pretrained
from seedling_hf.inference.ensemble import load_together
from seedling_hf.inference.judgement import Certainty, add_familiarity, choose_certainty, explained_network
from seedling_hf.network import without_proxies

THRESHOLD = 0.5  # of models that name none
CACHE_SECONDS = 3600
LARGEST_UPLOAD = "64mb"
MOST_WAITING = 64  # images that wait for the one that is being classified
# Fonts of the system: those of gradio's own themes come from another site.
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
THUMBNAIL = 112
ONE, MANY = "one", "many"


def build_demo(
    model_name_or_path: str | Sequence[str],
    *,
    name: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    threshold: float | None = None,
    top_k: int = 5,
    title: str | None = None,
) -> gr.Blocks:
    """The page of a model, for `launch`: `top_k` species, and "not sure" below the probability `threshold`.

    Several models, which `name` says what to call together, answer as one. By default the threshold is that of the
    model, or else `THRESHOLD`. The page speaks the language of the browser, except for a `title` of one's own.

    Raises:
        InputError: as `load_classifier` does.
    """
    names = [model_name_or_path] if isinstance(model_name_or_path, str) else list(model_name_or_path)
    model, image_processor, facts = _load(names, name or " + ".join(names), revision, trust_remote_code)
    certainty = choose_certainty(model, threshold, otherwise=THRESHOLD)
    demo = Demo(model, image_processor, certainty, top_k)
    say = translate(facts, certainty, title)

    def show(path: str | None, mode: str, request: gr.Request) -> tuple[str, Any, str]:
        words = words_of(request)
        verdict = demo(path, words, tray=mode == MANY)
        return render_answer(verdict, words), verdict.image, render_legend(verdict, words)

    with gr.Blocks(
        title=title or TEXTS[DEFAULT]["title"], analytics_enabled=False, delete_cache=(CACHE_SECONDS, CACHE_SECONDS)
    ) as page:
        gr.Markdown(say("heading"), elem_id="heading")
        with gr.Row():
            with gr.Column(elem_id="given"):
                image = gr.Image(
                    sources=["upload", "clipboard"], show_label=False, format="png", elem_id="image", buttons=[]
                )  # fmt: skip
                mode = gr.Radio(
                    [(say("one"), ONE), (say("many"), MANY)], value=ONE, show_label=False, elem_id="mode",
                    visible=demo.finds_plants, container=False,
                )  # fmt: skip
            with gr.Column(elem_id="explained"):
                shown = gr.Image(show_label=False, interactive=False, elem_id="shown", buttons=["fullscreen"])
                legend = gr.HTML(elem_id="legend")
            with gr.Column(elem_id="answered"):
                answer = gr.HTML(say("answer"), elem_id="answer")
        # gradio's own decoder shows a traceback for a broken image, so we decode the file.
        image.preprocess = lambda payload: payload.path if payload else None
        inputs, outputs = [image, mode], [answer, shown, legend]
        options = {"show_progress": "minimal", "concurrency_limit": 1, "concurrency_id": "model"}
        image.change(show, inputs, outputs, api_name="predict", **options)
        mode.input(show, inputs, outputs, api_visibility="private", **options)
        if facts.examples or facts.trays:
            add_examples(page, facts, say, image, mode)
        gr.HTML(say("facts"), elem_id="facts")
    page.translations = say
    return page.queue(max_size=MOST_WAITING)


def _load(
    names: Sequence[str], name: str, revision: str | None, trust_remote_code: bool
) -> tuple[nn.Module, BaseImageProcessor, Facts]:
    """The models that answer as one, their image processor, and what the page says of them."""
    model, image_processor = load_together(names, name=name, revision=revision, trust_remote_code=trust_remote_code)
    check_memory(
        explained_network(model), 1, image_side(image_processor), "use a model for smaller images", trains=True
    )  # of its map
    source = Pretrained(names[0], revision, trust_remote_code)
    facts = read_facts(source, model, image_processor)
    if len(names) > 1:  # what is known of one is not known of all
        facts = facts._replace(name=model.name_or_path, accuracy=None, num_images=None, of_folds=False)
    return add_familiarity(model, source), image_processor, facts


def words_of(request: gr.Request | None) -> Words:
    """The page's words for whoever asks for it."""
    return Words(choose_language(request.headers.get("accept-language") if request else None))


def translate(facts: Facts, certainty: Certainty, title: str | None) -> gr.I18n:
    """What the page says before there is an answer, in each language."""
    texts = {}
    for language in TEXTS:
        words = Words(language)
        heading = Markdown.of(title) if title else words("title")
        texts[language] = {  # gradio has texts of its own, such as "image"
            "heading": f"# {heading}\n\n{words('tagline')}",
            "answer": render_answer(Verdict(), words),
            "facts": render_facts(facts, words, certainty),
            "examples": f"<b>{words('examples', count=len(facts.class_names))}</b>",
            "one": words("one"),
            "many": words("many"),
        }
    return gr.I18n(**texts)


def add_examples(page: gr.Blocks, facts: Facts, say: gr.I18n, image: gr.Image, mode: gr.Radio) -> None:
    """Images to choose, each with its name: one of each species, and trays."""
    paths = [*facts.examples.values(), *facts.trays]

    def names(words: Words) -> list[str]:
        return [*(one_line(words.short_name(name)) for name in facts.examples), *[words("tray")] * len(facts.trays)]

    def greet(request: gr.Request) -> Any:
        words = words_of(request)
        if words.language == DEFAULT:
            return gr.skip()
        # The same files again: one that is written anew while a browser reads it is a broken image there.
        files = [each["image"]["path"] for each in gallery.value]
        return list(zip(files, names(words), strict=True))

    def choose(event: gr.SelectData) -> tuple[Image.Image, str]:
        return to_rgb(read_image(paths[event.index])), ONE if event.index < len(facts.examples) else MANY

    gr.HTML(say("examples"))
    captioned = list(zip(map(thumbnail, paths), names(Words()), strict=True))
    gallery = gr.Gallery(
        captioned, columns=len(paths), rows=1, height="auto", allow_preview=False, object_fit="cover", show_label=False,
        interactive=False, buttons=[], elem_id="examples", format="jpeg",
    )  # fmt: skip
    page.load(greet, None, gallery, show_progress="hidden", api_visibility="private")
    gallery.select(choose, None, [image, mode], show_progress="hidden", api_visibility="private")


def thumbnail(path: Path) -> Image.Image:
    small = to_rgb(read_image(path))
    small.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL))
    return small


def launch(page: gr.Blocks, **options: Any) -> Any:
    """Serves a page of `build_demo` from this machine, without a tunnel, statistics or anything from other sites."""
    theme = gr.themes.Default(**FONTS)
    with without_proxies():
        return page.launch(
            share=False, ssr_mode=False, show_error=True, footer_links=[], theme=theme, max_file_size=LARGEST_UPLOAD,
            i18n=page.translations, css=CSS, js=SCRIPT, **options,
        )  # fmt: skip
