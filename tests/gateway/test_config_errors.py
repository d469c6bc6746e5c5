"""Each thing that can be wrong, by its exact message; everything wrong at once; what is only odd is a warning."""

import copy
import tomllib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harmony.gateway.config import ConfigError, LoadedConfig, Severity
from harmony.gateway.default_config import DEFAULT_CONFIG
from harmony.gateway.loading import load, resolve
from harmony.gateway.options import KINDS
from harmony.gateway.sources import NAMED_SECTIONS, SINGLE_SECTIONS, Document, Report

GOOD = {
    "proxy": 'id = "test"',
    "network.n.http": 'bind_address = "127.0.0.1"\nbind_port = 8080',
    "network.d.dicom": 'bind_address = "127.0.0.1"\nbind_port = 104',
    "pipelines.p": 'networks = ["n"]\nendpoints = ["e"]\nmiddleware = []\nbackends = []',
    "endpoints.e": 'service = "jmix"\noptions.path_prefix = "/jmix"',
}


@pytest.fixture
def problems(tmp_path, monkeypatch):
    """The problems of a good configuration with some tables replaced or added, as (table, key, message)."""
    monkeypatch.chdir(tmp_path)

    def find(tables, severity=Severity.ERROR):
        merged = {**GOOD, **tables}
        text = "\n".join(f"[{name}]\n{body}" for name, body in merged.items() if body is not None)
        (tmp_path / "config.toml").write_text(text)
        try:
            found = load(tmp_path / "config.toml", env={"EMPTY": ""}).warnings
        except ConfigError as error:
            found = error.problems
        return [
            (problem.table, problem.key, problem.message) for problem in found if problem.severity is severity
        ]

    return find


def test_the_good_one_is_good(problems):
    assert problems({}) == []
    assert problems({}, Severity.WARNING) == []


SERVICES = (
    '"http", "echo", "dicomweb", "jmix", "dicom_scp", "management", "dicom", "dimse"',
    '"http", "echo", "dicom_scu", "jmix_backend", "storage", "dicom", "dimse", "dicom_scp"',
)
SCP = 'service = "dicom"\noptions.local_aet = "A"\n'
ON_D = 'networks = ["d"]\nendpoints = ["e"]'
WITH_BACKEND = 'networks = ["n"]\nendpoints = ["e"]\nbackends = ["b"]'
WITH_MIDDLEWARE = 'networks = ["n"]\nendpoints = ["e"]\nmiddleware = ["m"]'

