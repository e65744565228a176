# SPDX-License-Identifier: Apache-2.0
"""The compiled guest driver, as cffi makes it from native/driver/pvs_driver.h; only `driver.py` imports it."""

from typing import Any

ffi: Any
lib: Any
