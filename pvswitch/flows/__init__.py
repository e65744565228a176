# SPDX-License-Identifier: Apache-2.0
"""Flows as values: what they match and do, in OVS text, in JSON, and in the words that the core compares.

How it works: `fields` is the table of what can be matched; `match` reads and prints a whole match, `actions` what is
done with what matches; `text` joins them to the lines of ovs-ofctl(8); `compiled` makes of both what pvs_api.h calls a
struct pvs_flow_conf. Everything here is pure, and may be called from anywhere, also in threads. What a flow is in the
configuration is in `pvswitch.flow_model`.
"""
