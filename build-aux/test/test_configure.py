"""configure and make of this tree, with a CPython of a few lines."""

import hashlib
import os
import pathlib
import shutil
import sys
import unittest

import support


class ErrorTest(support.FakeTreeTestCase):
    """One clear line, and nothing left that a second run would trust."""

    def check(self, *options, parts, **environment):
        # Twice: the second run must not find what the first one left.
        for _ in range(2):
            output = self.configure(*options, status=1, **environment)
            self.assert_one_error(output, *parts)
            self.assertFalse((self.tree / "Makefile").exists())
            trusted = [path.name for path in self.tree.glob("build/*")
                       if (path / "Include").exists()
                       and not path.name.endswith(".tmp")]
            self.assertEqual(trusted, [])

    def test_unknown_release(self):
        self.check("--with-cpython=3.9.1", parts=["3.9.1", self.release])

    def test_unknown_release_of_a_series(self):
        self.check("--with-cpython=3.13.9", parts=["3.13.9 is", self.release])

    def test_unknown_series(self):
        self.check("--with-cpython=3.12", parts=[
            "3.12 is not supported: the patch set is for 3.13", self.release])

    def test_refused_release(self):
        self.know_more("refused  3.13.2  3.13.4  have another engine")
        self.check("--with-cpython=3.13.3", parts=[
            "3.13.3 is not supported", "3.13.2 to 3.13.4 have another engine",
            self.release])

    def test_another_release_in_the_folder_of_sources(self):
        sources = self.directory / "sources"
        self.make_source(sources / f"cpython-{self.release}", "3.13.98")
        self.check(parts=[f"{sources}/cpython-{self.release}", "3.13.98"],
                   CPYTHON_SOURCES=str(sources))

    def test_no_source_in_reach(self):
        self.make_release("3.14.7", self.directory / "sources")
        self.check("--with-cpython=3.14.7",
                   parts=["3.14.7", "python.org could not be reached",
                          "Python-3.14.7.tar.xz", "--with-cpython=FILE"])

    def test_no_such_path(self):
        self.check("--with-cpython=nowhere", parts=["nowhere"])

    def test_no_value(self):
        self.check("--with-cpython", parts=["--with-cpython needs a value"])

    def test_directory_is_no_cpython(self):
        empty = self.directory / "empty"
        empty.mkdir()
        self.check(f"--with-cpython={empty}",
                   parts=[str(empty), "not a CPython source tree"])

    def test_directory_of_another_release(self):
        other = self.directory / "other"
        self.make_source(other, "3.12.1")
        self.check(f"--with-cpython={other}",
                   parts=[str(other), "3.12.1 is not supported", "3.13"])

    def test_tarball_is_none(self):
        file = self.directory / "file.tar.xz"
        file.write_text("no archive")
        self.check(f"--with-cpython={file}",
                   parts=[str(file), "cannot be unpacked"])

    def test_tarball_is_cut_short(self):
        file = self.directory / "file.tar.xz"
        file.write_bytes(self.archive.read_bytes()[:-40])
        self.check(f"--with-cpython={file}",
                   parts=[str(file), "cannot be unpacked"])

    def test_tarball_of_something_else(self):
        other = self.directory / "other"
        support.write(other / "README", "something else\n")
        file = self.directory / "other.tar.xz"
        self.make_archive(other, file)
        self.check(f"--with-cpython={file}",
                   parts=[str(file), "not a CPython source tree"])

    def test_no_network(self):
        self.archive.unlink()
        self.check(parts=["check the network", self.archive.name,
                          "--with-cpython"])

    def test_debian_has_gone_on(self):
        self.archive.unlink()
        support.write(self.programs / "apt-get", """\
            #!/bin/sh
            case "$*" in
            indextargets*Label*) echo http://mirror.invalid/debian ;;
            *source*) echo "a newer one" >fake_3.13.100.orig.tar.xz ;;
            esac
            """, mode=0o755)
        self.check(parts=["Debian's trixie has 3.13.100 instead",
                          self.archive.name, "--with-cpython=FILE"])

    def test_wrong_checksum_in_the_cache(self):
        self.archive.write_bytes(b"something else")
        self.check(parts=["wrong SHA-256", self.archive.name])

    def test_wrong_checksum_of_the_download(self):
        self.archive.unlink()
        support.write(self.programs / "curl", """\
            #!/bin/sh
            while test "$1" != -o; do shift; done
            echo "something else" >"$2"
            """, mode=0o755)
        self.check(parts=["wrong SHA-256", self.archive.name])
        self.assertEqual(list(self.tree.glob("build/downloads/*")), [])

    def test_patch_does_not_apply(self):
        patch = self.tree / "Objects/obmalloc.c.patch"
        patch.write_text(patch.read_text().replace("three", "thirteen"))
        for _ in range(2):
            output = self.configure(status=1)
            self.assert_one_error(output, "does not fit", "Objects/obmalloc.c",
                                  self.release)
            self.assertEqual(list(self.tree.glob("build/*patched*")), [])
            self.assertFalse((self.tree / "Makefile").exists())

    def test_patch_fits_two_places(self):
        source = self.source / "Objects/obmalloc.c"
        source.write_text(source.read_text() * 2)
        self.make_archive(self.source, self.archive)
        self.know(self.release, self.archive)
        for _ in range(2):
            output = self.configure(status=1)
            self.assert_one_error(
                output, "hunk 1 of Objects/obmalloc.c.patch fits 2 places",
                "nothing was changed")
            self.assertEqual(list(self.tree.glob("build/*patched*")), [])
            self.assertFalse((self.tree / "Makefile").exists())

    def test_cpythons_configure_fails(self):
        flag = self.directory / "home/configure-fails"
        flag.touch()
        for _ in range(2):
            output = self.configure(status=1)
            self.assert_one_error(output, "CPython's configure failed",
                                  "config.log")
            self.assertFalse((self.tree / "Makefile").exists())
        flag.unlink()
        self.configure()
        self.make()

    def test_value_of_the_option(self):
        self.check("--with-pymalloc-hugepages=thp",
                   parts=["takes no value", "PYTHON_PYMALLOC_HUGEPAGES"])

    def test_interrupted_unpacking(self):
        leftover = self.tree / f"build/cpython-{self.release}.tmp"
        support.write(leftover / "Include/patchlevel.h", "junk\n")
        self.configure()
        self.assertFalse(leftover.exists())
        self.make()


