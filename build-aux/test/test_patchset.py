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


class PatchesTest(unittest.TestCase):
    """The form of the *.patch files."""

    def test_form(self):
        patches = [(path, file) for kind, path, *file in listed()
                   if kind == "patch"]
        self.assertTrue(patches)
        for path, [file] in patches:
            with self.subTest(file):
                # Some of CPython's files for Windows have CRLF.
                lines = (TOP / file).read_bytes().decode().split("\n")
                self.assertEqual(lines[0], f"--- a/{path}")
                self.assertEqual(lines[1], f"+++ b/{path}")
                context = 0
                for number, line in enumerate(lines[2:-1], 3):
                    if line.startswith(" "):
                        context += 1
                        self.assertLessEqual(
                            context, 1, f"line {number}: more than one line "
                            "of context")
                    elif line.startswith("@@"):
                        context = 0
                        self.assertRegex(
                            line, r"^@@ -\d+(,\d+)? \+\d+(,\d+)? @@$")
                    else:
                        context = 0
                        self.assertRegex(line, r"^[-+\\]", f"line {number}")

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
        pristine = support.source_of(support.UNPATCHED)
        self.source = self.directory / "source"
        for path in ["Include/patchlevel.h",
                     *(path for kind, path, *_ in listed() if kind == "patch")]:
            (self.source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(pristine / path, self.source / path)
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
        self.patchset("apply", self.source)
        self.check_applied()
        applied = support.contents(self.source)
        self.assertIn("applied already", self.patchset("apply", self.source))
        self.assertEqual(support.contents(self.source), applied)

        self.patchset("unapply", self.source)
        self.assertEqual(support.contents(self.source), self.before)
        self.assertIn("not applied", self.patchset("unapply", self.source))
        self.assertEqual(support.contents(self.source), self.before)

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

    def test_git_apply_takes_the_patch(self):
        patch = self.directory / "one.patch"
        patch.write_bytes(subprocess.check_output([PATCHSET, "patch"]))
        self.run_command("git", "init", "-q", ".", cwd=self.source)
        self.run_command("git", "apply", patch, cwd=self.source)
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
        support.write(self.tree / "Objects/obmalloc.c.3.11.patch", """\
            --- a/Objects/obmalloc.c
            +++ b/Objects/obmalloc.c
            @@ -3,2 +3,3 @@
             three
            +older hook
             four
            """)
        with open(self.tree / "build-aux/cpython-releases", "a") as file:
            file.write("3.11.2 0 Python-3.11.2.tar.xz bookworm python3.11\n")

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
