# SPDX-License-Identifier: Apache-2.0
"""The vhost-user back end: feature bits, messages, a sans-I/O session, and the server or client with its socket."""
