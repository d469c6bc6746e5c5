"""The policies middleware: what each type of rule says, how rules add up, and the answers to who is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.gateway import sections
from harmony.gateway.authentication import Authentications
from harmony.gateway.config import ConfigError, LoadedConfig, Origin, Rule
from harmony.gateway.http_middleware import http_middleware
from harmony.gateway.http_policies import HttpPolicies
from harmony.gateway.http_rules import http_judge
from harmony.gateway.policies import Evaluation
from harmony.gateway.rule_options import HTTP, RULES
from harmony.gateway.rules import Clock, Rulebook
from harmony.gateway.tables import convert
from harmony.http import Request, RequestBody, Response

NOON = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)  # a Wednesday


@dataclass
class SetClock:
    now_s: float = 0.0
    utc: datetime = NOON
    clock: Clock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = Clock(lambda: self.now_s, lambda: self.utc)


def rule(type: str, weight: int = 100, name: str = "", **options: Any) -> Rule:
    read = convert(options, RULES[type].options)
    return Rule(name or type, type, weight, read, Origin(None, ""))  # type: ignore[arg-type]


def policies(
    *rules: Rule, prefix: str = "", evaluation: Evaluation = "per_type", clock: Clock | None = None
) -> HttpPolicies:
    named = [
        Rule(f"{number}", each.type, each.weight, each.options, each.origin)
        for number, each in enumerate(rules)
    ]
    compiled = Rulebook(clock=clock).compiled(named, HTTP, http_judge)
    return HttpPolicies(compiled, prefix=prefix, evaluation=evaluation)


def request(
    method: str = "GET", target: str = "/", *, client: str = "192.0.2.1", body: bytes = b"", **headers: str
) -> Request:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(method, target, headers=fields, client=(client, 40000), body=RequestBody.of(body))


async def proceed(request: Request) -> Response:
    return Response(200, {}, b"passed")


async def answer(guard: HttpPolicies, asked: Request) -> Response:
    return await guard.handle(asked, proceed)


ALLOW_ALL = rule("allow_all")


# Types of rules


@pytest.mark.parametrize(
    ("one", "asked", "status"),
    [
        (rule("ip_allow", ip_addresses=["192.0.2.1"]), request(), 200),
        (rule("ip_allow", ip_addresses=["192.0.2.0/24"]), request(), 200),
        (rule("ip_allow", ip_addresses=["192.0.2.77/24"]), request(), 200),
        (rule("ip_allow", ip_addresses=["192.0.3.0/24"]), request(), 403),
        (rule("ip_allow", ip_addresses=["192.0.2.0/24"]), request(client="::ffff:192.0.2.9"), 200),
        (rule("ip_allow", ip_addresses=["::ffff:192.0.2.0/120"]), request(), 200),
        (rule("ip_allow", ip_addresses=["fe80::/10"]), request(client="fe80::1%eth0"), 200),
        (rule("ip_allow", ip_addresses=["0.0.0.0/0"]), request(client="2001:db8::1"), 403),
        (rule("ip_allow", ip_addresses=["0.0.0.0/0", "::/0"]), request(client=""), 403),
        (rule("ip_allow"), request(), 403),
        (rule("path", paths=["/a/{id}"]), request(target="/a/b"), 200),
        (rule("path", paths=["/a/{id}"]), request(target="/a/b/"), 200),
        (rule("path", paths=["/a/{id}"]), request(target="/a"), 404),
        (rule("path", paths=["/a/{*rest}"]), request(target="/a"), 200),
        (rule("path", paths=["/a/*"]), request(target="/a/b/c"), 200),
        (rule("path", paths=["/a/*"]), request(target="/a/b%2Fc"), 404),
        (rule("path", paths=["/*"]), request(target="/a//b"), 404),
        (rule("method", methods=["get", "POST"]), request("GET"), 200),
        (rule("method", methods=["get", "POST"]), request("HEAD"), 405),
        (rule("method", methods=["GET"]), request("OPTIONS"), 200),
        (rule("header", headers=[{"name": "x-site", "value": "A"}]), request(X_Site="a"), 200),
        (rule("header", headers=[{"name": "x-site", "value": "a"}]), request(X_Site="ab"), 403),
        (rule("header", headers=[{"name": "x-site", "value": "a"}]), request(), 403),
        (
            rule("header", headers=[{"name": "x", "match_type": "contains", "value": "b"}]),
            request(x="aBc"),
            200,
        ),
        (
            rule("header", headers=[{"name": "x", "match_type": "regex", "value": "^b+$"}]),
            request(x="BB"),
            200,
        ),
        (rule("header", headers=[{"name": "x", "match_type": "exists"}]), request(x=""), 200),
        (
            rule("header", headers=[{"name": "x", "value": "1"}, {"name": "y", "value": "1"}]),
            request(x="1"),
            403,
        ),
        (rule("content_type", content_types=["application/json"]), request(), 200),
        (
            rule("content_type", content_types=["application/json"]),
            request("POST", body=b"1", Content_Type="Application/JSON; charset=utf-8"),
            200,
        ),
        (
            rule("content_type", content_types=["image/*"]),
            request("POST", body=b"1", Content_Type="image/png"),
            200,
        ),
        (
            rule("content_type", content_types=["image/*"]),
            request("POST", body=b"1", Content_Type="text/plain"),
            415,
        ),
        (rule("content_type", content_types=["*/*"]), request("POST", body=b"1"), 415),
        (
            rule("content_type", content_types=["text/a"]),
            request("POST", body=b"1", Content_Type="text/a, text/b"),
            415,
        ),
        (rule("query_parameter", parameters=[{"name": "q", "value": "1"}]), request(target="/?q=1"), 200),
        (rule("query_parameter", parameters=[{"name": "q", "value": "a"}]), request(target="/?q=A"), 403),
        (rule("query_parameter", parameters=[{"name": "q", "value": "1"}]), request(target="/?q=1&q=2"), 403),
        (
            rule("query_parameter", parameters=[{"name": "q", "match_type": "exists"}]),
            request(target="/?q"),
            200,
        ),
        (
            rule("user_agent", patterns=[{"pattern": "/^dicom-VIEWER/i"}]),
            request(User_Agent="Dicom-viewer/2"),
            200,
        ),
        (rule("user_agent", patterns=[{"pattern": "/^viewer/"}]), request(User_Agent="Viewer"), 403),
        (rule("user_agent", patterns=[{"pattern": "viewer"}]), request(), 403),
        (rule("allow_all"), request(), 200),
        (rule("deny_all"), request(), 403),
        (rule("rate_limit"), request(), 403),  # never allows
    ],
)
async def test_one_rule_alone(one: Rule, asked: Request, status: int) -> None:
    assert (await answer(policies(one), asked)).status == status


@pytest.mark.parametrize(
    ("one", "asked", "status"),
    [
        (rule("ip_deny", ip_addresses=["192.0.2.1"]), request(), 403),
        (rule("ip_deny", ip_addresses=["192.0.2.1"]), request(client="192.0.2.2"), 200),
        (rule("ip_deny", ip_addresses=["192.0.2.1"]), request(client=""), 403),  # it might be that one
        (rule("path", mode="deny", paths=["/a/*"]), request(target="/a/b"), 404),
        (rule("path", mode="deny", paths=["/a/*"]), request(target="/b"), 200),
        (rule("path", mode="deny", paths=["/a/*"]), request(target="/%2561/b"), 404),
        (rule("method", mode="deny", methods=["DELETE"]), request("DELETE"), 405),
        (rule("method", mode="deny", methods=["OPTIONS"]), request("OPTIONS"), 405),
        (rule("header", mode="deny", headers=[{"name": "x", "match_type": "exists"}]), request(x="1"), 403),
        (
            rule("content_type", mode="deny", content_types=["text/*"]),
            request("POST", body=b"1", Content_Type="a/b, text/x"),
            415,
        ),
        (
            rule("query_parameter", mode="deny", parameters=[{"name": "q", "value": "1"}]),
            request(target="/?q=2&q=1"),
            403,
        ),
        (rule("user_agent", mode="deny", patterns=[{"pattern": "/bot/i"}]), request(User_Agent="A Bot"), 403),
        (rule("user_agent", mode="deny", patterns=[{"pattern": "/bot/i"}]), request(), 200),
    ],
)
async def test_one_rule_among_all_that_is_allowed(one: Rule, asked: Request, status: int) -> None:
    assert (await answer(policies(ALLOW_ALL, one), asked)).status == status


async def test_paths_are_those_below_the_prefix() -> None:
    guard = policies(rule("path", paths=["/a"]), prefix="/x/y")
    assert (await answer(guard, request(target="/x/y/a"))).status == 200
    assert (await answer(guard, request(target="/x/y/x"))).status == 404


async def test_a_refused_method_is_told_which_ones_are_not() -> None:
    guard = policies(
        ALLOW_ALL,
        rule("method", methods=["GET", "POST", "DELETE"]),
        rule("method", mode="deny", methods=["DELETE"]),
    )
    refused = await answer(guard, request("DELETE"))
    assert (refused.status, refused.headers.get("Allow")) == (405, "GET, OPTIONS, POST")
    assert refused.body == b'{"error":"Method not allowed"}'


async def test_a_hostile_text_costs_no_more_than_its_length() -> None:
    guard = policies(ALLOW_ALL, rule("user_agent", patterns=[{"pattern": "^(a+)+$"}]))
    assert (
        await answer(guard, request(User_Agent="a" * 60000 + "b"))
    ).status == 200  # allow_all; it was asked


# Time


@pytest.mark.parametrize(
    ("options", "utc", "inside"),
    [
        ({}, NOON, True),
        ({"start_time": "08:00", "end_time": "12:00"}, NOON, False),
        ({"start_time": "12:00", "end_time": "12:01"}, NOON, True),
        ({"start_time": "12:00", "timezone": "Europe/Berlin"}, NOON.replace(hour=11), True),
        ({"start_time": "12:00", "timezone": "Europe/Berlin"}, NOON.replace(hour=10), False),
        ({"start_time": "12:00", "timezone": "Europe/Berlin"}, datetime(2026, 7, 1, 10, tzinfo=UTC), True),
        ({"end_time": "24:00", "start_time": "23:00"}, NOON.replace(hour=23, minute=59), True),
        ({"days_of_week": ["wed"]}, NOON, True),
        ({"days_of_week": ["Monday", "FRI"]}, NOON, False),
        ({"start_date": "2026-03-04", "end_date": "2026-03-04"}, NOON, True),
        ({"start_date": "2026-03-05"}, NOON, False),
        ({"end_date": "2026-03-03"}, NOON, False),
        # Over midnight: the day is the one on which the window began.
        ({"start_time": "22:00", "end_time": "06:00"}, NOON.replace(hour=23), True),
        ({"start_time": "22:00", "end_time": "06:00"}, NOON.replace(hour=6), False),
        ({"start_time": "22:00", "end_time": "06:00", "days_of_week": ["tue"]}, NOON.replace(hour=5), True),
        ({"start_time": "22:00", "end_time": "06:00", "days_of_week": ["wed"]}, NOON.replace(hour=5), False),
        ({"start_time": "22:00", "end_time": "06:00", "end_date": "2026-03-03"}, NOON.replace(hour=5), True),
    ],
)
@pytest.mark.parametrize("allow", [True, False])
async def test_windows_of_time(options: dict[str, Any], utc: datetime, inside: bool, allow: bool) -> None:
    guard = policies(rule("time_based", allow_during_window=allow, **options), clock=SetClock(utc=utc).clock)
    assert (await answer(guard, request())).status == (200 if inside == allow else 403)


async def test_a_rate_is_for_each_client_and_says_when_to_come_again() -> None:
    time = SetClock()
    limit = rule("rate_limit", max_requests=2, window_seconds=10)
    guard = policies(ALLOW_ALL, limit, clock=time.clock)
    assert [(await answer(guard, request())).status for _ in range(2)] == [200, 200]
    time.now_s = 2.5
    refused = await answer(guard, request())
    assert (refused.status, refused.headers.get("Retry-After")) == (429, "8")
    assert (await answer(guard, request(client="192.0.2.2"))).status == 200
    time.now_s = 10.0
    assert (await answer(guard, request())).status == 200


async def test_what_is_refused_counts_as_well() -> None:
    guard = policies(rule("path", paths=["/a"]), rule("rate_limit", max_requests=1), clock=SetClock().clock)
    assert (await answer(guard, request(target="/b"))).status == 404
    assert (await answer(guard, request(target="/a"))).status == 429


# Several rules

DICOMWEB = (
    rule("ip_allow", ip_addresses=["127.0.0.1", "::1"]),
    rule("path", paths=["/studies/{*path}"]),
    rule("method", methods=["GET", "POST"]),
    rule("rate_limit", max_requests=20, window_seconds=60),
)


@pytest.mark.parametrize(
    ("method", "target", "client", "status"),
    [
        ("GET", "/studies", "127.0.0.1", 200),
        ("GET", "/studies/1.2/series", "127.0.0.1", 200),
        ("OPTIONS", "/studies", "127.0.0.1", 200),
        ("DELETE", "/studies/1.2", "127.0.0.1", 405),
        ("GET", "/instances", "127.0.0.1", 404),
        ("OPTIONS", "/instances", "127.0.0.1", 404),
        ("GET", "/studies", "192.0.2.1", 403),
        ("DELETE", "/elsewhere", "192.0.2.1", 403),
    ],
)
async def test_layers_of_a_dicomweb_service(method: str, target: str, client: str, status: int) -> None:
    guard = policies(*DICOMWEB)
    assert (await answer(guard, request(method, target, client=client))).status == status


async def test_the_original_way_opens_everything_to_an_allowed_address() -> None:
    guard = policies(*DICOMWEB, rule("path", mode="deny", paths=["/secret"]), evaluation="any")
    assert (await answer(guard, request("DELETE", "/elsewhere", client="127.0.0.1"))).status == 200
    assert (await answer(guard, request("GET", "/secret", client="127.0.0.1"))).status == 404
    assert (await answer(guard, request("DELETE", "/elsewhere"))).status == 403


async def test_the_weight_decides_which_refusal_is_told() -> None:
    address = rule("ip_deny", ip_addresses=["192.0.2.1"])
    assert (await answer(policies(rule("method", methods=["GET"]), address), request("PUT"))).status == 403
    method = rule("method", mode="deny", methods=["PUT"], weight=101)
    assert (await answer(policies(ALLOW_ALL, address, method), request("PUT"))).status == 405


# Against a plain reading of the rules, for arbitrary ones

VALUES: dict[str, tuple[str, ...]] = {
    "ip": ("192.0.2.1", "192.0.2.2"),
    "path": ("/a", "/b"),
    "method": ("GET", "PUT"),
    "content_type": ("a/a", "b/b"),
    "header": ("a", "b"),
    "query_parameter": ("a", "b"),
    "user_agent": ("a", "b"),
}
OPTIONS: dict[str, Callable[[str], dict[str, Any]]] = {
    "path": lambda value: {"paths": [value]},
    "method": lambda value: {"methods": [value]},
    "content_type": lambda value: {"content_types": [value]},
    "header": lambda value: {"headers": [{"name": "x", "value": value}]},
    "query_parameter": lambda value: {"parameters": [{"name": "q", "value": value}]},
    "user_agent": lambda value: {"patterns": [{"pattern": value}]},
}
MODES = st.sampled_from(["allow", "deny"])
SPECS = st.lists(
    st.one_of(
        *(st.tuples(st.just(aspect), MODES, st.sampled_from(values)) for aspect, values in VALUES.items()),
        st.tuples(st.just("all"), MODES, st.just("")),
    ),
    max_size=8,
)
"""(what the rule is about, its mode, what it matches)"""
FACTS = st.fixed_dictionaries({aspect: st.sampled_from(values) for aspect, values in VALUES.items()})


def rule_of(spec: tuple[str, str, str]) -> Rule:
    aspect, mode, value = spec
    if aspect == "all":
        return rule(f"{mode}_all")
    if aspect == "ip":
        return rule(f"ip_{mode}", ip_addresses=[value])
    return rule(aspect, mode=mode, **OPTIONS[aspect](value))


def allowed(specs: list[tuple[str, str, str]], facts: dict[str, str], evaluation: str) -> bool:
    """The rules, as the documentation tells them."""

    def matches(spec: tuple[str, str, str]) -> bool:
        return spec[0] == "all" or facts[spec[0]] == spec[2]

    if any(mode == "deny" and matches((aspect, mode, value)) for aspect, mode, value in specs):
        return False
    allowing = [spec for spec in specs if spec[1] == "allow"]
    if evaluation == "any":
        return any(matches(spec) for spec in allowing)
    if any(aspect == "all" for aspect, _, _ in allowing):
        return True
    types = {spec[0] for spec in allowing}
    return bool(types) and all(any(matches(spec) for spec in allowing if spec[0] == type) for type in types)


@given(specs=SPECS, facts=FACTS, evaluation=st.sampled_from(get_args(Evaluation)), seed=st.randoms())
def test_any_set_of_rules_says_what_the_documentation_says(
    specs: list[tuple[str, str, str]], facts: dict[str, str], evaluation: Evaluation, seed: Any
) -> None:
    asked = request(
        facts["method"],
        f"{facts['path']}?q={facts['query_parameter']}",
        client=facts["ip"],
        body=b"1",
        x=facts["header"],
        Content_Type=facts["content_type"],
        User_Agent=facts["user_agent"],
    )
    rules = [rule_of(spec) for spec in specs]
    seed.shuffle(rules)  # the order never matters
    passes = policies(*rules, evaluation=evaluation).refusal(asked) is None
    assert passes is allowed(specs, facts, evaluation)


@given(specs=SPECS, facts=FACTS)
def test_an_allowed_address_opens_nothing_that_another_type_does_not_allow(
    specs: list[tuple[str, str, str]], facts: dict[str, str]
) -> None:
    rules = [rule_of(spec) for spec in specs if spec[:2] != ("all", "allow")]
    guard = policies(rule("ip_allow", ip_addresses=[facts["ip"]]), rule("path", paths=["/c"]), *rules)
    refusal = guard.refusal(request(facts["method"], facts["path"], client=facts["ip"]))
    assert (refusal is None) is False or ("path", "allow", facts["path"]) in specs


# In a configuration

CONFIG = """
[proxy]
id = "x"
[network.n.http]
[pipelines.p]
networks = ["n"]
endpoints = ["e"]
middleware = ["guard"]
[endpoints.e]
service = "echo"
options.path_prefix = "/x"
"""


@pytest.mark.parametrize(
    "tables",
    [
        """
        [middleware.guard]
        type = "policies"
        options.policies = ["site"]
        [policies.site]
        rules = ["local", "off", "reading"]
        [rules.local]
        type = "ip_allow"
        options.ip_addresses = ["192.0.2.0/24"]
        [rules.reading]
        type = "method"
        options = { methods = ["GET"] }
        [rules.off]
        type = "deny_all"
        enabled = false
        """,
        """
        [middleware.guard]
        type = "policies"
        [[middleware.guard.options.policies]]
        id = "site"
        [[middleware.guard.options.policies.rules]]
        id = "local"
        type = "ip_allow"
        options.ip_addresses = ["192.0.2.0/24"]
        [[middleware.guard.options.policies.rules]]
        type = "method"
        options = { mode = "allow", methods = ["GET"] }
        [[middleware.guard.options.policies]]
        enabled = false
        rules = [{ type = "deny_all" }]
        """,
        """
        [middleware.guard]
        type = "policies"
        policies = ["by-id"]
        [policies.site]
        id = "by-id"
        rules = ["first", "other"]
        [rules.local]
        id = "first"
        type = "ip_allow"
        options.ip_addresses = ["192.0.2.0/24"]
        [rules.other]
        type = "method"
        options.methods = ["GET"]
        """,
    ],
)
async def test_policies_by_name_and_written_where_they_are_used(
    load_config: Callable[[str], LoadedConfig], tables: str
) -> None:
    config = load_config(CONFIG + tables)
    assert config.warnings == ()
    pipeline = config.pipelines["p"]
    (guard,) = http_middleware(pipeline, pipeline.endpoints[0], authentications=Authentications())
    asked = [request("GET", "/x"), request("PUT", "/x"), request("GET", "/x", client="192.0.3.1")]
    assert [(await guard.handle(each, proceed)).status for each in asked] == [200, 405, 403]


async def test_who_shares_a_rule_shares_its_counts(load_config: Callable[[str], LoadedConfig]) -> None:
    config = load_config(
        CONFIG
        + """
        [middleware.guard.options]
        policies = ["site"]
        [middleware.guard]
        type = "policies"
        [policies.site]
        rules = ["all", "rate"]
        [rules.all]
        type = "allow_all"
        [rules.rate]
        type = "rate_limit"
        options.max_requests = 1
        """
    )
    pipeline, rulebook = config.pipelines["p"], Rulebook()
    guards = [
        http_middleware(
            pipeline, pipeline.endpoints[0], authentications=Authentications(), rulebook=rulebook
        )[0]
        for _ in range(2)
    ]
    assert [(await guard.handle(request(), proceed)).status for guard in guards] == [200, 429]


@pytest.mark.parametrize(
    ("type", "options", "message"),
    [
        (
            "ip_allow",
            'ip_addresses = ["10.0.0.0/33"]',
            'options] ip_addresses: is ["10.0.0.0/33"], must be a list, each an IP',
        ),
        ("path", 'paths = ["/a*"]', 'options] paths: holds a pattern "/a*": expected text'),
        ("path", "paths = []", "options] paths: is [], must be a list that is not empty"),
        ("path", "", "options] paths: is missing"),
        (
            "path",
            'paths = ["/a"]\nmode = "block"',
            'options] mode: is "block", must be one of "allow", "deny"',
        ),
        (
            "method",
            'methods = ["GE T"]',
            'methods: is ["GE T"], must be a list that is not empty, each an HTTP',
        ),
        ("content_type", 'content_types = ["json"]', 'options] content_types: is ["json"], must be'),
        (
            "header",
            'headers = [{ name = "x" }]',
            'headers: has an entry without value, which match_type "exact"',
        ),
        (
            "header",
            'headers = [{ name = "x", match_type = "like", value = "1" }]',
            'options.headers.1] match_type: is "like", must be one of',
        ),
        (
            "header",
            'headers = [{ name = "x", match_type = "regex", value = "(" }]',
            "a regular expression: missing )",
        ),
        (
            "user_agent",
            'patterns = [{ pattern = "/a/x" }]',
            "must be a regular expression: flags 'x', only i is known",
        ),
        ("user_agent", 'patterns = ["curl"]', 'options.patterns] 1: is "curl", must be a table'),
        (
            "rate_limit",
            "max_requests = 0",
            "options] max_requests: is 0, must be an integer from 1 to 1000000",
        ),
        (
            "time_based",
            'timezone = "Mars/Olympus"',
            'timezone: is "Mars/Olympus", must be the name of',
        ),
        ("time_based", 'start_time = "8:00"', 'options] start_time: is "8:00", must be a time of day'),
        ("time_based", 'end_time = "25:00"', 'options] end_time: is "25:00", must be a time of day'),
        (
            "time_based",
            'days_of_week = ["mo"]',
            'options] days_of_week: is ["mo"], must be a list, each a day',
        ),
        (
            "time_based",
            'start_time = "08:00"\nend_time = "08:00"',
            "options] end_time: is the same as start_time",
        ),
        (
            "time_based",
            "start_date = 2026-01-02\nend_date = 2026-01-01",
            "end_date: is 2026-01-01, must not be",
        ),
        (
            "time_based",
            'start_date = "soon"',
            'options] start_date: is "soon", must be a date such as 2026-01-31',
        ),
        ("geo", 'country_codes = ["AU"]', 'rules.r] type: is "geo", which needs to know in which country'),
        ("colour", "", 'rules.r] type: is "colour", must be one of'),
        (
            "calling_ae",
            'ae_titles = ["X"]',
            'lists "guard", whose rule "r" (calling_ae) is about DIMSE',
        ),
    ],
)
def test_what_is_wrong_with_a_rule_is_told_at_the_start(
    load_config: Callable[[str], LoadedConfig], type: str, options: str, message: str
) -> None:
    tables = f"""
[middleware.guard]
type = "policies"
options.policies = ["site"]
[policies.site]
rules = ["r", "all"]
[rules.all]
type = "allow_all"
[rules.r]
type = "{type}"
[rules.r.options]
{options}
"""
    with pytest.raises(ConfigError) as refused:
        load_config(CONFIG + tables)
    assert message in str(refused.value)


def test_rules_that_let_nobody_in_are_noticed(load_config: Callable[[str], LoadedConfig]) -> None:
    tables = '[middleware.guard]\ntype = "policies"\n[[middleware.guard.options.policies]]\nrules = [{{ type = "{}" }}]'
    (warning,) = load_config(CONFIG + tables.format("rate_limit")).warnings
    assert "policies: have no rule that allows anything" in str(warning)
    assert load_config(CONFIG + tables.format("deny_all")).warnings == ()


def test_every_type_that_a_file_may_name_is_known() -> None:
    (types,) = [each for name, each in sections.RuleTable.__annotations__.items() if name == "type"]
    assert sorted(eval(types, vars(sections)).__args__) == sorted(RULES)
