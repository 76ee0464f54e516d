"""The files of a static Space, and where its ONNX Runtime comes from; `test_browser_page` looks at the page itself."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image
from small_models import SPECIES, write_model

from seedling_hf import SHIPPED_MODEL
from seedling_hf.commands import push_space, run
from seedling_hf.demo.facts import Facts, read_examples
from seedling_hf.demo.words import SPECIES as ALL_SPECIES
from seedling_hf.errors import InputError
from seedling_hf.hub import onnxruntime_web, repository
from seedling_hf.hub.onnxruntime_web import ARCHIVE, FILES, unpack_runtime
from seedling_hf.hub.static_space import MODEL_FILE, PAGE, TEXT_KEYS, check_preprocessing, write_static_space
from seedling_hf.inference.judgement import Certainty
from seedling_hf.replknet import RepLKNetImageProcessor

PREPROCESSING = {"shortest_edge": 112, "resample": "BICUBIC", "image_size": [96, 96], "mean": [0.5], "std": [0.5]}
# Node resizes what stands in the files and prints how many bytes differ from Python's.
COMPARE = """
import fs from "node:fs";
import { prepare } from "./pixels.mjs";
const { width, height, preprocessing } = JSON.parse(fs.readFileSync("case.json"));
const source = fs.readFileSync("source"), expected = fs.readFileSync("expected");
const rows = (top, count) => source.subarray(top * width * 4, (top + count) * width * 4);
const found = prepare(rows, width, height, preprocessing);
console.log(found.length - expected.length, found.reduce((sum, byte, i) => sum + (byte !== expected[i]), 0));
"""


@pytest.fixture
def space(tmp_path) -> dict[str, Path]:
    """The files of a page with the shipped model's examples, and with bytes in place of model and runtime."""
    folder, runtime = tmp_path / "page", {}
    folder.mkdir()
    (folder / MODEL_FILE).write_bytes(b"model")
    for name in FILES:
        runtime[name] = tmp_path / name
        runtime[name].write_bytes(b"runtime")
    class_names = sorted(ALL_SPECIES)
    examples, _ = read_examples(SHIPPED_MODEL / "examples", class_names)
    facts = Facts("nano", 3_300_000, 96, class_names, 0.979, 564, False, examples, [])
    return write_static_space(
        folder, runtime, facts=facts, certainty=Certainty(0.794, True), preprocessing=PREPROCESSING
    )  # fmt: skip


def about(space: dict[str, Path]) -> dict:
    return json.loads(space["page.json"].read_text(encoding="utf-8"))


def test_the_card_names_a_static_space_and_the_licence_of_the_runtime_is_there(space):
    card = yaml.safe_load(re.match(r"---\n(.*?)---\n", space["README.md"].read_text(encoding="utf-8"), re.DOTALL)[1])
    assert (card["sdk"], card["app_file"], card["title"]) == ("static", "index.html", "Which seedling is it?")
    assert "Microsoft Corporation" in space["onnxruntime/LICENSE"].read_text(encoding="utf-8")
    assert {f"onnxruntime/{name}" for name in FILES} | {"index.html", "page.js", "worker.js", "pixels.js"} <= set(space)


def test_every_class_has_its_example_and_its_name_in_both_languages(space):
    page = about(space)
    assert [entry["number"] for entry in page["examples"]] == list(range(12))
    assert all(max(Image.open(space[entry["file"]]).size) <= 384 for entry in page["examples"])
    assert page["names"]["zh"][sorted(ALL_SPECIES).index("Maize")] == "玉米 Maize"
    assert "97.9%" in page["facts"]["en"] and page["values"]["threshold"] == "79%"


def test_the_page_has_every_text_that_its_scripts_say(space):
    script = space["page.js"].read_text(encoding="utf-8")
    said = set(re.findall(r'say\("([^"]+)"', script))
    said |= set(re.findall(r'data-text="([^"]+)"', space["index.html"].read_text(encoding="utf-8")))
    said |= set(re.findall(r'ImageProblem\("([^"]+)"', space["pixels.js"].read_text(encoding="utf-8"))) - {
        "too many pixels"  # said in other words
    }
    assert said == set(TEXT_KEYS)
    assert all(set(texts) == said for texts in about(space)["texts"].values())


