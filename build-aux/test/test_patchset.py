"""The patch set, and what lays it on a source tree."""

import re
import shutil
import subprocess
import unittest

import support
from support import TOP

PATCHSET = TOP / "build-aux" / "patchset.sh"


def listed():
    """The lines of "patchset.sh list", split into words."""
    output = subprocess.check_output([PATCHSET, "list"], text=True)
    return [line.split() for line in output.splitlines()]


def patches():
    """Pairs of a file that the patch set changes and its patch."""
    return [(path, *file) for kind, path, *file in listed() if kind == "patch"]


class Hunk:
    """A part of a patch: its number, its lines and what they say.

    old and new are the lines that it takes away and puts in their place,
    context those before and after what changes.  All are bytes: some of
    CPython's files for Windows have CRLF.
    """

    def __init__(self, number, lines):
        self.number = number
        self.lines = lines
        self.old = [line[1:] for line in lines if line[:1] in (b" ", b"-")]
        self.new = [line[1:] for line in lines if line[:1] in (b" ", b"+")]
        changes = [number for number, line in enumerate(lines)
                   if line[:1] != b" "]
        self.context = changes[0], len(lines) - 1 - changes[-1]


def hunks_of(file):
    """The hunks of a patch file."""
    parts = re.split(rb"(?m)^@@ .*\n", (TOP / file).read_bytes())[1:]
    return [Hunk(number, part.split(b"\n")[:-1])
            for number, part in enumerate(parts, 1)]


def places(lines, text):
    """How often the lines stand in the text, which is a list of lines."""
    return sum(text[start:start + len(lines)] == lines
               for start, line in enumerate(text) if line == lines[0])


class PatchesTest(unittest.TestCase):
    """The form of the *.patch files."""

    def test_form(self):
        self.assertTrue(patches())
        for path, file in patches():
            with self.subTest(file):
                lines = (TOP / file).read_bytes().decode().split("\n")
                self.assertEqual(lines[0], f"--- a/{path}")
                self.assertEqual(lines[1], f"+++ b/{path}")
                for number, line in enumerate(lines[2:-1], 3):
                    if line.startswith("@@"):
                        self.assertRegex(
                            line, r"^@@ -\d+(,\d+)? \+\d+(,\d+)? @@$")
                    else:
                        self.assertRegex(line, r"^[-+ \\]", f"line {number}")
                for hunk in hunks_of(file):
                    # For git apply, a hunk with no line before or after what
                    # changes is one of the file's begin or end.
                    self.assertGreaterEqual(min(hunk.context), 1,
                                            f"hunk {hunk.number}")
                    # For GNU patch without fuzz, one with less after than
                    # before is one of the end.
                    self.assertLessEqual(*hunk.context, f"hunk {hunk.number}")

    def each_hunk(self):
        """Yield each patch file with each of its hunks, and for each release
        the lines of the file that it changes.
        """
        for path, file in patches():
            texts = {release: (source / path).read_bytes().split(b"\n")
                     for release, source in support.releases().items()}
            for hunk in hunks_of(file):
                yield file, hunk, texts

    def test_each_hunk_has_one_place(self):
        for file, hunk, texts in self.each_hunk():
            with self.subTest(file, hunk=hunk.number):
                self.assertEqual({release: places(hunk.old, text)
                                  for release, text in texts.items()},
                                 dict.fromkeys(texts, 1),
                                 "its places in each release: it needs another "
                                 "context, or more")

    def test_no_hunk_has_more_context_than_it_needs(self):
        """What it does not carry cannot keep it from fitting a release."""
        table = (TOP / "build-aux/cpython-releases").read_text()
        if len(support.releases()) < len(re.findall("(?m)^[0-9]", table)):
            print("NOTICE: not tested whether hunks have too much context: one "
                  "may need it for a release that is not here")
            return
        for file, hunk, texts in self.each_hunk():
            before, after = hunk.context
            # The least that test_form allows
            for end, count, least, less in [
                ("first", before, 1, hunk.old[1:]),
                ("last", after, before, hunk.old[:-1]),
            ]:
                if count > least:
                    with self.subTest(file, hunk=hunk.number, line=end):
                        self.assertTrue(
                            any(places(less, text) > 1
                                for text in texts.values()),
                            "without that line it has one place, too")

    def test_every_patch_has_its_place(self):
        """Nothing in CPython's folders is overlooked."""
        files = {file for kind, path, *file in listed() for file in file or [path]}
        self.assertIn("Objects/hugepages/arena.c", files)
        for path in files:
            self.assertNotIn("__pycache__", path)
            self.assertTrue((TOP / path).is_file(), path)