CASES = [
    # Values
    (
        {"network.n.http": "bind_port = 70000"},
        ("network.n.http", "bind_port", "is 70000, must be an integer from 1 to 65535"),
    ),
    (
        {"network.n.http": 'bind_port = "8080"'},
        ("network.n.http", "bind_port", 'is "8080", must be an integer from 1 to 65535'),
    ),
    (
        {"network.n.http": "bind_port = true"},
        ("network.n.http", "bind_port", "is true, must be an integer from 1 to 65535"),
    ),
    (
        {"network.n.http": 'bind_address = ""'},
        ("network.n.http", "bind_address", 'is "", must be a host name or IP address'),
    ),
    (
        {"endpoints.e": SCP + "options.port = 0", "pipelines.p": ON_D},
        ("endpoints.e.options", "port", "is 0, must be an integer from 1 to 65535"),
    ),
    (
        {"endpoints.e": SCP + "options.max_pdu = 4095", "pipelines.p": ON_D},
        ("endpoints.e.options", "max_pdu", "is 4095, must be an integer from 4096 to 1048576"),
    ),
    (
        {"endpoints.e": SCP + "options.max_pdu = 0", "pipelines.p": ON_D},
        ("endpoints.e.options", "max_pdu", "is 0, must be an integer from 4096 to 1048576"),
    ),
    (
        {"endpoints.e": SCP + 'options.durability = "disk"', "pipelines.p": ON_D},
        ("endpoints.e.options", "durability", 'is "disk", must be one of "fsync", "os"'),
    ),
    (
        {"endpoints.e": SCP + 'options.enable_store = "yes"', "pipelines.p": ON_D},
        ("endpoints.e.options", "enable_store", 'is "yes", must be true or false'),
    ),
    (
        {"endpoints.e": SCP + "options.artim_timeout_secs = 0", "pipelines.p": ON_D},
        ("endpoints.e.options", "artim_timeout_secs", "is 0, must be a number above 0, at most 86400"),
    ),
    (
        {"endpoints.e": SCP + "options.idle_timeout_secs = nan", "pipelines.p": ON_D},
        ("endpoints.e.options", "idle_timeout_secs", "is NaN, must be a number above 0, at most 86400"),
    ),
    (
        {"endpoints.e": SCP + 'options.sop_classes = ["CT"]', "pipelines.p": ON_D},
        ("endpoints.e.options", "sop_classes", 'is ["CT"], must be a list, each a UID: 1 to 64 of 0-9 and .'),
    ),
    (
        {"endpoints.e": 'service = "dicom"\noptions.local_aet = "SEVENTEEN_LETTERS"', "pipelines.p": ON_D},
        (
            "endpoints.e.options",
            "local_aet",
            'is "SEVENTEEN_LETTERS", must be an AE title: 1 to 16 printable ASCII characters, '
            "no backslash, no space around it",
        ),
    ),
    (
        {"endpoints.e": SCP + "options.aet_table = { X = { port = 0 } }", "pipelines.p": ON_D},
        ("endpoints.e.options.aet_table.X", "port", "is 0, must be an integer from 1 to 65535"),
    ),
    (
        {"endpoints.e": 'service = "jmix"\noptions.path_prefix = "/a/../b"'},
        (
            "endpoints.e.options",
            "path_prefix",
            'is "/a/../b", must be a URL path such as "/jmix", without spaces, "?", "#", backslash or ".." in it',
        ),
    ),
    (
        {"logging": 'log_level = "loud"'},
        ("logging", "log_level", 'is "loud", must be one of "debug", "error", "info", "trace", "warn"'),
    ),
    ({"storage": 'backend = "s3"'}, ("storage", "backend", 'is "s3", must be one of "filesystem"')),
    (
        {"services.custom": 'module = "./mine.so"'},
        ("services.custom", "module", 'is "./mine.so", must be "": extension modules are not available'),
    ),
    (
        {"middleware_types.custom": 'module = "x"'},
        ("middleware_types.custom", "module", 'is "x", must be "": extension modules are not available'),
    ),
    # What is missing
    ({"proxy": ""}, ("proxy", "id", "is missing; set id or name, the name of this instance")),
    (
        {"endpoints.e": 'service = "jmix"'},
        (
            "endpoints.e.options",
            "path_prefix",
            'is missing, must be a URL path such as "/jmix", without spaces, "?", "#", backslash or ".." in it',
        ),
    ),
    (
        {"endpoints.e": ""},
        ("endpoints.e", "service", "is missing, must be a string that is not empty"),
    ),
    (
        {"pipelines.p": 'endpoints = ["e"]'},
        ("pipelines.p", "networks", "is missing, must be a list that is not empty, each a string"),
    ),
    (
        {"pipelines.p": 'networks = ["n"]\nendpoints = []'},
        ("pipelines.p", "endpoints", "is [], must be a list that is not empty, each a string"),
    ),
    (
        {"logging": "log_to_file = true"},
        ("logging", "log_file_path", "is missing, must be a path when log_to_file is true"),
    ),
    (
        {"management": "enabled = true"},
        ("management", "network", "is missing, must be the name of a network when enabled is true"),
    ),
    (
        {"pipelines.p": WITH_BACKEND, "backends.b": 'service = "jmix_backend"'},
        (
            "backends.b",
            "",
            "does not say where to connect to; set target_ref, connection or base_url",
        ),
    ),
    (
        {"targets.t": "timeout_secs = 5"},
        ("targets.t", "connection.host", "is missing, must be a host name, an IP address or a URL"),
    ),
    (
        {"authentications.a": 'method = "bearer"'},
        ("authentications.a", "token", 'is missing, must be set for method "bearer"'),
    ),
    (
        {"middleware.m": 'type = "jwt_auth"'},
        (
            "middleware.m",
            "public_key_path",
            "is missing; one of public_key_path, jwks_uri, or use_hs256 with hs256_secret must be set",
        ),
    ),
    (
        {"proxy": 'id = "test"\nrequired_env_vars = ["EMPTY"]'},
        ("proxy", "required_env_vars", 'names "EMPTY", which is not set in the environment'),
    ),
    # References
    (
        {"pipelines.p": 'networks = ["m"]\nendpoints = ["e"]'},
        ("pipelines.p", "networks", 'is "m", must be the name of a [network] table: "n", "d"'),
    ),
    (
        {"pipelines.p": 'networks = ["n"]\nendpoints = ["f"]'},
        ("pipelines.p", "endpoints", 'is "f", must be the name of a [endpoints] table: "e"'),
    ),
    (
        {"pipelines.p": WITH_BACKEND},
        ("pipelines.p", "backends", 'is "b", must be the name of a [backends] table: there are none'),
    ),
    (
        {
            "pipelines.p": WITH_BACKEND,
            "backends.b": 'service = "jmix_backend"\ntarget_ref = "upsteam"',
            "targets.upstream": 'connection.host = "h"',
        },
        (
            "backends.b",
            "target_ref",
            'is "upsteam", must be the name of a [targets] table: "upstream"; did you mean "upstream"?',
        ),
    ),
    (
        {"endpoints.e": SCP + 'peer_ref = "x"', "pipelines.p": ON_D},
        ("endpoints.e", "peer_ref", 'is "x", must be the name of a [peers] table: there are none'),
    ),
    (
        {"targets.t": 'connection.host = "h"\nauthentication = "authentications.a"'},
        (
            "targets.t",
            "authentication",
            'is "a", must be the name of a [authentications] table: there are none',
        ),
    ),
    (
        {"management": 'enabled = true\nnetwork = "x"'},
        ("management", "network", 'is "x", must be the name of a [network] table: "n", "d"'),
    ),
    (
        {"management": 'enabled = true\nnetwork = "d"'},
        ("management", "network", 'is "d", which has no http listener'),
    ),
    (
        {"pipelines.p": 'networks = ["d"]\nendpoints = ["e"]'},
        ("pipelines.p", "networks", '"d" have no http listener, which endpoint "e" needs'),
    ),
    (
        {"middleware.m": 'type = "policies"\noptions.policies = ["x"]'},
        (
            "middleware.m.options",
            "policies",
            'is "x", must be the name of a [policies] table: there are none',
        ),
    ),
    # Kinds
    (
        {"endpoints.e": 'service = "jmx"'},
        ("endpoints.e", "service", f'is "jmx", must be one of {SERVICES[0]}; did you mean "jmix"?'),
    ),
    (
        {"backends.b": 'service = "s3"'},
        ("backends.b", "service", f'is "s3", must be one of {SERVICES[1]}'),
    ),
    # Contradictions
    (
        {"endpoints.e": SCP + 'options.aet = "B"', "pipelines.p": ON_D},
        (
            "endpoints.e.options",
            "aet",
            "and local_aet say the same thing in different words; keep one of them",
        ),
    ),
    (
        {"network.n": "enable_wireguard = true"},
        ("network.n", "enable_wireguard", "is true, must be false: WireGuard is not available"),
    ),
    (
        {"network.n.http": 'cert_path = "c.pem"'},
        ("network.n.http", "key_path", "is missing; cert_path and key_path go together"),
    ),
    (
        {"network.n.http": 'cert_path = "config.toml"\nkey_path = "k.pem"'},
        ("network.n.http", "key_path", 'is "k.pem", which is not a file'),
    ),
    (
        {"network.n.http": 'cert_path = "config.toml"\nkey_path = "config.toml"\nforce_https = true'},
        ("network.n.http", "force_https", "is for listeners without TLS; this one has a certificate"),
    ),
    (
        {"network.n.http": "require_client_cert = true"},
        ("network.n.http", "require_client_cert", "is true, must be accompanied by cert_path and key_path"),
    ),
    (
        {"network.n.http": 'cert_path = "config.toml"\nkey_path = "config.toml"\nrequire_client_cert = true'},
        ("network.n.http", "require_client_cert", "is true, must be accompanied by ca_cert_path"),
    ),
    (
        {
            "endpoints.e": SCP + 'options.require_client_cert = true\noptions.ca_cert_path = "config.toml"',
            "pipelines.p": ON_D,
        },
        (
            "endpoints.e.options",
            "require_client_cert",
            "is true, and 127.0.0.1:104 has no certificate; cert_path and key_path must be set",
        ),
    ),
    (
        {
            "endpoints.e": SCP + 'options.aet_table.X = { host = "h", ca_cert_path = "config.toml" }',
            "pipelines.p": ON_D,
        },
        (
            "endpoints.e.options.aet_table.X",
            "ca_cert_path",
            "is for TLS, must be accompanied by use_tls = true",
        ),
    ),
    (
        {
            "endpoints.e": SCP,
            "pipelines.p": ON_D + '\nbackends = ["b"]',
            "backends.b": 'service = "dicom"\noptions = { aet = "A", host = "h", incoming_store_use_tls = true }',
        },
        (
            "backends.b.options",
            "incoming_store_use_tls",
            "is true, must be accompanied by cert_path and key_path",
        ),
    ),
    (
        {
            "endpoints.e": SCP,
            "pipelines.p": ON_D + '\nbackends = ["b"]',
            "backends.b": 'service = "dicom"\noptions = { aet = "A", host = "h", cert_path = "config.toml" }',
        },
        ("backends.b", "key_path", "is missing; cert_path and key_path go together"),
    ),
    (
        {"endpoints.e": SCP + "options.use_tls = true", "pipelines.p": ON_D},
        ("endpoints.e.options", "use_tls", "is true, must be accompanied by cert_path and key_path"),
    ),
    (
        {"endpoints.e": SCP + "options.restrict_calling_ae = true", "pipelines.p": ON_D},
        (
            "endpoints.e.options",
            "restrict_calling_ae",
            "is true, but calling_aets and aet_table are empty: nobody could call",
        ),
    ),
    (
        {
            "endpoints.e": SCP
            + "".join(
                f"options.enable_{each} = false\n" for each in ("echo", "store", "find", "move", "get")
            ),
            "pipelines.p": ON_D,
        },
        (
            "endpoints.e.options",
            "enable_echo",
            "and all other enable_ keys are false, must be true for at least one operation",
        ),
    ),
    (
        {
            "pipelines.p": WITH_BACKEND,
            "backends.b": 'service = "dicom_scu"\nconnection = { host = "h", protocol = "http" }',
        },
        (
            "backends.b",
            "protocol",
            'of the target is "http", must be "dicom" for a dicom_scu backend',
        ),
    ),
    (
        {
            "pipelines.p": WITH_BACKEND,
            "backends.b": 'service = "jmix_backend"\nconnection = { host = "h", protocol = "h3" }',
        },
        ("backends.b", "protocol", 'of the target is "h3", must be one of "http", "https"'),
    ),
    (
        {"targets.t": 'connection.host = "http://h:99999/"'},
        (
            "targets.t",
            "connection.host",
            'is "http://h:99999/", must be a host name or a URL: Port out of range 0-65535',
        ),
    ),
    (
        {"targets.t": 'connection.host = "http://me:sesame@h:99999/"'},
        ("targets.t", "connection.host", "holds credentials, which belong in an [authentications] table"),
    ),
    # Places taken twice
    (
        {
            "pipelines.p": 'networks = ["n"]\nendpoints = ["e", "f"]',
            "endpoints.f": 'service = "jmix"\noptions.path_prefix = "jmix/"',
        },
        (
            "endpoints.f",
            "options.path_prefix",
            'is "/jmix", which endpoint "e" of pipeline "p" already has on network "n"; '
            'pipeline "p" cannot have it too',
        ),
    ),
    (
        {"pipelines.q": 'networks = ["n"]\nendpoints = ["e"]'},
        (
            "endpoints.e",
            "options.path_prefix",
            'is "/jmix", which endpoint "e" of pipeline "p" already has on network "n"; '
            'pipeline "q" cannot have it too',
        ),
    ),
    (
        {
            "management": 'enabled = true\nnetwork = "n"',
            "endpoints.e": 'service = "echo"\noptions.path_prefix = "/admin"',
        },
        (
            "endpoints.e",
            "options.path_prefix",
            'is "/admin", which the management API already has on network "n"; pipeline "p" cannot have it too',
        ),
    ),
    (
        {
            "pipelines.p": 'networks = ["d"]\nendpoints = ["e", "f"]',
            "endpoints.e": SCP,
            "endpoints.f": SCP,
        },
        (
            "endpoints.f",
            "options.local_aet",
            'is "A" on 127.0.0.1:104, which endpoint "e" of pipeline "p" already has; '
            'pipeline "p" cannot have it too',
        ),
    ),
    (
        {
            "pipelines.p": 'networks = ["d"]\nendpoints = ["e", "f"]',
            "endpoints.e": SCP + "options.accept_any_called_ae = true",
            "endpoints.f": 'service = "dicom"\noptions = { local_aet = "B", accept_any_called_ae = true }',
        },
        (
            "endpoints.f",
            "options.accept_any_called_ae",
            'is true on 127.0.0.1:104, where endpoint "e" of pipeline "p" already accepts any called AE title',
        ),
    ),
    (
        {
            "pipelines.p": 'networks = ["d"]\nendpoints = ["e", "f"]',
            "endpoints.e": SCP,
            "endpoints.f": SCP + 'options.bind_addr = "0.0.0.0"',
        },
        (
            "endpoints.f",
            "options.port",
            '0.0.0.0:104 cannot be opened beside 127.0.0.1:104, endpoint "e" of pipeline "p"',
        ),
    ),
    (
        {
            "pipelines.q": 'networks = ["d"]\nendpoints = ["f"]',
            "endpoints.f": SCP + "options.port = 8080",
        },
        (
            "endpoints.f",
            "options.port",
            '127.0.0.1:8080 cannot be opened beside 127.0.0.1:8080, the http listener of network "n"',
        ),
    ),
    (
        {
            "pipelines.p": 'networks = ["n", "o"]\nendpoints = ["e"]',
            "network.o.http": "bind_port = 8080",
        },
        (
            "network.o",
            "http",
            '0.0.0.0:8080 cannot be opened beside 127.0.0.1:8080, the http listener of network "n"',
        ),
    ),
    (
        {
            "pipelines.p": 'networks = ["d"]\nendpoints = ["e"]\nmiddleware = ["m"]',
            "endpoints.e": SCP,
            "middleware.m": 'type = "basic_auth"\nusername = "u"\npassword = "p"',
        },
        (
            "pipelines.p",
            "middleware",
            'lists "m" (basic_auth), which needs HTTP requests; '
            'the DICOM endpoint "e" has none and would refuse everything; '
            "its own key authentication asks for a user identity",
        ),
    ),
    # Not tables at all
    ({"endpoints": "x = 1"}, ("endpoints", "x", "is 1, must be a table")),
]


