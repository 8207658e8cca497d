"""Tests of reserve."""

import contextlib
import io
import json
import os
import sys
import unittest
from unittest import mock

from hugepages import ToolError, cli, reserve, run

from .support import (
    INTERPRETER, POOL, TestCase, outcome, pool_with, requires_linux,
    statistics_line)


class CountTests(unittest.TestCase):
    def count(self, *args, **kwargs):
        return reserve.count_needed(outcome(*args, **kwargs))

    def lines(self, **peaks):
        return "\n".join(statistics_line(int(name[1:]), *values)
                         for name, values in peaks.items())

    def test_what_could_have_been_on_the_pool_counts(self):
        # Plain pages only where THP cannot be had.
        text = statistics_line(5, 1, 20, 300, asked=20)
        self.assertEqual(self.count(text, (), [{5}]), 21)
        text = statistics_line(5, 1, 0, 300, unusable="no THP")
        self.assertEqual(self.count(text, (), [{5}]), 301)

    def test_first_arenas_do_not_count(self):
        text = statistics_line(5, 1, 20, 300, asked=18)
        self.assertEqual(self.count(text, (), [{5}]), 19)
        text = statistics_line(5, 1, 20, 300, asked=18, more=1)
        self.assertEqual(self.count(text, (), [{5}]), 21)
        text = statistics_line(5, 1, 3, 0, asked=1)
        self.assertEqual(self.count(text, (), [{5}]), 2)
        text = statistics_line(5, 1, 0, 300, asked=298, unusable="no THP")
        self.assertEqual(self.count(text, (), [{5}]), 299)

    def test_only_those_at_the_same_time(self):
        text = self.lines(p5=(1,), p6=(10,), p7=(100,), p8=(108,))
        self.assertEqual(self.count(text, (), [{5, 6, 7}, {5, 8}, {5}]), 111)
        self.assertEqual(self.count(text, (), [{5, 6}, {5, 8}, {7}]), 109)

    def test_of_those_never_met_the_largest(self):
        text = self.lines(p5=(1,), p6=(10,), p7=(8,))
        self.assertEqual(self.count(text, (), [{5}]), 11)
        self.assertEqual(self.count(text, (), [()]), 10)

    def test_sampled(self):
        seen = [run.Seen(6, True, 1, 7, 70)]
        self.assertEqual(self.count(self.lines(p5=(1,)), seen, [{5, 6}]), 78)

    def test_none(self):
        with self.assertRaisesRegex(ToolError, "no process of 'app' was"):
            self.count()

    def test_margin(self):
        self.assertEqual([reserve.margin(pages)
                          for pages in (0, 1, 40, 41, 60, 1000)],
                         [2, 2, 2, 3, 3, 50])


