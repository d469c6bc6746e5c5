"""The policies middleware in front of DICOM endpoints, over real associations."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from harmony.dimse import CStoreRQ, associate
from harmony.dimse.status import DimseError
from harmony.gateway.app import Gateway
from harmony.gateway.config import ConfigError
from harmony.http.client import HTTPClient
from harmony.ul.errors import AssociationError, AssociationRejected
from harmony.ul.negotiation import propose_contexts

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
VERIFICATION = "1.2.840.10008.1.1"
FIND, GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"
IMPLICIT = "1.2.840.10008.1.2"
EVERYTHING = (CT, MR, VERIFICATION, FIND, GET)


@pytest.fixture
async def guarded(tmp_path, free_port, load_config):
    """await guarded(rules): opens a gateway whose DICOM endpoint has these rules; the association to it."""
    gateways = []

    async def start(rules, *, options="", listener=""):
        config = load_config(
            f"""
            [proxy]
            id = "guarded"
            [storage.options]
            path = "{tmp_path}"
            [network.n.dicom]
            bind_address = "127.0.0.1"
            bind_port = {free_port}
            {listener}
            [pipelines.p]
            networks = ["n"]
            endpoints = ["scp"]
            middleware = ["guard"]
            [endpoints.scp]
            service = "dicom_scp"
            options = {{ local_aet = "GATEWAY", min_free_bytes = 0 }}
            [middleware.guard]
            type = "policies"
            {options}
            """
            + "".join(
                f"""
                [[middleware.guard.options.policies]]
                rules = [{{ type = "{type}", options = {{ {options} }} }}]
                """
                for type, options in rules
            )
        )
        gateways.append(Gateway(config))
        await gateways[-1].start()

        def request(*classes, calling="SENDER", called="GATEWAY", port=free_port):
            contexts = propose_contexts([(each, [IMPLICIT]) for each in classes or EVERYTHING])
            return associate(
                "127.0.0.1", port, calling_ae_title=calling, called_ae_title=called, contexts=contexts
            )

        return request

    yield start
    for gateway in gateways:
        await gateway.stop(0.0)


async def outcome(associating):
    """The rejection, or the result of each context (PS3.8 Table 9-18)."""
    try:
        async with associating as scu:
            return {context.abstract_syntax: code for context, code in scu.association.agreed.results}
    except AssociationRejected as rejected:
        return rejected.result, rejected.source, rejected.reason


ALL = dict.fromkeys(EVERYTHING, 0)
LOCAL = ("ip_allow", 'ip_addresses = ["127.0.0.0/8"]')


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([LOCAL], ALL),
        ([("ip_allow", 'ip_addresses = ["192.0.2.0/24"]')], (1, 1, 1)),
        ([("allow_all", ""), ("ip_deny", 'ip_addresses = ["127.0.0.1"]')], (1, 1, 1)),
        ([("calling_ae", 'ae_titles = ["SENDER", "OTHER"]')], ALL),
        ([("calling_ae", 'ae_titles = ["OTHER"]')], (1, 1, 3)),
        ([("allow_all", ""), ("calling_ae", 'mode = "deny", ae_titles = ["SENDER"]')], (1, 1, 3)),
        ([LOCAL, ("called_ae", 'ae_titles = ["GATEWAY"]')], ALL),
        ([LOCAL, ("called_ae", 'ae_titles = ["OTHER"]')], (1, 1, 7)),
        ([("time_based", 'end_date = "2001-01-01"')], (1, 1, 1)),
        ([("deny_all", "")], (1, 1, 1)),
        # Contexts: 1 is user-rejection
        ([LOCAL, ("sop_class", f'sop_classes = ["{CT}", "{VERIFICATION}"]')], ALL | {MR: 1, FIND: 1, GET: 1}),
        ([LOCAL, ("sop_class", f'mode = "deny", sop_classes = ["{CT}"]')], ALL | {CT: 1}),
        ([("operation", 'operations = ["C-ECHO", "find"]')], ALL | {CT: 1, MR: 1, GET: 1}),
        ([LOCAL, ("operation", 'mode = "deny", operations = ["C-STORE"]')], ALL | {CT: 1, MR: 1}),
        (
            [("operation", 'operations = ["C-STORE"]'), ("sop_class", f'sop_classes = ["{CT}"]')],
            dict.fromkeys(EVERYTHING, 1) | {CT: 0},
        ),
    ],
)
async def test_who_may_associate_and_for_what(guarded, rules, expected):
    request = await guarded(rules)
    assert await outcome(request()) == expected


async def test_an_address_that_is_allowed_opens_everything_only_if_asked_to(guarded):
    request = await guarded(
        [LOCAL, ("calling_ae", 'ae_titles = ["OTHER"]')], options='options.evaluation = "any"'
    )
    assert await outcome(request()) == ALL


async def test_a_rate_limit_counts_associations(guarded):
    request = await guarded([LOCAL, ("rate_limit", "max_requests = 2")])
    for _ in range(2):
        async with request() as scu:
            for _ in range(5):
                await scu.echo()
    assert await outcome(request()) == (2, 3, 2)


async def test_a_class_that_is_not_its_contexts_is_looked_at_again(guarded, make_instance):
    request = await guarded([LOCAL, ("sop_class", f'sop_classes = ["{CT}", "{VERIFICATION}"]')])
    instance = make_instance("1.1")
    async with request(CT, VERIFICATION) as scu:
        assert (await scu.store(instance)).status == 0
        context = scu.association.agreed.contexts[1]
        invocation = await scu.invoke(lambda number: CStoreRQ(number, MR, "1.2"), context, instance.data)
        assert (await invocation.final()).status == 0x0124
        await scu.echo()


async def test_what_is_allowed_for_a_time_is_over_then(guarded, monkeypatch):
    """The association lives on, its operations are refused."""
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    request = await guarded([("time_based", f"end_date = {tomorrow.date()}")])
    async with request() as scu:
        await scu.echo()
        monkeypatch.setattr("harmony.gateway.rules.is_within", lambda options, now: False)
        with pytest.raises(DimseError) as refused:
            await scu.echo()
        assert refused.value.status == 0x0124
    assert await outcome(request()) == (1, 1, 1)


async def test_who_gets_sub_operations_of_c_get_needs_no_c_store(guarded, tmp_path):
    request = await guarded([("operation", 'operations = ["C-GET"]')])
    assert await outcome(request(CT, GET)) == {CT: 1, GET: 0}


PROXY_HEADER = bytes.fromhex("0D0A0D0A 000D0A51 5549540A 21 11 000C C0000201 C6336402 A17C 0068")


async def relay(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()


@pytest.fixture
async def load_balancer(free_port):
    """await load_balancer(): the port of one in front of the gateway that names 192.0.2.1 as the client (R39)."""
    servers = []

    async def passed_on(reader, writer):
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", free_port)
        there_writer.write(PROXY_HEADER)
        await asyncio.gather(relay(reader, there_writer), relay(there_reader, writer))

    async def start():
        servers.append(await asyncio.start_server(passed_on, "127.0.0.1", 0))
        return servers[0].sockets[0].getsockname()[1]

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(("address", "expected"), [("192.0.2.1", ALL), ("127.0.0.1", (1, 1, 1))])
async def test_the_client_behind_a_load_balancer(guarded, load_balancer, address, expected):
    request = await guarded(
        [("ip_allow", f'ip_addresses = ["{address}"]')],
        listener='proxy_protocol = true\ntrusted_proxies = ["127.0.0.1"]',
    )
    port = await load_balancer()
    assert await outcome(request(port=port)) == expected
    with pytest.raises((AssociationError, OSError)):
        async with request():  # around it
            pass


async def test_each_kind_of_endpoint_is_asked_by_its_own_rules(tmp_path, free_ports, load_config):
    dicom_port, http_port = free_ports(2)
    gateway = Gateway(
        load_config(
            f"""
            [proxy]
            id = "both"
            [storage.options]
            path = "{tmp_path}"
            [network.n.dicom]
            bind_address = "127.0.0.1"
            bind_port = {dicom_port}
            [network.n.http]
            bind_address = "127.0.0.1"
            bind_port = {http_port}
            [pipelines.p]
            networks = ["n"]
            endpoints = ["scp", "web"]
            middleware = ["guard"]
            [endpoints.scp]
            service = "dicom_scp"
            options = {{ local_aet = "GATEWAY", min_free_bytes = 0 }}
            [endpoints.web]
            service = "dicomweb"
            options.path_prefix = "/web"
            [middleware.guard]
            type = "policies"
            options.policies = ["both"]
            [policies.both]
            rules = ["titles", "paths"]
            [rules.titles]
            type = "calling_ae"
            options.ae_titles = ["SENDER"]
            [rules.paths]
            type = "path"
            options.paths = ["/studies"]
            """
        )
    )
    await gateway.start()
    client = HTTPClient(f"http://127.0.0.1:{http_port}/web", timeout_s=10.0)
    try:
        for title, expected in (("SENDER", {VERIFICATION: 0}), ("OTHER", (1, 1, 3))):
            contexts = propose_contexts([(VERIFICATION, [IMPLICIT])])
            asked = associate(
                "127.0.0.1", dicom_port, calling_ae_title=title, called_ae_title="GATEWAY", contexts=contexts
            )
            assert await outcome(asked) == expected
        for path, status in (("/studies", 204), ("/series", 404)):
            async with client.stream("GET", path) as answer:
                assert answer.status == status
                async for _ in answer:
                    pass
    finally:
        await client.aclose()
        await gateway.stop(0.0)


def test_rules_about_http_are_none_of_dicom(load_config):
    with pytest.raises(ConfigError) as refused:
        load_config(
            """
            [proxy]
            id = "x"
            [network.n.dicom]
            [pipelines.p]
            networks = ["n"]
            endpoints = ["scp"]
            middleware = ["policies"]
            [endpoints.scp]
            service = "dicom_scp"
            [[middleware.policies.options.policies]]
            rules = ["everywhere", { type = "path", options = { paths = ["/a"] } }]
            [rules.everywhere]
            type = "allow_all"
            """
        )
    assert "(path) is about HTTP requests, and no endpoint of this pipeline takes any" in str(refused.value)