@pytest.mark.parametrize(("tables", "expected"), CASES, ids=[f"{each[1][0]}-{each[1][1]}" for each in CASES])
def test_error(problems, tables, expected):
    assert problems(tables) == [expected]


def test_unknown_middleware_names_every_built_in(problems):
    ((table, key, message),) = problems({"pipelines.p": WITH_MIDDLEWARE.replace('"m"', '"jmix_bilder"')})
    assert (table, key) == ("pipelines.p", "middleware")
    assert message.startswith(
        'names "jmix_bilder", must be a [middleware] table or a built-in type: "passthru", '
    )
    assert message.endswith('; did you mean "jmix_builder"?')


WARNINGS = [
    (
        {"network.n.http": "bind_prot = 80"},
        ("network.n.http", "bind_prot", 'is not a known key, ignored; did you mean "bind_port"?'),
    ),
    (
        {"endpoints.e": 'service = "jmix"\noptions.path_prefix = "/"\nskip_hashing = true'},
        ("endpoints.e", "skip_hashing", "belongs in [endpoints.e.options], ignored here"),
    ),
    ({"network.n.http3": "bind_port = 443"}, ("network.n", "http3", None)),
    ({"endpoint.e": ""}, ("", "endpoint", 'is not a known table, ignored; did you mean "endpoints"?')),
    (
        {"proxy": 'id = "$NOBODY"\nname = "x"'},
        ("proxy", "id", 'environment variable NOBODY is not set, "" is used'),
    ),
    (
        {"proxy": 'id = "x"\npipelines_path = "nowhere"'},
        ("proxy", "pipelines_path", None),
    ),
    (
        {"pipelines.p": WITH_MIDDLEWARE, "middleware.m": 'type = "transform"\noptions.fail_on_error = false'},
        (
            "middleware.m.options",
            "fail_on_error",
            "is false, and transforms are not available: the middleware does nothing",
        ),
    ),
]


