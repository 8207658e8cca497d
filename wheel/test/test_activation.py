"""When the wheel serves an interpreter, and when it does not."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

from support import (HELPERS, InterpreterTest, WHEEL, check_call, compile_c,
                     environment, for_each_interpreter, interpreters,
                     make_bare_environment, make_environment, patched, pip,
                     scratch, since)

ASK = ("import pymalloc_hugepages as h, json; "
       "print(json.dumps([h.refusal(), h.stats().get('switch')]))")


class ActivationTest(InterpreterTest):

    def ask(self, *options, **kwargs):
        """Return why an interpreter does without, and its switch."""
        return json.loads(self.run_python(*options, "-c", ASK, **kwargs))


class TestSwitch(ActivationTest):

    def test_default(self):
        self.assertEqual(self.ask(), [None, "on"])

    def test_values(self):
        for value, name in {"": "on", "1": "on", "on": "on", "thp": "thp",
                            "hugetlb": "hugetlb"}.items():
            with self.subTest(value):
                self.assertEqual(self.ask(PYTHON_PYMALLOC_HUGEPAGES=value),
                                 [None, name])

    def test_off(self):
        for value in "0", "off":
            with self.subTest(value):
                self.assertEqual(self.ask(PYTHON_PYMALLOC_HUGEPAGES=value),
                                 ["the switch is off", "off"])

    def test_off_leaves_the_interpreter_as_it_is(self):
        used = self.run_code("""if True:
            data = fill(20)
            tell(slices()["ever"], extension.stats()["plain"]["ever"],
                 "fork" in repr(extension.stats()))
            """, PYTHON_PYMALLOC_HUGEPAGES="0")
        self.assertEqual(used, [0, 0, False])

    def test_unknown_values(self):
        for value in "2", "ON", "yes", "thp ", "\udcff":
            with self.subTest(value):
                self.assertEqual(
                    self.ask(PYTHON_PYMALLOC_HUGEPAGES=value, errors=
                             "PYTHON_PYMALLOC_HUGEPAGES: unknown value; use "
                             "on, 1, thp, hugetlb, off or 0\n"),
                    ["the switch has an unknown value", "off"])

    def test_x_option_wins(self):
        for option, expected in {
                "pymalloc_hugepages=thp": [None, "thp"],
                "pymalloc_hugepages=off": ["the switch is off", "off"],
                "pymalloc_hugepages": [None, "on"]}.items():
            with self.subTest(option):
                self.assertEqual(
                    self.ask("-X", option,
                             PYTHON_PYMALLOC_HUGEPAGES="hugetlb"), expected)
        self.assertEqual(
            self.ask("-X", "pymalloc_hugepages=x", errors=
                     "-X pymalloc_hugepages: unknown value; use on, 1, thp, "
                     "hugetlb, off or 0\n"),
            ["the switch has an unknown value", "off"])

    def test_ignored_environment(self):
        for option in "-E", "-I":
            with self.subTest(option):
                self.assertEqual(self.ask(option,
                                          PYTHON_PYMALLOC_HUGEPAGES="off"),
                                 [None, "on"])

    def test_without_site(self):
        code = "import sys; print('_pymalloc_hugepages' in sys.modules)"
        self.assertEqual(self.run_python("-S", "-c", code), "False\n")
        self.assertEqual(self.run_python("-c", code), "True\n")


class TestStart(ActivationTest):

    def test_imports_nothing_else(self):
        code = "import json, sys; print(json.dumps(list(sys.modules)))"
        bare = make_bare_environment(interpreters()[self.release],
                                     scratch() / f"bare-{self.release}")
        modules, modules_without = (
            set(json.loads(self.run_command(python, "-c", code)))
            for python in (self.python, bare))
        # Python 3.13 reads any .pth file with this codec.
        modules.discard("encodings.utf_8_sig")
        self.assertEqual(modules - modules_without, {"_pymalloc_hugepages"})

    def test_silent(self):
        """run_python() checks that nothing is written on stderr."""
        for value in "on", "off":
            for option in "-B", "-I", "-W error", "-X dev", "-bb":
                with self.subTest(option, value=value):
                    self.assertEqual(
                        self.run_python(*option.split(), "-c", "pass",
                                        PYTHON_PYMALLOC_HUGEPAGES=value), "")

    def test_uninstalled(self):
        """pip uninstall leaves nothing."""
        with tempfile.TemporaryDirectory(dir=scratch()) as folder:
            path = pathlib.Path(folder, "venv")
            interpreter = interpreters()[self.release]
            make_bare_environment(interpreter, path)
            before = self.files(path)
            inside = make_environment(interpreter, path)
            self.assertGreater(self.files(path), before)
            self.run_command(inside, "-m", "pymalloc_hugepages")
            check_call(*pip(), "--python", inside, "uninstall", "-q", "-y",
                       "pymalloc-hugepages")
            self.assertEqual(self.files(path), before)

    @staticmethod
    def files(folder):
        return {path for path in folder.rglob("*") if not path.is_dir()}


class TestRefusals(ActivationTest):

    def test_without_pymalloc(self):
        names = ["malloc", "malloc_debug"]
        if self.version >= (3, 13):
            names.append("mimalloc")
        for name in names:
            with self.subTest(name):
                why, _ = self.ask(PYTHONMALLOC=name)
                self.assertEqual(why, "this interpreter runs without pymalloc "
                                      "(PYTHONMALLOC)")
                used = self.run_code("data = fill(10); tell(slices()['ever'])",
                                     PYTHONMALLOC=name)
                self.assertEqual(used, 0)

    @since(3, 13)
    def test_mimalloc_under_hooks(self):
        """It cannot be told, and does no harm."""
        used = self.run_code("data = fill(10); tell(slices()['ever'])",
                             PYTHONMALLOC="mimalloc_debug")
        self.assertEqual(used, 0)

    def test_with_hooks_of_other_kinds(self):
        for options, variables in (((), {"PYTHONMALLOC": "pymalloc_debug"}),
                                   (("-X", "dev"), {}),
                                   (("-X", "tracemalloc"), {})):
            with self.subTest(options=options, **variables):
                why, used = self.run_code(
                    "data = fill(10)\n"
                    "tell(extension.refusal(), slices()['now'])",
                    options=options, **variables)
                self.assertIsNone(why)
                self.assertGreater(used, 5)

    def test_tracemalloc(self):
        """It counts as ever, started before the extension or after it."""
        for options in ("-X", "tracemalloc"), ():
            with self.subTest(options=options):
                traced, used = self.run_code("""if True:
                    import tracemalloc
                    tracemalloc.start()
                    before, _ = tracemalloc.get_traced_memory()
                    data = fill(10)
                    after, _ = tracemalloc.get_traced_memory()
                    used = slices()["now"]
                    tracemalloc.stop()
                    del data
                    tell(after - before, used)
                    """, options=options)
                self.assertGreater(traced, 9 << 20)
                self.assertGreater(used, 5)

    def ask_with_hook(self, *statements):
        """Return why an interpreter does without after some statements, and
        how many slices it has then."""
        return self.run_with_arena_hook("\n".join([
            "import arena_hook",
            *statements,
            "data = [bytes(440) for _ in range(10 * 2184)]",
            "import json",
            "print(json.dumps([extension.refusal(),",
            "                  extension.stats()['slices']['now']]))"]))

    def test_another_hook_first(self):
        why, used = self.ask_with_hook(
            "arena_hook.install()", "import _pymalloc_hugepages as extension")
        self.assertEqual(why, "another arena allocator was there first")
        self.assertEqual(used, 0)

    def test_another_hook_later(self):
        why, used = self.ask_with_hook(
            "import _pymalloc_hugepages as extension", "arena_hook.install()")
        self.assertIsNone(why)
        self.assertGreater(used, 5)

    def test_arenas_of_another_size(self):
        """It is known as soon as there is one."""
        for kib in 256, 2048:
            with self.subTest(kib):
                before, why, used = self.run_with_arena_hook(f"""if True:
                    import _pymalloc_hugepages as extension
                    before = extension.refusal()
                    import arena_hook
                    arena_hook.ask({kib} << 10)
                    told = [before, extension.refusal(),
                            extension.stats()["slices"]["ever"]]
                    import json
                    print(json.dumps(told))
                    """)
                self.assertIsNone(before)
                self.assertEqual(used, 0)
                self.assertEqual(why, "the arenas of this interpreter are of "
                                      "another size than 1 MiB")


class TestOtherLayouts(ActivationTest):
    """The .pth file finds an extension first that was compiled for the
    test."""

    def build(self, source, *flags):
        """Compile the extension from a file; return its folder."""
        folder = scratch() / f"{pathlib.Path(source).stem}-{self.release}"
        folder.mkdir(exist_ok=True)
        compile_c(self.release, source, folder / "_pymalloc_hugepages.so",
                  "-std=c11", "-shared", "-fvisibility=hidden", "-pthread",
                  *(f"-I{WHEEL}/src{path}"
                    for path in ("", "/Include", "/Include/internal")), *flags)
        return str(folder)

    def test_structures(self):
        folder = self.build("other_layout.c")
        self.assertEqual(self.ask(PYTHONPATH=folder), [None, "on"])
        for name in "arenas", "allocators":
            for words in "1", "-1":
                with self.subTest(name, words=words):
                    self.assertEqual(
                        self.ask(PYTHONPATH=folder, OTHER=name, WORDS=words),
                        ["the allocators of this interpreter are not as this "
                         "extension knows them", "off"])

    def test_no_functions(self):
        folder = self.build("../src/module.c", "-DPyMem_GetAllocator=missing")
        self.assertEqual(self.ask(PYTHONPATH=folder),
                         ["this interpreter has no functions to replace its "
                          "arena allocator", "off"])


class TestOtherInterpreters(unittest.TestCase):
    """Neither the .pth file nor the package imports the extension, which is
    built for others: the loader of Python 3.14 would take it."""

    FILES = "pymalloc_hugepages.pth", "pymalloc_hugepages/__init__.py"

    def run_as(self, name, flags, files=FILES):
        """Return what these files define in such an interpreter, where the
        extension cannot be imported."""
        package = {}
        with mock.patch.object(sys.implementation, "name", name), \
                mock.patch.object(sys, "abiflags", flags), \
                mock.patch.dict(sys.modules, _pymalloc_hugepages=None):
            for file in files:
                exec((WHEEL / file).read_text(), package)
        return package

    def test_refused(self):
        free_threaded = "a free-threaded build does not use pymalloc"
        for name, flags, why in (
                ("pypy", "", "this is pypy, and not CPython"),
                ("cpython", "t", free_threaded),
                ("cpython", "td", free_threaded)):
            with self.subTest(name, flags=flags):
                package = self.run_as(name, flags)
                self.assertEqual(package["refusal"](), why)
                self.assertEqual(package["stats"](), {})

    def test_cpython(self):
        for flags in "", "d":
            for file in self.FILES:
                with self.subTest(file, flags=flags), \
                        self.assertRaises(ImportError):
                    self.run_as("cpython", flags, [file])


class TestPatchedInterpreter(unittest.TestCase):

    def test_refused(self):
        python = make_environment(patched(), scratch() / "patched")
        process = subprocess.run(
            [python, "-c", HELPERS + "data = fill(10); tell("
             "extension.refusal(), slices()['ever'],"
             "sys._pymalloc_hugepages()['thp']['now'])"],
            capture_output=True, text=True,
            env=environment(PYTHON_PYMALLOC_HUGEPAGES="thp"))
        self.assertEqual(process.stderr, "")
        why, used, arenas = json.loads(process.stdout)
        self.assertEqual(why, "this interpreter was built "
                              "--with-pymalloc-hugepages")
        self.assertEqual(used, 0)
        self.assertGreater(arenas, 3)


for_each_interpreter(globals())

if __name__ == "__main__":
    unittest.main()
