"""From files to one set of tables: find them, parse them, substitute the environment, merge them.

The main file comes first, then every `*.toml` in `proxy.pipelines_path` in sorted order. Any table may stand in any
file; the same table in two files is fine when both say the same and an error that names both when they do not.

Nothing here knows which keys exist: `harmony.gateway.tables` types a table, `harmony.gateway.loading` gives it meaning.
Every problem goes into a `Report`, so that the operator sees all of them at once.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harmony.gateway.config import Origin, Problem, Severity

SINGLE_SECTIONS = ("proxy", "logging", "storage", "management", "audit")
SINGLE_VALUES = ("workers",)
"""Keys that are in no table."""
NAMED_SECTIONS = (
    "network",
    "pipelines",
    "endpoints",
    "backends",
    "middleware",
    "peers",
    "targets",
    "authentications",
    "policies",
    "rules",
    "services",
    "middleware_types",
)
IGNORED_SECTIONS = ("provider", "runbeam")
"""The original's cloud service: present in many files, without meaning here."""

PIPELINES_PATH = "pipelines"
MAX_SHOWN_CHARS = 60
"""Of a value in a message: enough to recognise it, short enough for one line."""


def show(value: object) -> str:
    """A value as it would look in TOML, shortened."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (ValueError, RecursionError):  # an integer of thousands of digits; nesting without end
        return "a value too large to show"
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "..."


def dotted(path: Sequence[str]) -> str:
    """A table's path as TOML writes it in a header."""
    bare = re.compile(r"[A-Za-z0-9_-]+")
    return ".".join(name if bare.fullmatch(name) else json.dumps(name, ensure_ascii=False) for name in path)


class Substituted(str):
    """A string that contained an environment variable; may stand where a number or true/false is expected."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """One parsed file."""

    path: Path | None
    """None: the embedded default."""
    tables: Mapping[str, object]
    lines: Mapping[tuple[str, ...], int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.path) if self.path is not None else "(embedded default)"

    def line_of(self, path: tuple[str, ...]) -> int | None:
        """The line of a table or key, or of the nearest table around it."""
        for length in range(len(path), 0, -1):
            if (line := self.lines.get(path[:length])) is not None:
                return line
        return None


@dataclass(frozen=True, slots=True)
class Place:
    """A table in a document."""

    document: Document
    path: tuple[str, ...] = ()

    def child(self, *names: str) -> Place:
        return Place(self.document, self.path + names)

    @property
    def table(self) -> str:
        return dotted(self.path)

    def origin(self) -> Origin:
        return Origin(self.document.path, self.table, self.document.line_of(self.path))


class Report:
    """Collects problems while loading goes on as far as it can."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def error(self, place: Place, key: str, message: str) -> None:
        self._add(Severity.ERROR, place, key, message)

    def warning(self, place: Place, key: str, message: str) -> None:
        self._add(Severity.WARNING, place, key, message)

    def file_error(self, path: Path | None, message: str, *, line: int | None = None) -> None:
        self.add(Problem(Severity.ERROR, path, "", "", message, line))

    def add(self, problem: Problem) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    @property
    def failed(self) -> bool:
        return any(problem.severity is Severity.ERROR for problem in self.problems)

    @property
    def warnings(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity is Severity.WARNING)

    def _add(self, severity: Severity, place: Place, key: str, message: str) -> None:
        line = place.document.line_of((*place.path, key) if key else place.path)
        self.add(Problem(severity, place.document.path, place.table, key, message, line))


def read_documents(path: Path, env: Mapping[str, str], report: Report) -> list[Document]:
    """Read the main file and the pipeline files; what cannot be read is reported and left out."""
    if path.suffix != ".toml":
        report.file_error(path, 'the name of a configuration file must end in ".toml"')
        return []
    main = read_file(path, env, report)
    if main is None:
        return []
    documents = [main]
    folder = _pipelines_folder(main, path, report)
    if folder is not None:
        for each in sorted(folder.glob("*.toml")):
            if each.resolve() != path.resolve() and each.is_file():
                document = read_file(each, env, report)
                if document is not None:
                    documents.append(document)
    return documents


def read_file(path: Path, env: Mapping[str, str], report: Report) -> Document | None:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        report.file_error(path, f"cannot be read: {error.strerror or error}")
        return None
    except UnicodeDecodeError as error:
        report.file_error(path, f"is not UTF-8: byte {error.start}")
        return None
    return parse_document(path, text, env=env, report=report)


def parse_document(
    path: Path | None, text: str, *, env: Mapping[str, str], report: Report
) -> Document | None:
    """Parse one file's text and substitute the environment. None after a syntax error, which is reported."""
    try:
        tables = tomllib.loads(text)
        document = Document(path, tables, locate(text))
        return substitute(document, env, report)
    except ValueError as error:  # TOMLDecodeError; also an integer with too many digits
        found = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
        line = int(found[1]) if found else None
        message = str(error)[: found.start()] + f" (column {found[2]})" if found else str(error)
        message = f"is not valid TOML: {message}"
    except RecursionError:
        line, message = None, "is nested too deeply"
    report.file_error(path, message, line=line)
    return None


