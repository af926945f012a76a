"""STAR files: named blocks, each a loop (a table) or a list of single values.

The reader is written for RELION's files: it keeps text exactly (names made of digits, bracketed Zernike lists), reads
only the blocks asked for, and says which line of which file is wrong.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refmotion_nb.data.files import atomic, read_text
from refmotion_nb.data.schema import InputError

Block = pd.DataFrame | dict[str, Any]

# what separates words is ASCII: RELION takes other spaces, as names from Chinese or French keyboards have, for letters
_BLOCK = re.compile(r"^data_(\S*)[^\S\n]*$", re.MULTILINE | re.ASCII)
_LOOP = re.compile(r"(?:\s*#[^\n]*\n)*\s*loop_[^\S\n]*(?:#[^\n]*)?\n((?:[^\S\n]*(?:[_#][^\n]*)?\n)*)", re.ASCII)
# up to the end of the line, unless within quotes
_COMMENT = re.compile(r"""((?<!\S)(?:"[^"\n]*"|'[^'\n]*')(?!\S))|(?<!\S)#[^\n]*""", re.ASCII)
_SINGLE_QUOTED = re.compile(r"(?<!\S)'([^'\"\n]*)'(?!\S)", re.ASCII)
_VALUE = re.compile(r"^[^\S\n]*_(\S+)(?:[^\S\n]+(\"[^\"\n]*\"|[^\s#]\S*))?", re.MULTILINE | re.ASCII)
_TOKEN = re.compile(r'"[^"\n]*"|\S+', re.ASCII)
_SPACE = re.compile(r"\s", re.ASCII)
_TEXT_LABELS = ("Name", "File", "Metadata", "Zernike", "Half1", "Half2")
_NOT_A_NUMBER = ["nan", "-nan", "NaN", "<NA>"]
CHUNK = 20_000  # rows written at a time: as text a large table takes ten times its memory
_WHOLE = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?inf(?:inity)?", re.IGNORECASE)
_FEW_LINES = 200  # read here: pandas needs 1 ms to get ready for a table, and thousands of movies have several


def read_star(path: str | Path, blocks: Collection[str] | None = None) -> dict[str, Block]:
    """Read a STAR file, or only those of its ``blocks`` that are named: loops as tables, single values as dicts.

    Labels lose their leading underscore. Labels of names and files stay text even where they look like numbers.

    Raises
    ------
    InputError
        The file does not exist, is not a STAR file, has a block or a loop a label twice, or a row another number of values
        than labels.
    """
    text = read_text(path)
    heads = list(_BLOCK.finditer(text))
    if not heads:
        raise InputError(f"{path} is not a STAR file: it has no data_ block; give a .star file written by RELION")
    ends = [head.start() for head in heads[1:]] + [len(text)]
    found: dict[str, Block] = {}
    for head, end in zip(heads, ends):
        if blocks is None or head[1] in blocks:
            where = f"{path}, data_{head[1]}"
            if head[1] in found:
                raise InputError(f"{where} is there twice; join files by relion_star_handler --combine")
            found[head[1]] = _block(text[head.end() : end], where)
    return found


def table(blocks: Mapping[str, Block], name: str) -> pd.DataFrame:
    """One block as a table, whether it was written as a loop or (one row only) as single values; empty if absent."""
    block = blocks.get(name, {})
    if isinstance(block, pd.DataFrame):
        return block
    return pd.DataFrame({label: [value] for label, value in block.items()})


def write_star(path: str | Path, blocks: Mapping[str, Block | Mapping[str, Any]]) -> None:
    """Write blocks as RELION reads them: tables as loops, dicts as single values; atomically.

    Numbers are written with twelve significant digits, which gives back what RELION wrote.
    """
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for name, block in blocks.items():
            file.write(f"\n# version 30001\n\ndata_{name}\n\n")
            if isinstance(block, pd.DataFrame):
                _write_loop(file, block)
            else:
                width = max((len(label) for label in block), default=0) + 2
                file.writelines(f"_{label:{width}s} {_token(value)}\n" for label, value in block.items())
            file.write("\n")


def _block(text: str, where: str) -> Block:
    loop = _LOOP.match(text)
    values = text if loop is None else text[loop.end() :]
    if "#" in values and loop is not None:
        lines = values.split("\n")
        values = "\n".join(_COMMENT.sub(r"\1", line) if "#" in line else line for line in lines)
    if "'" in values:
        values = _SINGLE_QUOTED.sub(r'"\1"', values)
    if loop is None:
        return {label: _single(label, value.strip('"')) for label, value in _VALUE.findall(values)}
    labels = [line.split()[0][1:] for line in loop[1].split("\n") if line.lstrip().startswith("_")]
    if again := [label for i, label in enumerate(labels) if label in labels[:i]]:
        raise InputError(f"{where} has column {again[0]} twice; take one of them out")
    return _rows(values, labels, where)


