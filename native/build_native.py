# SPDX-License-Identifier: Apache-2.0
"""Build pvswitch._native, the data plane, with cffi in API mode and the stable ABI.

The C sources know nothing of Python: what Python sees is the part of include/pvs_api.h between its two `cdef`
comments. Called by setuptools (`cffi_modules` in setup.py) from the repository's root.
"""

from pathlib import Path

from cffi import FFI

NATIVE = Path("native")


def cdef_of(header: Path) -> str:
    """Return what stands between the cdef comments of `header`."""
    text = header.read_text(encoding="utf-8")
    return text.split("/* cdef begin */")[1].split("/* cdef end */")[0]


ffibuilder = FFI()
ffibuilder.cdef(cdef_of(NATIVE / "include" / "pvs_api.h"))
ffibuilder.set_source(
    "pvswitch._native",
    '#include "pvs_api.h"',
    sources=sorted(str(path) for path in (NATIVE / "src").glob("*.c")),
    include_dirs=[str(NATIVE / "include"), str(NATIVE / "src")],
    extra_compile_args=["-std=c11", "-O3", "-g", "-Wall", "-Wextra", "-fvisibility=hidden", "-flto"],
    extra_link_args=["-flto", "-pthread"],
    define_macros=[("_GNU_SOURCE", None), ("Py_LIMITED_API", "0x030b0000")],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
