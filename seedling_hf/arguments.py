"""Flags of the commands: flat dataclasses, filled from the command line over a YAML recipe.

A recipe is turned into flags and read by the same parser as the command line, so that types, choices and unknown keys
are checked by the same code (and `1e-3`, a string to YAML, is a number here).
"""

import difflib
import inspect
import itertools
import math
import operator
import os
import shutil
import sys
from argparse import SUPPRESS, ArgumentParser, HelpFormatter
from collections.abc import Iterable, Iterator, Sequence, Set
from copy import copy
from dataclasses import Field, asdict, field, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from transformers.hf_argparser import HfArgumentParser, string_to_bool

from seedling_hf.errors import InputError
from seedling_hf.files import check_writable_folder, write_text
from seedling_hf.locks import lock_file, lock_folder
from seedling_hf.origin import check_outputs
from seedling_hf.paths import check_file_apart, check_folder_apart, check_path, expand_home, expand_variables
from seedling_hf.words import name_words

T = TypeVar("T")


# Ranges of numbers, as they are declared and as they are reported.
RANGES = {
    "least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("at most", operator.le),
    "below": ("below", operator.lt),
}

DECLARED = {
    *RANGES,
    "path",
    "images",
    "positional",
    "writable",
    "apart",
    "files",
    "accepts",
}  # checked here, unknown to argparse

