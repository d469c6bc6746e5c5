"""docs/CONFIGURATION.md says what the code does: every key with its default, every kind, every example."""

import json
import re
from pathlib import Path

import msgspec
import pytest

from harmony.gateway import sections
from harmony.gateway.checks import unsupported
from harmony.gateway.config import Table
from harmony.gateway.loading import load
from harmony.gateway.options import KINDS, SUPPORTED, AetEntry, AuthenticationOptions, Role
from harmony.gateway.rule_options import RULES
from harmony.gateway.tables import keys_of

TEXT = (Path(__file__).parents[2] / "docs" / "CONFIGURATION.md").read_text()

DOCUMENTED = {
    "`[proxy]`": sections.ProxyTable,
    "`[proxy.content_limits]`": sections.ContentLimits,
    "`[logging]`": sections.LoggingTable,
    "`[storage]`": sections.StorageTable,
    "`[storage.options]`": sections.StorageOptions,
    "`[network.<name>]`": sections.NetworkTable,
    "`[network.<name>.http]`": sections.ListenerTable,
    "`[network.<name>.dicom]`": sections.DicomListenerTable,
    "`[targets.<name>]` and `[peers.<name>]`": sections.PeerTable,
    "`connection`": sections.ConnectionTable,
    "`[authentications.<name>]`": sections.AuthenticationTable,
    "`[authentications.<name>.options]`": AuthenticationOptions,
    "`[management]`": sections.ManagementTable,
    "`[audit]`": sections.AuditTable,
    "`[audit.syslog]`": sections.SyslogTable,
    "`[pipelines.<name>]`": sections.PipelineTable,
    "`[endpoints.<name>]`": sections.EndpointTable,
    "`[backends.<name>]`": sections.BackendTable,
    "`[middleware.<name>]`": sections.MiddlewareTable,
    "`[policies.<name>]`": sections.PolicyTable,
    "`[rules.<name>]`": sections.RuleTable,
} | {
    f"{kind.role.value.capitalize()} `{kind.name}`": kind.options
    for kind in KINDS
    if (kind.role, kind.name) in SUPPORTED
}


def section(heading):
    found = re.search(rf"^### {re.escape(heading)}\n(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"there is no section {heading}"
    return found[1]


def rows(heading):
    """Key -> the cells of its row."""
    lines = re.findall(r"^\| `(\w+)` \|(.*)\|$", section(heading), re.MULTILINE)
    return {key: [cell.strip() for cell in rest.split(" | ")] for key, rest in lines}


def default_of(field):
    if field.required:
        return "**required**"
    value = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if value is None or isinstance(value, Table):
        return "–"
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{json.dumps(value)}`"


@pytest.mark.parametrize(("heading", "struct"), DOCUMENTED.items(), ids=list(DOCUMENTED))
def test_every_key_is_documented_with_its_default(heading, struct):
    documented = {key: cells[1] for key, cells in rows(heading).items()}
    assert documented == {field.name: default_of(field) for field in msgspec.structs.fields(struct)}


@pytest.mark.parametrize(("heading", "struct"), DOCUMENTED.items(), ids=list(DOCUMENTED))
def test_every_alias_and_ignored_key_is_documented(heading, struct):
    shared = {"id", "name", "description", "type"}
    text = section(heading)
    for key in {*keys_of(struct), *struct.aliases, *struct.ignored, *struct.unsupported} - shared:
        assert f"`{key}`" in text, key


@pytest.mark.parametrize("kind", KINDS, ids=[f"{kind.role.value}-{kind.name}" for kind in KINDS])
def test_every_kind_is_documented(kind):
    kinds = rows_of_kinds()[kind.role]
    available, later = kinds
    assert f"`{kind.name}`" in (available if (kind.role, kind.name) in SUPPORTED else later)
    for alias in kind.aliases:
        assert f"`{alias}`" in available + later
    if (kind.role, kind.name) not in SUPPORTED:
        for field in msgspec.structs.fields(kind.options):
            assert f"`{field.name}`" in TEXT.partition("## Kinds of later versions")[2]


def rows_of_kinds():
    lines = re.findall(
        r"^\| (Endpoint|Backend|Middleware) \| (.*) \| (.*) \|$", section("Kinds"), re.MULTILINE
    )
    return {Role(role.lower()): (available, later) for role, available, later in lines}


def test_entries_of_the_aet_table_are_documented():
    (row,) = [cells for key, cells in rows("Endpoint `dicom_scp`").items() if key == "aet_table"]
    for field in msgspec.structs.fields(AetEntry):
        assert field.name in row[-1]


@pytest.mark.parametrize("type", RULES)
def test_every_type_of_rule_is_documented_with_its_options(type):
    (row,) = re.findall(rf"^\| [^|]*`{type}`.*$", section("Types of rules"), re.MULTILINE)
    for field in msgspec.structs.fields(RULES[type].options):
        assert f"`{field.name}`" in row


EXAMPLES = re.findall(r"^```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_load(example, tmp_path):
    path = tmp_path / "config.toml"
    for name in re.findall(r"/etc/harmony/tls/([\w.]+)", example):
        (tmp_path / name).touch()
    path.write_text(example.replace("/etc/harmony/tls", str(tmp_path)))
    loaded = load(path, env={"JMIX_TOKEN": "t"})
    assert loaded.warnings == ()
    assert unsupported(loaded) == []


def test_there_are_examples():
    assert len(EXAMPLES) == 10