@pytest.mark.parametrize(("tables", "expected"), WARNINGS)
def test_warning(problems, tables, expected):
    ((table, key, message),) = problems(tables, Severity.WARNING)
    assert (table, key) == expected[:2]
    assert expected[2] in (None, message)


def test_known_but_meaningless_keys_are_silent(problems):
    tables = {
        "proxy": 'id = "x"\ntransforms_path = "t"\nprimary_provider = "local"\njwks_cache_duration_hours = 24\n'
        "content_limits = { max_body_size = 2048, max_csv_rows = 1, max_xml_depth = 1 }\n"
        'store_dir = "s"\nmesh_path = "m"\nsensitive_field_patterns = ["x"]',
        "provider.runbeam": 'api = "https://x"\npoll_interval_secs = 30',
        "runbeam": "enabled = false",
        "network.n": 'id = "n"\nenable_wireguard = false\ninterface = "wg0"',
        "storage.options": 'path = "tmp"\nbucket = "b"\nregion = "r"',
        "targets.t": 'id = "t"\nname = "n"\ndescription = "d"\ntags = ["x"]\nenabled = true\nconnection.host = "h"',
        "rules.r": 'id = "r"\nname = "n"\ntype = "ip_allow"\nweight = 90\noptions = { ip_addresses = [] }',
        "policies.pol": 'id = "pol"\nname = "n"\nenabled = true\nrules = ["r"]',
        "services.jmix": 'module = ""\ntype = ["endpoint"]',
    }
    assert problems(tables, Severity.ERROR) == []
    assert problems(tables, Severity.WARNING) == []


