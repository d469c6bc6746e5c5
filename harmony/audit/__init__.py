"""The audit trail: what happened to whose images, who asked, and whether it was allowed (PS3.15 Annex A.5).

- `message`: the XML of the messages;
- `syslog`: RFC 5424 records, and the connection that takes them to a collector (RFC 5425, RFC 5426);
- `trail`: the file that every record is in before anything else happens with it, and its delivery.

What the gateway records, and when, is the gateway's affair (`harmony.gateway.auditing`).
"""
