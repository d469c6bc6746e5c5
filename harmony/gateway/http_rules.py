"""What rules say to HTTP requests. A value that comes several times has to be right each time to be allowed, and to be
wrong once to be denied: nobody knows which of them counts behind us.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from harmony.gateway.path_pattern import PathPattern, is_plain
from harmony.gateway.regular_expression import RegularExpression
from harmony.gateway.rule_options import (
    ContentTypeOptions,
    HeaderCondition,
    HeaderOptions,
    MethodOptions,
    Mode,
    ParameterCondition,
    PathOptions,
    QueryParameterOptions,
    RuleOptions,
    UserAgentOptions,
)
from harmony.gateway.rules import DENY, EXEMPT, Judge, Judgement, Subject, matching
from harmony.http import Request

__all__ = ["HttpSubject", "http_judge"]

Test = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class HttpSubject(Subject):
    request: Request
    path: tuple[str, ...]
    """Below the prefix of the endpoint, decoded."""


def http_judge(options: RuleOptions) -> Judge:
    match options:
        case PathOptions():
            return _about_requests(_path(options))
        case MethodOptions():
            return _about_requests(_method(options))
        case ContentTypeOptions():
            return _about_requests(_content_type(options))
        case HeaderOptions():
            return _about_requests(_headers(options))
        case QueryParameterOptions():
            return _about_requests(_parameters(options))
        case UserAgentOptions():
            return _about_requests(_user_agent(options))
    raise AssertionError(f"{type(options).__name__} is not about HTTP")


_Judge = Callable[[HttpSubject], Judgement]


def _about_requests(judge: _Judge) -> Judge:
    def of(subject: Subject) -> Judgement:
        assert isinstance(subject, HttpSubject)
        return judge(subject)

    return of


def _path(options: PathOptions) -> _Judge:
    patterns = [PathPattern.parse(path) for path in options.paths]

    def judge(subject: HttpSubject) -> Judgement:
        if not is_plain(subject.path):
            return DENY  # it may be another path for whoever is behind us
        return matching(options.mode, any(pattern.matches(subject.path) for pattern in patterns))

    return judge


def _method(options: MethodOptions) -> _Judge:
    methods = frozenset(method.upper() for method in options.methods)

    def judge(subject: HttpSubject) -> Judgement:
        method = subject.request.method
        if method == "OPTIONS" and options.mode == "allow":
            return EXEMPT  # asks what may be done, as browsers do before each foreign request
        return matching(options.mode, method.upper() in methods)

    return judge


def _content_type(options: ContentTypeOptions) -> _Judge:
    ranges = [each.lower().split("/") for each in options.content_types]

    def accepted(media_type: str) -> bool:
        type, _, subtype = media_type.partition("/")
        return any(wanted in ("*", type) and its_subtype in ("*", subtype) for wanted, its_subtype in ranges)

    def judge(subject: HttpSubject) -> Judgement:
        if subject.request.body.content_length == 0:
            return EXEMPT
        lines = subject.request.headers.get_all("content-type")
        types = [each.partition(";")[0].strip().lower() for line in lines for each in line.split(",")]
        return matching(options.mode, _right(types, accepted, options.mode))

    return judge


def _headers(options: HeaderOptions) -> _Judge:
    tests = [(each.name, _test(each, case_sensitive=False)) for each in options.headers]

    def judge(subject: HttpSubject) -> Judgement:
        headers = subject.request.headers
        found = (_right(headers.get_all(name), test, options.mode) for name, test in tests)
        return matching(options.mode, all(found))

    return judge


def _parameters(options: QueryParameterOptions) -> _Judge:
    tests = [(each.name, _test(each, case_sensitive=True)) for each in options.parameters]

    def judge(subject: HttpSubject) -> Judgement:
        query = subject.request.query
        found = (_right(query.all(name), test, options.mode) for name, test in tests)
        return matching(options.mode, all(found))

    return judge


def _user_agent(options: UserAgentOptions) -> _Judge:
    patterns = [RegularExpression.of_literal(each.pattern) for each in options.patterns]

    def judge(subject: HttpSubject) -> Judgement:
        agents = subject.request.headers.get_all("user-agent")
        known = _right(agents, lambda agent: any(each.is_in(agent) for each in patterns), options.mode)
        return matching(options.mode, known)

    return judge


def _right(values: Sequence[str], test: Test, mode: Mode) -> bool:
    quantifier: Callable[[Iterable[object]], bool] = all if mode == "allow" else any
    return bool(values) and quantifier(test(value) for value in values)


def _test(condition: HeaderCondition | ParameterCondition, *, case_sensitive: bool) -> Test:
    def folded(text: str) -> str:
        return text if case_sensitive else text.casefold()

    wanted = condition.value or ""
    match condition.match_type:
        case "exists":
            return lambda value: True
        case "exact":
            return lambda value: folded(value) == folded(wanted)
        case "contains":
            return lambda value: folded(wanted) in folded(value)
    return RegularExpression(wanted, case_sensitive=case_sensitive).is_in