def test_all_errors_come_at_once_with_their_places(tmp_path):
    main = tmp_path / "config.toml"
    main.write_text(
        """[proxy]
log_level = "loud"

[network.n.http]
bind_port = 0
bind_prot = 1

[pipelines.p]
networks = ["n", "m"]
endpoints = ["e"]
"""
    )
    (tmp_path / "pipelines").mkdir()
    part = tmp_path / "pipelines" / "part.toml"
    part.write_text('\n[endpoints.e]\nservice = "dicom"\noptions = { max_pdu = 1 }\n')
    broken = tmp_path / "pipelines" / "broken.toml"
    broken.write_text("[endpoints.f]\nservice = \n")
    with pytest.raises(ConfigError) as caught:
        load(main, env={})
    assert str(caught.value) == "\n".join(
        [
            "6 errors in the configuration:",
            f"  {broken}:2: is not valid TOML: Invalid value (column 11)",
            f'  {main}:2: [proxy] log_level: is "loud", must be one of "debug", "error", "info", "trace", "warn"',
            f"  {main}:1: [proxy] id: is missing; set id or name, the name of this instance",
            f"  {main}:5: [network.n.http] bind_port: is 0, must be an integer from 1 to 65535",
            f"  {part}:4: [endpoints.e.options] max_pdu: is 1, must be an integer from 4096 to 1048576",
            f'  {main}:9: [pipelines.p] networks: is "m", must be the name of a [network] table: "n"',
        ]
    )
    warnings = [each for each in caught.value.problems if each.severity is Severity.WARNING]
    assert [(each.key, each.line) for each in warnings] == [("bind_prot", 6)]


