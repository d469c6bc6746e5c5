"""Both generations of configuration files load: the TOML of the five documents word for word, aliases, addresses."""

import msgspec
import pytest

from harmony.gateway.addresses import jmix_base_path
from harmony.gateway.config import Listener
from harmony.gateway.loading import load
from harmony.gateway.options import (
    DicomScpOptions,
    DicomScuOptions,
    HttpEndpointOptions,
    JmixBackendOptions,
    JmixBuilderOptions,
    MoveDestination,
)

FRAME = """
[proxy]
id = "test"
[network.default.http]
bind_address = "127.0.0.1"
bind_port = 8080
"""


@pytest.fixture
def config(tmp_path):
    """Load text as a main file; further texts are pipeline files."""

    def load_text(text, *pipelines, env=None):
        path = tmp_path / "config.toml"
        path.write_text(text)
        for number, each in enumerate(pipelines):
            (tmp_path / "pipelines").mkdir(exist_ok=True)
            (tmp_path / "pipelines" / f"{number}.toml").write_text(each)
        return load(path, env=env or {})

    return load_text


def only_endpoint(loaded):
    (pipeline,) = loaded.pipelines.values()
    (endpoint,) = pipeline.endpoints
    return endpoint


def only_backend(loaded):
    (pipeline,) = loaded.pipelines.values()
    (backend,) = pipeline.backends
    return backend


# The documents' own TOML


def test_dimse_integration_backend(config):
    loaded = config(
        FRAME
        + """
[pipelines.demo]
networks = ["default"]
endpoints = ["http_to_dicom"]
backends = ["my_pacs"]
[endpoints.http_to_dicom]
service = "http"
options = { path_prefix = "/trigger-dicom" }
""",
        """
[backends.my_pacs]
service = "dicom"

[backends.my_pacs.options]
aet = "ORTHANC"
host = "localhost"
port = 4242
local_aet = "HARMONY_SCU"
use_tls = false
""",
    )
    backend = only_backend(loaded)
    assert backend.service == "dicom_scu"
    assert backend.options == DicomScuOptions(
        aet="ORTHANC",
        host="localhost",
        port=4242,
        local_aet="HARMONY_SCU",
        storage_dir=loaded.storage_path / "retrieved",
    )
    assert (backend.target.host, backend.target.port, backend.target.protocol) == ("localhost", 4242, "dicom")
    assert not backend.target.tls
    assert loaded.warnings == ()


def test_dimse_integration_endpoint(config):
    loaded = config(
        FRAME
        + """
[pipelines.demo]
networks = ["default"]
endpoints = ["dicom_scp"]
backends = []
""",
        """
[endpoints.dicom_scp]
service = "dicom"

[endpoints.dicom_scp.options]
local_aet = "HARMONY_SCP"
# bind_addr = "0.0.0.0"
# port = 11112
""",
    )
    endpoint = only_endpoint(loaded)
    assert endpoint.service == "dicom_scp"
    assert endpoint.options.local_aet == "HARMONY_SCP"
    # Nothing else uses the network's only listener, so the DICOM endpoint has it.
    assert endpoint.address == Listener("127.0.0.1", 8080)
    assert loaded.http_networks() == ()
    assert loaded.warnings == ()


def test_dimse_integration_bridge(config):
    loaded = config(
        FRAME,
        """
[pipelines.dicom_backend_demo]
description = "Demo DICOM backend usage - HTTP request triggers DIMSE SCU operations"
networks = ["default"]
endpoints = ["http_to_dicom"]
middleware = []
backends = ["dicom_pacs"]

[endpoints.http_to_dicom]
service = "http"
options = { path_prefix = "/dicom" }

[backends.dicom_pacs]
service = "dicom"

[backends.dicom_pacs.options]
aet = "ORTHANC"
host = "localhost"
port = 4242
local_aet = "HARMONY_SCU"
""",
    )
    pipeline = loaded.pipelines["dicom_backend_demo"]
    assert pipeline.description.startswith("Demo DICOM backend usage")
    assert only_endpoint(loaded).options == HttpEndpointOptions(path_prefix="/dicom")
    assert only_endpoint(loaded).listeners == (Listener("127.0.0.1", 8080),)
    assert only_backend(loaded).options.aet == "ORTHANC"
    assert [network.name for network in loaded.http_networks()] == ["default"]
    assert loaded.warnings == ()


