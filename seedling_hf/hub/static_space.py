"""The files of a static Space: a page that classifies images in the browser, with nothing behind it.

The page is `seedling_hf/demo/browser`; ONNX Runtime comes from its npm package, the model as an ONNX file that takes
bytes, and `page.json` holds all that is said. The folder can be served from anywhere.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from seedling_hf.data.images import read_image, to_rgb
from seedling_hf.demo.facts import Facts
from seedling_hf.demo.markup import render_facts
from seedling_hf.demo.words import DEFAULT, TEXTS, Words
from seedling_hf.errors import InputError
from seedling_hf.escaping import Markdown
from seedling_hf.files import write_text
from seedling_hf.hub.onnxruntime_web import FILES, VERSION
from seedling_hf.hub.outbox import CARD
from seedling_hf.inference.judgement import Certainty

MODEL_FILE = "model.onnx"
RUNTIME = "onnxruntime"
EXAMPLES = "examples"
EXAMPLE_SIDE = 384  # of images to try: more than a model of these plants sees, and small
PAGE = Path(__file__).parents[1] / "demo/browser"
TEXT_KEYS = (
    "title", "browser tagline", "choose", "loading", "ready", "working", "clear", "waiting browser", "not loaded",
    "answer", "unsure", "unsure why", "unfamiliar", "unfamiliar why", "too large", "too large why", "broken",
    "broken why", "torn", "unreadable", "too thin", "overflow", "overflow why", "examples",
)  # fmt: skip
LICENSE = f"""The two files in this folder are of onnxruntime-web {VERSION}.

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def check_preprocessing(preprocessing: Mapping[str, Any]) -> None:
    """Raises InputError for what the page cannot compute of `export.preprocessing.describe_preprocessing`."""
    edge, (height, width) = preprocessing["shortest_edge"], preprocessing["image_size"]
    if preprocessing["resample"] != "BICUBIC" or (edge and edge < max(height, width)):
        found = f"{preprocessing['resample'].lower()}, shortest edge {edge}, crop {height}×{width}"
        raise InputError(
            "expected an image processor that resizes bicubically to at least the size of its crop for --static, found "
            f"{found}; push the Space without --static"
        )


def write_static_space(
    folder: Path,
    runtime: Mapping[str, Path],
    *,
    facts: Facts,
    certainty: Certainty,
    preprocessing: Mapping[str, Any],
    title: str | None = None,
    repo_id: str | None = None,
) -> dict[str, Path]:
    """Writes the page, its texts, examples and card into a `folder` that holds `MODEL_FILE`.

    Args:
        runtime: The `FILES` of ONNX Runtime by their names.
        certainty: With a threshold.
        preprocessing: As of `check_preprocessing`.
        title: In place of the page's own, which is in the language of the browser.
        repo_id: The model on the Hub, for the card.

    Returns:
        All files by their paths in the Space.
    """
    for path in sorted(PAGE.iterdir()):
        write_text(folder / path.name, path.read_text(encoding="utf-8"))
    (folder / RUNTIME).mkdir()
    for name in FILES:
        (folder / RUNTIME / name).write_bytes(runtime[name].read_bytes())
    write_text(folder / RUNTIME / "LICENSE", LICENSE)
    sizes = [(folder / name).stat().st_size for name in (MODEL_FILE, *(f"{RUNTIME}/{name}" for name in FILES))]
    about = _describe(facts, certainty, title, sum(sizes))
    about |= {
        "model": MODEL_FILE,
        "preprocessing": {key: preprocessing[key] for key in ("shortest_edge", "image_size")},
        "threshold": certainty.threshold,
        "examples": _write_examples(folder / EXAMPLES, facts),
    }
    write_text(folder / "page.json", json.dumps(about, ensure_ascii=False, indent=1) + "\n")
    write_text(folder / CARD, _card(title or TEXTS[DEFAULT]["title"], repo_id))
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _describe(facts: Facts, certainty: Certainty, title: str | None, num_bytes: int) -> dict[str, Any]:
    """What the page says, in each language."""
    languages = {language: Words(language) for language in TEXTS}
    texts = {language: {key: TEXTS[language][key] for key in TEXT_KEYS} for language in TEXTS}
    if title:
        for of_language in texts.values():
            of_language["title"] = title.replace("{", "(").replace("}", ")")
    return {
        "texts": texts,
        "names": {key: [words.name(name) for name in facts.class_names] for key, words in languages.items()},
        "facts": {key: render_facts(facts, words, certainty) for key, words in languages.items()},
        "values": {
            "threshold": f"{certainty.threshold:.0%}",
            "megabytes": f"{num_bytes / 1e6:.0f}",
        },
    }


def _write_examples(folder: Path, facts: Facts) -> list[dict[str, Any]]:
    """The images to try, by the numbers of their classes: names of classes are no names of files everywhere."""
    examples: Sequence[tuple[str, Path]] = sorted(
        facts.examples.items(), key=lambda item: facts.class_names.index(item[0])
    )
    if examples:
        folder.mkdir()
    entries = []
    for name, path in examples:
        number = facts.class_names.index(name)
        image = to_rgb(read_image(path))
        image.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE), Image.Resampling.LANCZOS)
        file = folder / f"{number}.jpg"
        image.save(file, quality=95)
        entries.append({"file": f"{EXAMPLES}/{file.name}", "number": number})
    return entries


def _card(title: str, repo_id: str | None) -> str:
    header = {
        "title": title, "emoji": "🌱", "colorFrom": "green", "colorTo": "yellow", "sdk": "static",
        "app_file": "index.html", "pinned": False, "license": "apache-2.0",
    }  # fmt: skip
    if repo_id:
        header["models"] = [repo_id]
    origin = f"[{repo_id}](https://huggingface.co/{repo_id})" if repo_id else "a RepLKNet"
    front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return (
        f"---\n{front}---\n\n<!-- begin space -->\n# {Markdown.of(title)}\n\nClassifies images of seedlings in the "
        f"browser, with {origin} as ONNX; nothing is sent anywhere. The files in `{RUNTIME}/` are onnxruntime-web "
        f"{VERSION}, under the MIT licence.\n<!-- end space -->\n"
    )
