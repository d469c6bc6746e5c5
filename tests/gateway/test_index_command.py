"""`python -m harmony index rebuild`."""

from __future__ import annotations

import pytest

from harmony.gateway.command_line import main


@pytest.fixture
def command(bench, capsys):
    """command("rebuild"): its exit status, output and errors."""
    bench.config()

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["index", *arguments, "--config", str(bench.folder / "config.toml")])
        return status, *capsys.readouterr()

    return run


async def test_rebuild_after_the_index_was_lost(bench, command, make_instance):
    await bench.start()
    await bench.send(make_instance("1.1"), make_instance("1.2"))
    await bench.stop()
    archive = bench.storage / "dimse"
    (archive / "1.2.3.4.5" / "1.2.3.4.5.1" / "note.txt").write_text("not ours")
    for path in (archive / ".index").iterdir():
        path.unlink()
    status, output, errors = command("rebuild")
    assert (status, errors) == (0, "")
    assert output.splitlines() == [
        f"{archive}: 2 files, 2 indexed, 1 passed over",
        "  1.2.3.4.5/1.2.3.4.5.1/note.txt: it is no file that ends in .dcm",
    ]


async def test_not_beside_a_running_gateway(bench, command):
    await bench.start()
    status, output, errors = command("rebuild")
    assert (status, output) == (1, "")
    assert errors == f"{bench.storage / 'dimse'}: the index is in use; stop the gateway first\n"


def test_nothing_was_received_yet(bench, command):
    assert command("rebuild") == (0, f"{bench.storage / 'dimse'}: nothing was ever received\n", "")


@pytest.mark.parametrize("arguments", [["index"], ["start", "rebuild"], ["rebuild"]])
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 2
    assert "rebuild" in capsys.readouterr().err