class ReserveTests(TestCase):
    """On a tree; the kernel is played by kernel_write()."""

    def setUp(self):
        super().setUp()
        # What the kernel has, now and after it moved memory together.
        self.limits = [10**9, 10**9]
        self.writes = []
        patcher = mock.patch.object(reserve, "_write", self.kernel_write)
        patcher.start()
        self.addCleanup(patcher.stop)

    def kernel_write(self, path, text):
        name = os.path.relpath(path, self.root)
        self.writes.append((os.path.basename(name), text.strip()))
        if name == "proc/sys/vm/compact_memory":
            del self.limits[0]
        else:
            self.assertEqual(name, f"{POOL}/nr_hugepages")
            self.tree.write(name, f"{min(int(text), self.limits[0])}\n")

    def reserve(self, *args, status=0):
        options = cli.parse_arguments(["reserve", *args])
        with contextlib.redirect_stdout(io.StringIO()) as out:
            self.assertEqual(reserve.main(options, self.root), status)
        return out.getvalue()

    def refuse(self, *args, pattern):
        before = self.files()
        with self.assertRaisesRegex(ToolError, pattern) as caught:
            with contextlib.redirect_stdout(io.StringIO()):
                reserve.main(cli.parse_arguments(["reserve", *args]),
                             self.root)
        self.assertNotIn("\n", str(caught.exception))
        self.assertEqual(caught.exception.status, 2)
        self.assertEqual(self.files(), before)

    def files(self):
        return {os.path.join(directory, name): self.tree.read(
                    os.path.join(directory, name))
                for directory, _, names in os.walk(self.root)
                for name in names}

    def test_reserve(self):
        self.tree.add_pool(total=4, free=3)
        out = self.reserve("128")
        self.assertEqual(self.writes, [("nr_hugepages", "128")])
        self.assertIn("The pool has 128 pages (256 MiB), 3 of them available",
                      out)

    def test_reserved_and_surplus_pages(self):
        self.tree.add_pool(total=10, free=5, reserved=2, surplus=4)
        pool = reserve.read_pool(self.root)
        self.assertEqual((pool.size, pool.available), (6, 3))
        self.assertIn("4 more are in use", self.reserve("3"))

    def test_never_shrinks_unless_told(self):
        self.tree.add_pool(total=200, free=200)
        self.assertIn("--shrink", self.reserve("128"))
        self.assertEqual(self.writes, [])
        self.reserve("128", "--shrink")
        self.assertEqual(self.writes, [("nr_hugepages", "128")])
        self.reserve("0", "--shrink")
        self.assertEqual(self.tree.read(f"{POOL}/nr_hugepages"), "0\n")

    def test_compaction_helps(self):
        self.tree.add_pool()
        self.limits = [50, 500]
        self.reserve("128")
        self.assertEqual(self.writes, [("nr_hugepages", "128"),
                                       ("compact_memory", "1"),
                                       ("nr_hugepages", "128")])

    def test_kernel_gives_only_some(self):
        self.tree.add_pool(total=10)
        self.limits = [50, 60]
        out = self.reserve("128", status=1)
        self.assertIn("gave only 50 of 118 more pages", out)
        self.assertIn("The pool keeps what it got", out)
        self.assertIn("The pool has 60 pages", out)
        self.limits = [60, 60]
        result = json.loads(self.reserve("128", "--json", status=1))
        self.assertEqual(result["after"]["size"], 60)
        self.assertEqual(result["pages"], 128)

    def test_kernel_without_compaction(self):
        self.tree.add_pool()
        os.unlink(self.tree.path("proc/sys/vm/compact_memory"))
        self.limits = [50]
        self.reserve("128", status=1)

    def test_more_than_there_is(self):
        self.tree.add_pool(total=1, available_mib=100)
        self.refuse("52", pattern="51 more huge pages are 102 MiB, and only "
                    "100 MiB .* at most 50 more")
        self.refuse("--dry-run", "52", pattern="51 more")
        self.reserve("51")

    def test_no_pool(self):
        self.tree.write("proc/meminfo", "MemTotal: 1 kB\n")
        self.refuse("5", pattern="no pool of 2 MiB huge pages")

    def test_arguments(self):
        self.tree.add_pool()
        for text in "x", "-1", "1.5", "", "\u0663", "9" * 20:
            self.refuse("--", text, pattern="not a number of pages")
        self.refuse(pattern="give a number of pages, or --for")
        self.refuse("5", "--for", "true", pattern="give a number .* or --for")
        self.refuse("--for", pattern="no command to run")
        self.refuse("--for", "--", pattern="no command to run")
        self.refuse("--shrink", "--for", "true", pattern="only makes .*larger")

    def test_not_root(self):
        self.tree.add_pool()
        with mock.patch.object(reserve.os, "access", return_value=False), \
                mock.patch.object(os, "geteuid", return_value=1000):
            self.refuse("128", "--persist", pattern="only root may change the "
                        "pool; run: sudo .*hugepages.py reserve 128 --persist")
            self.reserve("128", "--dry-run")
        with mock.patch.object(reserve.os, "access", return_value=False), \
                mock.patch.object(os, "geteuid", return_value=0):
            self.refuse("128", pattern="read-only, as in a container")

    def test_dry_run_changes_nothing(self):
        self.tree.add_pool(total=4)
        before = self.files()
        out = self.reserve("128", "--dry-run", "--persist")
        self.assertEqual(self.files(), before)
        self.assertEqual(self.writes, [])
        self.assertIn("Would write 128 to ", out)
        self.assertIn(f"{POOL}/nr_hugepages", out)
        self.assertIn("Would write " + self.tree.path(
            "etc/sysctl.d/60-pymalloc-hugepages.conf"), out)
        # What it says is what is written then.
        self.reserve("128", "--persist")
        text = self.tree.read("etc/sysctl.d/60-pymalloc-hugepages.conf")
        for line in text.splitlines():
            self.assertIn("    " + line + "\n", out)

    SYSCTL = "etc/sysctl.d/60-pymalloc-hugepages.conf"
    TMPFILES = "etc/tmpfiles.d/pymalloc-hugepages.conf"

    def test_persist(self):
        self.tree.add_pool()
        for pages in "128", "129":              # its own file is replaced
            self.reserve(pages, "--persist")
            self.assertRegex(self.tree.read(self.SYSCTL),
                             rf"\A(#.*\n)+vm\.nr_hugepages = {pages}\n\Z")
        mode = os.stat(self.tree.path(self.SYSCTL)).st_mode
        self.assertEqual(mode & 0o777, 0o644)
        self.assertEqual(os.listdir(self.tree.path("etc/sysctl.d")),
                         [os.path.basename(self.SYSCTL)])

    def test_persist_with_another_default_size(self):
        self.tree.add_pool(default=1048576)
        self.refuse("128", "--persist",
                    pattern="command line: hugepagesz=2M hugepages=128")
        self.assertEqual(self.writes, [])
        self.tree.write("usr/bin/systemd-tmpfiles", "")
        # Would reserve 1 GiB pages at the next boot.
        self.tree.write(self.SYSCTL, reserve.HEADER + "\n")
        out = self.reserve("128", "--persist")
        self.assertRegex(
            self.tree.read(self.TMPFILES),
            rf"\A(#.*\n)+w /{POOL}/nr_hugepages - - - - 128\n\Z")
        self.assertFalse(os.path.exists(self.tree.path(self.SYSCTL)))
        self.assertIn("Removed", out)

    def test_persist_leaves_files_of_others_alone(self):
        self.tree.add_pool()
        self.tree.write(self.SYSCTL, "vm.nr_hugepages = 3\n")
        self.refuse("128", "--persist", pattern="not a file that this tool")
        self.assertEqual(self.writes, [])
        self.tree.write("target", reserve.HEADER)
        os.unlink(self.tree.path(self.SYSCTL))
        os.symlink(self.tree.path("target"), self.tree.path(self.SYSCTL))
        self.refuse("128", "--persist", pattern="not a file that this tool")

    def test_persist_is_whole_or_not_at_all(self):
        self.tree.add_pool(total=128)
        self.tree.write(self.SYSCTL, reserve.HEADER + "\nold\n")
        for name in "replace", "fsync":
            with mock.patch.object(reserve.os, name,
                                   side_effect=OSError(28, "No space")):
                self.refuse("128", "--persist", pattern="No space")

    def test_persist_is_overridden(self):
        self.tree.add_pool()
        self.tree.write("etc/sysctl.d/50-x.conf", "vm.nr_hugepages = 1\n")
        self.tree.write("etc/sysctl.d/99-x.txt", "vm.nr_hugepages = 1\n")
        self.assertNotIn("read later", self.reserve("8", "--persist"))
        self.tree.write("etc/sysctl.d/99-x.conf",
                        "# a\nvm/nr_hugepages=1\n")
        self.assertRegex(self.reserve("8", "--persist"),
                         r"But .*99-x\.conf is read later")

    def test_json(self):
        self.tree.add_pool(total=4, free=3)
        result = json.loads(self.reserve("8", "--json", "--persist"))
        self.assertEqual((result["before"]["size"], result["after"]["size"]),
                         (4, 8))
        self.assertEqual(result["persist"]["path"],
                         self.tree.path(self.SYSCTL))
        result = json.loads(self.reserve("9", "--json", "--dry-run"))
        self.assertEqual(
            (result["dry_run"], result["write"]["value"], result["after"]),
            (True, 9, None))


