# SPDX-License-Identifier: Apache-2.0
"""Tests of pvswitch: units and properties beside their room's name, real peers in `system`."""
