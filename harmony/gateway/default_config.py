"""The configuration that runs when none is given: receive, keep, serve. Loopback only.

Text, not structs: it takes the same way through the loader as a file, and `--print-default` is a start for one's own.
"""

DEFAULT_CONFIG = """\
# Harmony's embedded default: receives DICOM on 127.0.0.1:11112 as HARMONY, keeps what it receives under
# ./harmony-data, answers queries and retrieves, also over DICOMweb on http://127.0.0.1:8042/dicom-web, packs each study
# into a JMIX envelope and serves the envelopes on http://127.0.0.1:8042/jmix. Health, metrics and what runs:
# http://127.0.0.1:8042/health, /metrics and /admin/info.

[proxy]
id = "harmony"

[logging]
log_level = "info"

[storage.options]
path = "./harmony-data"

[management]
enabled = true
network = "default"

[network.default.dicom]
bind_address = "127.0.0.1"
bind_port = 11112

[network.default.http]
bind_address = "127.0.0.1"
bind_port = 8042

[pipelines.receive]
description = "Receive DICOM objects and pack them into JMIX envelopes"
networks = ["default"]
endpoints = ["dicom"]
middleware = ["jmix_builder"]
backends = []

[endpoints.dicom]
service = "dicom_scp"

[endpoints.dicom.options]
local_aet = "HARMONY"

[pipelines.web]
description = "The same objects over DICOMweb"
networks = ["default"]
endpoints = ["web"]
middleware = []
backends = []

[endpoints.web]
service = "dicomweb"

[endpoints.web.options]
path_prefix = "/dicom-web"

[pipelines.envelopes]
description = "Serve the JMIX envelopes"
networks = ["default"]
endpoints = ["jmix"]
middleware = []
backends = []

[endpoints.jmix]
service = "jmix"

[endpoints.jmix.options]
path_prefix = "/jmix"
"""