JMIX_PIPELINE = """
[pipelines.dicom_to_jmix]
networks = ["dicom_net"]
endpoints = ["dicom_receiver"]
middleware = ["jmix_builder"]
backends = ["jmix_upstream"]

[endpoints.dicom_receiver]
service = "dicom_scp"
peer_ref = "dicom_listener"

[middleware.jmix_builder]
type = "jmix_builder"

[backends.jmix_upstream]
service = "jmix_backend"
target_ref = "upstream_jmix"

[pipelines.jmix_query]
networks = ["http_net"]
endpoints = ["jmix_http"]
middleware = ["passthru"]
backends = []

[endpoints.jmix_http]
service = "jmix"
[endpoints.jmix_http.options]
path_prefix = "/jmix"
"""

JMIX_MAIN = """
[proxy]
name = "harmony-dicom-to-jmix"
log_level = "debug"
pipelines_path = "pipelines"
primary_provider = "local"

[provider.runbeam]
api = "https://api.example.com"
poll_interval_secs = 30

[network.dicom_net]
enable_wireguard = false
interface = "wg0"

[network.dicom_net.tcp_config]
bind_address = "0.0.0.0"
bind_port = 11113

[network.http_net]
enable_wireguard = false
[network.http_net.http]
bind_address = "127.0.0.1"
bind_port = 8086

[logging]
log_to_file = true
log_file_path = "./tmp/harmony_dicom_to_jmix.log"

[storage]
backend = "filesystem"
[storage.options]
path = "./tmp"

[services.dicom_scp]
module = ""
[services.jmix_backend]
module = ""
type = ["endpoint", "backend"]
[middleware_types.jmix_builder]
module = ""

[peers.dicom_listener]
connection.host = "0.0.0.0"
connection.port = 11113
connection.protocol = "dicom"

[targets.upstream_jmix]
connection.host = "your-jmix-server.example.com"
connection.port = 443
connection.protocol = "https"
timeout_secs = 300
"""

DICOM_RECEIVER = """
[endpoints.dicom_receiver.options]
local_aet = "YOUR_AE_TITLE"    # AE Title for this receiver
max_pdu = 32768                 # Maximum PDU size
enable_store = true             # Accept C-STORE operations
enable_echo = true              # Accept C-ECHO for testing
"""


def test_dicom_to_jmix(config):
    loaded = config(JMIX_MAIN, JMIX_PIPELINE + DICOM_RECEIVER)
    assert loaded.warnings == ()
    assert loaded.proxy_id == "harmony-dicom-to-jmix"
    assert loaded.log.level == "debug"
    assert str(loaded.log.file) == "tmp/harmony_dicom_to_jmix.log"
    assert str(loaded.storage_path) == "tmp"
    assert [network.name for network in loaded.http_networks()] == ["http_net"]

    pipeline = loaded.pipelines["dicom_to_jmix"]
    (endpoint,) = pipeline.endpoints
    assert endpoint.address == Listener("0.0.0.0", 11113)
    assert endpoint.networks == ("dicom_net",)
    assert isinstance(endpoint.options, DicomScpOptions)
    assert endpoint.options.local_aet == "YOUR_AE_TITLE"
    assert endpoint.options.max_pdu == 32768
    assert str(endpoint.options.storage_dir) == "tmp/dimse"
    (backend,) = pipeline.backends
    assert backend.service == "jmix_backend"
    assert backend.target.url == "https://your-jmix-server.example.com:443"
    assert backend.target.tls
    assert backend.target.timeout_s == 300.0
    assert backend.target.max_retries == 3
    (builder,) = pipeline.left
    assert str(builder.options.store_dir) == "tmp/jmix-store"

    (jmix,) = loaded.pipelines["jmix_query"].endpoints
    assert jmix.options.path_prefix == "/jmix"
    assert jmix.options.store_dir is None  # which is the same
    assert jmix.listeners == (Listener("127.0.0.1", 8086),)


def test_dicom_to_jmix_performance_tuning(config):
    loaded = config(
        JMIX_MAIN,
        JMIX_PIPELINE.replace('[middleware.jmix_builder]\ntype = "jmix_builder"\n', ""),
        """
[middleware.jmix_builder.options]
# Skip SHA256 hash computation (faster, no integrity verification)
skip_hashing = true

# Skip file listing in manifest (faster for large studies)
skip_listing = true
""",
    )
    (builder,) = loaded.pipelines["dicom_to_jmix"].middleware
    assert isinstance(builder.options, JmixBuilderOptions)
    assert (builder.options.skip_hashing, builder.options.skip_listing) == (True, True)


