"""Every command that writes, on inputs in its folder, and held at a moment, so that a test can disturb it there."""

import os
import shutil
import time
from pathlib import Path

from faults import COMMANDS, contents

COMMANDS = {
    **COMMANDS,
    "train, overwriting": f"{COMMANDS['train']} --overwrite_output_dir",
    "train, resuming": f"{COMMANDS['train']} --resume_from_checkpoint latest",
}
COMMANDS = {name: text.split() for name, text in COMMANDS.items()}


def hold_at_the_first_file() -> None:
    """Waits with the first file that is finished in `out`, until there is a file named `go`."""
    _hold(lambda target: "out" in Path(os.fspath(target)).absolute().parts)


def hold_in_the_run() -> None:
    """Waits with the first step of training: what is read before it is read."""
    _hold(lambda target: Path(os.fspath(target)).name == "split.csv")


def _hold(is_due) -> None:
    for name in ("rename", "replace"):
        setattr(os, name, _waiting(getattr(os, name), is_due))


def _waiting(function, is_due):
    def wrapper(source, target, **options):
        if is_due(target) and not Path("go").exists():
            _wait()
        return function(source, target, **options)

    return wrapper


def hold_at_the_first_image() -> None:
    """Waits with the first image that is opened, until there is a file named `go`."""
    from PIL import Image

    open_image = Image.open

    def wait(*arguments, **options):
        _wait()
        return open_image(*arguments, **options)

    Image.open = wait


def _wait() -> None:
    Path("held").touch()
    while not Path("go").exists():
        time.sleep(0.02)


def link_inputs(folder: Path, images: Path, model: Path) -> None:
    """Puts the images and the models that the commands name into a folder."""
    (folder / "images").symlink_to(images)
    for name in ("model", "other"):
        shutil.copytree(model, folder / name)


def assert_clean(folder: Path) -> None:
    """Neither locks nor temporary files are left."""
    assert not [name for name in contents(folder) if ".lock" in name or ".tmp" in name or Path(name).name[0] == "."]
