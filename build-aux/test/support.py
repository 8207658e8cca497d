"""What the tests of this tree share."""

import functools
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import tempfile
import textwrap
import unittest

TOP = pathlib.Path(__file__).resolve().parent.parent.parent

# The build trees that "make test" has made; see run_tests.py.
UNPATCHED = pathlib.Path(os.environ.get("UNPATCHED_TREE",
                                        TOP / "build" / "unpatched"))
HUGEPAGES = pathlib.Path(os.environ.get("HUGEPAGES_TREE",
                                        TOP / "build" / "hugepages"))


def source_of(tree):
    """The source that a build tree was configured with."""
    try:
        stamp = (tree / "configured-as").read_text()
    except FileNotFoundError:
        raise unittest.SkipTest(f"{tree} is not configured: run make test")
    return pathlib.Path(stamp.partition("\n")[0])


def known_releases():
    """Those of build-aux/cpython-releases, the pinned one first."""
    table = (TOP / "build-aux/cpython-releases").read_text()
    return re.findall(r"^\d\S*", table, re.MULTILINE)


def series_of(release):
    return ".".join(release.split(".")[:2])


def known_series():
    """The series of the known releases, the pinned one first."""
    return list(dict.fromkeys(map(series_of, known_releases())))


@functools.cache
def releases():
    """The released sources by their release, the pinned one first.

    All known ones with a source here.
    """
    found = {}
    for release in known_releases():
        process = subprocess.run(
            [TOP / "build-aux/get-cpython.sh", release], text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE)
        if process.returncode == 0:
            found[release] = TOP / "build" / process.stdout.strip()
        else:
            # Not a skip, which would ask for something to be installed.
            why = process.stderr.splitlines() or ["no message"]
            print(f"NOTICE: not compared with CPython {release}: {why[-1]}")
    if not found:
        raise unittest.SkipTest("no source of any CPython release")
    return found


def patchset(*arguments):
    """The output of patchset.sh."""
    return subprocess.check_output([TOP / "build-aux/patchset.sh", *arguments],
                                   text=True)


def listed(release):
    """The lines of "patchset.sh list" for a release, split into words."""
    return [line.split() for line in patchset("list", release).splitlines()]


def patches(release):
    """Pairs of a file that the patch set changes and its patch."""
    return [words[1:] for words in listed(release) if words[0] == "patch"]


def copy_for_patchset(source, directory):
    """Copy what patchset.sh reads of a source tree."""
    release = patchset("release", source).strip()
    for path in ["Include/patchlevel.h", *dict(patches(release))]:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / path, directory / path)