class ReserveForTests(ReserveTests):
    """Its tests, and those with --for; the command is not run."""

    def reserve_for(self, result, *args, status=0):
        with mock.patch.object(run, "execute", return_value=result) as execute:
            out = self.reserve(*args, "--for", "app", "--json", status=status)
        self.assertEqual(execute.call_args[0][:2], (["app", "--json"], "on"))
        return out

    def test_free_pages_are_added(self):
        self.tree.add_pool(total=50, free=15, reserved=5)
        out = self.reserve_for(outcome(statistics_line(5, 80), (), [{5}]))
        self.assertIn("app needs 80 huge pages, and 4 to be sure", out)
        self.assertEqual(self.writes, [("nr_hugepages", "124")])

    def test_enough_are_free(self):
        self.tree.add_pool(total=50, free=50)
        self.reserve_for(outcome(statistics_line(5, 40), (), [{5}]))
        self.assertEqual(self.writes, [])

    def test_says_what_is_not_sure(self):
        self.tree.add_pool()
        out = self.reserve_for(outcome("", [run.Seen(5, True, 1, 3, 4)],
                                       [{5}], status=130), "--dry-run")
        self.assertIn("status 130", out)
        self.assertIn("were sampled", out)
        self.assertIn("Would write 9 to", out)

    def test_persist(self):
        self.tree.add_pool(total=2)
        self.reserve_for(outcome(statistics_line(5, 40), (), [{5}]),
                         "--persist")
        self.assertIn("vm.nr_hugepages = 44", self.tree.read(self.SYSCTL))

    def test_not_root(self):
        # What it needs is known nevertheless.
        self.tree.add_pool()
        with mock.patch.object(reserve.os, "access", return_value=False), \
                mock.patch.object(os, "geteuid", return_value=1000), \
                mock.patch.object(run, "execute", return_value=outcome(
                    statistics_line(5, 40), (), [{5}])):
            self.refuse("--for", "app", pattern="sudo .*reserve 42$")

    def test_no_interpreter(self):
        self.tree.add_pool()
        with mock.patch.object(run, "execute", return_value=outcome()):
            self.refuse("--for", "app", pattern="no process of 'app' was")


@requires_linux
class RealReserveTests(TestCase):
    def test_reserve(self):
        with pool_with(0) as before:
            pages = before.size + 3
            out, _ = self.tool("reserve", "--json", str(pages))
            self.assertEqual(reserve.read_pool().size, pages)
            self.assertEqual(json.loads(out)["after"]["size"], pages)
            self.tool("reserve", str(before.size))
            self.assertEqual(reserve.read_pool().size, pages)
            self.tool("reserve", "--shrink", str(before.size))
            self.assertEqual(reserve.read_pool().size, before.size)

    def test_for(self):
        script = self.path("interpreter.py")
        with open(script, "w") as file:
            file.write("print('output')\n" + INTERPRETER)
        if not os.path.isdir(f"/{POOL}"):
            self.skipTest("needs a kernel with huge pages")
        # Two of those on THP are first arenas.
        expected = 1 + 12 - 2
        out, err = self.tool("reserve", "--json", "--dry-run", "--for",
                             sys.executable, script, "0", "1", "12", "3")
        result = json.loads(out)
        self.assertEqual(err, "output\n")
        self.assertEqual((result["for"]["needed"], result["for"]["margin"]),
                         (expected, 2))