class SourceTest(support.FakeTreeTestCase):

    def test_download(self):
        moved = self.directory / "moved.tar.xz"
        shutil.move(self.archive, moved)
        support.write(self.programs / "curl", f"""\
            #!/bin/sh
            while test "$1" != -o; do shift; done
            cp {moved} "$2"
            """, mode=0o755)
        self.configure()
        self.assertTrue(self.archive.exists(), "not kept in the cache")
        # From now on no network is needed.
        (self.programs / "curl").unlink()
        self.make("distclean")
        self.configure()

    def test_debian_source_package(self):
        moved = self.directory / "moved.tar.xz"
        shutil.move(self.archive, moved)
        support.write(self.programs / "apt-get", f"""\
            #!/bin/sh
            echo "$@" >>{self.directory}/apt-get-calls
            case "$*" in
            indextargets*Label*) echo http://mirror.invalid/debian ;;
            *source*) cp {moved} fake_{self.release}.orig.tar.xz ;;
            esac
            """, mode=0o755)
        self.configure()
        calls = (self.directory / "apt-get-calls").read_text().splitlines()
        for call in calls:
            if not call.startswith("indextargets"):
                self.assertIn(f"Dir::State={self.tree}/build/apt", call)
                self.assertIn(f"Dir::Cache={self.tree}/build/apt", call)
                self.assertIn("Dir::Etc::SourceParts=-", call)

    def test_series(self):
        """It stands for its newest release that is listed."""
        for release in "3.14.9", "3.14.10":
            self.make_release(release, self.archive.parent)
        for wanted, release in [("3.14", "3.14.10"), ("3.14.9", "3.14.9"),
                                ("3.13", self.release)]:
            with self.subTest(wanted):
                found = self.tree / f"build/cpython-{release}"
                self.assertFalse(found.exists())
                self.configure(f"--with-cpython={wanted}")
                self.assertTrue(found.exists())
        self.make()

    def test_archive_in_the_folder_of_sources(self):
        sources = self.directory / "sources"
        sources.mkdir()
        shutil.move(self.archive, sources)
        self.configure(CPYTHON_SOURCES=str(sources))
        self.make()
        # It is in the cache now.
        self.make("distclean")
        self.configure()

    def test_wrong_archive_in_the_folder_of_sources(self):
        sources = self.directory / "sources"
        support.write(sources / self.archive.name, "something else\n")
        output = self.configure(CPYTHON_SOURCES=str(sources))
        self.assertIn(f"{sources}/{self.archive.name}: its SHA-256 is", output)

    def test_tree_in_the_folder_of_sources(self):
        for name in f"cpython-{self.release}", f"Python-{self.release}":
            with self.subTest(name):
                sources = self.directory / f"with-{name}"
                shutil.copytree(self.source, sources / name)
                pristine = support.contents(sources / name)
                self.run_command(self.tree / "build-aux/patchset.sh", "apply",
                                 sources / name)
                support.write(sources / name / "Objects/obmalloc.o", "built\n")
                before = support.contents(sources)
                output = self.configure(CPYTHON_SOURCES=str(sources))
                self.assertIn(f"{sources}/{name}: taken", output)
                self.make()
                self.assertEqual(support.contents(sources), before)
                self.assertEqual(support.contents(
                    self.tree / f"build/cpython-{self.release}"), pristine)
                self.make("distclean")

    def test_known_tarball_by_path(self):
        file = self.directory / "my.tar.xz"
        shutil.move(self.archive, file)
        output = self.configure(f"--with-cpython={file}")
        self.assertNotIn("no known release", output)
        self.assertTrue((self.tree / f"build/cpython-{self.release}").exists())

    def test_unknown_tarball_by_path(self):
        other = self.directory / "other"
        self.make_source(other, "3.13.98")
        file = self.directory / "other.tar.xz"
        self.make_archive(other, file)
        output = self.configure(f"--with-cpython={file}")
        self.assertIn(hashlib.sha256(file.read_bytes()).hexdigest(), output)
        self.make()

    def test_directory(self):
        # One with the patch set applied, and with traces of a build
        patchset = self.tree / "build-aux/patchset.sh"
        self.run_command(patchset, "apply", self.source)
        for trace in "Makefile", "Objects/obmalloc.o", "pyconfig.h":
            support.write(self.source / trace, "built\n")
        support.write(self.source / "Objects/mine.c", "mine\n")
        before = support.contents(self.source)

        self.configure(f"--with-cpython={self.source}")
        self.make()
        self.assertEqual(support.contents(self.source), before)
        [pristine] = self.tree.glob("build/cpython-dir-????????")
        expected = {path: text for path, text in before.items()
                    if path in support.FAKE_CPYTHON
                    or path == "Objects/mine.c"}
        expected["Objects/obmalloc.c"] = b"one\ntwo\nthree\nfour\nfive\n"
        self.assertEqual(support.contents(pristine), expected)

        # A change there is taken over by configure, and only it.
        patched = pathlib.Path(f"{pristine}-patched")
        support.write(self.source / "Objects/obmalloc.c",
                      "one\ntwo\nhook\nthree\nfour\nsix\n")
        (self.source / "Objects/mine.c").unlink()
        other = (patched / "Objects/other.c").stat().st_mtime_ns
        self.configure(f"--with-cpython={self.source}")
        self.assertEqual((patched / "Objects/obmalloc.c").read_text(),
                         "one\ntwo\nhook\nthree\nfour\nsix\n")
        self.assertFalse((patched / "Objects/mine.c").exists())
        self.assertEqual((patched / "Objects/other.c").stat().st_mtime_ns,
                         other)
        self.assertIn("building", self.make())