def write(path, text, mode=0o644):
    """Write an indented text to a file, whose folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    path.chmod(mode)


def contents(directory):
    """What is in a directory: the text, or the link, of every file by path."""
    return {
        str(path.relative_to(directory)):
            os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in directory.rglob("*")
        if path.is_symlink() or path.is_file()
    }


class TemporaryDirectoryTestCase(unittest.TestCase):
    """A test in a directory of its own, self.directory."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name).resolve()
        # Nothing of the user's settings, caches or variables of make.
        self.environment = {
            "HOME": str(self.directory / "home"),
            "LC_ALL": "C.UTF-8",
            "PATH": os.environ["PATH"],
            "TMPDIR": str(self.directory),
        }
        (self.directory / "home").mkdir()

    def run_command(self, *command, cwd=None, status=0, **environment):
        """Run a command, expect that exit status and return its output."""
        process = subprocess.run(
            list(map(str, command)), cwd=cwd or self.directory,
            env={**self.environment, **environment}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertEqual(process.returncode, status,
                         f"{command}:\n{process.stdout}")
        return process.stdout

    def assert_one_error(self, output, *parts):
        """One line of the output is an error, and it has these parts."""
        errors = [line for line in output.splitlines() if "error:" in line]
        self.assertEqual(len(errors), 1, output)
        for part in parts:
            self.assertIn(part, errors[0])


# A CPython of a few lines.  Its configure notes its arguments, its make builds
# an interpreter that says what it was called with.
FAKE_CPYTHON = {
    "Include/patchlevel.h": """\
        #define PY_VERSION      "{release}"
        """,
    "Objects/obmalloc.c": """\
        one
        two
        three
        four
        five
        """,
    "Objects/other.c": """\
        other
        """,
    "configure.ac": """\
        not read
        """,
    "configure": """\
        #!/bin/sh
        echo run >>configure-runs
        for argument; do printf '%s\\n' "$argument"; done >configure-arguments
        echo "CFLAGS=$CFLAGS" >configure-environment
        test ! -e "$HOME/configure-fails" || exit 1
        sed "s|@source@|$(dirname "$0")|" \\
            "$(dirname "$0")/Makefile.in" >Makefile
        """,
    "Makefile.in": """\
        all: python
        \t@echo "flags: $(MAKEFLAGS)"
        python: @source@/Objects/obmalloc.c
        \t@echo building
        \t@printf '#!/bin/sh\\necho "$$0" "$$@"\\n' >python
        \t@chmod +x python
        BINDIR = $(prefix)/bin
        datarootdir = $(prefix)/share
        MANDIR = $(datarootdir)/man
        VERSION = 3.13
        INSTALL = install
        INSTALL_DATA = $(INSTALL) -m 644
        PYTHON_FOR_BUILD = python3
        install: all
        \t@mkdir -p $(DESTDIR)$(prefix)/bin
        \t@cp python $(DESTDIR)$(prefix)/bin/python3.13
        clean:
        \t@rm -f *.o
        """,
}

# The patch set for it
FAKE_SET = {
    "Objects/obmalloc.c.patch": """\
        --- a/Objects/obmalloc.c
        +++ b/Objects/obmalloc.c
        @@ -2,2 +2,3 @@
         two
        +hook
         three
        """,
    "Objects/hugepages/new.c": """\
        new
        """,
    "Tools/pymalloc_hugepages/bench_obmalloc.py": """\
        """,
    "Tools/pymalloc_hugepages/apart/bench.py": """\
        """,
}


def copy_tool(tree):
    """Copy the tool, and what installs it, to another tree."""
    directory = "Tools/pymalloc_hugepages"
    shutil.copytree(TOP / directory / "hugepages",
                    tree / directory / "hugepages",
                    ignore=shutil.ignore_patterns("test", "__pycache__"))
    for name in "hugepages.py", "pyproject.toml":
        shutil.copy2(TOP / directory / name, tree / directory)


class FakeTreeTestCase(TemporaryDirectoryTestCase):
    """A copy of this tree, self.tree, with a patch set for a CPython of a few
    lines, which is in the local cache; no network, no packages.

    Programs in self.programs come first in PATH.
    """

    release = "3.13.99"

    def setUp(self):
        super().setUp()
        self.tree = self.directory / "tree"
        self.tree.mkdir()
        for name in ("configure", "Makefile.in", "GNUmakefile", "VERSION",
                     "CHANGELOG.rst"):
            shutil.copy2(TOP / name, self.tree)
        shutil.copytree(TOP / "build-aux", self.tree / "build-aux",
                        ignore=shutil.ignore_patterns("test", "__pycache__"))
        for path, text in FAKE_SET.items():
            write(self.tree / path, text)

        self.source = self.directory / "source"
        self.make_source(self.source, self.release)
        self.archive = (self.directory
                        / "home/.cache/pymalloc-hugepages/fake.tar.xz")
        self.make_archive(self.source, self.archive)
        self.know(self.release, self.archive)

        self.programs = self.directory / "programs"
        for name in "apt-get", "curl", "wget", "python3":
            write(self.programs / name, """\
                #!/bin/sh
                echo "$0: no network" >&2
                exit 1
                """, mode=0o755)
        self.environment["PATH"] = f"{self.programs}:{os.environ['PATH']}"

    def make_source(self, directory, release):
        for path, text in FAKE_CPYTHON.items():
            text = textwrap.dedent(text)
            if "{release}" in text:
                text = text.format(release=release)
            write(directory / path, text,
                  mode=0o755 if path == "configure" else 0o644)

    def make_archive(self, directory, archive):
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "w:xz") as file:
            file.add(directory, arcname="Python-fake")

    def know(self, release, archive):
        """Let the list of releases have this one alone."""
        checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
        write(self.tree / "build-aux/cpython-releases", f"""\
            # a comment
            {release} {checksum} {archive.name} trixie fake
            """)

    def know_more(self, *lines):
        with open(self.tree / "build-aux/cpython-releases", "a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def make_release(self, release, directory):
        """List one more, which Debian does not have, and return its source and
        its archive, which are in the directory.
        """
        source = directory / f"Python-{release}"
        self.make_source(source, release)
        archive = directory / f"Python-{release}.tar.xz"
        self.make_archive(source, archive)
        checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
        self.know_more(f"{release} {checksum} {archive.name} - -")
        return source, archive

    def add_older_series(self):
        """Support 3.11, too, which has a patch of its own."""
        write(self.tree / "Objects/obmalloc.c.3.11.patch", """\
            --- a/Objects/obmalloc.c
            +++ b/Objects/obmalloc.c
            @@ -3,2 +3,3 @@
             three
            +older hook
             four
            """)
        self.know_more("3.11.2 0 Python-3.11.2.tar.xz bookworm python3.11")

    def configure(self, *options, status=0, **environment):
        return self.run_command("./configure", "--disable-package-check",
                                *options, cwd=self.tree, status=status,
                                **environment)

    def make(self, *arguments, status=0, **environment):
        return self.run_command("make", *arguments, cwd=self.tree,
                                status=status, **environment)
