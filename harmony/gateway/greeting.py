"""What a gateway that has started prints: what listens where, and what to type next."""

from __future__ import annotations

from collections.abc import Iterator

from harmony import __version__
from harmony.gateway.app import Gateway
from harmony.gateway.options import PrefixOptions

__all__ = ["greeting"]

LABELS = {"dicomweb": "WEB"}
CURL = {
    "echo": "{url}",
    "http": "-X POST {url}/echo",
    "dicomweb": "'{url}/studies?PatientName=D*'",
    "jmix": "'{url}/api/jmix?studyInstanceUid=UID' -o envelope.zip",
}


def greeting(gateway: Gateway) -> list[str]:
    config = gateway.config
    lines = [f"Harmony {__version__} ({config.proxy_id}), data under {config.storage_path}"]
    for listener in gateway.assembly.dicom:
        host, port = listener.server.acceptor.addresses[0]
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        for scp in listener.scps:
            title = scp.options.local_aet
            lines.append(f"  DICOM  {host}:{port}  AE title {title}")
            lines.append(f"         try: echoscu -aec {title} {shown} {port}")
            lines.append(f"         try: storescu -aec {title} {shown} {port} FILE.dcm")
            if scp.backend.can_be_queried and scp.options.enable_find:
                lines.append(
                    f"         try: findscu -aec {title} -S {shown} {port} "
                    "-k QueryRetrieveLevel=STUDY -k PatientName -k StudyInstanceUID"
                )
    for network, address in gateway.assembly.http:
        scheme = "https" if address.tls else "http"
        shown = "127.0.0.1" if address.host in ("0.0.0.0", "::") else address.host
        for prefix, service, behind in sorted(_prefixes(gateway, network)):
            url = f"{scheme}://{shown}:{address.port}{prefix.rstrip('/')}"
            lines.append(f"  {LABELS.get(service, service.upper()):5}  {url}")
            try_it = "{url}" if behind in ("http", "echo") else CURL.get(service)
            if try_it is not None:
                lines.append(f"         try: curl {try_it.format(url=url)}")
        lines += _management(gateway, network, f"{scheme}://{shown}:{address.port}")
    return lines


def _management(gateway: Gateway, network: str, url: str) -> Iterator[str]:
    management = gateway.assembly.management
    for its_network, base_path in management.addresses if management is not None else []:
        if its_network == network:
            yield f"  ADMIN  {url}{base_path.rstrip('/')}, {url}/health, {url}/metrics"
            yield f"         try: curl {url}/health"


def _prefixes(gateway: Gateway, network: str) -> set[tuple[str, str, str]]:
    """Path prefix and service of the HTTP endpoints on a network, and the service of what is behind them."""
    return {
        (
            endpoint.options.path_prefix,
            endpoint.service,
            pipeline.backends[0].service if pipeline.backends else "",
        )
        for pipeline in gateway.config.pipelines.values()
        for endpoint in pipeline.endpoints
        if network in endpoint.networks and isinstance(endpoint.options, PrefixOptions)
    }
