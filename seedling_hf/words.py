"""Words of a command line that follow no flag: `predict a.jpg photos` means `predict --images a.jpg photos`."""

from argparse import Action, ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from transformers.hf_argparser import string_to_bool


def name_words(
    argv: Sequence[str],
    flag: str,
    actions: Mapping[str, Action],
    accepts: Mapping[str, Callable[[str], bool]] = MappingProxyType({}),
) -> list[str]:
    """Gives the words that no other flag takes to `flag`, in their order, at the end.

    A switch, such as `--tiles`, takes the next word only if that says yes or no. All words after `--` are meant.

    Args:
        flag: A flag that takes a list.
        actions: What argparse knows of each flag.
        accepts: For flags that take a list, whether a word after the first belongs to it.
    """
    named, words, is_given, room, belongs = [], [], False, 0, None
    for position, word in enumerate(argv):
        if word == "--":
            words += [f"./{each}" if each.startswith("-") else each for each in argv[position + 1 :]]
            break
        name, equals, value = word.partition("=")
        if name == flag:
            is_given, room, belongs = True, 0, None
            words += [value] if equals else []
        elif word.startswith("--"):
            named.append(word)
            belongs = None
            room = 0 if equals else _most_values(actions.get(word))
            if room == 1 and _is_switch(actions.get(word)) and not _says_yes_or_no(argv[position + 1 : position + 2]):
                room = 0
        elif belongs is not None and not belongs(word):
            words.append(word)
        elif room or (word.startswith("-") and word != "-"):
            named.append(word)
            room = max(room - 1, 0)
            if argv[position - 1 : position] and argv[position - 1] in accepts:
                belongs = accepts[argv[position - 1]]
        else:
            words.append(word)
    return [*named, *([flag, *words] if words or is_given else [])]


def _most_values(action: Action | None) -> float:
    if action is None:  # it is refused later
        return 1
    return {"+": float("inf"), "*": float("inf"), "?": 1, None: 1}.get(action.nargs, action.nargs)


def _is_switch(action: Action | None) -> bool:
    return action is not None and action.nargs == "?"


def _says_yes_or_no(words: Sequence[str]) -> bool:
    try:
        return bool(words) and isinstance(string_to_bool(words[0]), bool)
    except ArgumentTypeError:
        return False