class CPythonTest(support.TemporaryDirectoryTestCase):
    """The patch set on CPython's files."""

    def setUp(self):
        super().setUp()
        self.source = self.directory / "source"
        self.take(support.source_of(support.UNPATCHED))

    def take(self, pristine):
        """Let self.source be what the patch set needs of a source tree."""
        shutil.rmtree(self.source, ignore_errors=True)
        support.copy_for_patchset(pristine, self.source)
        self.before = support.contents(self.source)

    def patchset(self, *arguments, status=0):
        return self.run_command(PATCHSET, *arguments, status=status)

    def check_applied(self):
        after = support.contents(self.source)
        for kind, path, *_ in listed():
            if kind == "new":
                self.assertEqual(after[path], (TOP / path).read_bytes(), path)
            else:
                self.assertNotEqual(after[path], self.before[path], path)
        self.assertEqual(set(after) - set(self.before),
                         {path for kind, path, *_ in listed() if kind == "new"})

    def test_there_and_back(self):
        for release, pristine in support.releases().items():
            with self.subTest(release):
                self.take(pristine)
                self.check_there_and_back()

    def check_there_and_back(self):
        self.patchset("apply", self.source)
        self.check_applied()
        applied = support.contents(self.source)
        self.assertIn("applied already", self.patchset("apply", self.source))
        self.assertEqual(support.contents(self.source), applied)

        self.patchset("unapply", self.source)
        self.assertEqual(support.contents(self.source), self.before)
        self.assertIn("not applied", self.patchset("unapply", self.source))
        self.assertEqual(support.contents(self.source), self.before)

    def test_same_functions_in_each_release(self):
        """A hunk that fits may still have landed in another function."""
        attributes = self.directory / "attributes"
        attributes.write_text("*.[ch] diff=cpp\n*.py diff=python\n")
        changes = {}
        for release, pristine in support.releases().items():
            self.take(pristine)
            patched = self.directory / "patched"
            shutil.rmtree(patched, ignore_errors=True)
            self.patchset("lay", self.source, patched)
            changes[release] = []
            for path, file in patches():
                # It names the function of each change, after its place.
                difference = self.run_command(
                    "git", "-c", f"core.attributesFile={attributes}", "diff",
                    "--no-index", "-U0", self.source / path, patched / path,
                    status=1).splitlines()
                hunks = [re.sub(r"^@@ \S+ \S+ @@", "@@", line)
                         for line in difference[4:]]
                if path.startswith("Doc/"):
                    # What is named there is the last line of text that is not
                    # indented, whichever that is.
                    hunks = [line for line in hunks if line[:2] != "@@"]
                changes[release] += [path, *hunks]
        first, *others = changes.values()
        self.assertIn("@@ class InitConfigTests(EmbeddingTestsMixin, "
                      "unittest.TestCase):", first)
        for other in others:
            self.assertEqual(other, first)

    def check_refused(self, command, *trees, parts):
        before = support.contents(self.directory)
        output = self.patchset(command, *trees, status=1)
        self.assert_one_error(output, "nothing was changed", *parts)
        self.assertEqual(len(output.splitlines()), 1, output)
        self.assertEqual(support.contents(self.directory), before)

    def test_second_place(self):
        """Git would take one of them without a word."""
        # Of lay and unapply a sample: each call takes a while.
        for command, some in [("apply", patches()), ("lay", patches()[::6]),
                              ("unapply", patches()[::6])]:
            for path, file in some:
                hunk = hunks_of(file)[-1]
                lines = hunk.old
                if command == "unapply":
                    self.patchset("apply", self.source)
                    lines = hunk.new
                with self.subTest(command, file=file):
                    original = (self.source / path).read_bytes()
                    (self.source / path).write_bytes(
                        original + b"\n" + b"\n".join(lines) + b"\n")
                    to = [self.directory / "patched"] if command == "lay" else []
                    self.check_refused(
                        command, self.source, *to,
                        parts=[f"hunk {hunk.number} of {file} fits 2 places "
                               f"of {path}"])
                    (self.source / path).write_bytes(original)

    def test_inside_another_repository(self):
        # git apply leaves out files that do not belong to the repository that
        # it finds, and says nothing.
        self.run_command("git", "init", "-q", ".")
        self.patchset("apply", self.source)
        self.check_applied()
        self.patchset("unapply", self.source)
        self.assertEqual(support.contents(self.source), self.before)

    def test_repository_with_settings(self):
        self.run_command("git", "init", "-q", ".", cwd=self.source)
        for key, value in [("apply.whitespace", "error"),
                           ("diff.noprefix", "true"),
                           ("core.autocrlf", "input")]:
            self.run_command("git", "config", key, value, cwd=self.source)
        self.patchset("apply", self.source)
        shutil.rmtree(self.source / ".git")
        self.check_applied()

    def test_a_hunk_fails(self):
        """Nothing is changed, whichever patch is the one."""
        for kind, path, *_ in listed():
            if kind != "patch":
                continue
            with self.subTest(path):
                file = self.source / path
                original = file.read_bytes()
                file.write_bytes(b"another text\n")
                before = support.contents(self.source)
                output = self.patchset("apply", self.source, status=1)
                self.assert_one_error(output, "nothing was changed", path)
                self.assertEqual(support.contents(self.source), before)
                file.write_bytes(original)

    def test_a_new_file_is_there_already(self):
        support.write(self.source / "Objects/hugepages/arena.c", "mine\n")
        before = support.contents(self.source)
        output = self.patchset("apply", self.source, status=1)
        self.assert_one_error(output, "nothing was changed",
                              "Objects/hugepages/arena.c")
        self.assertEqual(support.contents(self.source), before)

    def test_unapply_of_an_edited_file(self):
        self.patchset("apply", self.source)
        file = self.source / "Objects/hugepages/arena.c"
        file.write_text(file.read_text() + "/* mine */\n")
        before = support.contents(self.source)
        output = self.patchset("unapply", self.source, status=1)
        self.assert_one_error(output, "nothing was changed",
                              "Objects/hugepages/arena.c")
        self.assertEqual(support.contents(self.source), before)

    def test_refused(self):
        level = self.source / "Include/patchlevel.h"
        level.write_text(re.sub(r'"3\.13\.\d+"', '"3.12.4"', level.read_text()))
        for command in "apply", "unapply":
            with self.subTest(command):
                output = self.patchset(command, self.source, status=1)
                self.assert_one_error(output, "3.12.4 is not supported", "3.13")
                output = self.patchset(command, "/", status=1)
                self.assert_one_error(output, "not a CPython source tree")
                output = self.patchset(command, "nowhere", status=1)
                self.assert_one_error(output, "nowhere: no such directory")
                output = self.patchset(command, "", status=1)
                self.assert_one_error(output, "no directory given")


class ReleaseTest(support.FakeTreeTestCase):
    """A release's own patch stands in for the plain one."""

    def setUp(self):
        super().setUp()
        self.add_older_series()

    def test_list(self):
        for release, file in [("3.13.99", "Objects/obmalloc.c.patch"),
                              ("3.11.2", "Objects/obmalloc.c.3.11.patch")]:
            with self.subTest(release):
                output = self.run_command(self.tree / "build-aux/patchset.sh",
                                          "list", release)
                self.assertEqual(output.splitlines(), [
                    "new Objects/hugepages/new.c",
                    f"patch Objects/obmalloc.c {file}",
                    "new Tools/pymalloc_hugepages/bench_obmalloc.py",
                ])

    def test_apply(self):
        old = self.directory / "old"
        self.make_source(old, "3.11.2")
        for source, line in (self.source, "hook"), (old, "older hook"):
            with self.subTest(line):
                self.run_command(self.tree / "build-aux/patchset.sh", "apply",
                                 source)
                self.assertIn(
                    line,
                    (source / "Objects/obmalloc.c").read_text().splitlines())


if __name__ == "__main__":
    unittest.main()
