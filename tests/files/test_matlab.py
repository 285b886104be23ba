"""Reading of MATLAB files: the values that scipy reads, and an error for damage."""

import struct
import zlib

import h5py
import numpy as np
import pytest
from scipy.io import loadmat, savemat
from scipy.sparse import csc_array

from lib.files.matlab import read_variable

LABELS = np.arange(6, dtype=np.uint16).reshape(2, 3)


def element(kind, content, order="<"):
    return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)


def header(order="<", version=0x100):
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}HH", version, 0x4D49)


def numbers(kind=4, content=None, shape=(2, 3), *, flags=11, order="<"):
    """Return the variable `labels` as stored: by default LABELS, type 4 in class 11, both uint16."""
    content = LABELS.astype(f"{order}u2").tobytes("F") if content is None else content
    parts = [
        element(6, struct.pack(f"{order}II", flags, 0), order),
        element(5, struct.pack(f"{order}{len(shape)}I", *shape), order),
        element(1, b"labels", order),
        element(kind, content, order),
    ]
    return element(14, b"".join(parts), order)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.mat"


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "?"])
def test_numbers_are_the_numbers_that_scipy_reads(path, dtype, is_compressed):
    values = np.random.default_rng(0).integers(0, 2, (5, 3, 2)).astype(dtype)
    savemat(path, {"values": values}, do_compression=is_compressed)
    read, expected = read_variable(path, b"values").read_numbers(), loadmat(path)["values"]
    assert read.dtype == expected.dtype
    assert read.strides == expected.strides
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize("order", ["<", ">"])
def test_numbers_are_read_in_the_byte_order_of_the_file(path, order):
    path.write_bytes(header(order) + numbers(order=order))
    np.testing.assert_array_equal(loadmat(path)["labels"], LABELS)
    np.testing.assert_array_equal(read_variable(path, b"labels").read_numbers(), LABELS)


