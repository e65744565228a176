# SPDX-License-Identifier: Apache-2.0
"""The switch as a process, with real peers: QEMU guests, DPDK's virtio-user driver, and the driver guest."""