def test_the_page_loads_nothing_from_other_sites_and_forbids_it(space):
    page = space["index.html"].read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'" and rules["connect-src"] == "'self'"
    ours = [space[path.name].read_text(encoding="utf-8") for path in PAGE.iterdir()]
    addresses = {address for text in ours for address in re.findall(r"https?://[^\s\"']+", text)}
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a language, which nobody fetches


@pytest.mark.parametrize(
    ("width", "height", "image_size"),
    [(150, 150, 96), (301, 97, 96), (20, 33, 96), (3, 90, 96), (1, 1, 96), (640, 481, 224), (61, 50, 384)],
)
def test_the_page_resizes_and_crops_to_the_same_bytes_as_python(width, height, image_size, tmp_path):
    if (node := shutil.which("node")) is None:
        pytest.skip("needs Node.js on the path")
    processor = RepLKNetImageProcessor.from_variant("31B", image_size=image_size)
    pixels = np.random.default_rng(width).choice([0, 30, 200, 255], (height, width, 3)).astype(np.uint8)
    expected = processor(Image.fromarray(pixels), do_rescale=False, do_normalize=False, return_tensors="np")
    (tmp_path / "expected").write_bytes(expected["pixel_values"][0].transpose(1, 2, 0).astype(np.uint8).tobytes())
    (tmp_path / "source").write_bytes(np.dstack([pixels, np.full((height, width, 1), 255, np.uint8)]).tobytes())
    edge = processor.size.shortest_edge if processor.do_center_crop else None
    case = {"width": width, "height": height, "preprocessing": {"shortest_edge": edge, "image_size": 2 * [image_size]}}
    (tmp_path / "case.json").write_text(json.dumps(case), encoding="utf-8")
    shutil.copyfile(PAGE / "pixels.js", tmp_path / "pixels.mjs")
    (tmp_path / "compare.mjs").write_text(COMPARE, encoding="utf-8")
    compared = subprocess.run([node, "compare.mjs"], cwd=tmp_path, capture_output=True, text=True)
    assert compared.stdout == "0 0\n", compared.stderr


@pytest.mark.parametrize("changes", [{"resample": "BILINEAR"}, {"shortest_edge": 80}])
def test_a_processor_that_the_page_cannot_follow_is_refused(changes):
    with pytest.raises(InputError, match="resizes bicubically to at least the size of its crop for --static, found"):
        check_preprocessing(PREPROCESSING | changes)


@pytest.fixture
def archive(tmp_path, monkeypatch) -> Path:
    """A package with other files of those names, whose checksum is expected."""
    path = tmp_path / ARCHIVE
    with tarfile.open(path, "w:gz") as tar:
        for name in FILES:
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(name)
            tar.addfile(entry, io.BytesIO(name.encode()))
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    monkeypatch.setattr(onnxruntime_web, "INTEGRITY", f"sha512-{digest}")
    return path


def npm(folder: Path, script: str) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / "npm").chmod(0o755)


def test_npm_is_asked_for_the_pinned_package_without_its_scripts(archive, tmp_path, monkeypatch):
    packed = tmp_path / "packed"
    npm(tmp_path / "bin", f'echo "$@" > {tmp_path}/asked; /bin/cp {archive} {packed}/')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    packed.mkdir()
    found = unpack_runtime(packed)
    assert {name: path.read_text() for name, path in found.items()} == {name: name for name in FILES}
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith(f"pack onnxruntime-web@{onnxruntime_web.VERSION} ") and "--ignore-scripts" in asked


def test_an_archive_with_another_checksum_is_refused_and_not_unpacked(archive, tmp_path, monkeypatch):
    archive.write_bytes(archive.read_bytes() + b"\0")
    (tmp_path / "into").mkdir()
    with pytest.raises(InputError, match=r"expected onnxruntime-web-.*\.tgz with the checksum .*, found another"):
        unpack_runtime(tmp_path / "into", str(archive))
    assert not list((tmp_path / "into").iterdir())