def test_dicom_to_jmix_pdu_size(config):
    loaded = config(
        JMIX_MAIN,
        JMIX_PIPELINE
        + """
[endpoints.dicom_receiver.options]
max_pdu = 65536  # Larger PDU for faster transfers
""",
    )
    assert loaded.pipelines["dicom_to_jmix"].endpoints[0].options.max_pdu == 65536
    assert loaded.warnings == ()


def test_dicom_to_jmix_authentication(config):
    loaded = config(
        JMIX_MAIN
        + """
# In config.toml
[authentications.jmix_auth]
id = "jmix_auth"
method = "bearer"

[authentications.jmix_auth.options]
token = "your-api-token"
""",
        JMIX_PIPELINE
        + """
# In pipeline TOML
[backends.jmix_upstream.options]
authentication_ref = "jmix_auth"
""",
    )
    (backend,) = loaded.pipelines["dicom_to_jmix"].backends
    assert isinstance(backend.options, JmixBackendOptions)
    assert backend.authentication.method == "bearer"
    assert backend.authentication.options.token.reveal() == "your-api-token"
    assert "your-api-token" not in repr(loaded)
    assert "your-api-token" not in str(backend.authentication.options.token)


def test_dicom_to_jmix_aet_table(config):
    loaded = config(
        JMIX_MAIN,
        JMIX_PIPELINE
        + """
[endpoints.dicom_receiver.options.aet_table]
MODALITY_CT = { ae_title = "MODALITY_CT", host = "ct.local", port = 104 }
MODALITY_MR = { ae_title = "MODALITY_MR", host = "mr.local", port = 104 }
""",
    )
    (endpoint,) = loaded.pipelines["dicom_to_jmix"].endpoints
    assert endpoint.options.move_destinations() == {
        "MODALITY_CT": MoveDestination("MODALITY_CT", "ct.local", 104),
        "MODALITY_MR": MoveDestination("MODALITY_MR", "mr.local", 104),
    }
    assert endpoint.options.allowed_calling_ae_titles() is None


def test_dicomweb_gateway(config):
    loaded = config(
        FRAME
        + """
[endpoints.dicomweb_endpoint]
service = "dicomweb"
options.path_prefix = "/dicom"
""",
        """
# pipelines/my-dicomweb.toml
[pipelines.dicomweb_gateway]
description = "DICOMweb gateway to PACS"
networks = ["default"]
endpoints = ["dicomweb_endpoint"]
middleware = ["dicomweb_processor"]
backends = ["pacs_backend"]

[backends.pacs_backend]
service = "dicom_scu"
target_ref = "my_pacs"

[targets.my_pacs]
connection.host = "pacs.hospital.local"
connection.port = 104
connection.protocol = "dicom"
""",
        """
[targets.orthanc]
connection.host = "pacs.example.com"
connection.port = 104
connection.protocol = "dicom"
timeout_secs = 60
""",
    )
    backend = only_backend(loaded)
    assert (backend.target.host, backend.target.port) == ("pacs.hospital.local", 104)
    assert backend.options.aet == "ANY-SCP"
    assert [middleware.type for middleware in loaded.pipelines["dicomweb_gateway"].left] == [
        "dicomweb_bridge"
    ]
    assert [warning.message for warning in loaded.warnings] == [
        'is missing, "ANY-SCP" is used; a PACS usually wants its own AE title',
        'names "dicomweb_processor", which is not defined; the built-in "dicomweb_bridge" is used',
    ]


def test_dicom_scp_listener_of_the_network(config):
    loaded = config(
        """
[proxy]
id = "harmony-dicom-scp"
[network.dicom_net.dicom]
bind_address = "0.0.0.0"
bind_port = 11112
aet = "STATION"
[storage.options]
path = "./tmp"
[pipelines.scp]
networks = ["dicom_net"]
endpoints = ["scp"]
[endpoints.scp]
service = "dicom_scp"
"""
    )
    endpoint = only_endpoint(loaded)
    assert endpoint.address == Listener("0.0.0.0", 11112)
    assert endpoint.options.local_aet == "STATION"
    assert loaded.networks["dicom_net"].default_ae_title == "STATION"
    enabled = endpoint.options
    assert enabled.enable_echo
    assert enabled.enable_find
    assert enabled.enable_get
    assert enabled.enable_move
    assert enabled.enable_store


