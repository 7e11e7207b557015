"""The pages: each has a place in the site, every link leads somewhere, and what they tell to run can be run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from test_cli import command  # noqa: F401
from tiny import tiny_values

from retain.cli import app
from retain.config import Config, make_config
from retain.config_yaml import dump_yaml, parse_yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NAMES = [str(page.relative_to(DOCS)) for page in PAGES]
OTHERS = [ROOT / "README.md", ROOT / "recipes" / "README.md"]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.S | re.M)


def navigated(nav):
    """Every page that a part of `nav` names."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav if isinstance(nav, list) else nav.values()) for page in navigated(part)]


def anchors(page):
    """The ids of a page's headings, as the site and the usual hosts make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.M)
    slugs = [re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip() for heading in headings]
    return {re.sub(r"[-\s]+", "-", slug) for slug in slugs}


def blocks(page, language):
    """The fenced blocks of a language, without their indentation."""
    found = FENCE.findall(page.read_text())
    return [re.sub(f"^{indent}", "", text, flags=re.M) for indent, name, text in found if name == language]


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    entries = navigated(site["nav"])
    assert sorted(entries) == NAMES and len(set(entries)) == len(entries)


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=[*NAMES, "README.md", "recipes/README.md"])
def test_links_lead_to_files_and_headings(page):
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(found), f"{target}: no such heading in {found.name}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_reference_pages_name_what_there_is(page):
    for target in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.M):
        parts = target.split(".")
        splits = [("/".join(parts[:end]), parts[end:]) for end in range(len(parts), 0, -1)]
        path, rest = next((ROOT / "src" / f"{one}.py", rest) for one, rest in splits if is_module(one))
        assert len(rest) <= 1 and re.search(rf"^(?:class|def) {rest[0]}\b" if rest else "", path.read_text(), re.M)


def is_module(path):
    return (ROOT / "src" / f"{path}.py").is_file()


COMMANDS = [(name, line) for name, page in zip(NAMES, PAGES, strict=True) for block in blocks(page, "sh")
            for line in re.split(r"\n| && ", block) if line.startswith("retain ")]  # fmt: skip


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_parse(page, line):
    """Commands and options that are there, with as many arguments as they take."""
    _, name, *arguments = shlex.split(line.split(" | ")[0], comments=True)
    if name.startswith("-"):
        return
    found = typer.main.get_command(app).commands[name]
    found.make_context(name, arguments)


SETTINGS = [(page.name, block) for page in PAGES for block in blocks(page, "yaml") if "\ntasks:\n" in block]


@pytest.mark.parametrize(("name", "text"), SETTINGS)
def test_configurations_are_accepted(name, text):
    values, _ = parse_yaml(text, name)
    assert isinstance(make_config(values, name), Config)


def test_there_is_something_to_check():
    assert len(COMMANDS) > 30 and len(SETTINGS) >= 4 and len(PAGES) > 20


def test_the_commands_of_the_gate_run(tmp_path, monkeypatch, command):  # noqa: F811
    """Those of the tutorial, in their order, with a tiny model and its data in place of the real ones."""
    page = DOCS / "tutorials" / "ci-gate.md"
    settings = parse_yaml(blocks(page, "yaml")[0], page.name)[0]
    gate = {**settings["gate"], "forgetting": 1.0, "general": 1.0}
    (tmp_path / "ci.yaml").write_text(dump_yaml({**tiny_values(tmp_path), "gate": gate}))
    monkeypatch.chdir(tmp_path)
    run, *gates = [shlex.split(line)[1:] for line in blocks(page, "sh")[0].splitlines()]
    assert command(*run)[0] == 0
    codes = [command(*one)[0] for one in gates]
    assert codes[0] == 0 and codes[1] == 2  # the tiny run has no task `tickets`
    assert command("gate", "runs/ci", "score.color=1.0")[0] == 3