def test_without_npm_or_a_connection_the_command_says_what_to_do(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxscript", reason="the extra `all` is needed to write ONNX")
    words = ["--model_name_or_path", str(SHIPPED_MODEL), "--static", "--output_dir", str(tmp_path / "page")]
    monkeypatch.setattr("seedling_hf.inference.classifier.load_classifier", None)  # before any model is loaded
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(push_space.main, words) == 2
    assert "expected npm (of Node.js) for --static, found none; install it, or run npm pack" in capsys.readouterr().err
    npm(tmp_path / "bin", "echo 'npm error code EAI_AGAIN' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert run(push_space.main, words) == 2
    assert "found a failure (npm error code EAI_AGAIN); check the connection" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hub_space_id", "a/b", "--output_dir", "page"], "expected --static with --output_dir, found none"),
        (
            ["--hub_space_id", "a/b", "--onnxruntime_web", "x.tgz"],
            "expected --static with --onnxruntime_web, found none",
        ),
        (["--static"], "expected --hub_space_id, or --output_dir with --static, found neither"),
        (["--static", "--hub_space_id", "a/b", "--output_dir", "page"], "found both"),
        ([], "found neither"),
        (["--static", "--hub_space_id", "a/b"], "found no examples in"),
        (
            ["--static", "--hub_space_id", "a/b", "--images", "IMAGE", "--onnxruntime_web", "none.tgz"],
            "for --onnxruntime_web at none.tgz, found none",
        ),
    ],
)
def test_a_mistake_is_one_sentence_before_work_starts(words, message, tmp_path, sample_dir, capsys, monkeypatch):
    pytest.importorskip("onnxscript", reason="the extra `all` is needed to write ONNX")
    monkeypatch.setattr("seedling_hf.inference.classifier.load_classifier", None)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}", encoding="utf-8")
    image = sorted((sample_dir / "Maize").iterdir())[0]
    words = [str(image) if word == "IMAGE" else word for word in words]
    monkeypatch.chdir(tmp_path)
    assert run(push_space.main, ["--model_name_or_path", "model", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[-1].count("expected") == 1
    assert not (tmp_path / "page").exists()


def test_a_dry_run_lists_page_model_and_runtime(archive, sample_dir, tmp_path, capsys):
    pytest.importorskip("onnxscript", reason="the extra `all` is needed to write ONNX")
    write_model(tmp_path / "model", sample_dir)
    images = [str(sorted((sample_dir / name).iterdir())[0]) for name in SPECIES]
    words = ["--model_name_or_path", str(tmp_path / "model"), "--hub_space_id", "alice/page", "--static", "--dry_run"]
    assert run(push_space.main, [*words, "--onnxruntime_web", str(archive), "--images", *images]) == 0
    listed = capsys.readouterr().out.split()
    assert {"index.html", "page.json", "README.md", MODEL_FILE, *(f"onnxruntime/{name}" for name in FILES)} <= set(
        listed
    )
    assert not [name for name in listed if name.startswith(("examples/", "seedling_hf/"))]


@pytest.mark.parametrize(("further", "sdk"), [(["--static"], "static"), ([], "gradio")])
def test_a_new_space_is_created_for_what_it_runs(further, sdk, monkeypatch):
    targets = []
    monkeypatch.setattr(push_space, "write_page", lambda *_: {})
    monkeypatch.setattr(push_space, "write_app", lambda *_: {})
    monkeypatch.setattr("seedling_hf.hub.connection.hub_session", nullcontext)
    monkeypatch.setattr("seedling_hf.hub.repository.push", lambda snapshot: targets.append(snapshot.target))
    words = ["--model_name_or_path", str(SHIPPED_MODEL), "--hub_space_id", "alice/page", *further]
    assert run(push_space.main, words) == 0
    created = {}
    repository._create_repo(SimpleNamespace(create_repo=lambda **options: created.update(options)), targets[0])
    assert (created["repo_id"], created["repo_type"], created["space_sdk"]) == ("alice/page", "space", sdk)