def test_both_generations_of_the_dicom_backend_mean_the_same(config):
    frame = (
        FRAME
        + """
[pipelines.p]
networks = ["default"]
endpoints = ["e"]
backends = ["b"]
[endpoints.e]
service = "http"
options.path_prefix = "/trigger-dicom"
"""
    )
    old = config(
        frame
        + """
[backends.b]
service = "dicom"
[backends.b.options]
aet = "ORTHANC"
host = "localhost"
port = 4242
local_aet = "HARMONY_SCU"
"""
    )
    new = config(
        frame
        + """
[targets.orthanc]
connection.host = "localhost"
connection.port = 4242
connection.protocol = "dicom"
[backends.b]
service = "dicom_scu"
target_ref = "orthanc"
[backends.b.options]
aet = "ORTHANC"
local_aet = "HARMONY_SCU"
"""
    )
    assert only_backend(old).target == only_backend(new).target
    assert only_backend(old).service == only_backend(new).service
    assert only_backend(old).options == msgspec.structs.replace(
        only_backend(new).options, host="localhost", port=4242
    )


# Aliases


@pytest.mark.parametrize("service", ["dicom", "dimse", "dicom_scp"])
def test_endpoint_aliases(config, service):
    loaded = config(
        FRAME
        + f"""
[pipelines.p]
networks = ["default"]
endpoints = ["e"]
[endpoints.e]
service = "{service}"
options.aet = "OLD_NAME"
options.bind_address = "127.0.0.2"
options.bind_port = 104
options.use_dcmtk_store = true
"""
    )
    endpoint = only_endpoint(loaded)
    assert endpoint.service == "dicom_scp"
    assert endpoint.options.local_aet == "OLD_NAME"
    assert endpoint.address == Listener("127.0.0.2", 104)
    assert loaded.warnings == ()


@pytest.mark.parametrize("service", ["dicom", "dimse", "dicom_scp", "dicom_scu"])
def test_backend_aliases(config, service):
    loaded = config(
        FRAME
        + f"""
[pipelines.p]
networks = ["default"]
endpoints = ["e"]
backends = ["b"]
[endpoints.e]
service = "echo"
options.path_prefix = ""
[backends.b]
service = "{service}"
connection = {{ host = "pacs", port = 4242 }}
options.aet = "PACS"
"""
    )
    assert only_backend(loaded).service == "dicom_scu"
    assert only_endpoint(loaded).options.path_prefix == "/"


@pytest.mark.parametrize(
    ("spelled", "canonical"),
    [
        ("passthru", "passthru"),
        ("middleware.passthru", "passthru"),
        ("dicomweb", "dicomweb_bridge"),
        ("json", "json_extractor"),
        ("log_dump", "log_dump"),
        ("path_filter", "path_filter"),
        ("dicom_to_dicomweb", "dicom_to_dicomweb"),
        ("dicom_flatten", "dicom_flatten"),
        ("connect", "connect"),
    ],
)
def test_middleware_without_a_table_is_a_built_in_type(config, spelled, canonical):
    loaded = config(
        FRAME
        + f"""
[pipelines.p]
networks = ["default"]
endpoints = ["e"]
middleware = ["{spelled}"]
[endpoints.e]
service = "echo"
options.path_prefix = "/echo"
"""
    )
    assert [each.type for each in loaded.pipelines["p"].left] == [canonical]


def test_middleware_options_may_stand_in_the_table_itself(config):
    loaded = config(
        FRAME
        + """
[pipelines.p]
networks = ["default"]
endpoints = ["e"]
middleware = ["guard"]
[endpoints.e]
service = "echo"
options.path_prefix = "/echo"
[middleware.guard]
type = "basic-auth"
username = "me"
password = "$PASSWORD"
""",
        env={"PASSWORD": "sesame"},
    )
    (guard,) = loaded.pipelines["p"].left
    assert guard.type == "basic_auth"
    assert guard.options.username == "me"
    assert guard.options.password.reveal() == "sesame"
    assert "sesame" not in repr(guard)
    assert loaded.warnings == ()


