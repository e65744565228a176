# SPDX-License-Identifier: Apache-2.0
"""The two C extensions; everything else is in pyproject.toml. (cffi has no declarative way to name its modules.)"""

from setuptools import setup

setup(
    cffi_modules=["native/build_native.py:ffibuilder", "native/build_driver.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