@pytest.mark.parametrize("is_compressed", [False, True])
def test_cells_structs_and_variables_of_other_kinds(path, is_compressed):
    cells = np.empty((2, 2), object)
    for idx in range(4):
        cells[idx % 2, idx // 2] = {"author": f"name {idx}", "labels": LABELS + idx, "n": idx}
    others = {"text": "text", "sparse": csc_array(LABELS), "empty": np.zeros((0, 3)), "list": [LABELS, "a"]}
    savemat(path, {**others, "cells": cells}, do_compression=is_compressed)
    read = read_variable(path, b"cells").read_cells()
    assert [cell.kind for cell in read] == ["struct"] * 4
    for idx, cell in enumerate(read):
        np.testing.assert_array_equal(cell.read_field(b"labels").read_numbers(), LABELS + idx)
        assert cell.read_field(b"n").read_numbers().tolist() == [[idx]]
    assert read_variable(path, b"empty").read_numbers().shape == (0, 3)
    for name, kind in (("text", "char"), ("sparse", "sparse")):
        with pytest.raises(ValueError, match=f"an array of type {kind}; expected numbers"):
            read_variable(path, name.encode()).read_numbers()
    with pytest.raises(ValueError, match="an array of type struct; expected cell"):
        read[0].read_cells()
    with pytest.raises(ValueError, match="an array of type cell; expected struct"):
        read_variable(path, b"cells").read_field(b"labels")
    with pytest.raises(ValueError, match="lacks the field other"):
        read[0].read_field(b"other")


def test_of_a_struct_array_the_first_is_read(path):
    structs = np.array([(LABELS, 1), (LABELS + 1, 2)], [("labels", object), ("n", object)])
    savemat(path, {"structs": structs})
    content = path.read_bytes()
    assert b"n\0\0" in content
    path.write_bytes(content.replace(b"n\0\0", b"n\0x"))  # what follows the zero is no part of a name
    read = read_variable(path, b"structs")
    np.testing.assert_array_equal(read.read_field(b"labels").read_numbers(), LABELS)
    assert read.read_field(b"n").read_numbers().tolist() == [[1]]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        # These crash scipy 1.17: it looks a type up behind its table, or finds no entry.
        (numbers(kind=0x9004), "holds other content"),
        (numbers(kind=14), "holds other content"),
        (numbers(kind=8), "holds other content"),
        (
            numbers(flags=0xB90B) + element(0x9004, b"1234"),
            "of type complex uint16; expected numbers",
        ),
        (numbers(kind=3, shape=(2, 4)), r"6 numbers in an array of shape \(2, 4\)"),
        (numbers(shape=(2**32 - 2, 2**32 - 3)), r"6 numbers in an array of shape \(4294967294, 4294967293\)"),
        (numbers(kind=9), "buffer size must be a multiple of element size"),
        (numbers(shape=()), "an element of type 5 in place of integers"),
        (numbers(flags=20), "an array of type class 20; expected numbers"),
        (numbers()[:-16], "an element of 72 bytes in 56"),
        (element(14, numbers()[8:-24]), "an array of numbers holds other content"),
        (element(14, numbers()[8:-6]), "an element of 12 bytes in 10"),
        (element(14, numbers()[8:] + bytes(4)), "an element of 4 bytes, which is less than its tag"),
        (element(14, struct.pack("<HH", 6, 5) + bytes(4)), "an element of 5 bytes within its tag"),
        (element(14, b""), "an array is empty"),
        (b"", "no variable labels"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
def test_damage_raises_an_error(path, stored, message):
    path.write_bytes(header() + stored)
    with pytest.raises(ValueError, match=message):
        read_variable(path, b"labels").read_numbers()


def test_damaged_cells_and_structs(path):
    cells = np.empty((1, 2), object)
    cells[0, :] = [{"labels": LABELS}] * 2
    savemat(path, {"cells": cells})
    content = path.read_bytes()

    def read(old, new):
        assert old in content
        path.write_bytes(content.replace(old, new))
        for cell in read_variable(path, b"cells").read_cells():
            cell.read_field(b"labels")

    with pytest.raises(ValueError, match=r"2 cells in an array of shape \(1, 3\)"):
        read(struct.pack("<II", 1, 2), struct.pack("<II", 1, 3))
    with pytest.raises(ValueError, match="a struct has field names without a character"):
        read(struct.pack("<HHI", 5, 4, 7), struct.pack("<HHI", 5, 4, 0))
    with pytest.raises(ValueError, match="lacks the field labels"):
        read(b"labels", b"label.")
    cell_tag = content[184:192]
    assert cell_tag[:4] == struct.pack("<I", 14)
    with pytest.raises(ValueError, match="an element of type 13 in place of an array"):
        read(cell_tag, struct.pack("<I", 13) + cell_tag[4:])


def test_damaged_compressed_content(path):
    def read(content):
        path.write_bytes(header() + element(15, content))
        return read_variable(path, b"labels").read_numbers()

    stored = numbers()
    intact = zlib.compress(stored)
    np.testing.assert_array_equal(read(intact), LABELS)
    for damaged in (intact[:-1] + bytes([intact[-1] ^ 1]), b"", b"other"):
        with pytest.raises(ValueError, match=r"compressed content is damaged|less than its tag"):
            read(damaged)
    for damaged in (intact[:-4], zlib.compress(stored[:-8]), zlib.compress(stored + b"1")):
        with pytest.raises(ValueError, match="compressed content is not of 72 bytes"):
            read(damaged)
    with pytest.raises(ValueError, match="holds other content"):
        read(zlib.compress(numbers(kind=0x9004)))


def test_other_versions_are_named(path):
    with h5py.File(path, "w", userblock_size=512) as file:
        file["labels"] = LABELS
    with path.open("r+b") as file:
        file.write(header(version=0x200))
    with pytest.raises(ValueError, match=r"a MATLAB file of version 7\.3, which is HDF5; save it with -v7"):
        read_variable(path, b"labels")
    for content in (b"", b"text", header(version=0x400), header()[:-1]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no MATLAB file of version 5 to 7"):
            read_variable(path, b"labels")
    savemat(path, {"labels": LABELS}, format="4")
    with pytest.raises(ValueError, match="no MATLAB file of version 5 to 7"):
        read_variable(path, b"labels")
