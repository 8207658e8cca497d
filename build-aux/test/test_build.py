"""The interpreters that "make test" has built."""

import json
import os
import re
import shlex
import subprocess
import unittest

import support
from support import HUGEPAGES, UNPATCHED


class OptionTest(support.TemporaryDirectoryTestCase):
    """--with-pymalloc-hugepages of CPython's own configure."""

    def configure(self, *options, status=0, **found):
        """Run configure; found is what it is to find out about the system."""
        # What an earlier run found out about this system saves most of the
        # time.
        patched = support.source_of(HUGEPAGES)
        log = (HUGEPAGES / "config.log").read_text()
        cache = log.partition("## Cache variables. ##")[2].partition(
            "## Output variables. ##")[0]
        variables = re.findall(r"^(?:ac|ax)_cv_(?!env_)\w+=.*$", cache, re.M)
        self.assertTrue(variables)
        # The last one of a name counts.
        variables += [f"{name}={value}" for name, value in found.items()]
        (self.directory / "cache").write_text("\n".join(variables) + "\n")
        return self.run_command(patched / "configure", "--cache-file=cache",
                                "--with-pymalloc-hugepages", *options,
                                status=status)

    def test_without_pymalloc(self):
        output = self.configure("--without-pymalloc", status=1)
        self.assert_one_error(output, "needs pymalloc")

    def test_disable_gil(self):
        output = self.configure("--disable-gil", status=1)
        self.assert_one_error(output, "--disable-gil")

    def test_32_bit(self):
        output = self.configure(ac_cv_sizeof_void_p=4, ac_cv_sizeof_size_t=4,
                                status=1)
        self.assert_one_error(output, "64-bit")

    def test_value(self):
        output = self.configure("--with-pymalloc-hugepages=2M", status=1)
        self.assert_one_error(output, "2M")

    def test_no_huge_pages(self):
        output = self.configure(ac_cv_have_huge_pages="no")
        self.assertRegex(output, "WARNING:.*MAP_HUGETLB.*MADV_HUGEPAGE")
        self.assertIn("#define PYMALLOC_USE_HUGEPAGES 1",
                      (self.directory / "pyconfig.h").read_text())

    def test_help(self):
        output = self.run_command(support.source_of(HUGEPAGES) / "configure",
                                  "--help")
        self.assertRegex(output,
                         r"--with-pymalloc-hugepages\s[^-]*default\s+is no")


class TellsTest(unittest.TestCase):
    """Where a build says whether it has the option."""

    def ask(self, tree, code):
        return json.loads(subprocess.check_output(
            [tree / "python", "-I", "-c", f"import json, sysconfig; "
             f"print(json.dumps({code}))"]))

    def test_pyconfig_h(self):
        self.assertIn("\n#define PYMALLOC_USE_HUGEPAGES 1\n",
                      (HUGEPAGES / "pyconfig.h").read_text())

    def test_sysconfig(self):
        variable = "sysconfig.get_config_var('PYMALLOC_USE_HUGEPAGES')"
        self.assertEqual(self.ask(HUGEPAGES, variable), 1)
        self.assertIn("--with-pymalloc-hugepages",
                      self.ask(HUGEPAGES,
                               "sysconfig.get_config_var('CONFIG_ARGS')"))
        self.assertIsNone(self.ask(UNPATCHED, variable))

    def test_config_status(self):
        output = subprocess.check_output(
            [HUGEPAGES / "config.status", "--config"], text=True)
        self.assertIn("--with-pymalloc-hugepages", shlex.split(output))


class LayoutTest(support.TemporaryDirectoryTestCase):
    """A program built with stock headers can use a build with the option."""

    def layout(self, tree):
        """The size of PyConfig and the offsets of its stock members."""
        text = (support.source_of(UNPATCHED)
                / "Include/cpython/initconfig.h").read_text()
        struct = re.search(r"typedef struct PyConfig \{(.*?)\} PyConfig;",
                           text, re.S)[1]
        # Without what only other systems and other builds have.
        struct = re.sub(r"^#if.*?^#endif", "", struct, flags=re.S | re.M)
        members = re.findall(r"^    \w[\w ]*?[ *](\w+);", struct, re.M)
        self.assertIn("filesystem_encoding", members)
        lines = [f'printf("{member} %zu\\n", offsetof(PyConfig, {member}));'
                 for member in members]
        (self.directory / "layout.c").write_text("\n".join([
            "#include <Python.h>", "#include <stddef.h>", "#include <stdio.h>",
            "int main(void) {", *lines,
            'printf("size %zu\\n", sizeof(PyConfig));', "}"]))
        self.run_command("cc", f"-I{support.source_of(tree)}/Include",
                         f"-I{tree}", "layout.c", "-o", "layout")
        return self.run_command(self.directory / "layout")

    def test_pyconfig(self):
        self.assertEqual(self.layout(HUGEPAGES), self.layout(UNPATCHED))


