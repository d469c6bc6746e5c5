"""Files, their merging, the environment, paths, and the embedded default."""

from pathlib import Path

import pytest

from harmony.gateway.config import ConfigError, Listener
from harmony.gateway.loading import load
from harmony.gateway.sources import locate

EXAMPLE = Path(__file__).parents[2] / "examples" / "dicom-to-jmix"

MAIN = """
[proxy]
id = "test"
[network.n.http]
bind_port = 8080
"""
PIPELINE = """
[pipelines.p]
networks = ["n"]
endpoints = ["e"]
[endpoints.e]
service = "echo"
options.path_prefix = "/echo"
"""


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "config.toml"


def errors_of(path, env=None):
    with pytest.raises(ConfigError) as caught:
        load(path, env=env or {})
    return [str(problem) for problem in caught.value.errors]


# The embedded default and the example


def test_default():
    loaded = load(None, env={})
    assert loaded.warnings == ()
    assert loaded.sources == ()
    assert str(loaded.storage_path) == "harmony-data"
    receive, web, envelopes = loaded.pipelines.values()
    (dicom,) = receive.endpoints
    assert dicom.options.local_aet == "HARMONY"
    assert dicom.address == Listener("127.0.0.1", 11112)
    assert str(dicom.options.storage_dir) == "harmony-data/dimse"
    assert [middleware.type for middleware in receive.left] == ["jmix_builder"]
    assert receive.backends == web.backends == envelopes.backends == ()
    assert [(each.service, each.options.path_prefix) for each in web.endpoints] == [
        ("dicomweb", "/dicom-web")
    ]
    (jmix,) = envelopes.endpoints
    assert jmix.address == Listener("127.0.0.1", 8042)
    assert jmix.options.path_prefix == "/jmix"
    assert str(receive.left[0].options.store_dir) == "harmony-data/jmix-store"
    assert jmix.options.store_dir is None  # which is the same
    assert [network.http.port for network in loaded.http_networks()] == [8042]


def test_example():
    loaded = load(EXAMPLE / "config.toml", env={})
    assert loaded.warnings == ()
    assert loaded.proxy_id == "harmony-dicom-to-jmix"
    assert str(loaded.log.file) == "tmp/harmony_dicom_to_jmix.log"
    dicom = loaded.pipelines["dicom_to_jmix"]
    assert dicom.endpoints[0].address == Listener("0.0.0.0", 11113)
    assert dicom.endpoints[0].options.local_aet == "JMIX_RECEIVER"
    assert dicom.backends[0].target.url == "https://jmix.example.com:443"
    assert loaded.pipelines["jmix_query"].endpoints[0].address == Listener("127.0.0.1", 8086)


def test_example_and_its_upstream_meet():
    upstream = load(EXAMPLE / "upstream.toml", env={})
    (jmix,) = upstream.pipelines["jmix_upstream"].endpoints
    assert jmix.options.path_prefix == "/"
    assert upstream.pipelines["jmix_upstream"].backends == ()
    env = {"JMIX_HOST": jmix.address.host, "JMIX_PORT": str(jmix.address.port), "JMIX_PROTOCOL": "http"}
    (backend,) = load(EXAMPLE / "config.toml", env=env).pipelines["dicom_to_jmix"].backends
    assert backend.target.url == "http://127.0.0.1:9998"


# Files


def test_main_file_comes_first_then_the_folder_in_order(tmp_path):
    main = write(tmp_path, {"config.toml": MAIN + PIPELINE, "pipelines/b.toml": "", "pipelines/a.toml": ""})
    write(tmp_path, {"pipelines/c.txt": "not read", "pipelines/deeper/d.toml": "not read"})
    assert load(main, env={}).sources == (main, tmp_path / "pipelines/a.toml", tmp_path / "pipelines/b.toml")


def test_pipelines_path_starts_at_the_file_everything_else_at_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    main = write(
        tmp_path / "conf",
        {
            "config.toml": MAIN.replace("[network", 'pipelines_path = "../parts"\n[network')
            + '[storage.options]\npath = "./data"\n',
            "../parts/p.toml": PIPELINE,
        },
    )
    loaded = load(main, env={})
    assert list(loaded.pipelines) == ["p"]
    assert str(loaded.storage_path) == "data"


def test_absolute_pipelines_path(tmp_path):
    parts = tmp_path / "elsewhere"
    main = write(
        tmp_path / "conf",
        {"config.toml": MAIN.replace("[network", f'pipelines_path = "{parts}"\n[network')},
    )
    write(parts, {"p.toml": PIPELINE})
    assert list(load(main, env={}).pipelines) == ["p"]


