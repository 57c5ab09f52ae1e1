"""Arguments out of a shell script: assignments, arrays, arithmetic and plain tests are followed, nothing is run.

What the script leaves to its caller (positional arguments, the environment) stays as written, with its `$`.
"""

from __future__ import annotations

import ast
import operator
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

_NAME = re.compile(r"[A-Za-z_]\w*")
_ARRAY = re.compile(r"^([A-Za-z_]\w*)(\+?)=\((.*)\)$", re.DOTALL)
_ASSIGNMENT = re.compile(r"^([A-Za-z_]\w*)(\+?)=(.*)$", re.DOTALL)
_DEFAULT = re.compile(r"^([A-Za-z_]\w*|\d+)(?::?[-=])(.*)$", re.DOTALL)
_OPERATORS: dict[type[Any], Callable[[int, int], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt,
    ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "-eq": operator.eq, "-ne": operator.ne, "-lt": operator.lt, "-le": operator.le, "-gt": operator.gt, "-ge": operator.ge,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A program that a script starts: the words in front of it (its launcher), its arguments, and what was not decided."""

    before: tuple[str, ...]
    words: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Block:
    """An `if` or `case` that is open: whether its lines count now, whether a branch was taken, the word of a case."""

    active: bool
    taken: bool
    word: str | None = None


@dataclass(slots=True)
class _State:
    names: dict[str, str] = field(default_factory=dict)
    blocks: list[_Block] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def launch_of(text: str) -> Launch:
    """Return the last Python program with `--arguments` that a script starts, or the arguments that a text consists of."""
    state, found, loose = _State(), None, []
    for command in _commands(text):
        rest = _control(command, state)
        if not rest:
            continue
        words = _run(rest, state)
        program = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
        if program is not None and any(word.startswith("--") for word in words[program:]):
            found = words[:program], words[program + 1 :]
        elif words and words[0].startswith("--"):
            loose += words
    if found is None:
        values = [word for value in state.names.values() for word in value.split()] if not loose else []
        found = [], loose or values
    return Launch(before=tuple(found[0]), words=tuple(found[1]), notes=tuple(dict.fromkeys(state.notes)))


def _commands(text: str) -> list[str]:
    """Return a script's commands: without comments, with continued lines, quotes and parentheses kept whole."""
    found, now, quote, depth, i = [], "", "", 0, 0
    while i < len(text):
        char = text[i]
        if char == "\\" and quote != "'":
            now += " " if text[i + 1 : i + 2] == "\n" else text[i : i + 2]
            i += 2
            continue
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "#" and (not now or now[-1] in " \t\n;("):
            i = text.find("\n", i) if "\n" in text[i:] else len(text)
            continue
        elif char in "({" and (depth or now[-1:] in ("$", "=", "(")):
            depth += 1
        elif char in ")}" and depth:
            depth -= 1
        elif char in "\n;" and not depth:
            found.append(now.strip())
            now, i = "", i + 1
            continue
        now += char
        i += 1
    return [command for command in (*found, now.strip()) if command]


def _control(command: str, state: _State) -> str:
    """Follow if and case, and return what is left of a command that counts; nothing where its branch is not taken."""
    outer = all(block.active for block in state.blocks[:-1])
    block = state.blocks[-1] if state.blocks else None
    word, _, rest = command.partition(" ")
    if word in ("then", "do", "done", "{", "}"):
        return _control(rest.strip(), state) if rest.strip() else ""
    if word in ("if", "elif"):
        yes = _test(rest, state) if all(b.active for b in state.blocks) or (word == "elif" and outer) else False
        if yes is None and not re.search(r"\s-[defrsx]\s", rest):
            state.notes.append(f"not decided, and left out: {word} {rest}")
        if word == "if":
            state.blocks.append(_Block(active=bool(yes), taken=yes is not False))
        elif block:
            block.active, block.taken = bool(yes) and not block.taken, block.taken or yes is not False
        return ""
    if word == "else" and block:
        block.active, block.taken = not block.taken, True
        return _control(rest.strip(), state) if rest.strip() else ""
    if word in ("fi", "esac"):
        del state.blocks[-1:]
        return ""
    if word == "case":
        state.blocks.append(_Block(active=False, taken=False, word=_plain(rest.removesuffix(" in").strip(), state)))
        return ""
    if block and block.word is not None:
        arm = re.match(r"^\(?([^()\s]+)\)\s*(.*)$", command, re.DOTALL)
        if arm:
            matches = any(fnmatchcase(block.word, glob.strip("'\"")) for glob in arm[1].split("|"))
            block.active, block.taken = matches and not block.taken, block.taken or matches
            command = arm[2]
    return command if all(b.active for b in state.blocks) else ""


def _run(command: str, state: _State) -> list[str]:
    """Take up assignments, and return the words of what is then started (none where nothing is)."""
    command = re.sub(r"^(export|declare(\s+-\w+)*|local|readonly|typeset)\s+", "", command)
    array = _ARRAY.match(command)
    if array:
        _assign(array[1], bool(array[2]), " ".join(_words(array[3], state)), state, " ")
        return []
    raw = _raw_words(command)
    while raw and (one := _ASSIGNMENT.match(raw[0])):
        _assign(one[1], bool(one[2]), _plain(one[3], state), state, "")
        raw.pop(0)
    words = _words(" ".join(raw), state)
    end = next((i for i, word in enumerate(words) if re.match(r"^(\d?>|>>|\||&&?$|<)", word)), len(words))
    return words[:end]


def _assign(name: str, adds: bool, value: str, state: _State, between: str) -> None:
    state.names[name] = state.names[name] + between + value if adds and name in state.names else value


def _raw_words(text: str) -> list[str]:
    """Return words as written: blanks inside quotes, braces and parentheses do not part them."""
    words, now, quote, depth = [], "", "", 0
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "({":
            depth += 1
        elif char in ")}":
            depth -= 1
        elif char.isspace() and depth <= 0:
            words.append(now)
            now = ""
            continue
        now += char
    return [word for word in (*words, now) if word]


def _words(text: str, state: _State) -> list[str]:
    """Return the words of a text with its names filled in; words that a quoted one is made of stand alone."""
    full = _expanded(text, state)
    try:
        whole = shlex.split(full)
    except ValueError:
        whole = full.split()
    return [word for one in whole for word in (one.split() if " -" in f" {one}" else [one])]


def _plain(text: str, state: _State) -> str:
    full = _expanded(text, state).strip()
    try:
        return " ".join(shlex.split(full)) if full[:1] in ("'", '"') or "\\" in full else full.replace('"', "")
    except ValueError:
        return full


def _expanded(text: str, state: _State) -> str:
    """Return text with `$name`, `${name:-default}`, `${array[@]}` and `$((sums))` filled in where they are known."""
    out, i, quote = "", 0, ""
    while i < len(text):
        if text[i] in "'\"" and quote in ("", text[i]):
            quote = "" if quote else text[i]
        if text[i] != "$" or quote == "'":
            out += text[i]
            i += 1
            continue
        kind, end = next(((o, _closed(text, i + len(o) + 1, c)) for o, c in (("((", "))"), ("{", "}"), ("(", ")"))
                          if text.startswith(o, i + 1)), ("", i))
        if kind:
            inside, whole = text[i + 1 + len(kind) : end], text[i : end + len(kind)]
            i = end + len(kind)
            out += whole if kind == "(" else _known(inside, whole, kind, state)
            continue
        name = _NAME.match(text, i + 1)
        out += state.names.get(name[0], "$" + name[0]) if name else "$"
        i = name.end() if name else i + 1
    return out


def _known(inside: str, whole: str, kind: str, state: _State) -> str:
    if kind == "((":
        value = _sum(inside, state)
        return whole if value is None else str(int(value))
    name = re.sub(r"\[[@*]\]$", "", inside)
    default = _DEFAULT.match(inside)
    if default:
        return state.names.get(default[1]) or _plain(default[2], state)
    return state.names.get(name, whole)


def _closed(text: str, start: int, close: str) -> int:
    """Return where what was opened at `start` closes; the end of the text where it does not."""
    depth, opening = 0, {")": "(", "}": "{"}[close[0]]
    for i in range(start, len(text)):
        if not depth and text.startswith(close, i):
            return i
        depth += (text[i] == opening) - (text[i] == close[0])
    return len(text)


def _sum(text: str, state: _State) -> Any:
    """Return what whole-number arithmetic comes to; None where it has names that are not known."""
    full = _NAME.sub(lambda m: state.names.get(m[0], m[0]), _expanded(text, state).replace("$", ""))
    try:
        return _value(ast.parse(full.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, KeyError):
        return None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return _OPERATORS[type(node.ops[0])](_value(node.left), _value(node.comparators[0]))
    raise ValueError(ast.dump(node))


def _test(text: str, state: _State) -> bool | None:
    """Return whether a test holds; None where that cannot be said."""
    text = text.strip()
    for mark, settles in (("||", True), ("&&", False)):
        if mark in text:
            each = [_test(part.strip().strip("[]").strip(), state) for part in text.split(mark)]
            return settles if settles in each else None if None in each else not settles
    if text.startswith("(("):
        value = _sum(text.removeprefix("((").removesuffix("))"), state)
        return None if value is None else bool(value)
    try:
        words = shlex.split(_expanded(text.strip("[]").strip().removeprefix("test "), state))
    except ValueError:
        return None
    if words[:1] == ["!"]:
        inner = _test(" ".join(shlex.quote(w) for w in words[1:]), state)
        return None if inner is None else not inner
    if len(words) <= 2 and words[:1] in (["-z"], ["-n"]):
        # what the script does not set is taken to be unset
        empty = len(words) < 2 or not words[1] or words[1].startswith("$")
        return empty == (words[0] == "-z")
    if len(words) != 3 or words[0].startswith("$") or words[2].startswith("$"):
        return None
    left, sign, right = words
    if sign in ("==", "=", "!="):
        return fnmatchcase(left, right) == (sign != "!=")
    try:
        return _COMPARED[sign](int(left), int(right))
    except (KeyError, ValueError):
        return None
