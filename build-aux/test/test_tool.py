"""The tool, installed by pip and as one file."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import support
from support import HUGEPAGES, TOP

VERSION = (TOP / "VERSION").read_text().strip()


class ToolTest(support.TemporaryDirectoryTestCase):
    def setUp(self):
        super().setUp()
        # pip leaves files beside what it installs.
        self.tree = self.directory / "tree"
        self.tree.mkdir()
        support.copy_tool(self.tree)

    def test_one_file(self):
        os.symlink(TOP / "GNUmakefile", self.tree / "GNUmakefile")
        os.symlink(TOP / "build-aux", self.tree / "build-aux")
        self.run_command("make", "tool", cwd=self.tree,
                         PATH=f"{Path(sys.executable).parent}:"
                              f"{os.environ['PATH']}")
        made = self.tree / "build/pymalloc-hugepages.pyz"
        tool = self.directory / made.name
        made.rename(tool)
        # It needs neither the tree nor, in this interpreter, anything
        # installed.
        (self.tree / "Tools").rename(self.directory / "gone")
        self.assertEqual(
            self.run_command(sys.executable, "-I", tool, "--version"),
            f"pymalloc-hugepages {VERSION}\n")
        self.assertEqual(tool.stat().st_mode & 0o777, 0o755)
        self.assertTrue(
            tool.read_bytes().startswith(b"#!/usr/bin/env python3\n"))
        output = self.run_command(sys.executable, tool, "nonsense", status=2)
        self.assertRegex(output, r"\Apymalloc-hugepages\.pyz: .*\n\Z")
        package = TOP / "Tools/pymalloc_hugepages/hugepages"
        files = {f"hugepages/{path.name}" for path in
                 (*package.glob("*.py"), package / "hugepages.schema.json")}
        with zipfile.ZipFile(tool) as file:
            self.assertEqual({name for name in file.namelist()
                              if not name.endswith("/")},
                             {"__main__.py", *files})

    def complete(self, script, *words):
        """What bash offers for the last word."""
        return set(self.run_command("bash", "-c", """
            . "$0"
            function=$(complete -p pymalloc-hugepages |
                       sed 's/.* -F \\([^ ]*\\) .*/\\1/')
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
            $function
            printf '%s\\n' "${COMPREPLY[@]}"
            """, script, "pymalloc-hugepages", *words).split())

    def test_pip(self):
        support.source_of(HUGEPAGES)            # or the test is skipped
        # pip needs the system's settings: its proxy, its index.
        self.environment.update(os.environ)
        venv = self.directory / "venv"
        self.run_command(HUGEPAGES / "python", "-m", "venv", venv)
        pip = [venv / "bin/python", "-m", "pip", "install",
               "--disable-pip-version-check",
               f"{self.tree}/Tools/pymalloc_hugepages[completion]"]
        if os.geteuid() != 0 and subprocess.run(
                [*pip, "--dry-run"], env=self.environment,
                stdout=subprocess.DEVNULL).returncode != 0:
            self.skipTest("pip cannot get packages (see its error above)")
        self.run_command(*pip)
        tool = venv / "bin/pymalloc-hugepages"
        self.assertEqual(self.run_command(tool, "--version"),
                         f"pymalloc-hugepages {VERSION}\n")
        self.assertRegex(self.run_command(tool, "nonsense", status=2),
                         r"\Apymalloc-hugepages: .*\n\Z")
        self.assertEqual(self.run_command(
            venv / "bin/python", "-c",
            "import importlib.metadata as metadata; "
            "print(metadata.version('pymalloc-hugepages'))"), f"{VERSION}\n")
        self.assertTrue(
            (venv / "share/man/man1/pymalloc-hugepages.1").exists())
        self.assertEqual(len([*venv.glob(
            "lib/*/site-packages/hugepages/hugepages.schema.json")]), 1)

        script = self.directory / "completion"
        script.write_text(self.run_command(tool, "--completion", "bash"))
        for words, offered in [
                ([""], {"status", "reserve", "run"}),
                (["re"], {"reserve"}),
                (["--v"], {"--version"}),
                (["reserve", "--for"], {"--for", "--forget"}),
                (["run", "--mode", ""], {"on", "off", "thp", "hugetlb"}),
                (["run", "--output", "com"], {"completion"}),
                (["reserve", "--for", "com"], {"completion"})]:
            with self.subTest(words):
                self.assertEqual(self.complete(script, *words), offered)
        output = self.run_command(tool, "--completion", "zsh")
        self.assertTrue(output.startswith("#compdef pymalloc-hugepages\n"))
        self.assertIn("--persist[", output)