def test_the_main_file_may_lie_in_the_pipelines_folder(tmp_path):
    main = write(
        tmp_path,
        {"config.toml": MAIN.replace("[network", 'pipelines_path = "."\n[network'), "p.toml": PIPELINE},
    )
    assert load(main, env={}).sources == (main, tmp_path / "p.toml")


def test_same_table_twice(tmp_path):
    main = write(
        tmp_path,
        {
            "config.toml": MAIN + '[services.echo]\nmodule = ""\n',
            "pipelines/a.toml": PIPELINE + '[services.echo]\nmodule = ""\n',
            "pipelines/b.toml": '[endpoints.e]\nservice = "echo"\noptions = { path_prefix = "/echo" }\n',
        },
    )
    assert load(main, env={}).warnings == ()
    write(tmp_path, {"pipelines/b.toml": '[endpoints.e]\nservice = "echo"\noptions.path_prefix = "/other"\n'})
    assert errors_of(main) == [
        f"{tmp_path}/pipelines/b.toml:1: [endpoints.e]: is also defined, differently, in "
        f"{tmp_path}/pipelines/a.toml:5; a table may have one meaning"
    ]


def test_unusable_files(tmp_path):
    assert errors_of(tmp_path / "config.json") == [
        f'{tmp_path}/config.json: the name of a configuration file must end in ".toml"'
    ]
    assert errors_of(tmp_path / "config.toml") == [
        f"{tmp_path}/config.toml: cannot be read: No such file or directory"
    ]
    main = write(tmp_path, {"config.toml": "a = 1\nb = = 2\n"})
    assert errors_of(main) == [f"{main}:2: is not valid TOML: Invalid value (column 5)"]
    main.write_bytes(b"a = '\xff'")
    assert errors_of(main) == [f"{main}: is not UTF-8: byte 5"]
    main.write_text("a = " + "[" * 5000)
    assert errors_of(main) == [f"{main}: is nested too deeply"]
    main.write_text("a = " + "9" * 5000)
    (message,) = errors_of(main)
    assert message.startswith(f"{main}: is not valid TOML: Exceeds the limit")


def test_one_broken_pipeline_file_is_an_error_and_hides_nothing(tmp_path):
    main = write(tmp_path, {"config.toml": MAIN, "pipelines/a.toml": PIPELINE, "pipelines/b.toml": "[x\n"})
    assert errors_of(main) == [
        f"{tmp_path}/pipelines/b.toml:1: is not valid TOML: "
        "Expected ']' at the end of a table declaration (column 3)"
    ]


def test_nothing_to_run(tmp_path):
    main = write(tmp_path, {"config.toml": MAIN})
    assert errors_of(main) == [f"{main}: pipelines: is missing; without a pipeline there is nothing to run"]


# Lines


def test_locate():
    text = '''# comment
[proxy]
id = "x"

[targets."far away"]
connection.host = "h"   # dotted
note = """
[not.a.table]
port = 1
"""
'quoted key' = 1
[[array.of.tables]]
x = [
  "y",
]
'''
    assert locate(text) == {
        ("proxy",): 2,
        ("proxy", "id"): 3,
        ("targets", "far away"): 5,
        ("targets", "far away", "connection"): 6,
        ("targets", "far away", "connection", "host"): 6,
        ("targets", "far away", "note"): 7,
        ("targets", "far away", "quoted key"): 11,
        ("array", "of", "tables"): 12,
        ("array", "of", "tables", "x"): 13,
    }


# Environment


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$NAME", "harmony"),
        ("${NAME}", "harmony"),
        ("${NAME}-1", "harmony-1"),
        ("$NAME-1", "harmony-1"),
        ("$NAME_1", "other"),
        ("a$NAME${NAME}b", "aharmonyharmonyb"),
        ("$$NAME", "$NAME"),
        ("$$$NAME", "$harmony"),
        ("${NAME:-default}", "harmony"),
        ("${NOBODY:-default}", "default"),
        ("${NOBODY:-}x", "x"),
        ("${EMPTY:-default}", "default"),
        ("5$", "5$"),
        ("$5", "$5"),
        ("${}", "${}"),
        ("${NAME", "${NAME"),
        ("a$NESTED", "a$NAME"),
    ],
)
def test_environment(tmp_path, text, value):
    main = write(tmp_path, {"config.toml": MAIN.replace("test", text) + PIPELINE})
    env = {"NAME": "harmony", "NAME_1": "other", "EMPTY": "", "NESTED": "$NAME"}
    loaded = load(main, env=env)
    assert loaded.proxy_id == value
    assert loaded.warnings == ()


