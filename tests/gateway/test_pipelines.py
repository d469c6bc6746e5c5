"""What a configuration is put together to, and what only then shows to be wrong."""

from __future__ import annotations

import pytest

from harmony.gateway.config import ConfigError
from harmony.gateway.pipelines import assemble, outboxes


def test_one_store_for_all_who_name_the_same_folder(bench):
    bench.builder = f'store_dir = "{bench.folder}/envelopes"'
    bench.more = f"""
        [pipelines.r]
        networks = ["n"]
        endpoints = ["other"]
        [endpoints.other]
        service = "jmix"
        options.path_prefix = "/other"
        options.store_dir = "{bench.folder}/x/../envelopes/"
    """
    stores = assemble(bench.config()).envelope_stores
    assert set(stores) == {bench.folder / "envelopes", bench.storage / "jmix-store"}


def test_envelopes_are_where_the_builder_of_the_pipeline_or_the_endpoint_says(bench):
    bench.more = f"""
        [pipelines.r]
        networks = ["n"]
        endpoints = ["other"]
        middleware = ["own"]
        [middleware.own]
        type = "jmix_builder"
        options.store_dir = "{bench.folder}/builders"
        [endpoints.other]
        service = "jmix"
        options.path_prefix = "/other"
    """
    assert set(assemble(bench.config()).envelope_stores) == {
        bench.folder / "builders",
        bench.storage / "jmix-store",
    }
    bench.more += f'options.store_dir = "{bench.folder}/endpoints"'
    assert set(assemble(bench.config()).envelope_stores) == {
        bench.folder / "endpoints",
        bench.storage / "jmix-store",
    }


def test_studies_are_retrieved_from_one_archive_for_each_folder(bench):
    def storage(root) -> str:
        return f"""
            [pipelines.r]
            networks = ["n"]
            endpoints = ["other"]
            backends = ["disk"]
            [backends.disk]
            service = "storage"
            options.root = "{root}"
            [endpoints.other]
            service = "jmix"
            options.path_prefix = "/other"
        """

    bench.builder = None
    bench.more = storage(bench.folder / "elsewhere")
    assembly = assemble(bench.config())
    received, elsewhere = assembly.backends
    assert [studies._sources for studies in assembly.studies] == [[received], [elsewhere]]
    assert set(assembly.indexes) == {bench.storage / "dimse", bench.folder / "elsewhere" / "dimse"}
    bench.more = storage(bench.storage)
    assembly = assemble(bench.config())
    assert [studies._sources for studies in assembly.studies] == [assembly.backends] * 2
    bench.scp = "index = false"
    bench.more = ""
    assert [studies._sources for studies in assemble(bench.config()).studies] == [[]]


def test_durability_reaches_the_envelopes(bench):
    assert [store.fsync for store in assemble(bench.config()).envelope_stores.values()] == [False]
    bench.scp = 'durability = "fsync"'
    assert [store.fsync for store in assemble(bench.config()).envelope_stores.values()] == [True]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ('storage_dir = "/elsewhere"', "storage_dir: is /elsewhere, must be "),
        ('durability = "fsync"', "durability: is fsync, must be os as in endpoint scp of the same pipeline"),
        ('duplicates = "refuse"', "duplicates: is refuse, must be keep_first"),
        ("max_operations = 5", "max_operations: is 5, must be 1"),
    ],
)
def test_endpoints_of_a_pipeline_share_a_storage(option, message, bench):
    bench.more = """
        [endpoints.second]
        service = "dicom_scp"
        [endpoints.second.options]
        local_aet = "SECOND"
        min_free_bytes = 0
    """
    bench.config()
    two = (
        (bench.folder / "config.toml")
        .read_text()
        .replace('endpoints = ["scp"]', 'endpoints = ["scp", "second"]')
    )
    (listener,) = assemble(bench.load_config(two)).dicom
    assert [scp.options.local_aet for scp in listener.scps] == ["GATEWAY", "SECOND"]
    assert listener.scps[0].backend is listener.scps[1].backend
    with pytest.raises(ConfigError) as error:
        assemble(bench.load_config(two.replace('local_aet = "SECOND"', f'local_aet = "SECOND"\n{option}')))
    assert message in str(error.value)
    assert "[endpoints.second]" in str(error.value)


def test_trust_anchor_that_is_none(forward):
    anchor = forward.folder / "ca.pem"
    anchor.write_text("nobody is trusted")
    forward.upstream = f'ca_cert_path = "{anchor}"'
    forward.config()
    text = (forward.folder / "config.toml").read_text()
    text = text.replace("connection.port", 'connection.protocol = "https"\nconnection.port')
    with pytest.raises(ConfigError, match=r"\[backends.up\]"):
        assemble(forward.load_config(text))


def test_credentials_that_cannot_be_sent(forward):
    forward.upstream = 'authentication_ref = "known"'
    forward.more = '[authentications.known]\nmethod = "bearer"\noptions.token = "a\\nb"'
    with pytest.raises(ConfigError) as error:
        assemble(forward.config())
    assert "a\nb" not in str(error.value)


def test_where_the_outboxes_are(bench):
    assert outboxes(bench.config()) == {"p": bench.outbox_path}
    bench.builder = None
    assert outboxes(bench.config()) == {}


def test_endpoint_on_the_incoming_store_port_must_have_its_title(bench):
    """A port is listened on once: the endpoint receives what the PACS sends, if it answers to that title."""
    bench.builder = None
    bench.config()
    text = (bench.folder / "config.toml").read_text().replace("backends = []", 'backends = ["pacs"]')
    text += f"""
        [backends.pacs]
        service = "dicom_scu"
        [backends.pacs.options]
        aet = "PACS"
        host = "127.0.0.1"
        dimse_retrieve_mode = "move"
        incoming_store_port = {bench.dicom_port}
    """
    with pytest.raises(ConfigError) as error:
        assemble(bench.load_config(text + 'local_aet = "OTHER"'))
    assert f"[backends.pacs] options.local_aet: incoming_store_port {bench.dicom_port} is that of" in str(
        error.value
    )
    (listener,) = assemble(bench.load_config(text + 'local_aet = "GATEWAY"')).dicom
    assert listener.scps[0].moves is not None
