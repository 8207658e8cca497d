"""The C library's own settings for large buffers: `run --malloc`.

Blocks above pymalloc's limit come from malloc().  glibc may give large ones
back to the kernel as soon as they are freed, and a server that takes a buffer
for each message pays for fresh pages each time.  With these tunables it cuts
them from its heaps, and keeps some memory at a heap's end.  docs/malloc.rst
tells more.
"""

import dataclasses
import os
import typing

from . import ToolError


# Where glibc takes tunables from, and its first version that does.
TUNABLES = "GLIBC_TUNABLES"
FIRST_VERSION = (2, 26)

# The recipe, in bytes.  glibc cuts blocks of up to 32 MiB from a heap.  Its
# own threshold can grow that far, but no longer does once one is set: with
# less, loops over larger blocks would be slower than without.  Each heap keeps
# up to 8 MiB at its end; threads have up to 8 heaps for each processor.
RECIPE = {
    "glibc.malloc.mmap_threshold": "33554432",
    "glibc.malloc.trim_threshold": "8388608",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is set for a command, and what is not."""

    # Name and version: "glibc 2.36".
    libc: str
    # Variables of the environment to set.
    variables: typing.Dict[str, str]
    # By tunable: what is set, and what the user had set.
    set: typing.Dict[str, str]
    kept: typing.Dict[str, str]

    def as_dict(self):
        """As plain JSON types."""
        return dataclasses.asdict(self)

    def as_line(self):
        """As one line of text."""
        line = "malloc: set " + (f"{TUNABLES}={self.variables[TUNABLES]}"
                                 if self.variables else "nothing")
        if self.kept:
            line += f"; you have set {_as_text(self.kept)}"
        return line


def glibc_version():
    """Version of the glibc that runs this tool, as (2, 36); None if the C
    library is another one."""
    try:
        name, _, version = os.confstr("CS_GNU_LIBC_VERSION").partition(" ")
        major, minor = version.split(".")[:2]
        return (int(major), int(minor)) if name == "glibc" else None
    except (AttributeError, ValueError, OSError):
        return None


def settings(environment, version):
    """Settings for a command that gets this environment, on a version of glibc
    as glibc_version() has it.  Raise ToolError if that lacks the tunable."""
    libc = "glibc %d.%d" % version if version else "another C library"
    if version is None or version < FIRST_VERSION:
        raise ToolError("run --malloc: this needs glibc 2.26 or later, and "
                        f"here is {libc}; leave --malloc out")
    parts = [part for part in environment.get(TUNABLES, "").split(":") if part]
    # The last one of a name wins.
    users = dict(part.partition("=")[::2] for part in parts)
    kept = {name: users[name] for name in RECIPE if name in users}
    ours = {name: value for name, value in RECIPE.items() if name not in users}
    variables = {}
    if ours:
        variables[TUNABLES] = ":".join(parts + [_as_text(ours)])
    return Settings(libc, variables, ours, kept)


def _as_text(tunables):
    return ":".join(f"{name}={value}" for name, value in tunables.items())


def as_text():
    """The recipe as a value of GLIBC_TUNABLES."""
    return _as_text(RECIPE)
