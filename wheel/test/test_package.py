"""The wheel as a file, and its commands."""

import email
import functools
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest
import zipfile

from support import (InterpreterTest, WHEEL, check_call, environment, facts,
                     for_each_interpreter, interpreters, pip, requires_thp,
                     scratch, site_packages, tool, wheel_file, wheel_source)


class TestFile(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.path = wheel_file()
        with zipfile.ZipFile(cls.path) as file:
            # auditwheel adds the folders.
            cls.names = [name for name in file.namelist()
                         if not name.endswith("/")]
            cls.texts = {name: file.read(name).decode()
                         for name in cls.names if ".dist-info/" in name}

    def of_dist_info(self, name):
        found, = (text for path, text in self.texts.items()
                  if path.endswith(".dist-info/" + name))
        return found

    def test_one_binary_for_all(self):
        self.assertIn("-cp310-abi3-", self.path.name)
        self.assertIn("_pymalloc_hugepages.abi3.so", self.names)
        tags = email.message_from_string(self.of_dist_info("WHEEL"))
        self.assertEqual(tags["Root-Is-Purelib"], "false")

    def test_files(self):
        top = {name.partition("/")[0] for name in self.names}
        info = self.names[-1].partition("/")[0]
        data = info.replace(".dist-info", ".data")
        self.assertEqual(top, {"_pymalloc_hugepages.abi3.so", info, data,
                               "pymalloc_hugepages.pth", "pymalloc_hugepages"})
        self.assertEqual([name for name in self.names
                          if name.startswith(data)],
                         [f"{data}/data/share/man/man1/pymalloc-hugepages.1"])
        self.assertIn("pymalloc_hugepages/__init__.pyi", self.names)
        self.assertIn("pymalloc_hugepages/py.typed", self.names)
        self.assertIn("pymalloc_hugepages/tool/cli.py", self.names)
        self.assertFalse([name for name in self.names if "/test" in name])

    def test_metadata(self):
        data = email.message_from_string(self.of_dist_info("METADATA"))
        self.assertEqual(data["Name"], "pymalloc-hugepages")
        self.assertEqual(data["Version"],
                         (WHEEL / "VERSION").read_text().strip())
        self.assertEqual(data["License-Expression"], "PSF-2.0")
        self.assertEqual(data["Requires-Python"], ">=3.10")
        self.assertEqual(self.of_dist_info("licenses/LICENSE"),
                         (WHEEL / "LICENSE").read_text())

    def test_abi3(self):
        """The three documented functions are not in the stable ABI; nothing
        else may be missing from it."""
        process = subprocess.run(
            [tool("abi3audit"), "--report", "--strict",
             "--assume-minimum-abi3", "3.10", str(self.path)], text=True,
            capture_output=True, env=environment())
        report, = json.loads(process.stdout)["specs"].values()
        objects = report["wheel"]
        self.assertEqual(len(objects), 1)
        result = objects[0]["result"]
        self.assertEqual(
            set(result["non_abi3_symbols"]),
            {"PyObject_GetArenaAllocator", "PyObject_SetArenaAllocator",
             "PyMem_GetAllocator"})
        self.assertEqual(result["future_abi3_objects"], {})

    def test_auditwheel(self):
        output = " ".join(check_call(tool("auditwheel"), "show",
                                     str(self.path)).split())
        self.assertIn("manylinux", output)
        self.assertNotIn("libpython", output)

    def test_cibuildwheel(self):
        """It takes the configuration, from the top of the tree."""
        processors = "x86_64", "aarch64"
        output = check_call(
            tool("cibuildwheel"), "--print-build-identifiers", "--platform",
            "linux", "--archs", ",".join(processors), "wheel",
            cwd=WHEEL.parent)
        self.assertEqual(
            sorted(output.split()),
            sorted(f"cp310-{system}_{processor}" for processor in processors
                   for system in ("manylinux", "musllinux")))

    def test_twine(self):
        source = self.source_archive()
        output = check_call(tool("twine"), "check", "--strict",
                            str(self.path), str(source))
        self.assertEqual(output.count("PASSED"), 2, output)

    @staticmethod
    @functools.cache
    def source_archive():
        check_call(tool("build"), "--sdist", "-o", str(scratch()),
                   str(wheel_source()))
        path, = scratch().glob("*.tar.gz")
        return path

    def test_source_archive_is_whole(self):
        """A wheel can be built of it alone."""
        with tempfile.TemporaryDirectory() as folder:
            check_call(*pip(), "wheel", "-q", "--no-deps", "-w", folder,
                       str(self.source_archive()))
            built, = pathlib.Path(folder).iterdir()
            with zipfile.ZipFile(built) as file:
                self.assertEqual(set(file.namelist()), set(self.names))


class TestOtherSystems(unittest.TestCase):
    """The extension for the other processors and C libraries that wheels are
    built for."""

    def compile(self, compiler):
        """Compile the extension; return its path."""
        if shutil.which(compiler) is None:
            self.skipTest(f"needs {compiler}")
        includes = [folders for folders in (
            facts(path)["include"] for path in interpreters().values())
            # Debian's headers look for those of the compiler's system.
            if not folders[0].startswith("/usr/include/")]
        if not includes:
            self.skipTest("needs an interpreter that is not Debian's")
        source = WHEEL / "src"
        output = scratch() / f"{compiler}.so"
        check_call(compiler, "-O2", "-std=c11", "-Wall", "-Wextra", "-Werror",
                   "-fvisibility=hidden", "-shared", "-fPIC", "-pthread",
                   *("-I" + path for path in includes[0]),
                   f"-I{source}", f"-I{source}/Include",
                   f"-I{source}/Include/internal", f"{source}/module.c",
                   "-o", str(output))
        return output

    def test_aarch64(self):
        self.compile("aarch64-linux-gnu-gcc")

    def test_musl(self):
        """It is loaded, in a program that stands in for Python."""
        library = self.compile("musl-gcc")
        names = [line.split()[-1] for line in check_call(
            "nm", "-D", "--undefined-only", str(library)).splitlines()]
        stand_in = scratch() / "stand_in.c"
        stand_in.write_text("".join(f"int {name};\n" for name in names
                                    if name.startswith(("Py", "_Py"))))
        program = scratch() / "load"
        check_call("musl-gcc", "-rdynamic", str(WHEEL / "test/load.c"),
                   str(stand_in), "-o", str(program))
        check_call(str(program), str(library))


class TestCommands(InterpreterTest):

    def write(self, folder, name, text):
        path = pathlib.Path(folder, name)
        path.write_text(text)
        return str(path)

    def without_pth(self, *args, **kwargs):
        """Run an interpreter that reads no .pth file but finds the package."""
        return self.run_python("-S", *args, **kwargs,
                               PYTHONPATH=str(site_packages(self.python)))

    def test_state(self):
        self.assertEqual(self.run_python("-m", "pymalloc_hugepages"),
                         f"{self.python}: arenas on huge pages\n")
        self.assertEqual(
            self.run_python("-m", "pymalloc_hugepages", status=1,
                            PYTHON_PYMALLOC_HUGEPAGES="off"),
            f"{self.python}: arenas not on huge pages: the switch is off\n")

    def test_script(self):
        code = ("import sys, json, pymalloc_hugepages as h\n"
                "print(json.dumps([__name__, sys.argv, sys.path[0], "
                "h.refusal()]))\n"
                "sys.exit(3)\n")
        with tempfile.TemporaryDirectory() as folder:
            script = self.write(folder, "script.py", code)
            for run in self.run_python, self.without_pth:
                told = json.loads(run("-m", "pymalloc_hugepages", script, "-m",
                                      "x", status=3))
                self.assertEqual(told, ["__main__", [script, "-m", "x"],
                                        os.path.realpath(folder), None])

    def test_folder(self):
        with tempfile.TemporaryDirectory() as folder:
            self.write(folder, "other.py", "name = 'other'\n")
            self.write(folder, "__main__.py", "import sys, other\n"
                       "print(other.name, __name__, sys.argv[1:])\n")
            self.assertEqual(self.without_pth("-m", "pymalloc_hugepages",
                                              folder, "a"),
                             "other __main__ ['a']\n")

    def test_module(self):
        self.assertEqual(
            self.without_pth("-m", "pymalloc_hugepages", "-m", "calendar",
                             "2000", "1"),
            self.run_python("-m", "calendar", "2000", "1"))

    def test_usage(self):
        for option, status in ("--help", 0), ("-h", 0), ("-x", 2), ("-m", 2):
            output = self.run_python("-m", "pymalloc_hugepages", option,
                                     status=status)
            self.assertTrue(output.startswith("usage: "), output)

    def test_manual_page(self):
        """man finds it by the folder of the command, bin."""
        folder = pathlib.Path(self.python).parent.parent
        page = folder / "share/man/man1/pymalloc-hugepages.1"
        self.assertIn(".TH PYMALLOC", page.read_text())

    def test_tool(self):
        command = str(pathlib.Path(self.python).with_name(
            "pymalloc-hugepages"))
        output = self.run_command(command, "status", status=None)
        self.assertIn(": arenas on huge pages\n", output)

    def status_of_a_process(self, **variables):
        """What the tool says of a process with 46 MiB of objects: its arenas,
        which part of them is on huge pages, in percent, and the notes."""
        command = str(pathlib.Path(self.python).with_name(
            "pymalloc-hugepages"))
        code = "data = [bytes(440) for _ in range(99999)]; print(); input()"
        with subprocess.Popen([self.python, "-c", code], text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              env=environment(**variables)) as process:
            process.stdout.readline()
            try:
                told = json.loads(self.run_command(
                    command, "status", str(process.pid), "--json",
                    status=None))
            finally:
                process.communicate("\n")
        shown, = told["processes"]
        self.assertTrue(shown["patched"])
        self.assertEqual(shown["feature"], "wheel")
        self.assertIn("_pymalloc_hugepages.abi3.so", shown["interpreter"])
        return (shown["thp"]["arenas"] + shown["hugetlb"]["arenas"],
                shown["huge_percent"], " ".join(told["notes"]))

    def test_tool_on_a_process(self):
        """`status PID` knows the extension as what makes arenas huge."""
        arenas, _, notes = self.status_of_a_process()
        self.assertGreater(arenas, 15)
        self.assertNotIn("refused", notes)

    def test_tool_on_a_process_where_it_refuses(self):
        for variables, reason in (
                ({"PYTHONMALLOC": "malloc"}, "by PYTHONMALLOC=malloc: "),
                ({"PYTHON_PYMALLOC_HUGEPAGES": "off"},
                 "by PYTHON_PYMALLOC_HUGEPAGES=off: ")):
            with self.subTest(**variables):
                arenas, _, notes = self.status_of_a_process(**variables)
                self.assertEqual(arenas, 0)
                self.assertIn("loaded, but has no arenas", notes)
                self.assertIn(reason, notes)

    @requires_thp
    def test_installed_from_the_folder(self):
        """As README.rst says, in a new environment, by its own pip."""
        with tempfile.TemporaryDirectory(dir=scratch()) as folder:
            check_call(interpreters()[self.release], "-m", "venv", folder)
            self.python = os.path.join(folder, "bin/python")
            check_call(self.python, "-m", "pip", "install", "-q",
                       "--disable-pip-version-check", str(wheel_source()))
            # Memory may be fragmented at first.
            for _ in range(3):
                arenas, percent, _ = self.status_of_a_process(
                    PYTHON_PYMALLOC_HUGEPAGES="thp")
                if percent > 80:
                    break
        self.assertGreater(arenas, 15)
        # One may be about to be filled, and one to be promoted.
        self.assertGreater(percent, 80)

    def test_statistics_at_the_end(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "stats")
            self.run_python("-c", "data = [bytes(440) for _ in range(99999)]",
                            PYTHON_PYMALLOC_HUGEPAGES_STATS=path)
            self.run_python("-E", "-c", "pass",
                            PYTHON_PYMALLOC_HUGEPAGES_STATS=path)
            self.run_python("-c", "pass", PYTHON_PYMALLOC_HUGEPAGES="off",
                            PYTHON_PYMALLOC_HUGEPAGES_STATS=path)
            line, = pathlib.Path(path).read_text().splitlines()
        told = json.loads(line)
        self.assertEqual(told["switch"], "on")
        self.assertGreater(told["thp"]["peak"] + told["hugetlb"]["peak"]
                           + told["plain"]["peak"], 15)

    def test_stub(self):
        """It has what the package has."""
        names, documented = json.loads(self.run_python("-c", """if True:
            import json, pymalloc_hugepages as h
            print(json.dumps([sorted(h.__all__),
                              all(getattr(h, name).__doc__
                                  for name in h.__all__)]))
            """))
        self.assertTrue(documented)
        stub = (site_packages(self.python)
                / "pymalloc_hugepages/__init__.pyi").read_text()
        self.assertEqual([line.partition("(")[0][4:]
                          for line in stub.splitlines()
                          if line.startswith("def ")], names)


for_each_interpreter(globals())

if __name__ == "__main__":
    unittest.main()
