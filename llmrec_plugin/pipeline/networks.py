"""Rows -> the arrays of a network's graph.

    columns -> `read_rows` -> Row: what the row brings in, with its hash   -> value cache
                                -> `Reader.arrays`: tokens, pixels          -> `plan_rows`, `collate` -> graph inputs

What a row brings in is cheap to read, so that a row whose value is known costs neither tokenization nor decoding.

Lengths are padded to steps that depend on the row alone, and only rows of one padded shape share a batch: so a row's
value does not depend on which rows are computed with it.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from llmrec_plugin.errors import FingerprintMismatchError, InputError, quoted
from llmrec_plugin.networks import Id, IdSequence, Image, Input, Number, Tokens, Vector, VectorSequence, graph_names
from llmrec_plugin.pipeline.assemble import read_each, template_reader
from llmrec_plugin.pipeline.packing import packed_bytes, unpack
from llmrec_plugin.pipeline.text import as_list, to_text
from llmrec_plugin.specs import Storage, template_columns
from llmrec_plugin.specs.networks import InputSource, columns_of_source

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Vocabularies: TypeAlias = Mapping[str, Mapping[str, int]]
"""Name -> key -> id, from 1."""

MAX_CHARS = 20_000
"""Texts are cut to this many characters before tokenization, to bound time."""
LENGTH_STEP = 8
"""Lengths are padded to multiples of it: few shapes, and at most 7 positions of padding."""
PICTURE_WORK = 1_024
"""Work of a picture in tokens: as much as a batch, for pictures gain nothing from each other's company on a CPU."""
_CHARACTERS_PER_TOKEN = 4
_STORAGES: tuple[Storage, ...] = ("float32", "float16", "int8")


class Row(str):
    """What a row brings in. As a string it is its hash, by which caches and queues know it.

    Attributes:
        inputs: A value for each input of the network: an int (`Id`), a float (`Number`), (length,) int64, oldest first
            (`IdSequence`), (dims,) or (n, dims) float32, a text or a picture's bytes.
    """

    __slots__ = ("inputs",)
    inputs: tuple[Any, ...]

    def __new__(cls, inputs: tuple[Any, ...]) -> Row:
        digest = hashlib.blake2b(digest_size=16)
        for value in inputs:
            data, shape = _bytes(value)
            digest.update(f"{type(value).__name__}{shape}:".encode())
            digest.update(data)
        row = super().__new__(cls, digest.hexdigest())
        row.inputs = inputs
        return row


def _bytes(value: Any) -> tuple[bytes, tuple[int, ...]]:
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value).tobytes(), value.shape
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    return data, (len(data),)


class Rows(NamedTuple):
    """n rows as a network reads them.

    Attributes:
        rows: Per row what it brings in; None for a row that is empty or invalid.
        invalid: Row number -> why the row could not be read.
    """

    rows: list[Row | None]
    invalid: dict[int, str]


def read_rows(
    feature: str,
    inputs: Sequence[Input],
    sources: Mapping[str, InputSource],
    columns: Mapping[str, Sequence[Any]],
    vocabularies: Vocabularies,
    computed: Mapping[str, Sequence[np.ndarray | None]] | None = None,
) -> Rows:
    """What the rows of `columns` bring into a network.

    Args:
        feature: Name of the feature, for messages.
        inputs: The network's inputs.
        sources: Input -> column or template, or the embedding feature of a `computed` one.
        columns: The rows by column, each of length n; further columns are ignored.
        vocabularies: The network's.
        computed: Input -> its vector per row, None where there is none.

    Raises:
        MissingColumnError: A column is not there.
        InputError: The columns differ in length.
    """
    computed = computed or {}
    readers = [_reader(item, sources[item.name], vocabularies, item.name in computed) for item in inputs]
    # A computed vector is one more column, under a name that no column can have.
    given = {**columns, **{f"={name}": vectors for name, vectors in computed.items()}}
    names = tuple(dict.fromkeys(name for reader in readers for name in reader.columns))
    place = {name: number for number, name in enumerate(names)}
    picks = [tuple(place[name] for name in reader.columns) for reader in readers]

    def read_row(values: tuple[Any, ...]) -> Row | None:
        read: list[Any] = []
        for item, reader, pick in zip(inputs, readers, picks, strict=True):
            try:
                value = reader.read(tuple(values[number] for number in pick))
            except InputError as exc:
                raise InputError(f"input {item.name!r}: {exc}") from exc
            read.append(value)
        return None if any(value is None for value in read) else Row(tuple(read))

    return Rows(*read_each(feature, names, given, read_row, None))


class _Reader(NamedTuple):
    columns: tuple[str, ...]
    read: Callable[[tuple[Any, ...]], Any]
    """From the values of `columns` in a row: what the row brings in, or None if that is nothing."""


