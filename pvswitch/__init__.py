# SPDX-License-Identifier: Apache-2.0
"""pvswitch: a virtual switch for VM labs (vhost-user ports, configured by file and HTTP)."""

__version__ = "0.1.0"
