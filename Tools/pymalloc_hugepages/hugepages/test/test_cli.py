"""Tests of the command line and of the manual page."""

import os
import re
import shutil
import subprocess
import sys
import unittest
from unittest import mock

from hugepages import NAMES, VERSION, cli, process, program, run

from .support import PACKAGE, TOOL, TestCase, requires_linux


MANUAL = PACKAGE / "pymalloc-hugepages.1"


class CommandLineTests(TestCase):
    def test_bad_arguments_are_one_line(self):
        for args in ([], ["nonsense"], ["--nonsense"], ["status", "1", "2"],
                     ["status", "--watch"], ["run"], ["run", "--"],
                     ["run", "--mode"], ["run", "--mode", "x", "true"],
                     ["run", "--bogus", "true"],
                     ["run", "--malloc"], ["run", "--malloc=1", "true"],
                     ["reserve", "--malloc", "5"], ["reserve"],
                     ["reserve", "5", "6"], ["reserve", "--per", "5"]):
            with self.subTest(args):
                self.refuse(*args, pattern=".")

    def test_json_before_and_after_the_command(self):
        for args in (["--json", "status"], ["status", "--json"],
                     ["--json", "reserve", "5"], ["reserve", "5", "--json"],
                     ["--json", "run", "true"], ["run", "--json", "true"]):
            self.assertIs(cli.parse_arguments(args).json, True, args)
        for args in ["status"], ["reserve", "5"], ["run", "--", "a", "--json"]:
            self.assertIs(cli.parse_arguments(args).json, False, args)

    def test_split(self):
        for args, ours, command in [
                ("run a --mode b", "run", "a --mode b"),
                ("run -- a -- b", "run", "a -- b"),
                ("--json run --mode on --output f a", "--json run --mode on "
                 "--output f", "a"),
                ("run --mode=on a --for b", "run --mode=on", "a --for b"),
                ("run --malloc a --malloc", "run --malloc", "a --malloc"),
                ("reserve --persist --for -- a --for", "reserve --persist "
                 "--for", "a --for"),
                ("status --for run -- x", "status --for run -- x", None),
                ("reserve 5 --persist", "reserve 5 --persist", None)]:
            with self.subTest(args):
                self.assertEqual(
                    cli.split_command(args.split()),
                    (ours.split(), command and command.split()))

    def test_options_with_a_value_are_known(self):
        _, parsers = cli.make_parser()
        taking = {name for action in parsers["run"]._actions
                  for name in action.option_strings if action.nargs is None}
        self.assertEqual(set(run.VALUE_OPTIONS), taking)

    def options(self):
        parser, parsers = cli.make_parser()
        return {name for each in [parser, *parsers.values()]
                for action in each._actions for name in action.option_strings}

    def test_manual_has_exactly_the_options(self):
        with open(MANUAL) as file:
            text = file.read().replace("\\-", "-")
        section = re.search(r"\.SH OPTIONS\n(.*?)\.SH ", text, re.S)[1]
        tags = re.findall(r"\.TP\n(.*)\n", section)
        self.assertEqual(set(re.findall(r"(?<!\w)--?[a-z][a-z-]*",
                                        " ".join(tags))), self.options())
        # An option that is named anywhere must exist: here, or the build's.
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
        self.assertEqual(named - self.options(), {"--with-pymalloc-hugepages"})

    def test_manual_has_the_sections(self):
        with open(MANUAL) as file:
            found = re.findall(r'^\.SH "?(.*?)"?$', file.read(), re.M)
        self.assertEqual(found, [
            "NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "OPTIONS",
            "EXIT STATUS", "JSON", "ENVIRONMENT", "FILES", "EXAMPLES",
            "SEE ALSO"])

    @unittest.skipUnless(shutil.which("groff"), "needs groff")
    def test_manual_is_clean(self):
        done = subprocess.run(["groff", "-man", "-ww", "-z", MANUAL],
                              stderr=subprocess.PIPE)
        self.assertEqual((done.returncode, done.stderr), (0, b""))

    def test_help(self):
        out, _ = self.tool("--help")
        for word in "exit status", "130", "141", "126", "reserve", "sudo":
            self.assertIn(word, out)
        for command in "status", "reserve", "run":
            out, _ = self.tool(command, "--help")
            self.assertIn("--json", out)
            self.assertLessEqual(max(map(len, out.splitlines())), 80)

    def test_version(self):
        self.assertEqual(self.tool("--version"),
                         (f"pymalloc-hugepages {VERSION}\n", ""))
        with open(PACKAGE.parents[2] / "VERSION") as file:
            self.assertEqual(file.read().strip(), VERSION)

    def test_completion_needs_shtab(self):
        for shtab in None, mock.Mock(__version__="1.5.5"):
            with mock.patch.dict(sys.modules, shtab=shtab):
                self.assertRegex(
                    self.main("--completion", "bash")[2],
                    r"\A.* needs the Python package shtab, 1.5.6 or .*\n\Z")
        self.refuse("--completion", "fish", pattern="invalid choice: 'fish'")

    def test_calls_itself_what_it_is_called(self):
        for name in NAMES:
            with mock.patch.object(sys, "argv", [f"/opt/bin/{name}"]):
                self.assertEqual(program(), name)
                self.assertEqual(process.own_command(), f"/opt/bin/{name}")
                self.assertRegex(self.main("nonsense")[2],
                                 rf"\A{name}: .*; see: {name} --help\n\Z")
                help_text = cli.make_parser()[0].format_help()
                self.assertIn(f"  {name} run -- python", help_text)
                self.assertNotIn("%(", help_text)
        with mock.patch.object(sys, "argv", ["python -m unittest"]):
            self.assertEqual(process.own_command(), "hugepages.py")

    @requires_linux
    def test_runs_from_anywhere(self):
        os.symlink(TOOL, self.path("link.py"))
        done = subprocess.run([sys.executable, self.path("link.py"), "--help"],
                              cwd="/", stdout=subprocess.PIPE)
        self.assertEqual(done.returncode, 0)

    @requires_linux
    def test_output_that_nobody_reads(self):
        read_end, write_end = os.pipe()
        os.close(read_end)
        with open(write_end, "w") as pipe:
            for args in ["--help"], ["status", str(os.getpid())]:
                done = subprocess.run([sys.executable, TOOL, *args],
                                      stdout=pipe, stderr=subprocess.PIPE)
                self.assertEqual((done.returncode, done.stderr), (141, b""))
        with open("/dev/full", "w") as full:
            done = subprocess.run([sys.executable, TOOL, "--help"],
                                  stdout=full, stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, 2)
        self.assertRegex(done.stderr.decode(), r"\A.*No space left.*\n\Z")

    @requires_linux
    def test_closed_streams(self):
        for closed in (1,), (2,), (0, 1, 2):
            with self.subTest(closed):
                done = subprocess.run(
                    [sys.executable, TOOL, "nonsense"], stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    preexec_fn=lambda: list(map(os.close, closed)))
                self.assertEqual(done.returncode, 2)
                # The line does not go to where the output belongs.
                self.assertEqual(done.stdout, b"")
                self.assertEqual(bool(done.stderr), 2 not in closed)

    def test_interrupt(self):
        with mock.patch.object(cli, "_select", side_effect=KeyboardInterrupt):
            self.assertEqual(self.main("status"), (130, "", ""))

    def test_other_systems(self):
        with mock.patch.object(sys, "platform", "win32"):
            for args in (["status", "5"], ["reserve", "5"], ["run", "x"],
                         ["reserve", "--for", "x"]):
                status, out, err = self.main(*args)
                self.assertEqual((status, out), (2, ""))
                self.assertRegex(err,
                                 r"\Ahugepages.py: .* is for Linux; .*\n\Z")
            # status without a process is for all.
            module = cli._select(cli.parse_arguments(["status"]))
            self.assertEqual(module.__name__, "hugepages.system_status")

    @requires_linux
    def test_starts_without_what_windows_lacks(self):
        # The library's own modules must not believe that this is Windows.
        program = f"""
import argparse, contextlib, dataclasses, json, os, re, shlex, shutil, signal
import subprocess, sys, tempfile, threading, time, typing
for name in "geteuid", "fchmod", "posix_spawnp", "wait4", "WNOHANG":
    delattr(os, name)
for name in ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGPIPE",
             "sigwaitinfo", "pthread_sigmask"):
    delattr(signal, name)
sys.platform = "win32"
sys.path.insert(0, {str(PACKAGE.parent)!r})
from hugepages import cli
sys.exit(cli.main(["reserve", "5"]))
"""
        done = subprocess.run([sys.executable, "-c", program],
                              stderr=subprocess.PIPE, universal_newlines=True)
        self.assertEqual((done.returncode, done.stderr), (
            2, "hugepages.py: reserve is for Linux; on this system there is: "
            "hugepages.py status\n"))
