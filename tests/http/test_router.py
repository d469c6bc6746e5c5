"""harmony.http.router: the most specific path decides, conflicts are found at registration."""

import itertools

import msgspec
import pytest

from harmony.http import Handler, Request, Response, RouteConflict, Router, json_response, normalize_prefix


def named(name: str) -> Handler:
    async def handler(request: Request) -> Response:
        return json_response([name, request.path_parameters])

    return handler


async def ask(router: Router, method: str, target: str) -> list[object]:
    response = await router(Request(method, target))
    assert response.status == 200
    assert isinstance(response.body, bytes)
    answer = msgspec.json.decode(response.body)
    assert isinstance(answer, list)
    return answer


PATTERNS = [
    "/jmix/api/jmix",
    "/jmix/api/jmix/{id}",
    "/jmix/api/jmix/{id}/manifest",
    "/jmix/api/jmix/prime/{study_uid}",
    "/jmix/{rest*}",
    "/{rest*}",
]


async def test_the_most_specific_pattern_wins_in_any_order() -> None:
    expected = {
        "/jmix/api/jmix": ["/jmix/api/jmix", {}],
        "/jmix/api/jmix/": ["/jmix/api/jmix", {}],
        "/jmix/api/jmix/7": ["/jmix/api/jmix/{id}", {"id": "7"}],
        "/jmix/api/jmix/7/manifest/": ["/jmix/api/jmix/{id}/manifest", {"id": "7"}],
        "/jmix/api/jmix/prime": ["/jmix/api/jmix/{id}", {"id": "prime"}],
        "/jmix/api/jmix/prime/1.2": ["/jmix/api/jmix/prime/{study_uid}", {"study_uid": "1.2"}],
        "/jmix/api/jmix/prime/manifest": ["/jmix/api/jmix/prime/{study_uid}", {"study_uid": "manifest"}],
        "/jmix/api/jmix/7/other": ["/jmix/{rest*}", {"rest": "api/jmix/7/other"}],
        "/jmix": ["/jmix/{rest*}", {"rest": ""}],
        "/jmixer/a": ["/{rest*}", {"rest": "jmixer/a"}],
        "/": ["/{rest*}", {"rest": ""}],
    }
    for patterns in itertools.permutations(PATTERNS):
        router = Router()
        for pattern in patterns:
            router.add("GET", pattern, named(pattern))
        assert {target: await ask(router, "GET", target) for target in expected} == expected


async def test_encoded_slash_is_data_not_a_separator() -> None:
    router = Router()
    router.add("GET", "/files/{name}", named("one"))
    router.add("GET", "/files/{name}/{part}", named("two"))
    assert await ask(router, "GET", "/files/a%2Fb") == ["one", {"name": "a/b"}]


async def test_parameters_are_never_empty() -> None:
    router = Router()
    router.add("GET", "/a/{id}/b", named("x"))
    assert (await router(Request("GET", "/a//b"))).status == 404


async def test_unknown_path_is_404_and_wrong_method_405_with_allow() -> None:
    router = Router()
    router.add(["GET", "POST"], "/a", named("a"))
    router.add("DELETE", "/{rest*}", named("rest"))
    answer = await router(Request("DELETE", "/a"))  # the wider pattern does not take over
    assert answer.status == 405
    assert answer.headers.get("Allow") == "GET, HEAD, OPTIONS, POST"
    assert isinstance(answer.body, bytes)
    assert b'"error"' in answer.body
    empty = await Router()(Request("GET", "/"))
    assert (empty.status, empty.body) == (404, b'{"error":"Not found"}')


async def test_head_falls_back_to_get() -> None:
    router = Router()
    router.add("GET", "/a", named("get"))
    assert await ask(router, "HEAD", "/a") == ["get", {}]
    router.add("HEAD", "/a", named("head"))
    assert await ask(router, "HEAD", "/a") == ["head", {}]


async def test_options_are_answered_unless_registered() -> None:
    router = Router()
    router.add("GET", "/studies", named("get"))
    answer = await router(Request("OPTIONS", "/studies"))
    assert (answer.status, answer.headers.get("allow"), answer.body) == (200, "GET, HEAD, OPTIONS", None)
    router.add("OPTIONS", "/studies", named("cors"))
    assert await ask(router, "OPTIONS", "/studies") == ["cors", {}]


def test_same_method_and_shape_is_a_conflict_and_registers_nothing() -> None:
    router = Router()
    first = router.add("GET", "/a/{id}", named("x"), name="first")
    with pytest.raises(
        RouteConflict, match=r"GET /a/\{key\} of second is already taken by /a/\{id\} of first"
    ) as conflict:
        router.add(["POST", "GET"], "a/{key}/", named("y"), name="second")
    assert conflict.value.existing is first
    assert router.routes() == [first]
    router.add("POST", "/a/{key}", named("y"))


async def test_same_shape_with_other_method_keeps_its_own_parameter_names() -> None:
    router = Router()
    router.add("GET", "/a/{id}", named("x"))
    router.add("PUT", "/a/{key}", named("y"))
    assert await ask(router, "GET", "/a/1") == ["x", {"id": "1"}]
    assert await ask(router, "PUT", "/a/1") == ["y", {"key": "1"}]


@pytest.mark.parametrize("pattern", ["/a//b", "/a{b}", "/{a*}/b", "/{a}/{a}", "/{}", "/{a b}", "/}"])
def test_patterns_that_are_not_one(pattern: str) -> None:
    with pytest.raises(ValueError):
        Router().add("GET", pattern, named("x"))


@pytest.mark.parametrize(
    ("given", "normal"),
    [("", "/"), ("/", "/"), ("dicom", "/dicom"), ("/dicom/", "/dicom"), ("//a/b//", "/a/b")],
)
def test_prefixes_are_normalized(given: str, normal: str) -> None:
    assert normalize_prefix(given) == normal


def test_routes_are_listed_by_pattern() -> None:
    router = Router()
    router.add("get", "b", named("b"), name="bee", description="the second")
    router.add("GET", "/a", named("a"))
    assert [(route.pattern, route.methods, route.name) for route in router.routes()] == [
        ("/a", ("GET",), ""),
        ("/b", ("GET",), "bee"),
    ]
