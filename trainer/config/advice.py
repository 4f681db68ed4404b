"""Suggests corrections for lines that gin cannot parse."""

import ast
import re
import shlex

_PYTHON = {
    "true": "True",
    "false": "False",
    "null": "None",
    "none": "None",
    "nil": "None",
    "yes": "True",
    "no": "False",
}
_NO_VALUE = ("Unable to parse value", "Expected newline")
# Words of a list, tuple or dict that need quotes.
_BARE = re.compile(r"(?<![\w'\"@%./-])(?!(?:True|False|None)\b)[A-Za-z_~/][\w./-]*(?![\w'\"(])")


def advice(line: str, message: str, is_param: bool) -> str:
    """Returns a sentence on a line that gin rejected with `message`, with the correction.

    Args:
      line: the text.
      message: gin's own; "" for a bracket or a string that is not closed.
      is_param: whether the line is from the command line, where the shell removes quotes.
    """
    key, equals, value = (part.strip() for part in line.partition("="))
    token = re.search(r"Failed to parse token '(.*)'", message, re.DOTALL)
    word = token[1] if token and token[1].isidentifier() else ""
    call = re.match(r"@?([\w./]+)\(", value) or (word and re.search(rf"(?<![@\w./])({word}[\w./]*)\(", value))
    if not message or (value[:1] in ("'", '"') and value.count(value[0]) == 1):
        return "not a gin statement: A bracket or a string is not closed."
    if word and re.match(r"include\s+[^'\"]", line):
        return f"a file name needs quotes: include '{line.split()[1]}'"
    if word.lower() in _PYTHON:
        right = _PYTHON[word.lower()]
        return f"`{word}` is not a value. Write {right}, as in Python; a string needs quotes ('{word}')."
    if call and value[0] == "@":
        name = call[1].rpartition("/")[2]
        return f"a reference takes no arguments: write `@{call[1]}()`, and `{name}.PARAMETER = ...` on a separate line."
    if word and call:
        return f"`{call[0]}...` is a call, in gin `@{call[1]}()` with its arguments bound on separate lines."
    if word:
        return _without_quotes(word, key, value, is_param)
    if message.startswith("Expected newline") and equals and ";" not in value:
        if (found := _expression(value)) is not None:
            return found
    if ";" in value and equals:
        return "one binding a line, and one in each --gin_param; there is no `;` in gin."
    if "expected ':' or '='" in message or (not equals and re.match(r"[\w./]+\s*:", line)):
        return (
            f"a binding is `name.parameter = value`, with one `=`; this line has {'two' if '==' in line else 'none'}."
        )
    if equals and not value:
        return "there is no value after `=`."
    if equals and message.startswith(_NO_VALUE):
        return _without_quotes(value, key, value, is_param)
    return f"not a gin statement: {' '.join(message.split())}"


def _without_quotes(word: str, key: str, value: str, is_param: bool) -> str:
    others = "a function or class needs `@`, a macro `%`"
    if not is_param:
        return f"`{word}` is not a value. A string needs quotes ('{word}'), {others}."
    quoted = _BARE.sub(r"'\g<0>'", value) if value[:1] in ("[", "(", "{") else f"'{value}'"
    cure = f'If it is a string, the shell took its quotes: write --gin_param="{key}={quoted}"'
    return f"`{word}` is not a value. {cure}; {others}."


def _expression(value: str) -> str | None:
    """Returns the sentence for an arithmetic expression, with its result where it can be computed here."""
    if re.search(r"[%@]\w", value):
        return (
            "gin does not evaluate expressions of macros or references. Bind the result, or compute it in a function."
        )
    try:
        tree = ast.parse(value.partition("#")[0].strip(), mode="eval")
    except SyntaxError:
        return None
    if not isinstance(tree.body, ast.BinOp):
        return None
    if not all(
        isinstance(n, ast.Expression | ast.BinOp | ast.operator | ast.Constant | ast.unaryop | ast.UnaryOp)
        for n in ast.walk(tree)
    ):
        return "gin does not evaluate expressions. Bind the result."
    if any(isinstance(n, ast.Pow | ast.LShift) for n in ast.walk(tree)):  # the result may be too large to compute
        return "gin does not evaluate expressions. Bind the result."
    try:
        result = eval(compile(tree, "expression", "eval"), {"__builtins__": {}})
    except (ArithmeticError, TypeError):
        return "gin does not evaluate expressions. Bind the result."
    return f"gin does not evaluate expressions. Write {result!r}."


def split_by_shell(argv: list[str]) -> str | None:
    """Returns a sentence if a binding was given in several words: `--gin_param run.seed = 1`, `--gin.run.seed 1`."""
    for i, word in enumerate(argv[:-1]):
        following = argv[i + 1]
        binding = re.fullmatch(r"(?:--gin_param=|--gin_bindings=|--(?=gin\.))?(gin\.)?([\w./]+)(=?)", word)
        if binding is None:
            continue
        if following.startswith("="):
            value = following[1:] or " ".join(argv[i + 2 : i + 3])
        elif (binding[3] or binding[1]) and not following.startswith("-"):
            value = following
        else:
            continue
        cure = f"Write --gin_param={shlex.quote(f'{binding[2]} = {value}')}"
        return f"`{binding[2]}` and its value are separate words: the shell split the binding at its spaces. {cure}"
    return None