def test_secrets_do_not_appear_in_errors(problems):
    ((_, _, message),) = problems({"authentications.a": 'method = "bearer"\noptions.token = ["sesame"]'})[:1]
    assert message == "is not valid, must be a string"


NAMES = st.sampled_from(["a", "b", "http", "jmix_builder", "dicomweb"])
KEYS = st.sampled_from(
    sorted(
        {name for kind in KINDS for name in kind.options.__struct_fields__}
        | {
            "service",
            "type",
            "networks",
            "endpoints",
            "middleware",
            "backends",
            "options",
            "connection",
            "http",
        }
        | {"dicom", "host", "port", "url", "target_ref", "peer_ref", "method", "id", "name", "left", "rules"}
        | {"password_file", "enabled", "network", "authentication", "targets", "log_to_file", "tcp_config"}
    )
)
SCALARS = (
    st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.dates()
    | st.times()
    | st.datetimes()
    | NAMES
    | st.sampled_from(
        ["dicom", "jmix", "http://[", "$A", "${B:-1}", "10.0.0.1", "https://h:1/x", "/p", "basic"]
    )
    | st.just(2**200)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | NAMES, inner, max_size=4),
    max_leaves=10,
)
NAMED = st.dictionaries(NAMES, st.dictionaries(KEYS, VALUES, max_size=6) | VALUES, max_size=3)
TABLES = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(NAMED_SECTIONS, NAMED | VALUES)
    | {name: st.dictionaries(KEYS, VALUES, max_size=4) | VALUES for name in SINGLE_SECTIONS},
)