# Flags that name files or folders; others say so with `path=True`.
PATH_ENDINGS = ("_dir", "_file", "_path")
EXAMPLES = "Examples:\n"  # the section of a docstring
LARGEST_INTEGER = 2**31 - 1
LARGEST_SEED = 2**32 - 1  # of NumPy
MOST_WORKERS = 1024  # processes or threads


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A dataclass field that is a flag: its default, one line of help, and `choices` if any.

    With `MISSING` the flag is required; with `list` it is an empty list. `ArgumentGroup` checks what else is declared:

        least, above, most, below: bounds of a number
        path: it names a file or folder, as flags ending in `_dir`, `_file` and `_path` do
        images: it names images that are read, or folders of them
        positional: the list of a command that also takes the words that follow no flag
        writable: a folder or file to write, apart from what is read
        apart: the folder to write must not hold the images either
        accepts: whether a word beside those of `positional` belongs to this list, unless it is the first
        files: names of the files in that folder, which are replaced only if they are ours
    """
    return field(**{"default_factory" if default is list else "default": default}, metadata={"help": help, **metadata})


def is_path(flag: Field) -> bool:
    """Whether a flag names a file or a folder."""
    return flag.name.endswith(PATH_ENDINGS) or any(flag.metadata.get(key) for key in ("path", "images", "writable"))


class ArgumentGroup:
    """A group of flags; the dataclass of a command inherits from its groups, and each group checks its own values."""

    @classmethod
    def default_recipe(cls, given: Set[str]) -> Path | None:
        """The recipe whose values stand for the defaults where these flags and keys are given; None for none."""
        return None

    def __post_init__(self) -> None:
        """Checks what the fields declare, and expands `~` in paths; None passes.

        Raises:
            InputError: for a number that is not finite or outside its range, an empty word, a path that cannot be
                written, an output among what is read, or a file of somebody else in its place.
        """
        for flag in fields(self):
            value = getattr(self, flag.name)
            for each in value if isinstance(value, list) else [value]:
                _check_value(each, flag)
            if isinstance(value, list) and is_path(flag):
                setattr(self, flag.name, [expand_home(each) for each in value])
            elif isinstance(value, str) and is_path(flag):
                setattr(self, flag.name, expand_home(value))
        for flag in fields(self):
            value = getattr(self, flag.name)
            if value is not None and flag.metadata.get("writable"):
                self.check_output(flag.name, apart=flag.metadata.get("apart", False))
                check_outputs(value, flag.metadata.get("files", ()), f"--{flag.name}")

    def check_output(self, name: str, *, apart: bool = False) -> None:
        """Checks that what the flag `name` writes is in a folder that can be written, and apart from what is read.

        Raises:
            InputError: if it is not.
        """
        value, flag = getattr(self, name), f"--{name}"
        read = [f for f in fields(self) if is_path(f) and not f.metadata.get("writable") and f.name != name]
        if name.endswith("_file"):
            check_file_apart(value, flag, self._given(read))
            check_writable_folder(Path(value).parent, flag)
        else:
            check_folder_apart(value, flag, self._given(f for f in read if f.metadata.get("images")), around=apart)
            check_writable_folder(Path(value), flag)

    def _given(self, flags: Iterable[Field]) -> Iterator[tuple[str, str]]:
        """Each path that these flags name, after its flag."""
        for flag in flags:
            value = getattr(self, flag.name)
            for path in value if isinstance(value, list) else [value]:
                if path is not None:
                    yield f"--{flag.name}", path

    def lock_outputs(self) -> None:
        """Locks what the flags with `writable=True` name, until the command ends; on one process of a run only.

        Raises:
            InputError: if another run writes to one of them.
        """
        for flag in fields(self):
            value = getattr(self, flag.name)
            if value is not None and flag.metadata.get("writable"):
                lock_file(value) if flag.name.endswith("_file") else lock_folder(value)


def _check_value(value: Any, flag: Field) -> None:
    if isinstance(value, str):
        if is_path(flag):
            check_path(value, f"--{flag.name}")
        elif not value.strip():
            raise InputError(
                f"expected a value for --{flag.name}, found an empty one; write one, or leave the flag out"
            )
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    limits = [(*RANGES[key], flag.metadata[key]) for key in RANGES if key in flag.metadata]
    if not all(inside(value, bound) for _, inside, bound in limits):
        raise InputError(f"expected --{flag.name} {_range(limits)}, found {value}")
    largest = max(LARGEST_INTEGER, flag.metadata.get("most", 0))
    if isinstance(value, int) and abs(value) > largest:
        raise InputError(f"expected --{flag.name} from {-largest} to {largest}, found {value}")
    if not math.isfinite(value):
        raise InputError(f"expected a finite number for --{flag.name}, found {value}")


def _range(limits: Sequence[tuple[str, Any, float]]) -> str:
    return " and ".join(f"{words} {bound if isinstance(bound, int) else f'{bound:g}'}" for words, _, bound in limits)


class _HelpFormatter(HelpFormatter):
    """One name per flag, choices and default after its help, as wide as the terminal; examples as they stand."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=39, width=max(80, shutil.get_terminal_size((120, 40)).columns))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(
            each if each.startswith(EXAMPLES) else super(_HelpFormatter, self)._fill_text(each, width, indent)
            for each in paragraphs
        )

    def _get_help_string(self, action) -> str:
        choices = [str(choice) for choice in action.choices or ()]
        notes = [] if all(choice in action.help for choice in choices) else [", ".join(choices)]
        if action.required:
            notes.append("required")
        elif action.default not in (None, SUPPRESS, False, []) and action.nargs != 0:
            notes.append("default: %(default)s")
        return f"{action.help} ({'; '.join(notes)})" if notes else action.help

    def _format_action_invocation(self, action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        flag = action.option_strings[0]
        if action.nargs in (0, "?"):
            return flag
        return f"{flag} {action.dest.split('_')[-1].upper()}" + (" …" if action.nargs == "+" else "")


class _Parser(HfArgumentParser):
    @staticmethod
    def _parse_dataclass_field(parser: ArgumentParser, field: Field) -> None:
        if f"--{field.name}" in parser._option_string_actions:  # inherited from another group
            return
        field = copy(field)
        field.metadata = {k: v for k, v in field.metadata.items() if k not in DECLARED}
        HfArgumentParser._parse_dataclass_field(parser, field)
        action = parser._option_string_actions[f"--{field.name}"]
        if action.type is string_to_bool and action.nargs is None:
            action.nargs, action.const = "?", True  # `bool | None` alone means true, as `bool` does

    def error(self, message: str) -> NoReturn:
        for action in self._actions:  # argparse lists every spelling of a flag; one is enough
            message = message.replace("/".join(action.option_strings), action.option_strings[0])
        raise InputError(f"{self.prog}: {message}; --help lists the flags")

    def refuse_unknown_flags(self, argv: Sequence[str], source: str) -> None:
        for word in argv:
            flag = word.split("=")[0]
            if flag.startswith("--") and flag not in self._option_string_actions:
                near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise InputError(f"{self.prog}: unknown flag {flag} {source}; {hint}--help lists the flags")


def parse_arguments(cls: type[T], argv: Sequence[str] | None, *, prog: str) -> T:
    """Reads flags into a `cls`; they override those of the YAML recipe that `--config` names.

    That recipe overrides the values of `cls.default_recipe`, if `cls` has one.

    Args:
        cls: A keyword-only dataclass; its docstring heads `--help`, its examples end it, and the dataclasses that it
            inherits from are the groups there.
        argv: The words after the command, `sys.argv[1:]` if None.

    Raises:
        InputError: for an unknown flag or key, a value of the wrong type, a missing flag or a missing recipe.
    """
    groups = [c for c in reversed(cls.__mro__) if is_dataclass(c) and "_argument_group_name" in vars(c)] or [cls]
    description, examples, lines = inspect.cleandoc(cls.__doc__).partition(EXAMPLES)
    positional = next((flag.name for flag in fields(cls) if flag.metadata.get("positional")), "")
    words = f" [{positional.upper()} …]" if positional else ""
    parser = _Parser(
        groups, prog=prog, description=description, epilog=examples + lines, allow_abbrev=False,
        formatter_class=_HelpFormatter, usage=f"seedling-hf {prog} [--config RECIPE.yaml] [flags]{words}",
    )  # fmt: skip
    if groups[-1] is cls:  # its own flags follow argparse's two groups, before those that it inherits
        parser._action_groups.insert(2, parser._action_groups.pop())
    for flag in fields(cls):
        if flag.default is None:  # also where it replaces a flag that a group requires
            parser._option_string_actions[f"--{flag.name}"].required = False
    parser.add_argument(
        "--config", metavar="YAML", help="recipe: flags as YAML keys; flags on the command line override it"
    )
    argv = list(sys.argv[1:] if argv is None else argv)
    if positional:
        accepts = {f"--{flag.name}": flag.metadata["accepts"] for flag in fields(cls) if "accepts" in flag.metadata}
        argv = name_words(argv, f"--{positional}", parser._option_string_actions, accepts)
    paths = {flag.name for group in groups for flag in fields(group) if is_path(flag)}
    recipe = _recipe_flags(_named_recipe(argv), paths, replaced=_replaced_keys(groups, argv))
    parser.refuse_unknown_flags(recipe, "in the recipe")
    parser.refuse_unknown_flags(argv, "on the command line")
    given = _given_keys(recipe + argv)
    default = cls.default_recipe(given) if issubclass(cls, ArgumentGroup) else None
    defaults = _recipe_flags(default, paths, replaced=given)
    values = vars(parser.parse_args(defaults + recipe + argv))
    values.pop("config")
    return cls(**values)


def _given_keys(words: Sequence[str]) -> set[str]:
    """The names of the flags among some words."""
    return {word.split("=")[0].removeprefix("--") for word in words if word.startswith("--")}


def _replaced_keys(groups: Sequence[type], argv: Sequence[str]) -> set[str]:
    """Keys of a recipe that a flag on the command line replaces, since only one of them may be given."""
    given = _given_keys(argv)
    return {name for group in groups for name in getattr(group, "_one_of", ()) if given & set(group._one_of)} - given


def _named_recipe(argv: Sequence[str]) -> str | None:
    """The recipe behind `--config`."""
    path = None
    for word, following in itertools.pairwise([*argv, None]):
        if word == "--config":
            path = following
        elif word.startswith("--config="):
            path = word.partition("=")[2]
    return path


def _recipe_flags(path: str | os.PathLike | None, paths: Set[str], replaced: Set[str]) -> list[str]:
    """A recipe as flags, without the keys in `replaced`; null leaves the default.

    Variables in the values of `paths` are expanded, as the shell does on the command line.
    """
    if path is None:
        return []
    check_path(str(path), "--config")
    path = expand_home(str(path))
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise InputError(f"expected a recipe at {path}, found none ({error.strerror}); check --config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = f", line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        raise InputError(
            f"expected YAML in {path}, found something else{where}; write one `flag: value` per line"
        ) from error
    if not isinstance(recipe, dict):
        raise InputError(f"expected `flag: value` lines in {path}, found a {type(recipe).__name__}")
    flags = []
    for key, value in recipe.items():
        if isinstance(value, dict):
            raise InputError(f"expected one value for {key} in {path}, found nested keys; a recipe is flat")
        if value is None or value == [] or key in replaced:
            continue
        words = [str(v) for v in value] if isinstance(value, list) else [str(value)]
        if key in paths:
            words = [expand_variables(expand_home(word), f"{key} in {path}") for word in words]
        # With `=`, values such as -1 are not mistaken for flags; a list needs separate words.
        flags += [f"--{key}", *words] if isinstance(value, list) else [f"--{key}={words[0]}"]
    return flags


def write_arguments(arguments: Any, path: str | os.PathLike) -> None:
    """Writes `arguments` as YAML that is a valid `--config`."""
    write_text(path, yaml.safe_dump(asdict(arguments), sort_keys=False, allow_unicode=True))
