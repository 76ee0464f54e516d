"""A Hub on this machine, and real clients in processes of their own, configured by their environment."""

import atexit
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from local_hub import LocalHub, User
from without_package import WITHOUT_PACKAGE

TOKENS = {"hf_alice_secret": User("alice"), "hf_bob_secret": User("bob"), "hf_reader_secret": User("alice", "read")}
ALICE = "hf_alice_secret"
FAULTS = {
    "create": {"path": "/repos/create", "method": "POST"},
    "preupload": {"path": "/preupload/", "method": "POST"},
    "upload": {"path": "/xorbs/", "method": "POST"},
    "commit": {"path": "/commit/", "method": "POST"},
}
COMMAND = "import sys; from seedling_hf.commands import main; sys.exit(main())"
# Forks a process for each job that it reads, with all modules loaded: starting Python takes as long as ten pushes.
STARTER = """
import importlib, json, os, signal, sys
for module in sys.argv[1:]:
    importlib.import_module(module)

def work(job):
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    os.environ.update(job["environment"])
    if "HF_TOKEN" not in job["environment"]:
        os.environ.pop("HF_TOKEN", None)
    sys.argv = ["-c", *job["arguments"]]
    exec(job["program"], {"__name__": "__main__"})

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    job = json.loads(line)
    if os.fork():
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if child := os.fork():
        with open(job["output"] + ".pid", "w") as file:
            file.write(str(child))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with open(job["output"] + ".tmp", "w") as file:
            file.write(str(status))
        os.rename(job["output"] + ".tmp", job["output"] + ".status")
        os._exit(0)
    work(job)
    sys.exit()
"""
LIGHT = ("seedling_hf.hub.pusher", "safetensors.numpy")
HEAVY = (
    "seedling_hf.training.loop", "seedling_hf.evaluation.report_files", "evaluate", "matplotlib.figure",
    "sklearn.metrics",
)  # fmt: skip
# Logits of a model that is loaded from a folder and from the Hub, where the package cannot be imported.
LOAD = (
    WITHOUT_PACKAGE
    + """
import json, sys
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
folder, repository, revision, image = sys.argv[1:]
reports = []
for where, options in ((folder, {}), (repository, {"revision": revision})):
    options["trust_remote_code"] = True
    model = AutoModelForImageClassification.from_pretrained(where, **options)
    processor = AutoImageProcessor.from_pretrained(where, **options)
    with torch.no_grad():
        logits = model(**processor(Image.open(image), return_tensors="pt")).logits
    answers = pipeline("image-classification", model=where, **options)(image)
    logits = [x.hex() for x in logits[0].tolist()]
    reports.append({"logits": logits, "answers": answers, "module": type(model).__module__})
print("REPORT" + json.dumps(reports))
"""
)
numbers = itertools.count()