class WithoutTheOptionTest(support.TemporaryDirectoryTestCase):
    """Patched and built without the option, CPython is as it was released."""

    def setUp(self):
        super().setUp()
        self.pristine = support.source_of(UNPATCHED)
        self.patched = support.source_of(HUGEPAGES)

    def sources(self):
        """The C files of the interpreter that a patch changes."""
        release = support.patchset("release", self.pristine).strip()
        return [file for file, _ in support.patches(release)
                if file.endswith(".c")
                and not file.startswith("Programs/_test")]

    def test_pyconfig_h(self):
        # config.status, which knows this system, makes the header of the
        # patched template.
        template = (self.patched / "pyconfig.h.in").read_text()
        (self.directory / "pyconfig.h.in").write_text(template)
        self.run_command(UNPATCHED / "config.status",
                         "--header=pyconfig.h:pyconfig.h.in")
        text = (self.directory / "pyconfig.h").read_text()
        self.assertIn("/* #undef PYMALLOC_USE_HUGEPAGES */", text)
        text = re.sub(
            r"/\* [^/]* \*/\n/\* #undef PYMALLOC_USE_HUGEPAGES \*/\n\n",
            "", text)
        expected = (UNPATCHED / "pyconfig.h").read_text()
        self.assertEqual(text.partition("*/")[2], expected.partition("*/")[2])

    def disassembly(self, source, file):
        """The object code of a file, with the flags of the unpatched build."""
        object_file = file[:-2] + ".o"
        commands = self.run_command(
            "make", "-n", "-W", self.pristine / file, object_file,
            cwd=UNPATCHED).replace("\\\n", " ").splitlines()
        [command] = [line for line in commands if f"-o {object_file} " in line]
        words = [word.replace(str(self.pristine), str(source))
                 for word in shlex.split(command)]
        output = self.directory / "object.o"
        words[words.index(object_file)] = str(output)
        # Line numbers and paths are those of another text, of course, in the
        # messages of fatal errors too.
        words += ["-g0", f"-ffile-prefix-map={source}=source",
                  "-D__LINE__=0", "-Wno-builtin-macro-redefined"]
        # The one thing that each patched build has more: a function that says
        # whether the option was given.
        words += ["-DSYS__PYMALLOC_HUGEPAGES_METHODDEF="]
        self.run_command(*words, cwd=UNPATCHED)
        text = self.run_command("objdump", "--no-show-raw-insn", "-drs",
                                output)
        output.unlink()
        return text

    def test_object_code(self):
        sources = self.sources()
        self.assertIn("Objects/obmalloc.c", sources)
        for file in sources:
            with self.subTest(file):
                patched = self.disassembly(self.patched, file).splitlines()
                pristine = self.disassembly(self.pristine, file).splitlines()
                # The first difference is enough: there would be thousands.
                for line, expected in zip(patched, pristine):
                    self.assertEqual(line, expected)
                self.assertEqual(len(patched), len(pristine))


class InstalledTest(support.TemporaryDirectoryTestCase):
    """An installed build, a virtual environment, wheels from PyPI."""

    def test_wheels(self):
        # pip needs the system's settings: its proxy, its index.
        self.environment.update(os.environ)
        self.run_command("make", "-C", HUGEPAGES, "install",
                         f"DESTDIR={self.directory}/destination",
                         "prefix=/usr",
                         # A part that takes long, and is CPython's own.
                         "ENSUREPIP=no")
        [python] = (self.directory / "destination/usr/bin").glob("python3.??")
        venv = self.directory / "venv"
        self.run_command(python, "-m", "venv", venv)
        pip = [venv / "bin/python", "-m", "pip", "install",
               "--disable-pip-version-check", "--only-binary=:all:"]
        if os.geteuid() != 0 and subprocess.run(
                [*pip, "--dry-run", "numpy", "lxml"], env=self.environment,
                stdout=subprocess.DEVNULL).returncode != 0:
            self.skipTest("pip cannot get wheels (see its error above)")
        self.run_command(*pip, "numpy", "lxml")
        output = self.run_command(venv / "bin/python", "-c", """if True:
            import lxml.etree, numpy, sysconfig
            assert sysconfig.get_config_var("PYMALLOC_USE_HUGEPAGES") == 1
            table = numpy.arange(300_000).reshape(300, 1000)
            rows = [list(map(str, row)) for row in table]
            assert sum(int(row[1]) for row in rows) == int(table[:, 1].sum())
            root = lxml.etree.Element("root")
            for row in rows:
                lxml.etree.SubElement(root, "row").text = " ".join(row)
            again = lxml.etree.fromstring(lxml.etree.tostring(root))
            assert [row.text.split() for row in again] == rows
            print("numpy", numpy.__version__, "lxml", lxml.etree.__version__)
            """)
        self.assertRegex(output, r"^numpy \S+ lxml \S+$")


if __name__ == "__main__":
    unittest.main()
