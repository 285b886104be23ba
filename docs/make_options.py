"""Write `options.md`, the options of all scripts, from their parsers.

python -m docs.make_options
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import choose_settings
import demo_app
import estimate_optflow
import eval_base_model
import eval_optflow_composite_model
import export_model
import inference_base_model
import inference_optflow_composite_model
import train_base_model
import train_optflow_composite_model
from lib.cli.entry_point import show_default

PAGE = Path(__file__).parent / "options.md"

INTRODUCTION = """\
# Options

The options of all scripts, as `--help` prints them. `python -m docs.make_options` makes this page.

- Every script also has `--version`, which prints the versions of this software and of PyTorch, and `--quiet`.
  A quiet run logs only warnings, errors, and results such as tables of an evaluation, and shows no progress.
- An option in square brackets, such as `--profile [True|False]`, is a flag: alone it means True.
- The default `-` means that the option is not set.
- If an option cannot be used, a script ends before any work, with exit status 2 and one line that names it.
"""

EVERYWHERE = ("-h", "--version", "--quiet")

SCRIPTS_BY_TASK = {
    "Inference": (inference_base_model, inference_optflow_composite_model),
    "Training": (train_base_model, train_optflow_composite_model),
    "Evaluation": (eval_base_model, eval_optflow_composite_model),
    "Settings of use": (choose_settings,),
    "Optical flow": (estimate_optflow,),
    "Export": (export_model,),
    "Web page": (demo_app,),
}


def make_page() -> str:
    """Return the text of `options.md`."""
    sections = [INTRODUCTION]
    for task, scripts in SCRIPTS_BY_TASK.items():
        parsers = {f"{script.__name__}.py": script.build_parser() for script in scripts}
        sections += [f"## {task}\n", *_tables(parsers)]
    return "\n".join(sections)


def _tables(parsers: Mapping[str, argparse.ArgumentParser]) -> list[str]:
    """Return the tables of a task: options that all its scripts share, then the others of each script."""
    rows = {name: [_row(action) for action in _options(parser)] for name, parser in parsers.items()}
    first, *others = rows.values()
    shared = [row for row in first if all(row in other for other in others)]
    texts = [f"{' and '.join(f'`{name}`' for name in parsers)}:\n", _table(shared)]
    for name, own in rows.items():
        if others:
            texts += [f"`{name}` alone:\n", _table([row for row in own if row not in shared])]
    return texts


def _options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings[0] not in EVERYWHERE]


def _table(rows: Sequence[str]) -> str:
    return "\n".join(["| option | default | meaning |", "| --- | --- | --- |", *rows, ""])


def _row(action: argparse.Action) -> str:
    option = f"{action.option_strings[0]} {_values(action)}".replace("|", r"\|")
    meaning = action.help
    default = "required" if action.required else _default(action.default)
    stated = re.fullmatch("(.*); default: (.*)", meaning)
    if stated and ". " not in stated[2]:  # not a sentence in the middle of the text
        meaning, default = stated[1], _as_markdown(stated[2])
    return f"| `{option}` | {default} | {_as_markdown(meaning)} |"


def _values(action: argparse.Action) -> str:
    """Return the values that an option takes, as `--help` shows them."""
    name = action.metavar or action.dest.upper()
    if action.choices is not None:
        name = f"{{{','.join(action.choices)}}}"
    if isinstance(action.nargs, int):
        return " ".join(name)
    return {None: "{0}", "?": "[{0}]", "+": "{0} [{0} ...]"}[action.nargs].format(name)


def _default(value: Any) -> str:
    """Return a default in a table cell."""
    if value is None or value == []:
        return "-"
    return f"`{show_default(value)}`"


def _as_markdown(help_text: str) -> str:
    escaped = re.sub(r"[|<*]", r"\\\g<0>", help_text.replace("%%", "%"))
    return re.sub(r"--\w+", r"`\g<0>`", escaped)


if __name__ == "__main__":
    PAGE.write_text(make_page())
