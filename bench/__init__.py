# SPDX-License-Identifier: Apache-2.0
"""Benchmarks against other switches; each module is a command of its own (`python -m bench.NAME`)."""