class OptionsTest(support.FakeTreeTestCase):

    def arguments(self, pattern):
        [tree] = self.tree.glob(f"build/{pattern}")
        return (tree / "configure-arguments").read_text().splitlines()

    def test_help(self):
        output = self.run_command("./configure", "--help", cwd=self.tree)
        self.assertRegex(output,
                         r"--with-pymalloc-hugepages\s[^-]*default\s+is no")
        self.assertIn("--with-cpython=VERSION|DIR|TARBALL", output)
        self.assertFalse((self.tree / "build").exists())

    def test_no_options(self):
        self.configure()
        self.assertEqual(self.arguments("default"), [])

    def test_ours(self):
        self.configure("--with-pymalloc-hugepages",
                       f"--with-cpython={self.release}")
        self.assertEqual(self.arguments("hugepages"),
                         ["--with-pymalloc-hugepages"])
        self.configure("--without-pymalloc-hugepages")
        self.assertEqual(self.arguments("default"), [])

    def test_passed_on(self):
        options = [
            "--with-pydebug", "--enable-optimizations",
            "--prefix=/opt/my python", "--with-unknown=yes",
            """CFLAGS=-DA="it's $HOME `pwd`" -O2 *""", "LDFLAGS=-Wl,-z,now",
        ]
        self.configure(*options)
        self.assertEqual(self.arguments("default-????????"), options)

    def test_environment_passed_on(self):
        self.configure(CFLAGS="-O1 -g")
        self.assertIn("CFLAGS=-O1 -g", self.arguments("default-????????"))

    def test_build_trees_are_kept(self):
        """To come back to a configuration costs nothing."""
        runs = []
        for options in ([], ["--with-pydebug"],
                        ["--with-pymalloc-hugepages"], []):
            self.configure(*options)
            runs.append("building" in self.make())
        self.assertEqual(runs, [True, True, True, False])
        for tree in self.tree.glob("build/*/configure-runs"):
            self.assertEqual(tree.read_text(), "run\n", tree)

    def test_jobs(self):
        self.configure()
        self.assertIn(f"-j{os.cpu_count()}", self.make())
        self.assertNotRegex(self.make("-j1"), r"flags: .*-j[02-9]")
        self.assertIn("--jobserver", self.make("-j3"))


