"""The patches that "make dist" writes, and what takes them."""

import email
import re
import shutil
import textwrap
import unittest

import support
from support import TOP

PATCHSET = TOP / "build-aux" / "patchset.sh"
VERSION = (TOP / "VERSION").read_text().strip()


class TakersTest(support.TemporaryDirectoryTestCase):
    """Whatever takes a patch makes the tree that "patchset.sh lay" makes."""

    def setUp(self):
        super().setUp()
        self.source = self.directory / "source"
        self.run_command(PATCHSET, "dist", self.directory / "dist")
        # What those programs want to know of the user.
        for role in "AUTHOR", "COMMITTER":
            self.environment |= {f"GIT_{role}_NAME": "somebody",
                                 f"GIT_{role}_EMAIL": "somebody@localhost"}
        self.environment["QUILTRC"] = "/dev/null"

    def check(self, take):
        """Let take(patch) change self.source, each release in turn."""
        for release, pristine in support.releases().items():
            with self.subTest(release):
                laid = self.directory / "laid"
                for directory in self.source, laid:
                    shutil.rmtree(directory, ignore_errors=True)
                support.copy_for_patchset(pristine, self.source)
                self.pristine = support.contents(self.source)
                self.run_command(PATCHSET, "lay", self.source, laid)
                self.patched = support.contents(laid)
                series = support.series_of(release)
                take(self.directory / "dist" /
                     f"pymalloc-hugepages-{VERSION}-cpython-{series}.patch")

    def run_there(self, *command, **options):
        return self.run_command(*command, cwd=self.source, **options)

    def commit(self):
        self.run_there("git", "init", "-q", ".")
        self.run_there("git", "add", "--all")
        self.run_there("git", "commit", "-q", "-m", "CPython")

    def as_cpythons_repository(self):
        """Give the files for Windows LF in the repository, CRLF outside."""
        dos = [path for path, text in self.pristine.items() if b"\r\n" in text]
        if "PCbuild/build.bat" in self.pristine:
            self.assertIn("PCbuild/build.bat", dos)
        (self.source / ".gitattributes").write_text(
            "".join(f"{path} text eol=crlf\n" for path in dos))
        self.commit()

    def check_is(self, expected):
        """self.source has these files, and those of Git and quilt."""
        files = {path: text
                 for path, text in support.contents(self.source).items()
                 if not re.match(r"\.git|\.pc/|patches/", path)}
        self.assertEqual(set(files), set(expected))
        for path, text in expected.items():
            self.assertTrue(files[path] == text, path)

    def check_patched(self):
        self.check_is(self.patched)
        script = "Tools/pymalloc_hugepages/bench_obmalloc.py"
        self.assertTrue((self.source / script).stat().st_mode & 0o100, script)

    def check_commit(self, patch):
        self.assertEqual(self.run_there("git", "status", "--porcelain"), "")
        mail = email.message_from_bytes(patch.read_bytes())
        author, date, subject, *body = self.run_there(
            "git", "log", "-1", "--format=%an <%ae>%n%aD%n%B").splitlines()
        self.assertEqual(author, mail["From"])
        self.assertEqual(date, re.sub(" 0(.) ", r" \1 ", mail["Date"]))
        self.assertEqual(f"[PATCH] {subject}", mail["Subject"])
        self.assertEqual("\n".join(body).strip(),
                         mail.get_payload().partition("\n---\n")[0])

    def test_git_am(self):
        def take(patch):
            self.commit()
            self.run_there("git", "am", "--keep-cr", patch)
            self.check_patched()
            self.check_commit(patch)
        self.check(take)

    def test_git_am_in_cpythons_repository(self):
        def take(patch):
            self.as_cpythons_repository()
            self.run_there("git", "am", patch)
            self.check_patched()
            self.check_commit(patch)
        self.check(take)

    def test_git_apply(self):
        def take(patch):
            self.assertEqual(self.run_there("git", "apply", patch), "")
            self.check_patched()
        self.check(take)

    def test_git_apply_in_cpythons_repository(self):
        def take(patch):
            self.as_cpythons_repository()
            self.assertEqual(self.run_there("git", "apply", patch), "")
            self.check_patched()
        self.check(take)

    def test_patch(self):
        def take(patch):
            # Debian's and Fedora's tools allow no fuzz.
            command = ["patch", "-p1", "--fuzz=0", "--no-backup-if-mismatch"]
            self.run_there(*command, "-i", patch)
            self.check_patched()
            self.run_there(*command, "--reverse", "-i", patch)
            self.check_is(self.pristine)
        self.check(take)

    def test_quilt(self):
        def take(patch):
            self.run_there("quilt", "import", patch)
            self.run_there("quilt", "push", "--fuzz=0")
            self.check_patched()
            self.run_there("quilt", "pop")
            self.check_is(self.pristine)
        self.check(take)


