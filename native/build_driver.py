# SPDX-License-Identifier: Apache-2.0
"""Builds `pvswitch._driver`, the guest driver of native/driver, with cffi (API mode, stable ABI).

setuptools runs it from the root of the repository (`cffi_modules = ["native/build_driver.py:ffibuilder"]`).
What Python sees is the part of pvs_driver.h between its `cdef begin` and `cdef end` comments.
"""

from pathlib import Path

import cffi

DRIVER = Path("native/driver")  # relative, as setuptools wants its sources; the root is the working directory
HEADER = Path(__file__).resolve().parent / "driver" / "pvs_driver.h"


def public_part(header: str) -> str:
    """Return the declarations that cffi may read."""
    _, _, rest = header.partition("/* cdef begin */")
    declarations, end, _ = rest.partition("/* cdef end */")
    if not end:
        raise ValueError(f"{HEADER} has lost its cdef comments: put `/* cdef begin */` and `/* cdef end */` back")
    return declarations


ffibuilder = cffi.FFI()
ffibuilder.cdef(public_part(HEADER.read_text()))
ffibuilder.set_source(
    "pvswitch._driver",
    '#include "pvs_driver.h"',
    sources=[str(DRIVER / path.name) for path in sorted(HEADER.parent.glob("*.c"))],
    depends=[str(DRIVER / path.name) for path in sorted(HEADER.parent.glob("*.h"))],
    include_dirs=[str(DRIVER)],
    py_limited_api=True,
    define_macros=[("Py_LIMITED_API", "0x030b0000")],
    extra_compile_args=["-std=c11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden"],
)