@given(TABLES)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_tables_load_or_give_only_a_config_error(tables):
    found = None
    try:
        result = resolve([Document(None, tables)], env={}, report=Report())
    except ConfigError as error:
        result, found = None, error
    assert isinstance(result, LoadedConfig) or (found is not None and found.errors and str(found))


@pytest.mark.parametrize(
    "value", ["0x1" + "0" * 5000, "[" * 100 + "]" * 100, "1e400", "1979-05-27T07:32:00Z", "nan"]
)
def test_values_at_the_edge_of_toml(problems, value):
    ((table, key, message),) = problems({"network.n.http": f"bind_port = {value}"})
    assert (table, key) == ("network.n.http", "bind_port")
    assert message.endswith(", must be an integer from 1 to 65535")
    assert len(message) < 200


WHOLE = tomllib.loads(
    DEFAULT_CONFIG
    + """
[targets.t]
connection = { host = "h", port = 1, protocol = "https", base_path = "/b" }
authentication = "a"
[authentications.a]
method = "basic"
options = { username = "u", password = "p" }
[peers.q]
connection = { host = "127.0.0.1", port = 2 }
[endpoints.other]
service = "dicom"
peer_ref = "q"
options = { local_aet = "B", aet_table = { X = { host = "x" } }, sop_classes = ["1.2"] }
[endpoints.page]
service = "http"
options = { path_prefix = "/web" }
[pipelines.third]
networks = ["default"]
endpoints = ["other", "page"]
middleware = { left = ["guard"], right = ["passthru"] }
backends = ["up", "pacs", "disk"]
[middleware.guard]
type = "policies"
options = { policies = ["p"] }
[policies.p]
rules = ["r"]
[rules.r]
type = "ip_allow"
[backends.up]
service = "jmix_backend"
target_ref = "t"
options = { path_prefix = "/api", authentication_ref = "a" }
[backends.pacs]
service = "dicom"
options = { aet = "PACS", host = "pacs", port = 104 }
[backends.disk]
service = "storage"
"""
)


def places(table, path=()):
    for key, value in table.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def test_the_whole_one_is_good():
    assert resolve([Document(None, WHOLE)], env={}, report=Report()).warnings == ()


@given(st.sampled_from(sorted(places(WHOLE))), VALUES | st.none())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_one_wrong_thing_in_a_good_configuration_gives_only_a_config_error(path, value):
    tables = copy.deepcopy(WHOLE)
    inner = tables
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    if value is not None:
        inner[path[-1]] = value
    found = None
    try:
        result = resolve([Document(None, tables)], env={}, report=Report())
    except ConfigError as error:
        result, found = None, error
    assert isinstance(result, LoadedConfig) or (found is not None and found.errors and str(found))
