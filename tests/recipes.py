"""The recipes of the documents: the calls that a reader copies, collected from the Markdown.

A recipe is a command of grpcurl, ghz or `buf curl` in a block of code. A hint is what prose and
tables print of a request: the name of a method, and behind it JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from google.protobuf import descriptor_pool

from tests.contracts import SESSIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ROOT = Path(__file__).parents[1]
#: The address that the documents print, of session_service under `make up` and under compose.
ADDRESS = "127.0.0.1:50051"
SERVICES = {service.full_name for service in SESSIONS}
#: Fenced blocks, and those that are indented by four.
_BLOCK = re.compile(r"^```\w*\n(.*?)^```$|((?:^(?: {4}[^\n]*)?\n)+)", re.MULTILINE | re.DOTALL)
_BEGINNING = re.compile(r"(?:\$ )?((?:grpcurl|ghz|\S*buf curl) .*)")
#: What a document prints for the id of a session or checkpoint: cut off, or that of its example.
_ANY_ID = re.compile(r'"(session_id|checkpoint_id)": "(?:01a2)?(?:…|[0-9a-f]{4}-[0-9a-f-]{27})"')
#: The longest that one command may take, in s.
SECONDS = 60.0


class RecipeFailed(Exception):
    """A recipe does not do what its document says."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A command of a document, and the place where it stands."""

    where: str
    command: str

    @property
    def words(self) -> list[str]:
        """The command as a shell reads it."""
        return shlex.split(self.command)

    @property
    def method(self) -> Any:
        """The descriptor of the method that is called; None if it calls none. Any: see
        `tests.fuzz.requests`.
        """
        name = next((word for word in self.words if "/roost." in word), self.words[-1])
        service, _, method = name.rpartition("/")
        service = service.rpartition("/")[2]
        if service not in SERVICES:
            return None
        return descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]


def documents() -> list[Path]:
    """The documents that readers copy from, the README first. Decisions tell of the past."""
    rest = sorted((ROOT / "docs").glob("*.md"))
    return [ROOT / "README.md", *rest, ROOT / "CONTRIBUTING.md"]


def recipes_of(text: str, where: str) -> list[Recipe]:
    """The recipes of a text, in their order."""
    found = []
    for fenced, indented in _BLOCK.findall(text):
        found += [Recipe(where, command) for command in _commands(fenced or indented)]
    return found


def _commands(block: str) -> Iterator[str]:
    """The commands of a block. One goes on in the next line after a backslash, or within quotes."""
    lines = iter(block.splitlines())
    for line in lines:
        begun = _BEGINNING.fullmatch(line.strip())
        if not begun:
            continue
        command = begun[1]
        while command.endswith("\\") or command.count("'") % 2:
            following = next(lines, None)
            if following is None:
                raise RecipeFailed(f"a command has no end: {command}")
            command = command.removesuffix("\\") + "\n" + following.strip()
        yield command.replace("\n", " ")


@dataclass(frozen=True, slots=True)
class Hint:
    """A method, and a part of a request to it."""

    where: str
    method: Any
    body: str

    def recipe(self) -> Recipe:
        """The call with this part. A key is one of its own; an id that is left out or is printed as
        `…` is that of the newest session or checkpoint.
        """
        key = json.dumps({"project_id": "hints", "user_id": self.method.name.lower()})
        body = self.body if self.body.startswith("{") else f"{{{self.body}}}"
        request = json.loads(body.replace('"key": …', f'"key": {key}').replace(": …", ': "…"'))
        fields = self.method.input_type.fields_by_name
        if "session_id" in fields:
            request.setdefault("session_id", "…")
        elif "key" in fields:
            request.setdefault("key", json.loads(key))
        service = self.method.containing_service.full_name
        data = json.dumps(request, ensure_ascii=False)
        call = f"grpcurl -plaintext -d '{data}' {ADDRESS} {service}/{self.method.name}"
        return Recipe(self.where, call)


def hints_of(text: str, where: str) -> list[Hint]:
    """The hints of a text: `Method` and then `{JSON}` or `"member": …`, in one cell or sentence."""
    text = _BLOCK.sub("", text)
    methods = {
        method.name: method
        for service in SERVICES
        for method in descriptor_pool.Default().FindServiceByName(service).methods
    }
    pattern = rf'`(?:\w+/)?({"|".join(methods)})`(?: with(?: the field)?)? `(\{{[^`]*\}}|"[^`]*)`'
    return [
        Hint(where, methods[name], body)
        for name, body in re.findall(pattern, text.replace("\n", " "))
    ]


def with_buf(recipe: Recipe) -> Recipe | None:
    """The same call by `buf curl`, as the documents say: without `-plaintext`, and with `http://`
    before the address. None for a call that another one of the document replaces.
    """
    command = recipe.command
    # buf takes a field mask as protobuf's JSON writes it, and grpcurl does not.
    if not command.startswith("grpcurl") or '"paths"' in command:
        return None
    command = command.replace("grpcurl -plaintext", BUF)
    return Recipe(recipe.where, re.sub(rf"{re.escape(ADDRESS)}\s+", f"http://{ADDRESS}/", command))


BUF = ".venv/bin/buf curl --protocol grpc --http2-prior-knowledge"


#: The ids that later recipes use, the method that makes one, and the member of its answer.
NEWEST = (
    ("session_id", "StartSession", "session"),
    ("checkpoint_id", "CreateCheckpoint", "checkpoint"),
)


class Kitchen:
    """Runs recipes in their order against a service. `program_of` gives the paths of programs.

    `suffix` is added to projects and to the ids of agent sessions, and request ids are new ones, so
    that the recipes can be run again.
    """

    def __init__(self, target: str, program_of: Callable[[str], str], suffix: str = "") -> None:
        self._target = target
        self._program_of = program_of
        self._suffix = suffix
        self._ids = {"session_id": "", "checkpoint_id": ""}

    async def cook(self, recipes: Iterable[Recipe]) -> int:
        """Run them all; how many there were. Raises RecipeFailed for the first that fails."""
        count = 0
        for recipe in recipes:
            await self.run(recipe)
            count += 1
        return count

    async def run(self, recipe: Recipe) -> str:
        """What one prints. Raises RecipeFailed."""
        command = recipe.command.replace(ADDRESS, self._target)
        command = _ANY_ID.sub(lambda id_: f'"{id_[1]}": "{self._ids[id_[1]]}"', command)
        command = re.sub(r'("request_id": ")[^"]+', rf"\g<1>{uuid4()}", command)
        names = r'("(?:project_id|projectId)": "\w+|"session_id": "mine)'
        words = shlex.split(re.sub(names, rf"\1{self._suffix}", command))
        program, *arguments = words
        method = recipe.method
        output, status = await output_of(
            [self._program_of(Path(program).name), *arguments],
            endless=method is not None and method.server_streaming,
        )
        if status:
            raise RecipeFailed(f"{recipe.where}: {recipe.command}\nended with {status}: {output}")
        for id_, maker, name in NEWEST:
            if method is not None and method.name == maker:
                self._ids[id_] = json.loads(output)[name][id_.replace("_id", "Id")]
        return output


async def output_of(
    command: list[str], *, endless: bool = False, seconds: float = SECONDS
) -> tuple[str, int]:
    """What a command prints, and its status. One that would not end is ended at its first line."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(seconds):
            assert process.stdout
            if endless:
                line = await process.stdout.readline()
                return line.decode(), int(not line.startswith(b"{"))
            output = await process.stdout.read()
            return output.decode(), await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
