"""Memory limits of containers and cluster jobs, on made-up control groups."""

import pytest

from lib.runtime import control_groups
from lib.runtime.control_groups import free_in_groups


@pytest.fixture
def make_groups(monkeypatch, tmp_path):
    """Write the group of this process, and files of groups by their folder."""
    mount, membership = tmp_path / "mount", tmp_path / "membership"
    monkeypatch.setattr(control_groups, "_MOUNT", mount)
    monkeypatch.setattr(control_groups, "_MEMBERSHIP", membership)

    def make(group, files):
        membership.write_text(f"1:name=systemd:/other\n{group}\n")
        for path, content in files.items():
            (mount / path).parent.mkdir(parents=True, exist_ok=True)
            (mount / path).write_text(f"{content}\n")

    return make


def test_version_2_takes_the_fullest_group(make_groups):
    stat = "anon 7\nactive_file 20\ninactive_file 30"
    files = {}
    for folder, limit, use in (("", "max", 900), ("job/", 500, 400), ("job/step/", "max", 300)):
        names = ("memory.max", limit), ("memory.current", use), ("memory.stat", stat)
        files |= {folder + name: value for name, value in names}
    make_groups("0::/job/step", files)
    assert free_in_groups() == 500 - (400 - 20 - 30)
    make_groups("0::/job/step", {"job/step/memory.max": 310})
    assert free_in_groups() == 310 - (300 - 20 - 30)


def test_version_1_in_a_container(make_groups):
    """The group has another name outside than inside, where it is the mount."""
    make_groups(
        "4:memory,hugetlb:/outside/container",
        {
            "memory/memory.limit_in_bytes": 1000,
            "memory/memory.usage_in_bytes": 600,
            "memory/memory.stat": "active_file 1\ntotal_active_file 50\ntotal_inactive_file 60",
        },
    )
    assert free_in_groups() == 1000 - (600 - 110)


def test_no_limit(make_groups, tmp_path):
    assert free_in_groups() is None  # not Linux
    make_groups("0::/", {"memory.max": "max", "memory.current": 5, "memory.stat": "active_file 1"})
    assert free_in_groups() is None
