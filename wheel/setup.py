"""Builds the wheel.  pyproject.toml has the rest of what it says of itself."""

import glob
import os
import platform
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_py import build_py


def refuse(problem):
    sys.exit(f"pymalloc-hugepages: {problem}")


if sys.implementation.name != "cpython":
    refuse(f"for CPython, and not for {platform.python_implementation()}")
if not sys.platform.startswith("linux") or sys.maxsize < 1 << 32:
    refuse("for 64-bit Linux")
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    refuse("a free-threaded build does not use pymalloc")


class BuildPy(build_py):
    """Puts the .pth file beside the packages."""

    PTH = "pymalloc_hugepages.pth"

    def run(self):
        super().run()
        self.copy_file(self.PTH, os.path.join(self.build_lib, self.PTH))

    def get_outputs(self, include_bytecode=1):
        return [*super().get_outputs(include_bytecode),
                os.path.join(self.build_lib, self.PTH)]


setup(
    packages=["pymalloc_hugepages", "pymalloc_hugepages.tool"],
    package_dir={"pymalloc_hugepages.tool": "tool"},
    package_data={"pymalloc_hugepages": ["*.pyi", "py.typed"],
                  "pymalloc_hugepages.tool": ["hugepages.schema.json"]},
    data_files=[("share/man/man1", ["tool/pymalloc-hugepages.1"])],
    ext_modules=[Extension(
        "_pymalloc_hugepages", ["src/module.c"],
        # It includes the others.
        depends=[*glob.glob("src/*.[ch]"), *glob.glob("src/hugepages/*.[ch]"),
                 *glob.glob("src/Include/*/*hugepages.h"),
                 *glob.glob("src/Python/*hugepages.h")],
        include_dirs=["src", "src/Include", "src/Include/internal"],
        extra_compile_args=["-std=c11", "-fvisibility=hidden", "-pthread"],
        extra_link_args=["-pthread"],
        py_limited_api=True)],
    cmdclass={"build_py": BuildPy},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
