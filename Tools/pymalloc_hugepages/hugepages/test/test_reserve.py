"""Tests of reserve."""

import contextlib
import io
import json
import os
import re
import sys
import unittest
from unittest import mock

from hugepages import ToolError, cli, persist, pool, reserve, run

from .support import (
    INTERPRETER, PACKAGE, POOL, TestCase, outcome, pool_with, requires_linux,
    statistics_line)


NODE = "sys/devices/system/node/node"
NODE_POOL = "hugepages/hugepages-2048kB"


class CountTests(unittest.TestCase):
    def count(self, *args, **kwargs):
        return reserve.count_needed(outcome(*args, **kwargs))

    def lines(self, **peaks):
        return "\n".join(statistics_line(int(name[1:]), *values)
                         for name, values in peaks.items())

    def test_what_could_have_been_on_the_pool_counts(self):
        # Plain pages only where there are no THP.
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
        patcher = mock.patch.object(pool, "_write", self.kernel_write)
        patcher.start()
        self.addCleanup(patcher.stop)

    def kernel_write(self, path, text):
        name = os.path.relpath(path, self.root)
        self.writes.append((os.path.basename(name), text.strip()))
        if name in ("proc/sys/vm/compact_memory", f"{NODE}1/compact"):
            del self.limits[0]
        else:
            self.assertIn(name, (f"{POOL}/nr_hugepages",
                                 f"{NODE}1/{NODE_POOL}/nr_hugepages"))
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
        before = pool.read_pool(self.root)
        self.assertEqual((before.size, before.available), (6, 3))
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
        for text in ("x", "-1", "1.5", "", "\u0663", "9" * 20, "9" * 5000,
                     "M", "1.5G", "64MB", "64B", "1 G", "1P", "1Gi", "-1M",
                     "1M\n", "9999999T"):
            self.refuse("--", text, pattern="not a number of pages, nor a size"
                        ".*; give .* 128, .* 256M or 1G")
        self.refuse(pattern="give a number of pages, or --for")
        self.refuse("5", "--for", "true", pattern="give a number .* or --for")
        self.refuse("--for", pattern="no command to run")
        self.refuse("--for", "--", pattern="no command to run")
        self.refuse("--shrink", "--for", "true", pattern="only makes .*larger")
        for args in (["5"], ["--persist"], ["--shrink"], ["--node", "0"]):
            self.refuse("--forget", *args, pattern="--forget takes only")
        self.refuse("--forget", "--for", "true", pattern="--forget takes only")

    def test_sizes(self):
        for text, pages in [("128", 128), ("64M", 32), ("1G", 512),
                            ("1g", 512), ("1GiB", 512), ("2048K", 1),
                            ("4t", 2 << 20), ("0M", 0),
                            # Enough for what was asked for.
                            ("1M", 1), ("3M", 2), ("1K", 1)]:
            self.assertEqual(reserve.parse_pages(text), pages, text)
        self.tree.add_pool()
        out = self.reserve("64M")
        self.assertEqual(self.writes, [("nr_hugepages", "32")])
        self.assertIn("64M is 32 huge pages of 2 MiB.\n", out)
        self.assertIn("2M is 1 huge page of 2 MiB.\n",
                      self.reserve("2M", "--dry-run"))
        self.assertNotIn(" is ", self.reserve("33").partition("left")[0])

    def add_node(self, number, total=0, free=0, surplus=0, mib=1000):
        """Half of its memory is free, the other half has files."""
        for name, value in [("nr", total), ("free", free),
                            ("surplus", surplus)]:
            self.tree.write(f"{NODE}{number}/{NODE_POOL}/{name}_hugepages",
                            f"{value}\n")
        half = mib * 1024 // 4
        self.tree.write(f"{NODE}{number}/compact", "")
        self.tree.write(f"{NODE}{number}/meminfo", "".join(
            f"Node {number} {name}: {value} kB\n" for name, value in [
                ("MemTotal", 10**9), ("MemFree", 2 * half),
                ("Active(file)", half), ("Inactive(file)", half)]))

    def test_node(self):
        self.tree.add_pool(total=9, free=9)
        self.add_node(0, 9, 9)
        self.add_node(1, 4, 2, 1)
        part = pool.read_pool(self.root, 1)
        self.assertEqual((part.size, part.available), (3, 2))
        self.add_node(1, 4, 2)
        out = self.reserve("128", "--node", "1")
        self.assertEqual(self.writes, [("nr_hugepages", "128")])
        self.assertEqual(
            self.tree.read(f"{NODE}1/{NODE_POOL}/nr_hugepages"), "128\n")
        self.assertEqual(self.tree.read(f"{POOL}/nr_hugepages"), "9\n")
        self.assertIn("Node 1 has 128 pages (256 MiB), 2 of them", out)
        result = json.loads(self.reserve("2", "--node", "1", "--json"))
        self.assertEqual((result["node"], result["before"]["size"]), (1, 128))
        result = json.loads(self.reserve("129", "--node=1", "--json",
                                         "--dry-run"))
        self.assertEqual(result["write"]["path"], self.tree.path(
            f"{NODE}1/{NODE_POOL}/nr_hugepages"))

    def test_node_that_is_short_of_memory(self):
        self.tree.add_pool()
        self.add_node(1, mib=100)
        self.refuse("51", "--node", "1", pattern="only 100 MiB .* on node 1; "
                    "ask for at most 50")
        self.limits = [20, 50]
        self.reserve("50", "--node", "1")
        self.assertEqual([name for name, _ in self.writes],
                         ["nr_hugepages", "compact", "nr_hugepages"])

    def test_node_that_is_not_there(self):
        self.tree.add_pool()
        self.refuse("5", "--node", "0", pattern="no NUMA node 0; this system "
                    "has: none that")
        self.add_node(10)
        self.add_node(9)
        self.refuse("5", "--node", "1", pattern="no NUMA node 1; .*: 9, 10$")
        for text in "-1", "x", "", "1,2", "\u0663", "9" * 5000:
            self.refuse("5", f"--node={text}", pattern="not a number of a")

    def test_node_of_another_user(self):
        self.tree.add_pool()
        self.add_node(0)
        with mock.patch.object(os, "access", return_value=False), \
                mock.patch.object(os, "geteuid", return_value=1000):
            self.refuse("64M", "--node", "0", pattern="run: sudo .*"
                        r"hugepages\.py reserve 32 --node 0$")

    def test_not_root(self):
        self.tree.add_pool()
        with mock.patch.object(os, "access", return_value=False), \
                mock.patch.object(os, "geteuid", return_value=1000):
            self.refuse("128", "--persist", pattern="only root may change the "
                        "pool; run: sudo .*hugepages.py reserve 128 --persist")
            self.reserve("128", "--dry-run")
        with mock.patch.object(os, "access", return_value=False), \
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

    def test_pages_name_the_same_file(self):
        top = PACKAGE.parents[2]
        named = []
        for page in [top / "README.rst", *(top / "docs").glob("*.rst"),
                     PACKAGE / "pymalloc-hugepages.1"]:
            named += re.findall(r"/(etc/sysctl\.d/[\w.-]+)", page.read_text(
                encoding="utf-8").replace("\\-", "-"))
        self.assertGreaterEqual(len(named), 2)
        self.assertEqual(set(named), {self.SYSCTL})

    def test_persist_with_another_default_size(self):
        self.tree.add_pool(default=1048576)
        self.refuse("128", "--persist",
                    pattern="command line: hugepagesz=2M hugepages=128")
        self.assertEqual(self.writes, [])
        self.tree.write("usr/bin/systemd-tmpfiles", "")
        # Would reserve 1 GiB pages at the next boot.
        self.tree.write(self.SYSCTL, persist.HEADER + "\n")
        out = self.reserve("128", "--persist")
        self.assertRegex(
            self.tree.read(self.TMPFILES),
            rf"\A(#.*\n)+w /{POOL}/nr_hugepages - - - - 128\n\Z")
        self.assertFalse(os.path.exists(self.tree.path(self.SYSCTL)))
        self.assertIn("Removed", out)

    def test_persist_of_nodes(self):
        self.tree.add_pool()
        for node in 0, 1:
            self.add_node(node, 128, 128)
        self.refuse("128", "--persist", "--node", "1", pattern="for one node, "
                    ".* command line: hugepagesz=2M hugepages=1:128")
        self.tree.write("usr/bin/systemd-tmpfiles", "")
        # It would have the kernel spread other pages over all nodes.
        self.reserve("9", "--persist")
        self.assertNotIn("But", self.reserve("9", "--persist", "--dry-run",
                                             "--node", "1"))
        for size, node in (8, 1), (9, 0), (7, 0):
            self.reserve(str(size), "--persist", "--node", str(node))
        self.assertRegex(
            self.tree.read(self.TMPFILES),
            rf"\A(#.*\n)+w /{NODE}0/{NODE_POOL}/nr_hugepages - - - - 7\n"
            rf"w /{NODE}1/{NODE_POOL}/nr_hugepages - - - - 8\n\Z")
        self.assertFalse(os.path.exists(self.tree.path(self.SYSCTL)))
        # A file that sets all of them is in the way, whatever its name.
        self.tree.write("etc/sysctl.d/10-x.conf", "vm.nr_hugepages = 1\n")
        self.assertRegex(
            self.reserve("8", "--persist", "--node", "1"),
            r"But .*/10-x\.conf overrides it; .*: vm\.nr_hugepages = 1\n")
        self.reserve("9", "--persist")
        self.assertFalse(os.path.exists(self.tree.path(self.TMPFILES)))

    def test_forget(self):
        self.tree.add_pool(total=7)
        self.assertIn("nothing to forget", self.reserve("--forget"))
        self.reserve("8", "--persist")
        self.tree.write(self.TMPFILES, persist.HEADER + "\n")
        before = self.files()
        out = self.reserve("--forget", "--dry-run")
        self.assertEqual(self.files(), before)
        for name in self.SYSCTL, self.TMPFILES:
            self.assertIn(f"Would remove {self.tree.path(name)}.\n", out)
        self.writes.clear()
        result = json.loads(self.reserve("--forget", "--json"))
        self.assertEqual((result["kind"], result["files"]), ("forget", [
            self.tree.path(self.SYSCTL), self.tree.path(self.TMPFILES)]))
        for name in self.SYSCTL, self.TMPFILES:
            del before[self.tree.path(name)]
        self.assertEqual((self.files(), self.writes), (before, []))

    def test_forget_leaves_files_of_others_alone(self):
        self.tree.add_pool()
        self.tree.write(self.SYSCTL, "vm.nr_hugepages = 3\n")
        before = self.files()
        out = self.reserve("--forget")
        self.assertEqual(self.files(), before)
        self.assertRegex(out, r"60-.*\.conf is not a file that this tool has "
                         r"written, and stays\.\n")
        self.assertIn("60-pymalloc-hugepages.conf sets the pool at each boot: "
                      "vm.nr_hugepages = 3\n", out)

    def test_forget_without_the_right(self):
        self.tree.add_pool()
        self.reserve("8", "--persist")
        for user, pattern in [(1000, "denied; run: sudo .* reserve --forget$"),
                              (0, "denied$")]:
            with mock.patch.object(os, "unlink", side_effect=PermissionError(
                    13, "Permission denied")), \
                    mock.patch.object(os, "geteuid", return_value=user):
                self.refuse("--forget", pattern=pattern)

    def test_persist_leaves_files_of_others_alone(self):
        self.tree.add_pool()
        self.tree.write(self.SYSCTL, "vm.nr_hugepages = 3\n")
        self.refuse("128", "--persist", pattern="not a file that this tool")
        self.assertEqual(self.writes, [])
        self.tree.write("target", persist.HEADER)
        os.unlink(self.tree.path(self.SYSCTL))
        os.symlink(self.tree.path("target"), self.tree.path(self.SYSCTL))
        self.refuse("128", "--persist", pattern="not a file that this tool")

    def test_persist_is_whole_or_not_at_all(self):
        self.tree.add_pool(total=128)
        self.tree.write(self.SYSCTL, persist.HEADER + "\nold\n")
        for name in "replace", "fsync":
            with mock.patch.object(os, name,
                                   side_effect=OSError(28, "No space")):
                self.refuse("128", "--persist", pattern="No space")

    def test_persist_is_overridden(self):
        self.tree.add_pool()
        self.tree.write("etc/sysctl.d/50-x.conf", "vm.nr_hugepages = 1\n")
        self.tree.write("etc/sysctl.d/99-x.txt", "vm.nr_hugepages = 1\n")
        self.assertNotIn("But", self.reserve("8", "--persist"))
        self.tree.write("etc/sysctl.d/99-x.conf",
                        "# a\nvm/nr_hugepages=1\n")
        self.assertRegex(self.reserve("8", "--persist"),
                         r"But .*99-x\.conf overrides it; take this line out: "
                         r"vm/nr_hugepages=1\n")

    def overriding(self):
        result = json.loads(self.reserve("8", "--persist", "--dry-run",
                                         "--json"))
        path = result["persist"]["overridden_by"]
        return path and os.path.relpath(path, self.root)

    def test_all_folders_of_sysctl_d(self):
        self.tree.add_pool()
        for folder in ("lib/sysctl.d", "usr/lib/sysctl.d", "run/sysctl.d",
                       "usr/local/lib/sysctl.d"):
            name = f"{folder}/70-x.conf"
            self.tree.write(name, "vm.nr_hugepages=2\n")
            # Ours is in the folder that hides the others.
            self.tree.write(f"{folder}/60-pymalloc-hugepages.conf",
                            "vm.nr_hugepages=2\n")
            self.tree.write(f"{folder}/50-x.conf", "vm.nr_hugepages=2\n")
            self.assertEqual(self.overriding(), name)
            os.unlink(self.tree.path(name))
            self.assertIsNone(self.overriding())

    def test_order_of_sysctl_d(self):
        self.tree.add_pool()
        # By name, not by folder.
        for name in "usr/lib/sysctl.d/90-a.conf", "etc/sysctl.d/80-b.conf":
            self.tree.write(name, "vm.nr_hugepages_mempolicy = 2\n")
        self.assertEqual(self.overriding(), "usr/lib/sysctl.d/90-a.conf")
        # A file hides that of the same name in a later folder.
        self.tree.write("run/sysctl.d/90-a.conf", "vm.nr_hugepages=3\n")
        self.assertEqual(self.overriding(), "run/sysctl.d/90-a.conf")
        os.symlink("/dev/null", self.tree.path("etc/sysctl.d/90-a.conf"))
        self.assertEqual(self.overriding(), "etc/sysctl.d/80-b.conf")
        # Debian 12 has this link; systemd does not read the file itself.
        self.tree.write("etc/sysctl.conf", "#a\n;b\n-vm.nr_hugepages = 5\n")
        self.assertEqual(self.overriding(), "etc/sysctl.d/80-b.conf")
        os.symlink("../sysctl.conf",
                   self.tree.path("etc/sysctl.d/99-sysctl.conf"))
        self.assertEqual(self.overriding(), "etc/sysctl.d/99-sysctl.conf")
        self.tree.write("etc/sysctl.conf", "#vm.nr_hugepages = 5\n"
                        ";vm.nr_hugepages = 5\nvm.nr_hugepages_x = 5\n")
        self.assertEqual(self.overriding(), "etc/sysctl.d/80-b.conf")

    def test_sysctl_of_another_default_size(self):
        self.tree.add_pool(default=1048576)
        self.tree.write("usr/bin/systemd-tmpfiles", "")
        self.tree.write("etc/sysctl.d/99-x.conf", "vm.nr_hugepages = 1\n")
        self.assertIsNone(self.overriding())
        self.assertNotIn("at each boot", self.reserve("--forget"))

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
        with mock.patch.object(os, "access", return_value=False), \
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