def test_undefined_variable_is_empty_and_a_warning(tmp_path):
    main = write(tmp_path, {"config.toml": MAIN.replace("test", "a${NOBODY}b") + PIPELINE})
    loaded = load(main, env={})
    assert loaded.proxy_id == "ab"
    assert [str(warning) for warning in loaded.warnings] == [
        f'{main}:3: [proxy] id: environment variable NOBODY is not set, "" is used'
    ]


def test_text_from_the_environment_may_be_a_number_or_a_truth_value(tmp_path):
    text = MAIN.replace("8080", '"$PORT"').replace(
        "[proxy]", '[logging]\nlog_to_file = "${TO_FILE}"\n[proxy]'
    )
    main = write(tmp_path, {"config.toml": text + PIPELINE})
    assert load(main, env={"PORT": "81", "TO_FILE": "false"}).networks["n"].http.port == 81
    assert errors_of(main, {"PORT": "eighty", "TO_FILE": "false"}) == [
        f'{main}:7: [network.n.http] bind_port: is "eighty", must be an integer from 1 to 65535'
    ]


def test_text_in_the_options_too(tmp_path):
    text = MAIN + PIPELINE.replace('"echo"', '"dicom"').replace("path_prefix", "port").replace(
        '"/echo"', '"$PORT"'
    )
    main = write(tmp_path, {"config.toml": text})
    assert load(main, env={"PORT": "4242"}).pipelines["p"].endpoints[0].address.port == 4242


def test_required_variables(tmp_path):
    text = MAIN.replace("[network", 'required_env_vars = ["A", "B"]\n[network') + PIPELINE
    main = write(tmp_path, {"config.toml": text})
    assert load(main, env={"A": "1", "B": "2"}).warnings == ()
    assert errors_of(main, {"A": "1"}) == [
        f'{main}:4: [proxy] required_env_vars: names "B", which is not set in the environment'
    ]


def test_secrets_from_files_and_the_environment(tmp_path):
    secret = tmp_path / "token"
    secret.write_text("sesame\n")
    text = (
        MAIN
        + PIPELINE
        + """
[authentications.file]
method = "bearer"
options.token_file = "FOLDER/token"
[authentications.variable]
method = "api_key"
api_key = "$KEY"
[authentications.basic]
method = "basic"
options = { username = "u", password_file = "FOLDER/none" }
[backends.b]
service = "jmix_backend"
connection.host = "h"
authentication = "AUTH"
""".replace("FOLDER", str(tmp_path))
    ).replace('endpoints = ["e"]', 'endpoints = ["e"]\nbackends = ["b"]')
    main = write(tmp_path, {"config.toml": text.replace("AUTH", "file")})
    assert errors_of(main, {"KEY": "k"}) == [
        f'{main}:23: [authentications.basic.options] password_file: "{tmp_path}/none" '
        "cannot be read: No such file or directory",
    ]
    good = text.replace(f', password_file = "{tmp_path}/none"', ', password = "p"')
    main = write(tmp_path, {"config.toml": good.replace("AUTH", "authentications.file")})
    assert errors_of(main, {"KEY": ""}) == [
        f'{main}:20: [authentications.variable] api_key: is empty, must be set for method "api_key"'
    ]
    (backend,) = load(main, env={"KEY": "k"}).pipelines["p"].backends
    assert backend.authentication.options.token.reveal() == "sesame"
    main = write(tmp_path, {"config.toml": good.replace("AUTH", "variable")})
    (backend,) = load(main, env={"KEY": "k"}).pipelines["p"].backends
    assert backend.authentication.options.api_key.reveal() == "k"
    assert backend.authentication.options.header_name == "X-API-Key"


def test_credentials_from_a_file(tmp_path):
    credentials = tmp_path / "credentials"
    text = MAIN + PIPELINE.replace('endpoints = ["e"]', 'endpoints = ["e"]\nbackends = ["b"]')
    text += f"""
[backends.b]
service = "jmix_backend"
connection.host = "h"
options.authentication_ref = "a"
[authentications.a]
method = "basic"
options.credentials_path = "{credentials}"
"""
    main = write(tmp_path, {"config.toml": text})
    assert errors_of(main) == [
        f'{main}:21: [authentications.a.options] credentials_path: is "{credentials}", '
        "which cannot be read: No such file or directory"
    ]
    credentials.write_text("no colon\n")
    assert errors_of(main) == [
        f'{main}:21: [authentications.a.options] credentials_path: is "{credentials}", which must hold user:password'
    ]
    credentials.write_text("me:open:sesame\n")
    (backend,) = load(main, env={}).pipelines["p"].backends
    assert backend.authentication.options.username == "me"
    assert backend.authentication.options.password.reveal() == "open:sesame"
