"""What the documents name exists: links and their anchors, targets of make, modules, tests.

Requests of grpcurl are messages of their method. In docs/tour.md each function is in one of the
files that its paragraph links to.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from google.protobuf import descriptor_pool, json_format, message_factory

from tests.contracts import SESSIONS
from tools.rules import NotFound, find_symbol, find_test

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
#: The services that a document can call.
SERVICES = {service.full_name for service in SESSIONS}
#: The folders below which a document names a module: `dispatch/wait` is session_service's.
BASES = ("", "session_service", "container_service")
#: The folder of the tests that docs/failures.md names without one.
FAILURES = "tests/session/"


def documents() -> list[Path]:
    """Every Markdown file of the project."""
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."]
    nested = [path for folder in folders for path in folder.rglob("*.md")]
    return sorted([*ROOT.glob("*.md"), *nested])


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        repeats = sum(
            re.fullmatch(rf"{re.escape(slug)}(-\d+)?", each) is not None for each in found
        )
        found.append(f"{slug}-{repeats}" if repeats else slug)
    return set(found)


def broken_links(document: Path, text: str) -> Iterator[str]:
    """The relative links of the text that lead nowhere."""
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text)):
        if re.match(r"https?://|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        path = document.parent / file
        if file and not path.exists():
            yield target
            continue
        if anchor and anchor not in anchors(path.read_text() if file else text):
            yield target


def missing_targets(text: str) -> Iterator[str]:
    """The targets of make that the text names in code and the Makefile does not have."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"(?:^ {4}|`|=\S+ )make ([a-z]+)", text, re.MULTILINE):
        if target not in targets:
            yield f"make {target}"


def missing_modules(text: str) -> Iterator[str]:
    """The modules that the text runs with `python -m` and that do not exist."""
    for module in re.findall(r"python -m ([a-z_.]*[a-z_])", text):
        path = ROOT.joinpath(*module.split("."))
        installed = module in {"pytest", "pip"}
        if not (installed or path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()):
            yield f"python -m {module}"


def missing_tests(text: str, folder: str = "") -> Iterator[str]:
    """The tests that the text names as `file::test` and that do not exist. `::test` is one of the
    file that was named before it.
    """
    file = ""
    for named, test in re.findall(r"([\w/.]*)::(test_\w+)", text):
        if named:
            file = named if "/" in named else folder + named
            file = file.removesuffix(".py") + ".py"
        try:
            find_test(ROOT, f"{file}::{test}")
        except NotFound as error:
            yield str(error)


def missing_paths(text: str) -> Iterator[str]:
    """The paths in code spans that do not exist, and the symbols that the text says are in one:
    `storage/database`, `domain/stats.CREATING`, `Settle` in `dispatch/wait`.
    """
    text = FENCED.sub("", text)
    for span in re.findall(r"`([a-z_\d]+(?:/[\w]+)+(?:\.\w+)*)/?`", text):
        path, _, symbol = span.partition(".")
        # A name of an image, or of any file of a kind, is no path.
        if (
            path.startswith("roost/")
            or "_NN" in span
            or any((ROOT / base / span).exists() for base in BASES)
        ):
            continue
        if not any(_has(f"{base}/{path}", symbol) for base in BASES):
            yield span
    for name, path in re.findall(r"`([A-Za-z_]\w*)` in `([a-z_]+(?:/[a-z_]+)+)`", text):
        if not any(_has(f"{base}/{path}", name) for base in BASES):
            yield f"{name} in {path}"


#: A field mask as grpcurl takes it.
_MASK = re.compile(r'\{"paths": \["(\w+)"\]\}')


def _as_text(mask: re.Match[str]) -> str:
    """The mask as the JSON of protobuf has it."""
    first, *rest = mask[1].split("_")
    return f'"{first}{"".join(part.capitalize() for part in rest)}"'


def wrong_requests(text: str) -> Iterator[str]:
    """The requests of grpcurl that are none: no JSON, no such method, or no such field."""
    pool = descriptor_pool.Default()
    call = r"grpcurl[^']*'(\{[^']*\})'[\s\\]+[\d.:]+ (roost[\w.]+)/(\w+)"
    for body, service, method in re.findall(call, text):
        if service not in SERVICES:
            yield service
            continue
        methods = pool.FindServiceByName(service).methods_by_name
        if method not in methods:
            yield f"{service}/{method}"
            continue
        try:
            message = message_factory.GetMessageClass(methods[method].input_type)()
            json_format.Parse(_MASK.sub(_as_text, body), message)
        except json_format.ParseError as error:
            yield f"{method}: {error}"


def unknown_names(tour: str) -> Iterator[str]:
    """The functions and classes that a paragraph names and none of the files that it links to has.

    A paragraph without links to code names none.
    """
    for block in FENCED.sub("", tour).split("\n\n"):
        modules = re.findall(r"\]\(\.\./([\w/]+)\.py\)", block)
        called = re.findall(r"`([A-Za-z_][\w.]*)\(\)`", block)
        classes = re.findall(r"`((?:[A-Z]+[a-z]+\w*)(?:\.\w+)?)`", block)
        for name in [*called, *(classes if modules else [])]:
            if not any(_has(module, name) for module in modules):
                yield name


def _has(path: str, name: str) -> bool:
    """Whether there is this module, and in it the symbol, if one is given."""
    module = path.strip("/").replace("/", ".")
    try:
        if name:
            find_symbol(ROOT, f"{module}:{name}")
    except NotFound:
        return False
    return (ROOT / path.strip("/")).with_suffix(".py").is_file()


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_exists(document: Path) -> None:
    text = document.read_text()
    folder = FAILURES if document.name == "failures.md" else ""
    wrong = [*broken_links(document, text), *missing_modules(text), *missing_targets(text)]
    wrong += [*missing_paths(text), *wrong_requests(text)]
    if document.name != "CHANGELOG.md":
        wrong += missing_tests(text, folder)
    assert not wrong


def test_the_tour_names_functions_of_the_files_that_it_links_to() -> None:
    tour = (ROOT / "docs" / "tour.md").read_text()
    assert not list(unknown_names(tour))
    assert len(re.findall(r"\(\)`", tour)) > 40, "they are found"


def test_every_page_can_be_reached_from_the_readme() -> None:
    """By links from page to page."""
    reached, new = set[Path](), {ROOT / "README.md"}
    while new:
        reached |= new
        new = {
            path
            for page in new
            for target in re.findall(r"\]\(([^)#\s]+\.md)", page.read_text())
            if (path := (page.parent / target).resolve()).is_file()
        } - reached
    assert set(documents()) <= reached


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[a](README.md#try-it), [b](#here)\n\n## Here\n", []),
        ("[a](READNE.md)", ["READNE.md"]),
        ("[a](README.md#no-such-heading)", ["README.md#no-such-heading"]),
        ("[a](#there)\n\n## Here\n", ["#there"]),
        ("[a](#here-1)\n\n## Here\n\n## Here\n", []),
        ("[a](#python-m-and-more)\n\n## `python -m` and more\n", ["#python-m-and-more"]),
        ("[a](#python--m-and-more)\n\n## `python -m` and more\n", []),
        ("```\n[a](nowhere)\n```\n", []),
    ],
)
def test_a_link_that_leads_nowhere_is_found(text: str, wrong: list[str]) -> None:
    assert list(broken_links(ROOT / "x.md", text)) == wrong


