"""Memory that the control groups of Linux leave to this process; containers and cluster jobs are such groups.

References
----------
.. [1] Linux kernel documentation, "Control Group v2", and "Memory Resource Controller" of version 1.
"""

from collections.abc import Iterator
from pathlib import Path

_MEMBERSHIP = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")

# Files with the limit and the use of a group in bytes. Of the use, the cache of files can be freed: these
# lines of memory.stat.
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))
_VERSION_2 = ("memory.max", "memory.current", ("active_file", "inactive_file"))


def free_in_groups() -> int | None:
    """Return the bytes that are free in the fullest group of this process; None if no group has a limit."""
    return min(
        (_limit(group, names) - _use(group, names) for group, names in _limited_groups()), default=None
    )


def _limited_groups() -> Iterator[tuple[Path, tuple]]:
    """Yield the folders of the groups of this process that have a limit, and the names of their files."""
    if not _MEMBERSHIP.exists():
        return
    for line in _MEMBERSHIP.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, names = _MOUNT, _VERSION_2
        elif "memory" in controllers.split(","):
            mount, names = _MOUNT / "memory", _VERSION_1
        else:
            continue
        innermost = mount / path.lstrip("/")  # in a container, it may be missing: the mount is the group then
        for group in (innermost, *innermost.parents):
            if (group / names[0]).exists() and _limit(group, names) is not None:
                yield group, names
            if group == mount:
                break


def _limit(group: Path, names: tuple) -> int | None:
    limit = (group / names[0]).read_text().strip()
    return None if limit == "max" else int(limit)  # version 1 writes a huge number for none


def _use(group: Path, names: tuple) -> int:
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int((group / names[1]).read_text()) - sum(int(stat[name]) for name in names[2])