def _reader(item: Input, source: InputSource, vocabularies: Vocabularies, computed: bool) -> _Reader:
    if isinstance(item, Tokens):
        assert isinstance(source, str)
        template = source if "{" in source else f"{{{source}}}"
        columns = template_columns(template)
        fill = template_reader(template, columns, MAX_CHARS)
        return _Reader(columns, lambda values: next(iter(fill(values)), None))
    read: Callable[[Any], Any]
    if isinstance(item, Id):
        read = functools.partial(_id, vocabularies[item.vocabulary])
    elif isinstance(item, IdSequence):
        read = functools.partial(_ids, item, vocabularies[item.vocabulary])
    elif isinstance(item, Number):
        read = _number
    elif isinstance(item, Vector):
        read = functools.partial(_vector, item)
    elif isinstance(item, VectorSequence):
        read = functools.partial(_vectors, item)
    else:
        read = _picture
    columns = (f"={item.name}",) if computed else columns_of_source(source)
    return _Reader(columns, lambda values: read(values[0]))


def _id(ids: Mapping[str, int], value: Any) -> int | None:
    if as_list(value) is not None:
        raise InputError(f"expected one key, got a list ({quoted(value)})")
    return ids.get(to_text(value))


def _ids(item: IdSequence, ids: Mapping[str, int], value: Any) -> np.ndarray | None:
    keys = as_list(value)
    if keys is None:
        if isinstance(value, str) or not _is_missing(value):
            raise InputError(f"expected a list of keys, got {type(value).__name__} ({quoted(value)})")
        return None
    known = [found for key in keys if (found := ids.get(to_text(key))) is not None]
    newest = known[: item.max_length]
    return np.array(newest[::-1], dtype=np.int64) if newest else None


def _number(value: Any) -> float | None:
    if _is_missing(value):
        return None
    if isinstance(value, str) or not isinstance(value, Real | np.bool_):
        raise InputError(f"expected a number, got {type(value).__name__} ({quoted(value)})")
    with np.errstate(over="ignore"):
        number = float(np.float32(value))
    if not math.isfinite(number):
        raise InputError(f"expected a finite number, got {quoted(value)}")
    return number


def _vector(item: Vector, value: Any) -> np.ndarray | None:
    if (packed := _packed(value)) is not None:
        if not packed:
            return None
        fitting = [storage for storage in _STORAGES if packed_bytes(storage, item.dims) == len(packed)]
        if len(fitting) != 1:
            raise InputError(
                f"expected {item.dims} numbers packed as float32, float16 or int8, got {len(packed)} bytes"
                + (f", which may be {' or '.join(fitting)}" if fitting else "")
            )
        try:
            return _finite(unpack([packed], fitting[0], item.dims)[0])
        except FingerprintMismatchError as exc:  # pragma: no cover - the length was compared
            raise InputError(str(exc)) from exc
    numbers = _numbers(value)
    if numbers is None:
        return None
    if numbers.shape != (item.dims,):
        raise InputError(f"expected {item.dims} numbers, got an array of shape {numbers.shape}")
    return _finite(numbers)


def _vectors(item: VectorSequence, value: Any) -> np.ndarray | None:
    if (packed := _packed(value)) is not None:
        if len(packed) % (4 * item.dims):
            raise InputError(f"expected float32 vectors of {4 * item.dims} bytes each, got {len(packed)} bytes")
        numbers: np.ndarray | None = np.frombuffer(packed, dtype="<f4").astype(np.float32)
    else:
        numbers = _numbers(value)
    if numbers is None or not numbers.size:
        return None
    if numbers.ndim > 2 or numbers.size % item.dims or (numbers.ndim == 2 and numbers.shape[1] != item.dims):
        raise InputError(f"expected vectors of {item.dims} numbers, got an array of shape {numbers.shape}")
    return _finite(numbers.reshape(-1, item.dims)[: item.max_length])


def _picture(value: Any) -> bytes | None:
    data = _packed(value)
    if data is None and not _is_missing(value):
        raise InputError(f"expected the bytes of a picture, got {type(value).__name__} ({quoted(value)})")
    return data or None


def _packed(value: Any) -> bytes | None:
    """The bytes of a cell, base64 where it is text; None for anything else."""
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as exc:
            raise InputError(f"expected bytes, or base64 text, got {quoted(value)}") from exc
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else None


def _numbers(value: Any) -> np.ndarray | None:
    """A cell of numbers as a float32 array of one or two dimensions; None where it is missing or holds none."""
    if isinstance(value, np.ndarray):
        items = value if value.dtype != object else value.tolist()
    elif isinstance(value, list | tuple):
        items = value
    elif _is_missing(value):
        return None
    else:
        raise InputError(f"expected a list of numbers, got {type(value).__name__} ({quoted(value)})")
    if not len(items):
        return None
    if not isinstance(items, np.ndarray) and isinstance(items[0], np.ndarray):
        items = [item.tolist() for item in items]
    try:
        with np.errstate(over="ignore"):
            return np.asarray(items, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as exc:
        raise InputError(f"expected a list of numbers, got {quoted(value)}") from exc


def _finite(numbers: np.ndarray) -> np.ndarray:
    if not np.isfinite(numbers).all():
        raise InputError("expected finite numbers")
    return numbers


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | np.floating) and math.isnan(value)


Arrays: TypeAlias = dict[str, np.ndarray]
"""A row's graph inputs by name, unpadded: (), (length,), (n, dims), (dims,) or (3, size, size)."""


