"""Random damage to JSON, bytes and command lines; the same generator gives the same damage."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

CANARY = "fuzz-canary"  # a file of this name would show that something was executed
CODE = (
    f"__import__('os').system('touch {CANARY}')",
    f"pipe:touch {CANARY}",
    f"$(touch {CANARY})",
    f"; touch {CANARY}",
    f"cos\nsystem\n(S'touch {CANARY}'\ntR.",
    "!!python/object/apply:os.system",
)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**31, 2**63, 2**64, 10**30, -(2**63), 0.5, -0.0, 1e-320, 1e308,
    float("nan"), float("inf"), -float("inf"), "", " ", "x", "0", "1", "null", "\0", "ä\u202e\ud800", "a" * 5000,
    "\n", "line\nline", "../../../etc/passwd", "/dev/zero", "/dev/stdin", "~", "{}", "[1]", "%s%n", "__class__",
    "layer", "channel", "auto", "digits", "cpu", "float16", [], {}, [[]], [None], [0], [1, 2, 3], [""], [-1, 10**9],
    {"": None}, {"a": {"b": {"c": []}}}, list(range(300)), *CODE,
)  # fmt: skip


def deep(levels: int) -> Any:
    """Lists within lists."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def value(chance: Random) -> Any:
    """Anything that JSON can say, and NaN and infinities."""
    return deep(chance.choice((10, 900))) if chance.random() < 0.02 else copy.deepcopy(chance.choice(VALUES))


def near(old: Any, chance: Random) -> Any:
    """A value of the type of ``old``, but another one."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, (int, float)):
        return chance.choice((old + 1, old - 1, -old, old * 2, old * 1000, old / 2, float(old), str(old)))
    if isinstance(old, str):
        at = chance.randrange(len(old) + 1)
        return chance.choice((old[:at] + old[at + 1 :], old[:at] + "é" + old[at:], old.upper(), old * 2, [old]))
    if isinstance(old, list):
        return chance.choice((old[1:], old + old, old[::-1], [old], dict(enumerate(map(str, old)))))
    return value(chance)


def mutate_json(document: Any, chance: Random) -> Any:
    """A copy with one to three changes at random places."""
    holder = [copy.deepcopy(document)]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        container, key = chance.choice(list(_places(holder)))
        old = container[key]
        kind = chance.randrange(6)
        if kind == 0 and isinstance(container, dict):
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[str(near(key, chance) if chance.random() < 0.7 else value(chance))[:100]] = container.pop(key)
        elif kind == 2 and isinstance(old, dict):
            old[str(value(chance))[:100]] = value(chance)
        elif kind <= 3:
            container[key] = near(old, chance)
        else:
            container[key] = value(chance)
    return holder[0]


def _places(holder: list[Any]) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting: list[Any] = [holder]
    while waiting and len(found) < 5000:
        container = waiting.pop()
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        found += [(container, key) for key in keys]
        waiting += [container[key] for key in keys if isinstance(container[key], (dict, list)) and container[key]]
    return found


def json_bytes(document: Any, chance: Random) -> bytes:
    """A JSON document, damaged as one or as text."""
    if chance.random() < 0.2:
        return mutate_bytes(json.dumps(document, indent=1).encode(), chance)
    text = json.dumps(mutate_json(document, chance), indent=1)
    return text.encode("utf-8", errors="surrogatepass")


def mutate_bytes(data: bytes, chance: Random) -> bytes:
    """A copy with bits flipped, parts cut, repeated, moved, filled or replaced."""
    content = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(content) + 1)
        many = min(len(content) - at, int(2 ** chance.uniform(0, 14)))
        kind = chance.randrange(8)
        if kind <= 2 and at < len(content):
            content[at] ^= 1 << chance.randrange(8)
        elif kind == 3:
            del content[at:]
        elif kind == 4:
            del content[at : at + many]
        elif kind == 5:
            content[at:at] = content[at : at + many]
        elif kind == 6:
            content[at : at + many] = bytes([chance.choice((0, 0xFF, 0x20, 0x39))]) * many
        else:
            token = str(value(chance)).encode("utf-8", errors="replace")[:600]
            content[at : at + len(token)] = token
    return bytes(content)


def mutate_words(words: list[str], chance: Random, make: Callable[[Random], str]) -> list[str]:
    """A copy of a command line with one change: a word left out, doubled, damaged, or another one put in."""
    words, at = list(words), chance.randrange(len(words) + 1)
    kind = chance.randrange(4)
    if kind == 0 and at < len(words):
        del words[at]
    elif kind == 1 and at < len(words):
        words.insert(at, words[at])
    elif kind == 2 and at < len(words):
        words[at] = str(near(words[at], chance))
    else:
        words.insert(at, make(chance))
    return [word.replace("\0", "") for word in words]  # no program can be given that one