def test_a_command_or_test_that_does_not_exist_is_found() -> None:
    assert list(missing_targets("    make demos\n`make tests`, `A=1 make ups`, `make demo`")) == [
        "make demos",
        "make tests",
        "make ups",
    ]
    assert list(
        missing_modules("python -m locals up, python -m local up, python -m tools.lint")
    ) == [
        "python -m locals",
        "python -m tools.lint",
    ]
    assert list(missing_tests("test_kills::test_a, `::test_b`, test_gone::test_a", FAILURES)) == [
        "tests/session/test_kills.py has no `test_a`",
        "tests/session/test_kills.py has no `test_b`",
        "there is no file tests/session/test_gone.py",
    ]


def test_a_path_that_does_not_exist_is_found() -> None:
    there = "`roost/counter`, `dispatch/wait`, `tests/`, `domain/stats.CREATING`, `bench/load.py`"
    assert list(missing_paths(there + "`next_step` in `domain/next_action`")) == []
    gone = "`dispatch/waits`, `domain/stats.CREATED`, `bench/loads.py`, `Seen` in `dispatch/wait`"
    assert list(missing_paths(gone)) == [
        "dispatch/waits",
        "domain/stats.CREATED",
        "bench/loads.py",
        "Seen in dispatch/wait",
    ]


@pytest.mark.parametrize(
    ("body", "called", "wrong"),
    [
        ('{"key": {"user_id": "wren"}}', "session.v1.SessionService/StartSession", ""),
        ('{"keys": {}}', "session.v1.SessionService/StartSession", 'no field named "keys"'),
        ('{"key": }', "session.v1.SessionService/StartSession", "StartSession: "),
        ("{}", "session.v1.SessionService/BeginSession", "SessionService/BeginSession"),
        ("{}", "session.v1.SessionsService/StartSession", "roost.session.v1.SessionsService"),
    ],
)
def test_a_request_that_is_none_is_found(body: str, called: str, wrong: str) -> None:
    text = f"    grpcurl -plaintext -d '{body}' \\\n      127.0.0.1:50051 roost.{called}\n"
    found = list(wrong_requests(text))
    assert len(found) == bool(wrong)
    assert all(wrong in each for each in found)


@pytest.mark.parametrize(
    ("block", "wrong"),
    [
        ("`decide()` in [a](../session_service/domain/ladder.py)", []),
        ("`decides()` in [a](../session_service/domain/ladder.py)", ["decides"]),
        ("`Driver.run()` in [a](../session_service/domain/ladder.py)", ["Driver.run"]),
        ("`Driver` in [a](../session_service/domain/ladder.py)", ["Driver"]),
        ("`decide()` in no file", ["decide"]),
        ("`PAUSED` in [a](../session_service/domain/ladder.py)", []),
    ],
)
def test_a_name_that_a_file_lacks_is_found(block: str, wrong: list[str]) -> None:
    assert list(unknown_names(block)) == wrong
