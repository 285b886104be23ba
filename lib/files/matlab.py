"""Read arrays of MATLAB files, versions 5 to 7.

`scipy.io.loadmat` crashes the process on some damaged files: it looks up the type of an element in a table,
without checking the range. Here every type and size is checked, and damage raises an error. Only requested
arrays are decoded.

References
----------
.. [1] MathWorks, "MAT-File Format": level 5 MAT-files.
"""

import math
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.runtime.memory import check_memory

_HEADER_SIZE = 128
_VERSION_OFFSET = 124  # of two bytes in the header, before the byte order
_BYTE_ORDERS = {b"IM": "<", b"MI": ">"}
_VERSION_5, _VERSION_7_3 = 1, 2

_TAG_SIZE = 8
_MAX_SMALL_SIZE = 4  # bytes of an element that is stored within its tag

# Types of elements.
_INT32, _UINT32, _ARRAY, _COMPRESSED = 5, 6, 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}

# Classes of arrays, in the order of their numbers, from 1.
_CLASSES = (
    *("cell", "struct", "object", "char", "sparse", "double", "single"),
    *("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
)
_NUMERIC_CLASSES = _CLASSES[_CLASSES.index("double") :]
_COMPLEX_FLAG = 0x800


class _Element(NamedTuple):
    type: int
    content: memoryview


class MatlabArray:
    """Array of a MATLAB file; damage raises `ValueError` when the damaged part is read.

    Parameters
    ----------
    content : memoryview
        The array as stored, without its tag.
    byte_order : str
        `<` or `>`, as in `struct`.
    """

    def __init__(self, content: memoryview, byte_order: str) -> None:
        self._byte_order = byte_order
        elements = list(_split(content, byte_order))
        if len(elements) < 3:
            raise ValueError("an array is empty")
        flags, self._shape, name, *self._parts = elements
        self.name = bytes(name.content)
        self._flags = self._read_integers(flags)[0]

    @property
    def kind(self) -> str:
        """Class of the array, in MATLAB's words."""
        number = self._flags & 0xFF
        name = _CLASSES[number - 1] if 1 <= number <= len(_CLASSES) else f"class {number}"
        return f"complex {name}" if self._flags & _COMPLEX_FLAG else name

    def read_numbers(self) -> np.ndarray:
        """Return the numbers of an array, read-only, in the type in which they are stored."""
        self._check_kind(_NUMERIC_CLASSES, "numbers")
        types = [part.type for part in self._parts]
        if len(types) != 1 or types[0] not in _NUMBERS:
            raise ValueError("an array of numbers holds other content")
        numbers = np.frombuffer(self._parts[0].content, f"{self._byte_order}{_NUMBERS[types[0]]}")
        shape = self._read_integers(self._shape)
        if math.prod(shape) != numbers.size:
            raise ValueError(f"{numbers.size} numbers in an array of shape {tuple(shape)}")
        return numbers.reshape(shape, order="F")

    def read_cells(self) -> list["MatlabArray"]:
        """Return the arrays in a cell array, in MATLAB's order: by columns."""
        self._check_kind(["cell"], "cell")
        shape = self._read_integers(self._shape)
        if math.prod(shape) != len(self._parts):
            raise ValueError(f"{len(self._parts)} cells in an array of shape {tuple(shape)}")
        return [self._read_array(part) for part in self._parts]

    def read_field(self, name: bytes) -> "MatlabArray":
        """Return a field of a struct, in a struct array of the first one."""
        self._check_kind(["struct"], "struct")
        if len(self._parts) < 2:
            raise ValueError("a struct has no fields")
        width = self._read_integers(self._parts[0])[0]
        text = bytes(self._parts[1].content)
        if width == 0:
            raise ValueError("a struct has field names without a character")
        # Each name ends with a zero; any bytes may follow up to the width.
        names = [text[start : start + width].partition(b"\0")[0] for start in range(0, len(text), width)]
        fields = dict(zip(names, self._parts[2:], strict=False))  # more in struct arrays
        if name not in fields:
            raise ValueError(f"a struct lacks the field {name.decode()}")
        return self._read_array(fields[name])

    def _check_kind(self, kinds: Collection[str], expected: str) -> None:
        if self.kind not in kinds:
            raise ValueError(f"an array of type {self.kind}; expected {expected}")

    def _read_array(self, part: _Element) -> "MatlabArray":
        if part.type != _ARRAY:
            raise ValueError(f"an element of type {part.type} in place of an array")
        return MatlabArray(part.content, self._byte_order)

    def _read_integers(self, element: _Element) -> list[int]:
        """Return the integers of an element, at least one; they are never negative."""
        if element.type not in (_INT32, _UINT32) or len(element.content) == 0:
            raise ValueError(f"an element of type {element.type} in place of integers")
        return np.frombuffer(element.content, f"{self._byte_order}u4").tolist()


def read_variable(path: Path, name: bytes) -> MatlabArray:
    """Read one variable of a MATLAB file.

    Raises
    ------
    ValueError
        If the file is damaged, has another version or lacks the variable.
    InputError
        If the variable does not fit the free memory.
    """
    data = memoryview(path.read_bytes())
    header = bytes(data[:_HEADER_SIZE])
    byte_order = _BYTE_ORDERS.get(header[_VERSION_OFFSET + 2 :])
    if byte_order is None:
        raise ValueError("no MATLAB file of version 5 to 7")
    (version,) = struct.unpack_from(f"{byte_order}H", header, _VERSION_OFFSET)
    if version >> 8 == _VERSION_7_3:
        raise ValueError("a MATLAB file of version 7.3, which is HDF5; save it with -v7")
    if version >> 8 != _VERSION_5:
        raise ValueError("no MATLAB file of version 5 to 7")
    for element in _split(data[_HEADER_SIZE:], byte_order):
        if element.type == _COMPRESSED:
            element = _inflate(element.content, byte_order, path)
        if element.type == _ARRAY:
            array = MatlabArray(element.content, byte_order)
            if array.name == name:
                return array
    raise ValueError(f"no variable {name.decode()}")


def _split(content: memoryview, byte_order: str) -> Iterator[_Element]:
    """Yield the elements that follow each other."""
    while len(content) > 0:
        element_type, size, start = _read_tag(content, byte_order)
        end = start + size
        if end > len(content):
            raise ValueError(f"an element of {size} bytes in {len(content) - start}")
        yield _Element(element_type, content[start:end])
        is_padded = element_type != _COMPRESSED
        content = content[end + -end % 8 if is_padded else end :]


def _read_tag(content: memoryview, byte_order: str) -> tuple[int, int, int]:
    """Return the type of the first element, the number of its bytes and the position of the first one."""
    if len(content) < _TAG_SIZE:
        raise ValueError(f"an element of {len(content)} bytes, which is less than its tag")
    element_type, size = struct.unpack_from(f"{byte_order}II", content)
    if element_type < 2**16:
        return element_type, size, _TAG_SIZE
    element_type, size = element_type % 2**16, element_type // 2**16
    if size > _MAX_SMALL_SIZE:
        raise ValueError(f"an element of {size} bytes within its tag")
    return element_type, size, _TAG_SIZE - _MAX_SMALL_SIZE


def _inflate(content: memoryview, byte_order: str, path: Path) -> _Element:
    """Return the only element in compressed content; its size is checked before memory is allocated."""
    stream = zlib.decompressobj()
    try:
        tag = stream.decompress(content, _TAG_SIZE)
        element_type, size, _ = _read_tag(memoryview(tag), byte_order)
        check_memory(size, f"{path}: a compressed variable")
        inflated = stream.decompress(stream.unconsumed_tail, size + 1)  # a byte more reads the checksum too
    except zlib.error as error:
        raise ValueError(f"compressed content is damaged: {error}") from error
    if len(inflated) != size or not stream.eof:
        raise ValueError(f"compressed content is not of {size} bytes")
    return _Element(element_type, memoryview(inflated))