class FormTest(support.TemporaryDirectoryTestCase):

    def patch(self, **environment):
        return self.run_command(PATCHSET, "patch", **environment)

    def test_head(self):
        """The fields of a mail, which are those of DEP-3, too."""
        mail = email.message_from_string(self.patch())
        self.assertRegex(mail["From"], "^.+ <.+@.+>$")
        self.assertRegex(mail["Subject"], r"^\[PATCH\] .{1,72}$")
        self.assertRegex(mail["Bug"], "^https://")
        self.assertEqual(mail["Forwarded"], "not-needed")
        self.assertRegex(mail["Last-Update"], r"^\d{4}-\d\d-\d\d$")
        text = mail.get_payload().partition("\n---\n")[0]
        self.assertIn(f"version {VERSION} ", text)
        self.assertLessEqual(max(map(len, text.splitlines())), 76)

    def test_same_bytes(self):
        again = {"LC_ALL": "C", "TZ": "Asia/Tokyo", "GIT_DIR": "/nonexistent"}
        self.assertEqual(self.patch(**again), self.patch())

    def test_source_date_epoch(self):
        mail = email.message_from_string(self.patch(SOURCE_DATE_EPOCH="86399"))
        self.assertEqual(mail["Date"], "Thu, 01 Jan 1970 23:59:59 +0000")
        self.assertEqual(mail["Last-Update"], "1970-01-01")

    def test_what_is_laid(self):
        patch = self.patch()
        added = re.findall(r"(?m)^\+\+\+ b/(\S+)", patch)
        self.assertIn("Objects/hugepages/arena.c", added)
        self.assertEqual([path for path in added
                          if path.startswith(("Tools/pymalloc_hugepages/",
                                              "Programs/_testhugepages"))],
                         ["Tools/pymalloc_hugepages/bench_obmalloc.py"])
        # Nobody would review a longer one.
        self.assertLess(patch.count("\n"), 12_000)


class MakeTest(support.FakeTreeTestCase):
    """What make does without configure."""

    def test_help(self):
        output = self.make("help")
        self.assertNotIn("error", output)
        for option in [], ["--with-pymalloc-hugepages"]:
            self.configure(*option)
            self.assertEqual(self.make("help"), output)

    def test_needs_configure(self):
        before = support.contents(self.tree)
        for target in [], ["test"], ["help", "all"], ["distclean"]:
            with self.subTest(target):
                output = self.make(*target, status=2)
                self.assertRegex(output, r"run \./configure first")
                self.assertEqual(len(output.splitlines()), 1, output)
        self.assertEqual(support.contents(self.tree), before)

    def test_apply_and_unapply(self):
        before = support.contents(self.source)
        self.make("apply", f"CPYTHON={self.source}")
        self.assertIn("Objects/hugepages/new.c", support.contents(self.source))
        self.make("unapply", f"CPYTHON={self.source}")
        self.assertEqual(support.contents(self.source), before)
        self.assert_one_error(self.make("apply", status=2),
                              "no directory given")

    def test_dist(self):
        """One patch for each series, each with that series' own hunks."""
        self.add_older_series()
        self.know_more("3.13.100 0 Python-3.13.100.tar.xz forky python3.13")
        (self.tree / "VERSION").write_text("2.1\n")
        (self.tree / "CHANGELOG.rst").write_text(textwrap.dedent("""\
            2.1 (2030-06-07)
            ================
            2.0 (2030-01-02)
            ================
            """))
        names = ["pymalloc-hugepages-2.1-cpython-3.11.patch",
                 "pymalloc-hugepages-2.1-cpython-3.13.patch"]
        for target in "dist", "patch":
            with self.subTest(target):
                output = self.make(target)
                for name in names:
                    self.assertIn(f"build/dist/{name}\n", output)
                dist = self.tree / "build/dist"
                self.assertEqual(sorted(path.name for path in dist.iterdir()),
                                 names)
                older, newer = (email.message_from_string(
                    (dist / name).read_text()) for name in names)
                self.assertIn("\n+older hook\n", older.get_payload())
                self.assertIn("\n+hook\n", newer.get_payload())
                # No repository is here.
                self.assertEqual(newer["Last-Update"], "2030-06-07")
                shutil.rmtree(dist)


if __name__ == "__main__":
    unittest.main()