def _rows(text: str, labels: list[str], where: str) -> pd.DataFrame:
    if not text.strip():
        return pd.DataFrame({label: [] for label in labels})
    n = len(labels)
    is_text = [i for i, label in enumerate(labels) if label.endswith(_TEXT_LABELS)]
    if text.count("\n") <= _FEW_LINES:
        return _few_rows(text, labels, is_text, where)
    # one column more than there are labels, so that a row with too many values shows
    missing: dict[Any, list[str]] = {i: [""] if i in is_text or i == n else ["", *_NOT_A_NUMBER] for i in range(n + 1)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.ParserWarning)  # of rows that are longer still, as is said below
            rows = pd.read_csv(
                io.BytesIO(text.encode()), sep=r"\s+", header=None, names=range(n + 1), index_col=False, low_memory=False,
                dtype=dict.fromkeys(is_text, str), quotechar='"', keep_default_na=False, na_values=missing,
            )  # fmt: skip
    except pd.errors.ParserError as error:
        _refuse_other_lengths(text, n, where)
        raise InputError(f"{where} cannot be read ({' '.join(str(error).split())}); is the file complete?") from None
    # too many values, or in the last column a NaN, an empty string, or too few values: only the text can tell
    if (maybe := np.flatnonzero(rows[n].notna() | rows[n - 1].isna())).size:
        _refuse_other_lengths(text, n, where, maybe.tolist())
    rows = rows.drop(columns=n)
    rows.columns = pd.Index(labels)
    return rows.fillna(dict.fromkeys([labels[i] for i in is_text], ""))


def _refuse_other_lengths(text: str, n: int, where: str, among: Iterable[int] | None = None) -> None:
    """Name the first row, ``among`` some or of all, that has not ``n`` values; InputError."""
    lines = [line for line in text.split("\n") if line.strip()]
    for i in range(len(lines)) if among is None else among:
        if len(_TOKEN.findall(lines[i])) != n:
            raise InputError(f"{where}: row {i + 1} does not have {n} values; is the file complete?")


def _few_rows(text: str, labels: list[str], is_text: list[int], where: str) -> pd.DataFrame:
    """Return what pandas' reader returns of a small table."""
    _refuse_other_lengths(text, len(labels), where)
    lines = [_TOKEN.findall(line) for line in text.split("\n") if line.strip()]
    columns = [[token.strip('"') for token in column] for column in zip(*lines)]
    rows = pd.DataFrame({i: one if i in is_text else _values(one) for i, one in enumerate(columns)})
    rows.columns = pd.Index(labels)
    return rows


def _values(tokens: list[str]) -> list[Any]:
    """Return a column of numbers if all are, else of text; what is missing is NaN in either."""
    if all(map(_WHOLE.fullmatch, tokens)):
        return list(map(int, tokens))
    missing = {"", *_NOT_A_NUMBER}
    is_number = all(token in missing or _NUMBER.fullmatch(token) for token in tokens)
    return [np.nan if token in missing else float(token) if is_number else token for token in tokens]


def _single(label: str, text: str) -> int | float | str:
    if label.endswith(_TEXT_LABELS):
        return text
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if text in _NOT_A_NUMBER[:-1] or _NUMBER.fullmatch(text) else text


def _write_loop(file: io.TextIOBase | Any, rows: pd.DataFrame) -> None:
    file.write("loop_\n")
    file.writelines(f"_{label} #{i + 1}\n" for i, label in enumerate(rows.columns))
    for start in range(0, len(rows), CHUNK):
        part = rows.iloc[start : start + CHUNK]
        columns = [_tokens(part.iloc[:, i]) for i in range(part.shape[1])]
        file.write("\n".join(map(" ".join, zip(*columns))) + "\n")


def _tokens(column: pd.Series) -> list[str]:
    if column.dtype.kind == "f":
        tokens = [f"{value:.12g}" for value in column.tolist()]
    else:
        tokens = [_token(value) for value in column.tolist()]
    width = max(map(len, tokens))
    return [token.rjust(width) for token in tokens]


def _token(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.12g}"
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    text = str(value)
    return f'"{text}"' if not text or text[0] == "#" or _SPACE.search(text) else text
