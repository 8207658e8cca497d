"""The patch set, and what lays it on a source tree."""

import re
import shutil
import unittest

import support
from support import TOP

PATCHSET = TOP / "build-aux" / "patchset.sh"


PINNED = support.known_releases()[0]

# What a function was called in older series, and what it is called since.
RENAMED = [
    ("Py_FinalizeEx(void)", "_Py_Finalize(_PyRuntimeState *runtime)"),
    ("_PyObject_DebugMallocStats(FILE *out)",
     "pymalloc_print_stats(FILE *out)"),
    ("_usage()", "_usage(void)"),
]


def patches_of_all():
    """The same pairs as support.patches(), of every series."""
    return sorted({tuple(pair) for series in support.known_series()
                   for pair in support.patches(series)})


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
        self.assertTrue(patches_of_all())
        for path, file in patches_of_all():
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
        that it is for the lines of the file that it changes.
        """
        used = {release: support.patches(release)
                for release in support.releases()}
        for path, file in patches_of_all():
            texts = {release: (source / path).read_bytes().split(b"\n")
                     for release, source in support.releases().items()
                     if [path, file] in used[release]}
            for hunk in hunks_of(file):
                yield file, hunk, texts

    def test_each_hunk_has_one_place(self):
        blind = set()
        for file, hunk, texts in self.each_hunk():
            if not texts:
                blind.add(file)
            with self.subTest(file, hunk=hunk.number):
                self.assertEqual({release: places(hunk.old, text)
                                  for release, text in texts.items()},
                                 dict.fromkeys(texts, 1),
                                 "its places in each release: it needs "
                                 "another context, or more")
        if blind:
            print(f"NOTICE: {len(blind)} patches not tested: there is no "
                  f"source for {', '.join(sorted(blind))}")

    def test_no_hunk_has_more_context_than_it_needs(self):
        """What it does not carry cannot keep it from fitting a release."""
        # Nobody has had the source of those: they are no reason for context.
        untried = re.findall(r"(?m)^untried +(\S+)",
                             (TOP / "build-aux/cpython-releases").read_text())
        missing = (set(support.known_releases()) - set(support.releases())
                   - set(untried))
        unjudged = {file for release in missing
                    for _, file in support.patches(release)}
        if missing:
            print(f"NOTICE: {len(unjudged)} patches not tested for too much "
                  "context: a hunk may need it for CPython "
                  f"{' or '.join(sorted(missing))}")
        for file, hunk, texts in self.each_hunk():
            if not texts or file in unjudged:
                continue
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
        files = {words[-1] for series in support.known_series()
                 for words in support.listed(series)}
        self.assertIn("Objects/hugepages/arena.c", files)
        for path in files:
            self.assertNotIn("__pycache__", path)
            self.assertTrue((TOP / path).is_file(), path)
        # A variant is for some series, or says by being empty that there is
        # nothing to change.
        for path in TOP.rglob("*.patch"):
            file = str(path.relative_to(TOP))
            if path.stat().st_size and not file.startswith("build/"):
                self.assertIn(file, files)


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
        self.listed = support.listed(
            support.patchset("release", self.source).strip())

    def patchset(self, *arguments, status=0):
        return self.run_command(PATCHSET, *arguments, status=status)

    def check_applied(self):
        after = support.contents(self.source)
        for kind, path, *_ in self.listed:
            if kind == "new":
                self.assertEqual(after[path], (TOP / path).read_bytes(), path)
            else:
                self.assertNotEqual(after[path], self.before[path], path)
        self.assertEqual(set(after) - set(self.before),
                         {path for kind, path, *_ in self.listed
                          if kind == "new"})

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
            for path, file in support.patches(release):
                # It names the function of each change, after its place.
                difference = self.run_command(
                    "git", "-c", f"core.attributesFile={attributes}", "diff",
                    "--no-index", "-U0", self.source / path, patched / path,
                    status=1).splitlines()
                hunks = [re.sub(r"^@@ \S+ \S+ @@", "@@", line)
                         for line in difference[4:]]
                for names in RENAMED:
                    hunks = [line.replace(*names) for line in hunks]
                if path.startswith("Doc/"):
                    # What is named there is the last line of text that is not
                    # indented, whichever that is.
                    hunks = [line for line in hunks if line[:2] != "@@"]
                # Of other files it names some line before, which may be
                # another in another series.
                code = path.endswith((".c", ".h", ".py"))
                key = file, None if code else support.series_of(release)
                changes.setdefault(key, {})[release] = hunks
        embed = changes["Lib/test/test_embed.py.patch", None]
        self.assertIn("@@ def check_all_configs(self, testname, "
                      "expected_config=None,", embed[PINNED])
        for (file, _), hunks in changes.items():
            with self.subTest(file):
                first, *others = hunks.values()
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
        patches = [words[1:] for words in self.listed if words[0] == "patch"]
        for command, some in [("apply", patches), ("lay", patches[::6]),
                              ("unapply", patches[::6])]:
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
                    to = ([self.directory / "patched"] if command == "lay"
                          else [])
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
        for kind, path, *_ in self.listed:
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
        level.write_text(
            re.sub(r'"3\.13\.\d+"', '"3.10.4"', level.read_text()))
        for command in "apply", "unapply":
            with self.subTest(command):
                output = self.patchset(command, self.source, status=1)
                self.assert_one_error(output, "3.10.4 is not supported",
                                      "3.13")
                output = self.patchset(command, "/", status=1)
                self.assert_one_error(output, "not a CPython source tree")
                output = self.patchset(command, "nowhere", status=1)
                self.assert_one_error(output, "nowhere: no such directory")
                output = self.patchset(command, "", status=1)
                self.assert_one_error(output, "no directory given")


class RivalTest(support.TemporaryDirectoryTestCase):
    """A patch for a build that the benchmark compares with."""

    def test_fits(self):
        patch = (TOP / "Tools/pymalloc_hugepages/bench/rivals"
                 / "unaligned-2mib.diff")
        pristine = support.source_of(support.UNPATCHED)
        for path in re.findall(r"(?m)^--- a/(.+)", patch.read_text()):
            (self.directory / path).parent.mkdir(parents=True)
            shutil.copy2(pristine / path, self.directory / path)
        before = support.contents(self.directory)
        self.run_command("git", "apply", patch, GIT_DIR="/dev/null")
        after = support.contents(self.directory)
        for path, text in before.items():
            self.assertNotEqual(after[path], text, path)


class SeriesTest(support.FakeTreeTestCase):
    """A series' own patch stands in for the plain one, which is for 3.13."""

    def know_series(self, *releases):
        """Let these releases be known, beside the pinned one."""
        self.know_more(*(f"{release} 0 Python-{release}.tar.xz - -"
                         for release in releases))

    def make_variant(self, series, line):
        """Let the patch of that series add the line to obmalloc.c."""
        support.write(self.tree / f"Objects/obmalloc.c.{series}.patch", f"""\
            --- a/Objects/obmalloc.c
            +++ b/Objects/obmalloc.c
            @@ -3,2 +3,3 @@
             three
            +{line}
             four
            """)

    def patchset(self, *arguments, status=0):
        return self.run_command(self.tree / "build-aux/patchset.sh",
                                *arguments, status=status)

    def patches(self, release):
        return re.findall(r"(?m)^patch \S+ (\S+)$",
                          self.patchset("list", release))

    def there_and_back(self, release):
        """What apply changes in a source tree of that release: its files."""
        source = self.directory / release
        self.make_source(source, release)
        before = support.contents(source)
        laid = self.directory / f"{release}-laid"
        self.patchset("lay", source, laid)
        self.patchset("apply", source)
        applied = support.contents(source)
        self.assertEqual(support.contents(laid), applied)
        self.assertIn("applied already", self.patchset("apply", source))
        self.patchset("unapply", source)
        self.assertEqual(support.contents(source), before)
        return {path: text for path, text in applied.items()
                if before.get(path) != text}

    def check_refused(self, release, *parts, source=None):
        """No command takes that release; each says why in one line."""
        if source is None:
            source = self.directory / f"refused-{release}"
            self.make_source(source, release)
        before = support.contents(self.directory)
        for command in (["apply", source], ["unapply", source],
                        ["release", source],
                        ["lay", source, self.directory / "laid"],
                        ["list", release], ["patch", release]):
            with self.subTest(release, command=command[0]):
                output = self.patchset(*command, status=1)
                self.assert_one_error(output, release, *parts)
                self.assertEqual(len(output.splitlines()), 1, output)
                self.assertEqual(support.contents(self.directory), before)

    def test_list(self):
        """Of the variants on its side of the pinned series, the nearest."""
        # Neither sorted, nor by the alphabet: 3.9 is older than 3.10.
        known = {"3.16.2": "3.16", "3.8.9": "3.9", "3.9.1": "3.9",
                 "3.10.0": "3.11", "3.11.2": "3.11", "3.12.4": None,
                 "3.13.99": None, "3.14.7": None, "3.15.0": "3.15",
                 "3.100.1": "3.16"}
        self.know_series(*known)
        for series in {*known.values()} - {None}:
            self.make_variant(series, f"hook of {series}")
        for release, series in known.items():
            file = f"Objects/obmalloc.c{f'.{series}' if series else ''}.patch"
            for name in release, support.series_of(release):
                with self.subTest(name):
                    listed = self.patchset("list", name).splitlines()
                    self.assertEqual(listed, [
                        "new Objects/hugepages/new.c",
                        f"patch Objects/obmalloc.c {file}",
                        "new Tools/pymalloc_hugepages/bench_obmalloc.py",
                    ])

    def test_apply(self):
        self.know_series("3.11.2", "3.14.7", "3.15.0")
        self.make_variant("3.11", "older hook")
        self.make_variant("3.14", "newer hook")
        for release, line in [(self.release, b"hook"),
                              ("3.11.2", b"older hook"),
                              ("3.14.7", b"newer hook"),
                              ("3.14.8", b"newer hook"),
                              ("3.15.0", b"newer hook")]:
            with self.subTest(release):
                changed = self.there_and_back(release)
                self.assertEqual(set(changed), {
                    "Objects/hugepages/new.c", "Objects/obmalloc.c",
                    "Tools/pymalloc_hugepages/bench_obmalloc.py"})
                self.assertIn(line, changed["Objects/obmalloc.c"].splitlines())

    def test_empty_variant(self):
        """Nothing to change, from there on."""
        self.know_series("3.14.7", "3.15.0", "3.16.0")
        (self.tree / "Objects/obmalloc.c.3.14.patch").touch()
        self.make_variant("3.16", "hook again")
        self.assertEqual(self.patches("3.13"), ["Objects/obmalloc.c.patch"])
        self.assertEqual(self.patches("3.16"),
                         ["Objects/obmalloc.c.3.16.patch"])
        for release in "3.14.7", "3.15.0":
            self.assertEqual(self.patches(release), [])
            self.assertNotIn("Objects/obmalloc.c",
                             self.there_and_back(release))
            self.assertNotIn("obmalloc.c", self.patchset("patch", release))

    def test_variant_without_a_plain_one(self):
        """A file that only newer series have."""
        self.know_series("3.14.7")
        support.write(self.tree / "Objects/other.c.3.14.patch", """\
            --- a/Objects/other.c
            +++ b/Objects/other.c
            @@ -1 +1,2 @@
             other
            +new
            """)
        self.assertNotIn("Objects/other.c", self.there_and_back(self.release))
        self.assertEqual(self.there_and_back("3.14.7")["Objects/other.c"],
                         b"other\nnew\n")

    def test_unknown_series(self):
        self.know_series("3.14.7")
        for release in "3.12.4", "3.15.0a1", "2.7.18", "4.0.0", "3.1.3":
            self.check_refused(release, "is not supported",
                               "the patch set is for 3.13 and 3.14")

    def test_refused_releases(self):
        self.know_series("3.14.7", "3.15.7")
        self.know_more("refused  3.14.0  3.14.4  have another engine")
        for release in "3.14.0", "3.14.0rc1", "3.14.2", "3.14.4", "3.14.4+":
            self.check_refused(release, "is not supported: "
                               "3.14.0 to 3.14.4 have another engine")
        for release in "3.14.5", "3.14.5rc1", "3.14.10", "3.15.1", "3.13.1":
            with self.subTest(release):
                self.there_and_back(release)
        # A series is not its first release.
        self.assertEqual(self.patches("3.14"), ["Objects/obmalloc.c.patch"])

    def test_untried_series(self):
        """It is said where a patch leaves this tree."""
        self.know_series("3.14.7", "3.14.8", "3.15.0")
        self.know_more("untried  3.14.8", "untried  3.15.0")
        warning = ("obody has built or tested it with CPython 3.15 yet: "
                   "see docs/cpython-3.15.rst")
        for release in "3.14.8", "3.15.0", "3.15.2":
            source = self.directory / release
            self.make_source(source, release)
            for output in (self.patchset("apply", source),
                           self.patchset("patch", release)):
                self.assertEqual(warning in output, "3.15" in release, output)
        # The first one that was tried is enough.
        self.know_series("3.15.3")
        self.assertNotIn(warning, self.patchset("patch", "3.15.0"))

    def test_unknown_release(self):
        """A tree that does not say which one it is."""
        (self.source / "Include/patchlevel.h").write_text("nothing\n")
        before = support.contents(self.directory)
        for command in "apply", "unapply", "release":
            output = self.patchset(command, self.source, status=1)
            self.assert_one_error(output, "unknown release is not supported")
            self.assertEqual(support.contents(self.directory), before)

    def test_local_changes(self):
        """The hook's place has another text."""
        self.know_series("3.14.7")
        self.make_variant("3.14", "newer hook")
        source = self.directory / "mine"
        self.make_source(source, "3.14.7")
        (source / "Objects/obmalloc.c").write_text("three\nmine\nfour\n")
        before = support.contents(self.directory)
        for command in (["apply", source],
                        ["lay", source, self.directory / "laid"]):
            output = self.patchset(*command, status=1)
            self.assert_one_error(output, "nothing was changed",
                                  "Objects/obmalloc.c")
            self.assertEqual(len(output.splitlines()), 1, output)
            self.assertEqual(support.contents(self.directory), before)


if __name__ == "__main__":
    unittest.main()
