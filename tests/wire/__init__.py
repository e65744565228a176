# SPDX-License-Identifier: Apache-2.0
"""Frames and front ends on real vhost-user sockets of a real switch."""
