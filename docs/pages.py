"""Pages that are not written by hand: the notebooks, the command line, and the parameters of stages in their API entries."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import param
from docutils import nodes

import refmotion_nb
from refmotion_nb.cli.parser import parser_for
from refmotion_nb.views import plots

_ALWAYS = ("-h", "--help")
# title and where public names of a section live; the first that fits
_SECTIONS = (
    ("Simulation", "data.synthetic"), ("Results", "data.store"), ("Opening data", "data"), ("Hyperparameters", "numerics"),
    ("Stages, sessions, jobs", "stages"), ("Views", "views"),
)  # fmt: skip
_SHOWN_FIRST = ("Opening data", "Stages, sessions, jobs", "Hyperparameters", "Results", "Views", "Simulation")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)[^)]*\)")  # to a file
_TUTORIALS = "```{toctree}\n:glob:\n:maxdepth: 1\n\n[0-9]*\n```\n"
_ELSEWHERE = ("execute", "plots")  # pages of their own


def write(docs: Path) -> None:
    """Copy the notebooks into the tutorials and write a page for each command; remove those that are no more."""
    notebooks = {path.name: path for path in sorted((docs.parent / "notebooks").glob("*.ipynb"))}
    tutorials = docs / "tutorials"
    for old in tutorials.glob("*.ipynb"):
        if old.name not in notebooks:
            old.unlink()
    for name, path in notebooks.items():
        _write_if_changed(tutorials / name, notebook_within(path, set(notebooks)))
    _write_if_changed(docs / "reference" / "api.md", api_page())
    _write_if_changed(docs / "reference" / "plots_list.inc", "".join(_directive("function", f"refmotion_nb.views.plots.{name}")
                                                                     for name in plots.__all__))  # fmt: skip
    _write_if_changed(tutorials / "list.inc", _TUTORIALS if notebooks else "This checkout has no notebooks.\n")
    commands = docs / "reference" / "commands"
    commands.mkdir(exist_ok=True)
    made = {f"{name}.md": command_page(name) for name in command_names()}
    for old in commands.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        _write_if_changed(commands / name, text)


def notebook_within(path: Path, there: set[str]) -> str:
    """Return a notebook whose links stay within the pages: those to other files of the repository keep their words only."""

    def within(link: re.Match[str]) -> str:
        words, target = link[1], link[2]
        if target in there:
            return link[0]
        return f"[{words}](../{target.removeprefix('../docs/')})" if target.startswith("../docs/") else words

    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = _LINK.sub(within, "".join(cell["source"]))
    return json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"


def drawn_css(docs: Path) -> str:
    """Return the report's colours, following the site's light and dark, and its rules for figures, inside figures only."""
    style = (docs.parent / "refmotion_nb" / "views" / "report.css").read_text(encoding="utf-8")
    light, dark = (
        re.sub(r"color-scheme:[^;]*;", "", block) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    )
    rules = [rule for rule in re.findall(r"^\S[^{}\n@]*\{[^{}]*\}", style.split("@media print")[0], re.MULTILINE)
             if re.match(r"\.grid|path\.grid|\.card|\.panels|\.head|figcaption|svg|\.rule|\.line|\.mark|\.tracks|\.area|\.scale"
                         r"|\.starts|\.legend", rule)]  # fmt: skip
    inside = "\n".join(rules)
    return f'html[data-theme="light"] {{{light}}}\nhtml[data-theme="dark"] {{{dark}}}\n.drawn {{\n{inside}\n}}\n'


def write_text(path: Path, text: str) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def copy_if_changed(source: Path, target: Path) -> None:
    """Copy a file, unless the copy is as it is already: its date would have it built again."""
    if not target.exists() or target.read_bytes() != source.read_bytes():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def api_page() -> str:
    """Return the page of all public names, by what they are for."""
    sections: dict[str, list[str]] = {title: [] for title in _SHOWN_FIRST}
    for name, home in sorted(refmotion_nb._HOME.items(), key=lambda item: item[0].lower()):
        if name not in _ELSEWHERE:
            sections[next(title for title, prefix in _SECTIONS if home.startswith(prefix))].append(name)
    parts = [
        "# refmotion_nb\n\n`import refmotion_nb as rm`; names are imported when they are first used. Plots: {doc}`plots`. "
        "Workers: {doc}`execute`."
    ]
    for title, names in sections.items():
        entries = "\n".join(_directive(_kind(name), f"refmotion_nb.{name}") for name in names)
        parts.append(f"## {title}\n\n```{{eval-rst}}\n{entries}```")
    return "\n\n".join(parts) + "\n"


def _kind(name: str) -> str:
    found = getattr(refmotion_nb, name)
    if isinstance(found, type):
        return "exception" if issubclass(found, Exception) else "class"
    return "function"


def _directive(kind: str, name: str) -> str:
    return f".. auto{kind}:: {name}\n{'   :members:' if kind == 'class' else ''}\n\n"


def command_names() -> list[str]:
    """Return the names of the commands, in the order of the program's help."""
    return list(_commands(parser_for("")))


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    return action.choices