class MakeTest(support.FakeTreeTestCase):

    def test_reproduction_block(self):
        """The proposal's commands, but for perf."""
        self.configure()
        self.make()
        self.run_command("cp", "python", "python_default", cwd=self.tree)
        self.configure("--with-pymalloc-hugepages")
        self.make()
        self.run_command("cp", "python", "python_hugepages", cwd=self.tree)
        for name in "default", "hugepages":
            with self.subTest(name):
                output = self.run_command(
                    f"./python_{name}", "bench_obmalloc.py", "a b",
                    cwd=self.tree)
                self.assertEqual(
                    output,
                    f"{self.tree}/build/{name}/python bench_obmalloc.py a b\n")
        self.assertTrue((self.tree / "bench_obmalloc.py").exists())

        # ./python is that of the configuration, whichever was built last.
        self.configure()
        self.make()
        self.assertIn("/build/default/python",
                      self.run_command("./python", cwd=self.tree))

    def test_launcher_without_its_interpreter(self):
        self.configure()
        self.make()
        (self.tree / "build/default/python").unlink()
        output = self.run_command("./python", cwd=self.tree, status=127)
        self.assert_one_error(output, "build/default/python", "run make")

    def test_nothing_is_rebuilt(self):
        self.configure()
        self.assertIn("building", self.make())
        output = self.make()
        self.assertNotIn("building", output)
        self.assertNotIn("compiling", output)

    def test_changed_patch_set(self):
        self.configure()
        self.make()
        patched = self.tree / f"build/cpython-{self.release}-patched"
        times = {path: (patched / path).stat().st_mtime_ns
                 for path in support.contents(patched)}
        new = self.tree / "Objects/hugepages/new.c"
        new.write_text("newer\n")
        self.make()
        self.assertEqual((patched / "Objects/hugepages/new.c").read_text(),
                         "newer\n")
        changed = [path for path, time in times.items()
                   if (patched / path).stat().st_mtime_ns != time]
        self.assertEqual(changed, ["Objects/hugepages/new.c"])
        # What is no longer in the set goes.
        new.unlink()
        (self.tree / "Objects/obmalloc.c.patch").unlink()
        self.assertIn("building", self.make())
        self.assertEqual(
            (patched / "Objects/obmalloc.c").read_bytes(),
            (self.source / "Objects/obmalloc.c").read_bytes())
        self.assertFalse((patched / "Objects/hugepages/new.c").exists())

    def test_broken_patch_stops_make(self):
        self.configure()
        self.make()
        patched = self.tree / f"build/cpython-{self.release}-patched"
        before = support.contents(patched)
        patch = self.tree / "Objects/obmalloc.c.patch"
        patch.write_text(patch.read_text().replace("three", "thirteen"))
        self.assertIn("does not fit", self.make(status=2))
        self.assertEqual(support.contents(patched), before)

    def play_python3(self, completion):
        """Have a python3 for which a shell command makes completion."""
        support.write(self.programs / "python3", f"""\
            #!/bin/sh
            case "$*" in *--completion*) {completion}; exit ;; esac
            exec {sys.executable} "$@"
            """, mode=0o755)

    def test_install(self):
        support.copy_tool(self.tree)
        self.play_python3("false")
        self.configure()
        target = self.directory / "target"
        output = self.make("install", f"DESTDIR={target}", "prefix=/usr")
        self.assertTrue((target / "usr/bin/python3.13").exists())
        self.assertIn("installed without completion", output)
        self.assertEqual(
            {path for path in support.contents(target) if "pymalloc" in path},
            {"usr/bin/pymalloc-hugepages",
             "usr/share/man/man1/pymalloc-hugepages.1"})
        tool = target / "usr/bin/pymalloc-hugepages"
        self.assertEqual(tool.stat().st_mode & 0o777, 0o755)
        self.assertTrue(
            tool.read_bytes().startswith(b"#!/usr/bin/python3.13\n"))
        self.run_command(sys.executable, tool, "--version")

        self.play_python3('echo "$2 $3"')
        self.make("install", "DESTDIR=here", "prefix=/usr")
        self.assertTrue((self.tree / "here/usr/bin/python3.13").exists())
        for path, shell in [
                ("bash-completion/completions/pymalloc-hugepages", "bash"),
                ("zsh/site-functions/_pymalloc-hugepages", "zsh")]:
            self.assertEqual(
                (self.tree / "here/usr/share" / path).read_text(),
                f"--completion {shell}\n")

    def test_clean_and_distclean(self):
        before = support.contents(self.tree)
        self.configure()
        self.make()
        self.make("build-unpatched")
        # What tests leave
        for path in ["build/default/object.o", "build/ctests/gcc",
                     "build-aux/test/__pycache__/support.cpython-313.pyc"]:
            support.write(self.tree / path, "compiled\n")
        support.write(self.tree / "build/bench/report.html", "measured\n")
        self.make("clean")
        left = support.contents(self.tree)
        for path in left:
            self.assertNotRegex(
                path, r"(^|/)(python|launcher|gcc)$|\.(o|pyc)$")
        self.assertIn("build/bench/report.html", left)
        self.assertIn("build/default/Makefile", left)
        self.make()
        self.make("distclean")
        self.assertEqual(support.contents(self.tree), before)


