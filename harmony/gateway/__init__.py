"""The gateway: TOML configuration, pipelines, one module per service, start and stop.

It joins the engine (`harmony.ul`, `harmony.dimse`) with HTTP, the archive of received objects and JMIX envelopes.
`harmony.gateway.loading.load` reads the configuration, `harmony.gateway.command_line.main` is `python -m harmony`.
"""