def command_page(name: str) -> str:
    """Return the page of a command: what it does, what it must be given, and every option by group."""
    parser = parser_for(name)
    (action,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    about = {one.dest: one.help for one in action._choices_actions}[name]
    command = action.choices[name]
    parts = [
        f"# refmotion {name}\n\n{about[:1].upper()}{about[1:]}.",
        f"```text\n{command.usage % {'prog': command.prog}}\n```",
    ]
    for group in command._action_groups:
        shown = [one for one in group._group_actions if not set(_ALWAYS) & set(one.option_strings)]
        if shown:
            title = {"positional arguments": "Arguments", "options": "Options"}.get(group.title, group.title)
            parts += [f"## {title[:1].upper()}{title[1:]}", *map(_entry, shown)]
    return "\n\n".join(parts) + "\n"


def _spelt(one: argparse.Action) -> str:
    """Return an argument as it is typed."""
    values = one.metavar or ("|".join(map(str, one.choices)) if one.choices else one.dest.upper())
    if not one.option_strings:
        return str(values)
    if isinstance(one, argparse.BooleanOptionalAction):
        return " / ".join(one.option_strings)
    return one.option_strings[0] if one.nargs == 0 else f"{one.option_strings[0]} {values}"


def _entry(one: argparse.Action) -> str:
    about = (one.help or "").replace("%%", "%").strip()
    if re.split(r"[ ,;]", about)[0].isalpha():  # no file name
        about = about[:1].upper() + about[1:]
    about += "" if about.endswith(".") else "."
    return f"`{_spelt(one)}`\n: {_escaped(about)}{' Required.' if one.required else ''}"


def _escaped(text: str) -> str:
    return re.sub(r"([*_<>$\[\]])", r"\\\1", text)


def short_signature(_app: Any, what: str, _name: str, found: Any, _options: Any, signature: Any, returned: Any) -> Any:
    """Show a stage without its parameters, which are listed below it, and a dataclass without long defaults."""
    if what == "class" and issubclass(found, param.Parameterized):
        return "(**parameters)", None
    if what == "class" and dataclasses.is_dataclass(found):
        return f"({', '.join(map(_field, (one for one in dataclasses.fields(found) if one.init)))})", None
    return signature, returned


def _field(one: dataclasses.Field) -> str:
    if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
        return f"{one.name}: {one.type}"
    default = "..." if one.default is dataclasses.MISSING else repr(one.default)
    return f"{one.name}: {one.type} = {default if len(default) < 30 and default[0] != '<' else '...'}"


def with_dashes(_app: Any, doctree: nodes.document, _docname: str) -> None:
    """Set the dash between a name and what it is: two hyphens would be kept for the sake of options."""
    for text in [one for one in doctree.findall(nodes.Text) if one.astext() == " -- "]:
        text.parent.replace(text, nodes.Text(" – "))


def skip_parameters(_app: Any, what: str, _name: str, found: Any, skip: bool, _options: Any) -> bool | None:
    """Leave out parameters, which are listed in the entry of their stage, and names that are those of other classes."""
    return True if isinstance(found, param.Parameter | type) else None


def with_parameters(_app: Any, what: str, _name: str, found: Any, _options: Any, lines: list[str]) -> None:
    """List the parameters of a stage in its entry, those that are its own before those of all that align."""
    if what == "class" and issubclass(found, param.Parameterized):
        lines += ["", *_parameter_lines(found)]


def _parameter_lines(stage: type[param.Parameterized]) -> Iterator[str]:
    inherited = {name for base in stage.__mro__[1:] if issubclass(base, param.Parameterized) for name in base.param}
    own = [name for name in stage.param if name not in inherited]
    if own:
        yield "**Parameters of its own**"
        yield ""
        for name in own:
            one = stage.param[name]
            yield f"``{name}`` = {one.default!r}"
            yield f"   {one.doc.replace('*', chr(92) + '*').replace('|', chr(92) + '|')}"
            yield ""
    if others := sorted(inherited - {"name"}):
        yield f"Those of every stage that aligns: {', '.join(f'``{name}``' for name in others)}; see :doc:`/parameters`."
        yield ""
