"""A label map gives classes their names: a CSV with the columns `from` and `to`, one line for each name that changes.

So images whose classes are spelled otherwise, numbered, or divided more finely can be used without renaming folders.
"""

import os
from collections.abc import Iterable, Mapping, Sequence

from seedling_hf.data.images import a_few
from seedling_hf.data.listing import is_utf8
from seedling_hf.data.pool import ImagePool, propose_names
from seedling_hf.data.tables import read_columns
from seedling_hf.errors import InputError
from seedling_hf.escaping import one_line, unescape_cell
from seedling_hf.spelling import find_near

COLUMNS = ("from", "to")
ADVICE = "write the header from,to, and below it a name in the images and the name of its class"

LabelMap = dict[str, str]  # the name of the class that each name becomes


def read_label_map(path: str | os.PathLike) -> LabelMap:
    """The names that a label map changes; several may become one, and each changes once, not step by step.

    Raises:
        InputError: if it is no such file, changes a name twice, or gives an empty name.
    """
    names: LabelMap = {}
    for number, row in enumerate(read_columns(path, COLUMNS, "a label map", ADVICE), 2):
        old, new = map(unescape_cell, row)
        if old in names:
            raise InputError(
                f"expected each name once in the column from of {path}, found {one_line(old)} again in row {number}; "
                "keep one of them"
            )
        if not new.strip() or new != new.strip() or not old:
            raise InputError(
                f"expected two names in each row of {path}, found {one_line(old)!r} and {one_line(new)!r} in row "
                f"{number}; write both, without spaces around the second"
            )
        if not (is_utf8(old) and is_utf8(new)):
            raise InputError(
                f"expected UTF-8 in {path}, found {one_line(','.join(row))} in row {number}; save it as UTF-8"
            )
        names[old] = new
    return names


def check_label_map(
    names: Mapping[str, str],
    path: str | os.PathLike,
    found: Iterable[str],
    where: str,
    class_names: Sequence[str] | None = None,
) -> None:
    """Refuses names that no class has.

    Where the classes of a model are known, a map may serve several folders: names of other images are refused only if
    they look like another spelling of a class that is there.

    Args:
        found: The names in the images of `where`.
        class_names: Those of the model that the images are for, if any.

    Raises:
        InputError: for an unknown name on either side, with a known one that it nearly is.
    """
    found = sorted(set(found))
    unknown = [name for name in names if name not in found]
    if class_names is not None:
        others = [name for name in found if name not in names]
        unknown = [name for name in unknown if find_near(name, others) not in (None, names[name])]
    if unknown:
        raise InputError(
            f"expected the classes of {where} in the column from of {path}, found {propose_names(unknown, found)}; use "
            f"{a_few(found, 12)}, or remove these rows"
        )
    if class_names is not None and (unknown := sorted(set(names.values()) - set(class_names))):
        raise InputError(
            f"expected the model's classes in the column to of {path}, found {propose_names(unknown, class_names)}; "
            f"use {a_few(class_names, 12)}"
        )


def rename_classes(
    pools: Mapping[str, ImagePool], path: str | os.PathLike | None, class_names: Sequence[str] | None = None
) -> dict[str, ImagePool]:
    """Pools with the names of classes that a label map gives; as they are without a path.

    Raises:
        InputError: as `read_label_map` and `check_label_map` do.
    """
    if path is None:
        return dict(pools)
    names = read_label_map(path)
    found = {name for pool in pools.values() for name in [*pool.labels, *(pool.class_names or ())]}
    check_label_map(names, path, found, " and ".join(pool.where for pool in pools.values()), class_names)
    return {split: pool.rename(names) for split, pool in pools.items()}
