# SPDX-License-Identifier: Apache-2.0
"""Properties of the data path, found by hypothesis on a switch without threads."""