class PackagesTest(support.FakeTreeTestCase):

    def setUp(self):
        super().setUp()
        support.write(self.programs / "dpkg-query", """\
            #!/bin/sh
            for package; do :; done
            case $package in
            tk-dev|wine|linux-perf|libjemalloc2) exit 1 ;;
            esac
            echo installed
            """, mode=0o755)
        support.write(self.programs / "apt-get", f"""\
            #!/bin/sh
            echo "$@" >>{self.directory}/apt-get-calls
            """, mode=0o755)

    def be(self, user):
        support.write(self.programs / "id", f"""\
            #!/bin/sh
            echo {user}
            """, mode=0o755)

    def packages(self, *groups, status=0):
        return self.run_command(self.tree / "build-aux/packages.sh", *groups,
                                status=status)

    def test_root(self):
        self.be(0)
        self.packages("build")
        update, install = (
            self.directory / "apt-get-calls").read_text().splitlines()
        self.assertRegex(update, r"\bupdate\b")
        self.assertRegex(install, r"--no-install-recommends install tk-dev$")

    def test_not_root(self):
        """One line names what all groups lack."""
        self.be(1000)
        output = self.packages("build", status=1)
        self.assert_one_error(
            output, "apt-get install --no-install-recommends "
            "linux-perf tk-dev wine")
        self.assertFalse((self.directory / "apt-get-calls").exists())

    def test_not_root_another_group(self):
        """Nor is the group left out that was asked for."""
        self.be(1000)
        output = self.packages("bench", "rivals", status=1)
        self.assert_one_error(
            output, "apt-get install --no-install-recommends "
            "libjemalloc2 linux-perf tk-dev wine")

    def test_configure_stops(self):
        self.be(1000)
        output = self.run_command("./configure", cwd=self.tree, status=1)
        self.assertIn("tk-dev", output)
        self.assertFalse((self.tree / "build").exists())

    def test_nothing_missing(self):
        self.be(1000)
        support.write(self.programs / "dpkg-query", """\
            #!/bin/sh
            echo installed
            """, mode=0o755)
        self.assertEqual(self.packages("build", "bench", "test"), "")

    def test_apt_get_fails(self):
        self.be(0)
        support.write(self.programs / "apt-get", """\
            #!/bin/sh
            exit 100
            """, mode=0o755)
        self.assert_one_error(self.packages("build", status=1), "tk-dev")


if __name__ == "__main__":
    unittest.main()
