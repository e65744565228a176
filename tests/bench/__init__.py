# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks make of their samples, without measuring anything."""