def test_split_middleware(config):
    text = (
        FRAME
        + """
[pipelines.p]
networks = ["default"]
endpoints = ["e"]
middleware = MIDDLEWARE
[endpoints.e]
service = "echo"
options.path_prefix = "/echo"
[middleware.a]
type = "passthru"
[middleware.b]
middleware_type = "passthru"
[middleware.c]
type = "log_dump"
"""
    )
    plain = config(text.replace("MIDDLEWARE", '["a", "b", "c"]')).pipelines["p"]
    assert [each.name for each in plain.left] == ["a", "b", "c"]
    assert [each.name for each in plain.right] == ["c", "b", "a"]
    split = config(text.replace("MIDDLEWARE", '{ left = ["a", "b"], right = ["b", "c"] }')).pipelines["p"]
    assert [each.name for each in split.left] == ["a", "b"]
    assert [each.name for each in split.right] == ["b", "c"]
    assert [each.name for each in split.middleware] == ["a", "b", "c"]


# Addresses


@pytest.mark.parametrize(
    ("table", "address"),
    [
        ('options = { bind_addr = "10.0.0.1", port = 1 }', "10.0.0.1:1"),
        ('connection = { host = "10.0.0.2", port = 2 }', "10.0.0.2:2"),
        ('peer_ref = "listener"', "10.0.0.3:3"),
        ('peer_ref = "peers.listener"', "10.0.0.3:3"),
        ("", "10.0.0.4:4"),
        ("options = { port = 9 }", "10.0.0.4:9"),
        ('options = { bind_addr = "10.0.0.9" }\npeer_ref = "listener"', "10.0.0.9:3"),
        ('options = { port = 9 }\nconnection = { host = "10.0.0.2", port = 2 }', "10.0.0.2:9"),
    ],
)
def test_dicom_listener_nearest_place_wins(config, table, address):
    loaded = config(
        f"""
[proxy]
id = "test"
[network.n.http]
bind_address = "10.0.0.5"
bind_port = 5
[network.n.dicom]
bind_address = "10.0.0.4"
bind_port = 4
[peers.listener]
connection = {{ host = "10.0.0.3", port = 3 }}
[pipelines.p]
networks = ["n"]
endpoints = ["e"]
[endpoints.e]
service = "dicom_scp"
{table}
"""
    )
    assert str(only_endpoint(loaded).address) == address


def test_http_listener_is_given_to_dicom_only_when_http_does_not_use_it(config):
    text = """
[proxy]
id = "test"
[network.n.http]
bind_address = "127.0.0.1"
bind_port = 8080
[pipelines.p]
networks = ["n"]
endpoints = ["e"]
[endpoints.e]
service = "dicom_scp"
"""
    assert str(only_endpoint(config(text)).address) == "127.0.0.1:8080"
    shared = config(
        text
        + """
[pipelines.q]
networks = ["n"]
endpoints = ["web"]
[endpoints.web]
service = "echo"
options.path_prefix = "/"
"""
    )
    assert str(shared.pipelines["p"].endpoints[0].address) == "0.0.0.0:11112"


def test_each_endpoint_is_on_the_networks_of_its_protocol(config):
    loaded = config(
        """
[proxy]
id = "test"
[network.a.dicom]
bind_port = 104
[network.b.dicom]
bind_port = 105
[network.c.http]
bind_port = 80
[network.d.http]
bind_port = 81
[pipelines.p]
networks = ["a", "b", "c", "d"]
endpoints = ["dicom", "web"]
[endpoints.dicom]
service = "dicom_scp"
[endpoints.web]
service = "jmix"
options.path_prefix = "/jmix"
"""
    )
    dicom, web = loaded.pipelines["p"].endpoints
    assert dicom.networks == ("a", "b")
    assert [str(each) for each in dicom.listeners] == ["0.0.0.0:104", "0.0.0.0:105"]
    assert web.networks == ("c", "d")
    assert [str(each) for each in web.listeners] == ["0.0.0.0:80", "0.0.0.0:81"]


