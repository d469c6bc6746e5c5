"""The peers themselves, one against the other, so that a failure elsewhere is ours and not the fixtures'."""

import urllib.request

import pytest

pytestmark = pytest.mark.interop


def smallest(samples, *, transfer_syntax_uid):
    fitting = [sample for sample in samples if sample.transfer_syntax_uid == transfer_syntax_uid]
    return min(fitting, key=lambda sample: len(sample.data_set))


def test_storescp_stores_one_file_per_object(start_storescp, run_tool, pydicom_files):
    sample = smallest(pydicom_files, transfer_syntax_uid="1.2.840.10008.1.2")
    scp = start_storescp()
    run_tool(
        "storescu", "-xi", "-aec", scp.ae_title, scp.host, scp.port, sample.path, env={"TCP_NODELAY": "1"}
    )
    (stored,) = scp.received()
    assert stored.name.endswith(sample.sop_instance_uid)


def test_forking_storescp_serves_more_than_one_association(start_storescp, run_tool, pydicom_files):
    sample = smallest(pydicom_files, transfer_syntax_uid="1.2.840.10008.1.2.1")
    scp = start_storescp("--fork", env={"TCP_NODELAY": "1"})
    for _ in range(2):
        run_tool("storescu", "+II", scp.host, scp.port, sample.path, env={"TCP_NODELAY": "1"})
    assert len(scp.received()) == 2


def test_pynetdicom_scp_records_what_it_got(pynetdicom_scp, run_tool, pydicom_files):
    sample = smallest(pydicom_files, transfer_syntax_uid="1.2.840.10008.1.2.1")
    run_tool("storescu", "-aet", "SENDER", pynetdicom_scp.host, pynetdicom_scp.port, sample.path)
    (received,) = pynetdicom_scp.objects
    assert received.calling_ae_title == "SENDER"
    assert received.sop_class_uid == sample.sop_class_uid
    assert received.sop_instance_uid == sample.sop_instance_uid
    assert received.transfer_syntax_uid == sample.transfer_syntax_uid
    assert received.data_set


def test_orthanc_answers_on_both_ports(start_orthanc, run_tool):
    orthanc = start_orthanc()
    run_tool("echoscu", "-aec", orthanc.ae_title, orthanc.host, orthanc.port)
    with urllib.request.urlopen(
        f"http://{orthanc.host}:{orthanc.http_port}/dicom-web/studies", timeout=10
    ) as response:
        assert response.status in (200, 204)


def test_run_tool_fails_on_an_unexpected_exit_status(run_tool, free_port):
    with pytest.raises(pytest.fail.Exception, match="echoscu"):
        run_tool("echoscu", "-to", 2, "127.0.0.1", free_port)
    assert run_tool("echoscu", "127.0.0.1", free_port, status=None).returncode != 0


@pytest.mark.parametrize(
    ("required", "outcome"),
    [("1", pytest.fail.Exception), ("0", pytest.skip.Exception)],
    ids=["fail", "skip"],
)
def test_a_missing_peer_is_a_skip_or_where_required_a_failure(require_peer, monkeypatch, required, outcome):
    monkeypatch.setenv("HARMONY_REQUIRE_PEERS", required)
    with pytest.raises(outcome, match="peer missing: no-such-program"):
        require_peer("no-such-program")


@pytest.mark.parametrize(
    ("required", "outcome"),
    [("1", pytest.fail.Exception), ("0", pytest.skip.Exception)],
    ids=["fail", "skip"],
)
def test_so_is_a_package_that_npm_does_not_get(run_npm, monkeypatch, tmp_path, required, outcome):
    monkeypatch.setenv("HARMONY_REQUIRE_PEERS", required)
    with pytest.raises(outcome, match="peer missing: npm packages: npm pack: "):
        run_npm("pack", "dicomweb-client@0.11.3", "--offline", "--cache", tmp_path)
