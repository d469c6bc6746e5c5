"""The command line, what it prints, and what this version says it cannot run."""

from pathlib import Path

import pytest

import harmony
from harmony.gateway.checks import unsupported
from harmony.gateway.command_line import main
from harmony.gateway.default_config import DEFAULT_CONFIG
from harmony.gateway.loading import load

EXAMPLE = Path(__file__).parents[2] / "examples" / "dicom-to-jmix" / "config.toml"


def test_check_prints_what_would_run(capsys):
    assert main(["start", "--check"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out == (
        """\
instance  harmony
files     embedded default
storage   harmony-data
log       info, to standard error

listeners
  network  protocol  address          serves
  default  http      127.0.0.1:8042   /dicom-web, /jmix, /admin
  default  dicom     127.0.0.1:11112  AE title HARMONY

pipelines
  name       endpoint -> middleware -> backend
  receive    dicom (dicom_scp HARMONY) -> jmix_builder -> local store
  web        web (dicomweb /dicom-web) -> - -> local store
  envelopes  jmix (jmix /jmix) -> - -> local store

The configuration is good.
"""
    )


@pytest.mark.parametrize(
    "arguments", [["-c", str(EXAMPLE)], ["--config", str(EXAMPLE)], [f"--config={EXAMPLE}"]]
)
def test_config_spellings(arguments, capsys):
    assert main([*arguments, "--check", "--log-level", "DEBUG"]) == 0
    out = capsys.readouterr().out
    assert "jmix_upstream (jmix_backend https://jmix.example.com:443)" in out
    assert "log       debug, to tmp/harmony_dicom_to_jmix.log" in out


def test_errors_go_to_stderr_with_status_2(tmp_path, capsys):
    path = tmp_path / "config.toml"
    path.write_text(DEFAULT_CONFIG.replace("11112", "111120").replace("[proxy]", "[proxy]\nidd = 1"))
    assert main(["--config", str(path), "--check"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "1 error in the configuration:\n"
        f"  {path}:22: [network.default.dicom] bind_port: is 111120, must be an integer from 1 to 65535\n"
        f'  warning: {path}:7: [proxy] idd: is not a known key, ignored; did you mean "id"?\n'
    )


def test_warnings_are_part_of_the_check(tmp_path, capsys):
    path = tmp_path / "config.toml"
    path.write_text(DEFAULT_CONFIG.replace("[proxy]", "[proxy]\nnmae = 1"))
    assert main(["-c", str(path), "--check"]) == 0
    assert f'warnings\n  {path}:7: [proxy] nmae: is not a known key, ignored; did you mean "name"?\n' in (
        capsys.readouterr().out
    )


def test_no_file_is_looked_for(tmp_path, monkeypatch, capsys):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text("not toml")
    monkeypatch.chdir(tmp_path)
    assert main(["--check"]) == 0
    assert "embedded default" in capsys.readouterr().out


def test_print_default(capsys):
    assert main(["--print-default"]) == 0
    assert capsys.readouterr().out == DEFAULT_CONFIG


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"harmony {harmony.__version__}\n"


@pytest.mark.parametrize("arguments", [["stop"], ["--log-level", "loud"], ["--config"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: harmony" in capsys.readouterr().err


UNSUPPORTED = """
[proxy]
id = "test"
[network.n.http]
force_https = true
[pipelines.p]
networks = ["n"]
endpoints = ["e"]
middleware = ["log_dump", "t", "u"]
backends = ["b", "c"]
[endpoints.e]
service = "echo"
options.path_prefix = "/"
authentication = "a"
[middleware.t]
type = "transform"
[middleware.u]
type = "transform"
options.fail_on_error = false
[authentications.a]
method = "custom"
[backends.b]
service = "http"
connection.host = "h"
[backends.c]
service = "jmix_backend"
connection.host = "h"
authentication = "a"
"""


def test_what_this_version_cannot_run(tmp_path, capsys):
    path = tmp_path / "config.toml"
    path.write_text(UNSUPPORTED)
    loaded = load(path, env={})  # it loads
    found = [f"[{each.table}] {each.key} {each.message}" for each in unsupported(loaded)]
    assert found == [
        "[network.n] http.force_https is true, which is not available in this version",
        "[pipelines.p] backends lists 2 names; more than one backend is not available in this version",
        '[pipelines.p] backends lists "b", which an echo endpoint never asks, must be []',
        '[endpoints.e] authentication is "a", of method custom, which is not available in this version',
        '[authentications.a] method is "custom", which is not available in this version',
        '[middleware.log_dump] type is "log_dump", which is not available in this version',
        '[middleware.t] type is "transform", which is not available in this version',
    ]
    assert main(["-c", str(path), "--check"]) == 2
    assert capsys.readouterr().err.startswith(
        f"7 errors in the configuration:\n  {path}: [network.n] http.force_https: "
    )


@pytest.mark.parametrize(
    ("endpoint", "middleware", "backend", "message"),
    [
        ("http", "", "", None),
        ("http", '"jmix_builder"', "", "backends is []; packing what an http endpoint receives with a jmix_"),
        ("http", "", "storage", 'backends lists "b"; an http endpoint in front of storage'),
        ("http", '"path_filter"', "echo", None),
        ("echo", "", "echo", None),
        ("echo", "", "", None),
        ("echo", "", "storage", 'backends lists "b", which an echo endpoint never asks, must be []'),
        ("jmix", "", "echo", 'backends lists "b"; forwarding the requests of a jmix endpoint to echo'),
        (
            "http",
            '"jmix_builder"',
            "dicom_scu",
            'backends lists "b", a PACS; packing what is sent to one with a jmix_',
        ),
        ("http", '"passthru"', "dicom_scu", None),
    ],
)
def test_what_does_not_go_together(tmp_path, endpoint, middleware, backend, message):
    path = tmp_path / "config.toml"
    backends = f"""
        [backends.b]
        service = "{backend}"
        {'options = { aet = "PACS", host = "h" }' if backend == "dicom_scu" else ""}
    """
    path.write_text(f"""
        [proxy]
        id = "x"
        [network.n.http]
        [pipelines.p]
        networks = ["n"]
        endpoints = ["e"]
        middleware = [{middleware}]
        backends = [{'"b"' if backend else ""}]
        [endpoints.e]
        service = "{endpoint}"
        options.path_prefix = "/x"
        {backends if backend else ""}
    """)
    found = [f"{each.key} {each.message}" for each in unsupported(load(path, env={}))]
    assert len(found) == (message is not None)
    assert all(each.startswith(message) for each in found)


def test_dicom_is_not_forwarded_over_http(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("""
        [proxy]
        id = "x"
        [network.n.dicom]
        [pipelines.p]
        networks = ["n"]
        endpoints = ["e"]
        backends = ["b"]
        [endpoints.e]
        service = "dicom_scp"
        [backends.b]
        service = "http"
        connection.host = "h"
    """)
    (found,) = unsupported(load(path, env={}))
    assert found.message.startswith(
        'lists "b"; a dicom_scp endpoint in front of http needs the middleware "dicom_to_dicomweb"'
    )


@pytest.mark.parametrize(
    ("endpoints", "middleware", "backend", "problem"),
    [
        (["jmix"], [], "dicom_scu", None),
        (["jmix"], ["jmix_builder", "passthru"], "dicom_scu", None),
        (["jmix"], ["jmix_builder"], "storage", None),
        (["jmix", "dicom_scp"], [], "dicom_scu", None),
        (["jmix", "dicom_scp"], ["jmix_builder"], "storage", None),
        (["jmix"], [], "jmix_backend", "forwarding the requests of a jmix endpoint to jmix_backend is not"),
        (
            ["jmix", "dicom_scp"],
            ["jmix_builder"],
            "dicom_scu",
            "packing what is sent to one with a jmix_builder",
        ),
        (["dicom_scp"], [], "jmix_backend", 'must contain a "jmix_builder"'),
    ],
)
def test_which_backend_may_be_behind_which_endpoint(tmp_path, endpoints, middleware, backend, problem):
    path = tmp_path / "config.toml"
    options = {"dicom_scu": 'options.aet = "PACS"', "storage": 'options.root = "disk"'}.get(backend, "")
    host = "" if backend == "storage" else 'connection.host = "h"'
    path.write_text(
        f"""
        [proxy]
        id = "test"
        [network.n.http]
        bind_port = 8080
        [network.n.dicom]
        bind_port = 11112
        [pipelines.p]
        networks = ["n"]
        endpoints = {endpoints}
        middleware = {middleware}
        backends = ["b"]
        [endpoints.jmix]
        service = "jmix"
        options.path_prefix = "/jmix"
        [endpoints.dicom_scp]
        service = "dicom_scp"
        [backends.b]
        service = "{backend}"
        {host}
        {options}
        """
    )
    found = [each.message for each in unsupported(load(path, env={}))]
    if problem is None:
        assert found == []
    else:
        (message,) = found
        assert problem in message


def test_everything_in_the_default_and_the_example_is_supported():
    assert unsupported(load(None, env={})) == []
    assert unsupported(load(EXAMPLE, env={})) == []