@dataclass
class Preparer:
    """Makes the arrays of rows.

    Attributes:
        inputs: The network's inputs.
        tokenizer: The network's, if an input is a text; one for each length, as truncation is state of a tokenizer.
    """

    inputs: tuple[Input, ...]
    tokenizer: Callable[[int], Tokenizer] | None = None

    def arrays(self, rows: Sequence[str]) -> list[Arrays | str]:
        """The arrays of each `Row`, or why its text or picture gives none."""
        made: list[Arrays | str] = [{} for _ in rows]
        for place, item in enumerate(self.inputs):
            values = [row.inputs[place] for row in rows if isinstance(row, Row)]
            for number, (arrays, new) in enumerate(zip(made, self._of_input(item, values), strict=True)):
                if isinstance(new, str):
                    made[number] = f"input {item.name!r}: {new}"
                elif isinstance(arrays, dict):
                    arrays.update(new)
        return made

    def _of_input(self, item: Input, values: list[Any]) -> list[Arrays | str]:
        name = item.name
        if isinstance(item, Tokens):
            assert self.tokenizer is not None
            ids = [encoding.ids for encoding in self.tokenizer(item.max_tokens).encode_batch_fast(values)]
            return [
                {f"{name}_ids": np.array(row, dtype=np.int64), f"{name}_mask": np.ones(len(row), dtype=np.int64)}
                if row
                else "its text has no tokens"
                for row in ids
            ]
        if isinstance(item, Image):
            return [_pixels_or_reason(item, value) for value in values]
        if isinstance(item, VectorSequence):
            return [{name: value, f"{name}_mask": np.ones(len(value), dtype=np.int64)} for value in values]
        dtype = np.int64 if isinstance(item, Id | IdSequence) else np.float32
        return [{name: np.asarray(value, dtype=dtype)} for value in values]


def _pixels_or_reason(item: Image, data: bytes) -> Arrays | str:
    try:
        return {item.name: item.pixels(data)}
    except InputError as exc:
        return str(exc)


def padded_lengths(inputs: Sequence[Input], arrays: Arrays) -> tuple[int, ...]:
    """To what each sequence of a row is padded; depends on the row alone."""
    lengths = []
    for item in inputs:
        if isinstance(item, IdSequence | VectorSequence):
            lengths.append(min(_step(len(arrays[item.name])), item.max_length))
        elif isinstance(item, Tokens):
            lengths.append(min(_step(len(arrays[f"{item.name}_ids"])), item.max_tokens))
    return tuple(lengths)


def _step(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP


def estimated_work(inputs: Sequence[Input], row: str) -> int:
    """`work_of` a `Row`, before its text is tokenized."""
    assert isinstance(row, Row)
    lengths = []
    for item, value in zip(inputs, row.inputs, strict=True):
        if isinstance(item, Tokens):
            lengths.append(min(len(value) // _CHARACTERS_PER_TOKEN + 2, item.max_tokens))
        elif isinstance(item, IdSequence | VectorSequence):
            lengths.append(len(value))
    return work_of(inputs, tuple(lengths))


def work_of(inputs: Sequence[Input], lengths: tuple[int, ...]) -> int:
    """About how much work a row is, in tokens."""
    return max(sum(lengths) + PICTURE_WORK * sum(isinstance(item, Image) for item in inputs), 1)


def plan_rows(inputs: Sequence[Input], rows: Sequence[Arrays], budget: int) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Splits n rows into batches of one padded shape each, most work first.

    Args:
        inputs: The network's inputs.
        rows: The rows' arrays.
        budget: Largest work of a batch, see `work_of`; a row of more gets a batch of its own.

    Returns:
        Padded lengths and row numbers, int64, of each batch; together they hold 0..n-1 once each.
    """
    groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, arrays in enumerate(rows):
        groups[padded_lengths(inputs, arrays)].append(number)
    batches = []
    for lengths in sorted(groups, key=lambda lengths: (-work_of(inputs, lengths), lengths)):
        numbers = np.array(groups[lengths], dtype=np.int64)
        size = max(budget // work_of(inputs, lengths), 1)
        batches += [(lengths, numbers[start : start + size]) for start in range(0, len(numbers), size)]
    return batches


def collate(inputs: Sequence[Input], rows: Sequence[Arrays], lengths: Sequence[int]) -> Arrays:
    """The graph inputs of a batch by name; sequences are padded to `lengths` with zeros on the right."""
    batch: Arrays = {}
    remaining = iter(lengths)
    for item in inputs:
        names = graph_names([item])
        length = next(remaining) if isinstance(item, IdSequence | VectorSequence | Tokens) else None
        for name in names:
            values = [arrays[name] for arrays in rows]
            batch[name] = np.stack(values) if length is None else _padded(values, length)
    return batch


def _padded(values: Sequence[np.ndarray], length: int) -> np.ndarray:
    padded = np.zeros((len(values), length, *values[0].shape[1:]), dtype=values[0].dtype)
    for row, value in zip(padded, values, strict=True):
        row[: len(value)] = value
    return padded
