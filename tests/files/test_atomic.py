"""Test temporary names of files in writing."""

import os

import pytest

from lib.files.atomic import atomic_path, remove_leftovers, write_together

NAMES = [
    "a.png",
    "x" * 251 + ".png",
    "\u00e4" * 126 + ".h5",
    os.fsdecode(b"caf\xe9.png"),
    "a\nb.png",
    "12:30.png",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_written_and_leftovers_removed(name, tmp_path):
    path = tmp_path / name
    with atomic_path(path) as temporary:
        assert temporary.suffix == path.suffix
        temporary.write_text("x")
        (tmp_path / "leftover").hardlink_to(temporary)
        leftover = temporary.name
    assert path.read_text() == "x"
    (tmp_path / "leftover").rename(tmp_path / leftover)
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_long_names_that_differ_have_different_temporaries(tmp_path):
    paths = [tmp_path / f"{'x' * 250}{idx}.png" for idx in range(2)]
    write_together({path: lambda to, text=path.name: to.write_text(text) for path in paths})
    assert [path.read_text() for path in paths] == [path.name for path in paths]