@cache
def free_port() -> int:
    """One port for all tests of this process, since the clients read the Hub's address once, when they are loaded."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass
class Process:
    """A process that was started by the starter."""

    output: Path

    def read(self) -> str:
        return self.output.read_text(encoding="utf-8") if self.output.exists() else ""

    def wait_for(self, text: str, timeout: float = 60) -> None:
        wait_until(lambda: text in self.read() or self.status is not None, timeout)
        assert text in self.read(), self.read()

    @property
    def status(self) -> int | None:
        path = Path(f"{self.output}.status")
        return int(path.read_text()) if path.exists() else None

    @property
    def id(self) -> int:
        return int(Path(f"{self.output}.pid").read_text())

    def kill(self) -> None:
        os.kill(self.id, signal.SIGKILL)

    def finish(self, timeout: float = 120) -> subprocess.CompletedProcess:
        try:
            wait_until(lambda: self.status is not None, timeout)
        except TimeoutError:
            self.kill()
            raise TimeoutError(self.read()) from None
        return subprocess.CompletedProcess((), self.status, self.read())


@dataclass
class Client:
    """One machine with one login.

    Attributes:
        fresh: Start Python anew for each process, with an empty cache of the Hub's files.
    """

    hub: LocalHub | None
    home: Path
    token: str | None = ALICE
    fresh: bool = False

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{free_port()}",
            "HF_HOME": str(self.home),
            "HF_XET_CACHE": str(self.home / "xet"),
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
            # By default a store that stays down is retried for more than three minutes.
            "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",
            "HF_XET_CLIENT_RETRY_BASE_DELAY": "200ms",
            **({"HF_TOKEN": self.token} if self.token else {}),
        }

    def start(self, program: str, *arguments: str | Path, modules: Sequence[str] = LIGHT) -> Process:
        """Starts `python -c program arguments` without waiting, with `modules` loaded."""
        process = Process(self.home.with_name(f"output-{next(numbers)}"))
        job = {"program": program, "arguments": list(map(str, arguments)), "output": str(process.output),
               "environment": self.environment}  # fmt: skip
        starter = starter_process(modules)
        starter.stdin.write(json.dumps(job) + "\n")
        starter.stdin.flush()
        return process

    def python(self, program: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
        """Runs `python -c program arguments`."""
        if not (self.fresh or environment):
            return self.start(program, *arguments).finish()
        return subprocess.run(
            [sys.executable, "-P", "-c", program, *map(str, arguments)], env=clean(self.environment | environment),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
        )  # fmt: skip

    def command(self, *words: str | Path, **environment: str) -> subprocess.CompletedProcess:
        """Runs `seedling-hf words`."""
        return self.python(COMMAND, *words, **environment)

    def train(self, **flags: Any) -> Process:
        """Starts `seedling-hf train` without waiting."""
        words = [
            word for name, value in flags.items() for word in ([f"--{name}"] if value is True else [f"--{name}", value])
        ]
        return self.start(COMMAND, "train", *words, modules=HEAVY)


@cache
def starter_process(modules: Sequence[str]) -> subprocess.Popen:
    # A home of its own for what the modules read when they are loaded.
    home = tempfile.TemporaryDirectory()
    atexit.register(home.cleanup)
    environment = clean(Client(None, Path(home.name), token=None).environment)
    command = [sys.executable, "-P", "-c", STARTER, *modules]
    starter = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, text=True)
    atexit.register(starter.kill)
    return starter


def clean(environment: dict[str, str]) -> dict[str, str]:
    """`environment`, and the variables of this process that do not concern the Hub."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))} | environment


def wait_until(is_so: Any, timeout: float = 60) -> None:
    started = time.monotonic()
    while not is_so():
        if time.monotonic() - started > timeout:
            raise TimeoutError
        time.sleep(0.02)


@dataclass
class Repository:
    """A repository as it is on the Hub's own disk."""

    hub: LocalHub
    repo_id: str
    kind: str = "models"

    @property
    def stored(self) -> Any:
        return self.hub.store.repo(self.kind, self.repo_id)

    def titles(self, revision: str = "main") -> list[str]:
        """Titles of the commits, oldest first, without the Hub's own first one."""
        history = self.stored.history(self.stored.find(revision))
        return [commit["title"] for _, commit in history][::-1][1:]

    def tree(self, revision: str = "main") -> dict[str, Any]:
        tree = self.stored.commit_data(self.stored.find(revision))["tree"]
        return {path: entry for path, entry in tree.items() if path != ".gitattributes"}

    def read(self, path: str, revision: str = "main") -> bytes:
        entry = self.tree(revision)[path]
        if "lfs" in entry:
            return self.hub.large_file(entry["lfs"]["oid"]).read_bytes()
        return (self.hub.store.root / "blobs" / entry["oid"]).read_bytes()

    @property
    def tags(self) -> dict[str, str]:
        return self.stored.meta["tags"]

    @property
    def head(self) -> str:
        return self.stored.find("main")
