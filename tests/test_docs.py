"""Commands, options and links in the README and in docs/ fit the scripts and the files."""

import importlib
import logging
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

REPO_ROOT = Path(__file__).parent.parent
PAGES = [
    REPO_ROOT / "README.md",
    *sorted((REPO_ROOT / "docs").glob("*.md")),
    REPO_ROOT / "trained_models" / "README.md",
    REPO_ROOT / "demo" / "README.md",
]
SCRIPTS = sorted(path.stem for path in REPO_ROOT.glob("*.py") if "build_parser" in path.read_text())

# Folders of data that commands name.
DATA = ("BSR", "DAVIS2017", "optflow", "photos", "raft/forward", "raft/backward")

# Options of other programs: torchrun, pytest, docker, benchmarks/on_gpu.sh, and argparse itself.
FOREIGN_OPTIONS = {
    *("--nproc_per_node", "--nnodes", "--node_rank", "--master_addr", "--master_port"),
    *("--fuzz", "--shm-size", "--train", "--help"),
}


def page_id(page):
    return page.relative_to(REPO_ROOT).as_posix()


class Block(NamedTuple):
    """Commands that a page gives together; a first line such as `# 3 hours` marks them as long."""

    page: Path
    text: str
    output: str  # the text in the block that follows, if only a word or nothing is in between

    @property
    def is_long(self):
        return self.text.startswith("# ")

    @property
    def commands(self):
        lines = self.text.replace("\\\n", " ").splitlines()
        return [
            shlex.split(command) for line in lines if not line.startswith("#") for command in line.split("&&")
        ]


def find_blocks(page):
    pattern = r"^```bash\n(.*?)^```\n(?:\n```\n(.*?)^```$)?"
    return [
        Block(page, text, output)
        for text, output in re.findall(pattern, page.read_text(), re.DOTALL | re.MULTILINE)
    ]


BLOCKS = [block for page in PAGES for block in find_blocks(page)]
COMMANDS = [
    pytest.param(command, id=f"{page_id(block.page)}: {shlex.join(command)[:60]}")
    for block in BLOCKS
    for command in block.commands
]


def script_call(command):
    """Return the name of the script that a command starts, and its arguments; None for other programs."""
    for idx, word in enumerate(command):
        if word.removesuffix(".py") in SCRIPTS:
            return word.removesuffix(".py"), command[idx + 1 :]
    return None


def import_script(name):
    if name == "demo_app":
        pytest.importorskip("gradio")
    return importlib.import_module(name)


@pytest.fixture(autouse=True)
def _in_a_copy_of_the_repo(tmp_path, monkeypatch):
    for folder in ("trained_models", "demo", "docs"):
        (tmp_path / folder).symlink_to(REPO_ROOT / folder)
    monkeypatch.chdir(tmp_path)


def test_readme_is_short():
    lines = (REPO_ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 230


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_valid(command):
    for folder in DATA:
        Path(folder).mkdir(parents=True)
    if script_call(command):
        script, argv = script_call(command)
        import_script(script).build_parser().parse_args(argv)
    else:
        assert command[:3] in (["pip", "install", "-r"], ["pip", "install", "."], ["python", "-m", "pytest"])
    files = [REPO_ROOT / word for word in command if word.endswith((".py", "requirements.txt"))]
    files += [REPO_ROOT / word for word in command if word.startswith(("trained_models/", "demo", "docs/"))]
    assert [file for file in files if not file.exists()] == []


SHORT = {
    page: [block for block in find_blocks(page) if not block.is_long]
    for page in PAGES
    if any(not block.is_long for block in find_blocks(page))
}


def without_decimals(text):
    """Replace times, shares and means, which differ between machines."""
    return re.sub(r"\d+\.\d+", "#", text)


@pytest.mark.slow
@pytest.mark.parametrize("page", SHORT, ids=page_id)
def test_short_commands_print_what_the_page_says(page, caplog):
    caplog.set_level(logging.INFO)
    for block in SHORT[page]:
        caplog.clear()
        for script, argv in filter(None, map(script_call, block.commands)):
            importlib.import_module(script).main(argv)
        expected = without_decimals(block.output).splitlines()
        printed = [without_decimals(message) for message in caplog.messages]
        assert printed[len(printed) - len(expected) :] == expected


def test_long_commands_state_their_time():
    for block in BLOCKS:
        if block.is_long:
            assert re.search("second|minute|hour|until", block.text.splitlines()[0]), block.text


def test_options_in_the_text_exist():
    known = FOREIGN_OPTIONS.copy()
    for script in SCRIPTS:
        known.update(import_script(script).build_parser()._option_string_actions)
    for page in PAGES:
        unknown = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page.read_text())) - known
        assert unknown == set(), page


def test_options_page_is_that_of_the_parsers():
    pytest.importorskip("gradio")
    make_options = importlib.import_module("docs.make_options")
    made = make_options.make_page()
    assert made == make_options.PAGE.read_text(), "run `python -m docs.make_options`"
    assert str(REPO_ROOT) not in made


def anchors(page):
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