@pytest.mark.parametrize(
    ("backend", "url", "timeout_s", "retries"),
    [
        ('service = "jmix_backend"\ntarget_ref = "t"', "https://far.example:8443/base", 60, 5),
        ('service = "jmix_backend"\ntarget_ref = "targets.t"', "https://far.example:8443/base", 60, 5),
        ('service = "jmix_backend"\ntargets = ["t"]', "https://far.example:8443/base", 60, 5),
        ('service = "jmix_backend"\noptions.base_url = "http://near:81/x/"', "http://near:81/x", 30, 3),
        (
            'service = "http"\ntarget_ref = "t"\nconnection.host = "mid"\ntimeout_secs = 7',
            "https://mid:8443/base",
            7,
            5,
        ),
        (
            'service = "http"\ntarget_ref = "t"\ntimeout_secs = 7\noptions = { host = "near", timeout_secs = 9 }',
            "https://near:8443/base",
            9,
            5,
        ),
        ('service = "http"\ntarget_ref = "by_url"', "https://url.example:443/api", 30, 3),
        ('service = "http"\ntarget_ref = "host_is_url"', "https://host.example:444/p", 30, 3),
        ('service = "http"\nconnection = { host = "::1" }', "http://[::1]:80", 30, 3),
        ('service = "http"\nconnection = { host = "h", tls.enabled = true }', "https://h:443", 30, 3),
        ('service = "dicom"\noptions = { aet = "A", host = "h" }', "dicom://h:104", 30, 3),
        ('service = "dicom"\noptions = { aet = "A", host = "h", use_tls = true }', "dicom://h:2762", 30, 3),
        ('service = "dicom"\ntarget_ref = "old_type"\noptions.aet = "A"', "dicom://pacs:11", 30, 3),
    ],
)
def test_target_nearest_place_wins(config, backend, url, timeout_s, retries):
    loaded = config(
        FRAME
        + f"""
[targets.t]
connection.host = "far.example"
connection.port = 8443
connection.base_path = "/base/"
protocol = "https"
timeout_secs = 60
max_retries = 5
[targets.by_url]
type = "http"
url = "https://url.example/api"
[targets.host_is_url]
connection.host = "https://host.example:444/p"
[targets.old_type]
type = "dicom"
connection.host = "pacs"
connection.port = 11
[pipelines.p]
networks = ["default"]
endpoints = ["e"]
backends = ["b"]
[endpoints.e]
service = "echo"
options.path_prefix = "/"
[backends.b]
{backend}
"""
    )
    target = only_backend(loaded).target
    assert (target.url, target.timeout_s, target.max_retries) == (url, timeout_s, retries)


@pytest.mark.parametrize(
    ("path_prefix", "base_path", "path"),
    [
        ("", "", "/api/jmix"),
        ("/", "", "/api/jmix"),
        ("/api", "", "/api/jmix"),
        ("api/", "", "/api/jmix"),
        ("/v2/api", "", "/v2/api/jmix"),
        ("/v2/jmix", "", "/v2/jmix"),
        ("/jmix", "", "/jmix"),
        ("/api/jmix", "", "/api/jmix"),
        ("/hospital", "", "/hospital/api/jmix"),
        ("/myjmix", "", "/myjmix/api/jmix"),
        ("/myapi", "", "/myapi/api/jmix"),
        ("", "/jmix", "/jmix/api/jmix"),
        ("", "/api", "/api/jmix"),
        ("", "/api/jmix", "/api/jmix"),
        ("", "/gateway/", "/gateway/api/jmix"),
        ("/api", "/gateway", "/gateway/api/jmix"),
        ("/v2/jmix", "/gateway", "/gateway/v2/jmix"),
    ],
)
def test_jmix_base_path(path_prefix, base_path, path):
    assert jmix_base_path(path_prefix, base_path) == path


# Which AE titles


def test_calling_ae_titles(config):
    def allowed(options):
        text = (
            FRAME + '[pipelines.p]\nnetworks=["default"]\nendpoints=["e"]\n[endpoints.e]\nservice="dicom"\n'
        )
        return only_endpoint(config(text + options)).options.allowed_calling_ae_titles()

    table = 'options.aet_table = { CT = { host = "ct" }, MR = { aet = "MR_1" } }\n'
    assert allowed(table) is None
    assert allowed('options.calling_aets = ["A"]\n' + table) == {"A"}
    assert allowed("options.restrict_calling_ae = true\n" + table) == {"CT", "MR_1"}
    assert allowed('options.restrict_calling_ae = true\noptions.calling_aets = ["A"]\n' + table) == {
        "A",
        "CT",
        "MR_1",
    }


def test_two_titles_on_one_address(config):
    loaded = config(
        FRAME
        + """
[network.d.dicom]
bind_port = 104
[pipelines.p]
networks = ["d"]
endpoints = ["a", "b"]
[endpoints.a]
service = "dicom"
options.local_aet = "A"
[endpoints.b]
service = "dicom"
options.local_aet = "B"
"""
    )
    a, b = loaded.pipelines["p"].endpoints
    assert a.address == b.address