def _pipelines_folder(main: Document, path: Path, report: Report) -> Path | None:
    proxy = main.tables.get("proxy")
    given = proxy.get("pipelines_path") if isinstance(proxy, dict) else None
    if given is not None and not isinstance(given, str):
        return None  # typing the table will report it
    folder = path.parent / (given or PIPELINES_PATH)
    try:
        if folder.is_dir():
            return folder
    except OSError:  # a path too long for the system
        pass
    if given:
        report.warning(
            Place(main, ("proxy",)), "pipelines_path", f'names "{folder}", and there is no such folder'
        )
    return None


_VARIABLE = re.compile(
    r"""\$(?: (?P<dollar>\$)
            | \{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)(?: :- (?P<default>[^}]*))?\}
            | (?P<plain>[A-Za-z_][A-Za-z0-9_]*) )""",
    re.VERBOSE,
)


def substitute(document: Document, env: Mapping[str, str], report: Report) -> Document:
    """Replace $NAME, ${NAME} and ${NAME:-default} in string values, $$ by $. Other dollars stay."""

    def variable(found: re.Match[str], path: tuple[str, ...]) -> str:
        if found["dollar"]:
            return "$"
        name = found["braced"] or found["plain"]
        value = env.get(name)
        if found["default"] is not None:
            return value or found["default"]
        if value is None:
            place = Place(document, path[:-1])
            report.warning(place, path[-1], f'environment variable {name} is not set, "" is used')
            return ""
        return value

    def walk(value: object, path: tuple[str, ...]) -> object:
        match value:
            case str() if "$" in value:
                text = _VARIABLE.sub(lambda found: variable(found, path), value)
                return Substituted(text) if text != value else value
            case dict():
                return {key: walk(each, (*path, key)) for key, each in value.items()}
            case list():
                return [walk(each, path) for each in value]
        return value

    tables = {key: walk(value, (key,)) for key, value in document.tables.items()}
    return Document(document.path, tables, document.lines)


_KEY = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_DOTTED_KEY = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"\s*\[\[?\s*({_DOTTED_KEY})\s*\]")
_ASSIGNMENT = re.compile(rf"\s*({_DOTTED_KEY})\s*=")


def locate(text: str) -> dict[tuple[str, ...], int]:
    """Where tables and keys stand. tomllib does not tell; a line scan is right for all but contrived files."""
    lines: dict[tuple[str, ...], int] = {}
    header: tuple[str, ...] = ()
    open_quotes = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if not open_quotes:
            if found := _HEADER.match(line):
                header = _split_key(found[1])
                lines.setdefault(header, number)
            elif found := _ASSIGNMENT.match(line):
                key = header + _split_key(found[1])
                for length in range(len(header) + 1, len(key) + 1):
                    lines.setdefault(key[:length], number)
        for quotes in ('"""', "'''"):
            if open_quotes in ("", quotes) and line.count(quotes) % 2:
                open_quotes = "" if open_quotes else quotes
    return lines


def _split_key(text: str) -> tuple[str, ...]:
    parts = re.findall(_KEY, text)
    return tuple(part[1:-1] if part[0] in "\"'" else part for part in parts)


@dataclass(frozen=True, slots=True)
class Entry:
    """One table of the merged configuration; `value` may still be anything TOML can say."""

    value: object
    place: Place


@dataclass(frozen=True, slots=True)
class Merged:
    single: Mapping[str, Entry]
    named: Mapping[str, Mapping[str, Entry]]
    main: Place
    """The main file, for what is missing altogether."""

    def knows(self, section: str, name: str) -> bool:
        """Whether a table has this name or this `id`."""
        tables = self.named[section]
        return name in tables or any(
            isinstance(each.value, dict) and each.value.get("id") == name for each in tables.values()
        )


def merge(documents: Sequence[Document], report: Report) -> Merged:
    """Lay the documents over one another; documents must not be empty."""
    single: dict[str, Entry] = {}
    named: dict[str, dict[str, Entry]] = {section: {} for section in NAMED_SECTIONS}
    for document in documents:
        for section, value in document.tables.items():
            place = Place(document, (section,))
            if section in SINGLE_SECTIONS or section in SINGLE_VALUES:
                _add(single, section, Entry(value, place), report)
            elif section in NAMED_SECTIONS:
                if not isinstance(value, dict):
                    report.error(Place(document), section, f"is {show(value)}, must be a table of tables")
                    continue
                for name, each in value.items():
                    _add(named[section], name, Entry(each, place.child(name)), report)
            elif section not in IGNORED_SECTIONS:
                known = (*SINGLE_SECTIONS, *SINGLE_VALUES, *NAMED_SECTIONS)
                report.warning(
                    Place(document), section, "is not a known table, ignored" + hint(section, known)
                )
    return Merged(single, named, Place(documents[0]))


def _add(entries: dict[str, Entry], name: str, entry: Entry, report: Report) -> None:
    first = entries.setdefault(name, entry)
    if first.value != entry.value:
        line = first.place.document.line_of(first.place.path)
        where = first.place.document.name + (f":{line}" if line is not None else "")
        report.error(
            entry.place, "", f"is also defined, differently, in {where}; a table may have one meaning"
        )


def hint(given: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: the closest known one, or nothing."""
    close = difflib.get_close_matches(given, known, n=1)
    return f"; did you mean {show(close[0])}?" if close else ""


def unknown(name: str, section: str, merged: Merged) -> str:
    known = tuple(merged.named[section])
    listed = ", ".join(show(each) for each in known[:20]) or "there are none"
    return f"is {show(name)}, must be the name of a [{section}] table: {listed}{hint(name, known)}"
