# SPDX-License-Identifier: Apache-2.0
"""The HTTP API, on a unix socket and on TCP.

`app.make_app` puts a controller and a data plane behind the table of routes in `routes`, from which
`openapi` also writes the description; `server.ApiServer` listens. Everything runs on the event
loop's thread. The daemon is the only importer.
"""
