"""Tests of hugepages.py status without a process.

What the kernel says comes from the recorded systems in recorded/.
"""

import ast
import contextlib
import ctypes
import dataclasses
import io
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import types
import unittest
from unittest import mock

from hugepages import (
    ToolError, system, system_status, verdict, windows)

from .support import MIB, PACKAGE, TOOL, requires_linux


RECORDED = PACKAGE / "test" / "recorded"
GIB = 1 << 30
RESERVE = "hugepages.py reserve --for COMMAND"


def lay_out(name, directory):
    """Make a tree of a recorded system."""
    parts = re.split(r"(?m)^==> (\S+)\n",
                     (RECORDED / f"{name}.txt").read_text())
    for path, text in zip(parts[1::2], parts[2::2]):
        file = pathlib.Path(directory, path.lstrip("/"))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


class RecordedTestCase(unittest.TestCase):

    def tree(self, name):
        """A temporary tree of that system, as a Path."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        lay_out(name, directory.name)
        return pathlib.Path(directory.name)

    def run_status(self, tree, is_json=False, form=None):
        """(exit status, output) of status on that tree."""
        output = io.StringIO()
        with contextlib.redirect_stdout(output), \
                mock.patch.object(sys, "platform", "linux"):
            status = system_status.main(
                types.SimpleNamespace(json=is_json, format=form), str(tree))
        return status, output.getvalue()


class ScanTest(RecordedTestCase):

    def scan(self, name):
        return system.scan(str(self.tree(name)))

    def check_pool(self, found, page_size, **expected):
        pool = found.pool(page_size)
        for name, value in expected.items():
            self.assertEqual(getattr(pool, name), value, name)
        return pool

    def test_empty_pool(self):
        found = self.scan("empty-pool")
        self.assertEqual(found.kernel, "6.18.44")
        self.assertEqual(found.machine, "x86_64")
        self.assertEqual(found.base_page_size, 4096)
        self.assertEqual(found.default_huge_page_size, 2 * MIB)
        self.assertEqual([pool.page_size for pool in found.pools],
                         [2 * MIB, GIB])
        pool = self.check_pool(found, 2 * MIB, total=0, free=0, reserved=0,
                               surplus=0, overcommit=0)
        self.assertEqual(pool.nodes, (system.Node(0, 0, 0, 0),))
        self.assertEqual(found.thp_enabled, "madvise")
        self.assertEqual(found.thp_defrag, "madvise")
        self.assertEqual(found.thp_size, 2 * MIB)
        self.assertEqual(found.thp_2mib_enabled, "inherit")
        self.assertIs(found.thp_allowed, True)
        self.assertIsNone(found.hugetlb_limit)
        self.assertIsNone(found.memory_limit)
        self.assertEqual(found.cgroup_version, "v2")
        self.assertEqual(found.allowed_nodes, (0,))
        self.assertIsNone(found.address_space_limit)
        self.assertEqual(found.user, 0)

    def test_no_hugetlb(self):
        found = self.scan("no-hugetlb")
        self.assertEqual(found.pools, ())
        self.assertIsNone(found.default_huge_page_size)
        self.assertIs(found.may_change_pool, False)

    def test_pool_in_use(self):
        found = self.scan("two-nodes-in-use")
        pool = self.check_pool(found, 2 * MIB, total=32, free=29, reserved=2)
        self.assertEqual([(node.number, node.total) for node in pool.nodes],
                         [(0, 20), (1, 12)])
        self.assertEqual(sum(node.free for node in pool.nodes), 29)
        self.assertEqual(found.allowed_nodes, (0, 1))

    def test_default_1gib(self):
        found = self.scan("default-1gib")
        self.assertEqual(found.default_huge_page_size, GIB)
        self.check_pool(found, 2 * MIB, total=16, free=16)
        self.check_pool(found, GIB, total=1)

    def test_thp(self):
        self.assertEqual(self.scan("thp-never").thp_enabled, "never")
        self.assertIs(self.scan("thp-disabled").thp_allowed, False)

    def test_cgroup_v1(self):
        found = self.scan("cgroup-v1-limit")
        self.assertEqual(found.cgroup_version, "v1")
        self.assertEqual(found.hugetlb_limit, system.Limit(
            8 * MIB, 6 * MIB,
            "/sys/fs/cgroup/hugetlb/hugetlb.2MB.limit_in_bytes"))
        self.assertEqual(found.hugetlb_limit.room, 2 * MIB)
        self.assertEqual(found.memory_limit.limit, 512 * MIB)
        self.assertIsNone(found.hugetlb_reservation_limit)

    def test_cgroup_v2(self):
        found = self.scan("cgroup-v2-limit")
        self.assertEqual(found.cgroup_version, "v2")
        self.assertEqual(found.hugetlb_limit, system.Limit(
            0, 0, "/sys/fs/cgroup/hugetlb.2MB.max"))

    def test_arm64(self):
        found = self.scan("arm64-64k")
        self.assertEqual(found.machine, "aarch64")
        self.assertEqual(found.base_page_size, 65536)
        self.assertEqual(found.thp_size, 512 * MIB)
        self.assertEqual([pool.page_size for pool in found.pools],
                         [2 * MIB, 512 * MIB, 16 * GIB])


class CgroupTest(RecordedTestCase):
    """Hierarchies as containers and hosts see them."""

    def scan(self, mountinfo, membership, files):
        tree = self.tree("empty-pool")
        (tree / "proc/self/mountinfo").write_text(mountinfo)
        (tree / "proc/self/cgroup").write_text(membership)
        for name, text in files.items():
            path = tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return system.scan(str(tree))

    V2 = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"

    def test_limit_of_a_parent(self):
        base = "sys/fs/cgroup"
        found = self.scan(self.V2, "0::/a.slice/b.service\n", {
            f"{base}/a.slice/hugetlb.2MB.max": "4194304\n",
            f"{base}/a.slice/hugetlb.2MB.current": "2097152\n",
            f"{base}/a.slice/b.service/hugetlb.2MB.max": "8388608\n",
            f"{base}/a.slice/b.service/hugetlb.2MB.current": "2097152\n",
            f"{base}/a.slice/b.service/memory.max": "max\n"})
        self.assertEqual(found.hugetlb_limit, system.Limit(
            4 * MIB, 2 * MIB, "/sys/fs/cgroup/a.slice/hugetlb.2MB.max"))
        self.assertIsNone(found.memory_limit)

    def test_reservations(self):
        found = self.scan(self.V2, "0::/\n", {
            "sys/fs/cgroup/hugetlb.2MB.rsvd.max": "2097152\n",
            "sys/fs/cgroup/hugetlb.2MB.max": "max\n"})
        self.assertEqual(found.hugetlb_reservation_limit.limit, 2 * MIB)
        self.assertIsNone(found.hugetlb_reservation_limit.used)
        self.assertEqual(verdict.judge_hugetlb(found).tier, "hugetlb")

    def test_bind_mount(self):
        # The process's cgroup is mounted, and seen by its name outside.
        mountinfo = ("31 20 0:27 /docker/4f /sys/fs/cgroup/hugetlb rw - "
                     "cgroup cgroup rw,hugetlb\n")
        files = {"sys/fs/cgroup/hugetlb/hugetlb.2MB.limit_in_bytes": "0\n"}
        for membership in "5:hugetlb:/docker/4f\n", "5:hugetlb:/elsewhere\n":
            with self.subTest(membership=membership):
                found = self.scan(mountinfo, membership, files)
                self.assertEqual(found.hugetlb_limit.limit, 0)

    def test_hybrid(self):
        mountinfo = ("31 20 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup "
                     "rw,memory\n"
                     "32 20 0:28 / /sys/fs/cgroup/unified rw - cgroup2 none "
                     "rw\n")
        found = self.scan(mountinfo, "4:memory:/m\n0::/u\n", {
            "sys/fs/cgroup/memory/m/memory.limit_in_bytes": "1048576\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes":
                "9223372036854771712\n",
            "sys/fs/cgroup/unified/u/hugetlb.2MB.max": "2097152\n"})
        self.assertEqual(found.cgroup_version, "hybrid")
        self.assertEqual(found.memory_limit.limit, MIB)
        self.assertEqual(found.hugetlb_limit.limit, 2 * MIB)

    def test_space_in_name(self):
        mountinfo = "30 20 0:26 / /my\\040cgroup rw - cgroup2 cgroup2 rw\n"
        found = self.scan(mountinfo, "0::/\n",
                          {"my cgroup/hugetlb.2MB.max": "0\n"})
        self.assertEqual(found.hugetlb_limit.limit, 0)

    def test_outside_of_the_namespace(self):
        found = self.scan(self.V2, "0::/../other\n",
                          {"sys/fs/cgroup/hugetlb.2MB.max": "0\n"})
        self.assertEqual(found.hugetlb_limit.limit, 0)


class RobustnessTest(RecordedTestCase):

    def test_nothing_there(self):
        with tempfile.TemporaryDirectory() as directory:
            found = system.scan(directory)
            self.assertEqual(found.pools, ())
            with self.assertRaisesRegex(ToolError, "cannot find out"):
                self.run_status(directory)
            verdicts = verdict.judge(found)
        self.assertEqual([each.works for each in verdicts],
                         [None, None, True])

    def test_each_file_missing_or_senseless(self):
        # Whatever a file says, there is an answer.
        contents = (None, "", "\n", "garbage [x", "-1\n", "9" * 20,
                    ": : : - cgroup2\n", "\0\xff\n", "0-\n", "1:2\n")
        tree = self.tree("cgroup-v1-limit")
        files = [path for path in tree.rglob("*") if path.is_file()]
        self.assertGreater(len(files), 30)
        for path in files:
            old = path.read_text()
            for content in contents:
                with self.subTest(file=str(path), content=content):
                    if content is None:
                        path.unlink()
                    else:
                        path.write_bytes(content.encode("latin-1"))
                    status, _ = self.run_status(tree)
                    self.assertIn(status, (0, 1))
            path.write_text(old)

    def test_directory_in_place_of_file(self):
        tree = self.tree("empty-pool")
        path = tree / "proc/meminfo"
        path.unlink()
        path.mkdir()
        self.assertIsNone(system.scan(str(tree)).default_huge_page_size)

    def test_lists(self):
        for text, expected in (("0", (0,)), ("0-2,5", (0, 1, 2, 5)),
                               ("", None), (None, None), ("a", None),
                               ("3-1", None), ("0-99999999", None)):
            self.assertEqual(system.parse_list(text), expected, text)


class VerdictTest(RecordedTestCase):

    # system: (exit status, hugetlb works, arenas, thp works, what the reasons
    # say, what the advice says)
    EXPECTED = {
        "no-hugetlb": (0, False, 0, True,
                       ["CONFIG_HUGETLBFS"], None),
        # Where transparent huge pages work, a pool adds little.
        "empty-pool": (0, False, 0, True, ["the pool is empty"], None),
        "two-nodes-in-use": (0, True, 27, True,
                             ["32 pages, 29 free, 2 of those reserved"], None),
        "default-1gib": (0, True, 16, True, ["16 pages, 16 free"], None),
        "thp-never": (1, False, 0, False,
                      ["the pool is empty", "is \"never\""],
                      "echo madvise >/sys/kernel/mm/transparent_hugepage"),
        "thp-disabled": (1, False, 0, False, ["PR_SET_THP_DISABLE"],
                         "another systemd unit"),
        "cgroup-v1-limit": (0, True, 1, True,
                            ["limit of 8 MiB", "limit_in_bytes",
                             "leaves 1 page"], None),
        "cgroup-v2-limit": (0, False, 0, True,
                            ["limit of 0 MiB", "hugetlb.2MB.max"], None),
        "arm64-64k": (0, True, 32, False,
                      ["has 512 MiB and does not fit"], RESERVE),
    }

    # What the verdict on the pool says would give more of it.
    IMPROVE_POOL = {
        "no-hugetlb": None, "cgroup-v1-limit": "hugepages-2Mi",
        "cgroup-v2-limit": "hugepages-2Mi",
        **dict.fromkeys(["empty-pool", "two-nodes-in-use", "default-1gib",
                         "thp-never", "thp-disabled", "arm64-64k"], RESERVE)}

    def test_recorded(self):
        self.assertEqual({path.stem for path in RECORDED.glob("*.txt")},
                         set(self.EXPECTED))
        for name, expected in self.EXPECTED.items():
            status, hugetlb, arenas, thp, reasons, improvement = expected
            with self.subTest(name):
                tree = self.tree(name)
                self.assertEqual(self.run_status(tree)[0], status)
                found_status, output = self.run_status(tree, is_json=True)
                self.assertEqual(found_status, status)
                answer = json.loads(output)
                self.assertIs(answer["huge_pages"], status == 0)
                verdicts = {each["tier"]: each for each in answer["verdicts"]}
                self.assertEqual(list(verdicts), ["hugetlb", "thp", "plain"])
                self.assertIs(verdicts["hugetlb"]["works"], hugetlb)
                self.assertEqual(verdicts["hugetlb"]["arenas"], arenas)
                self.assertIs(verdicts["thp"]["works"], thp)
                text = "\n".join(each["reason"] for each in verdicts.values())
                for reason in reasons:
                    self.assertIn(reason, text)
                for expected, found in (
                        (improvement, answer["improve"]),
                        (self.IMPROVE_POOL[name],
                         verdicts["hugetlb"]["improve"])):
                    if expected is None:
                        self.assertIsNone(found)
                    else:
                        self.assertIn(expected, found)

    def test_text(self):
        # Every reason and the advice are in the text, too.
        for name in self.EXPECTED:
            with self.subTest(name):
                tree = self.tree(name)
                answer = json.loads(self.run_status(tree, is_json=True)[1])
                text = self.run_status(tree)[1]
                for each in answer["verdicts"]:
                    self.assertIn(each["reason"], text)
                self.assertIn(answer["improve"] or "Nothing to improve.", text)

    def judge(self, **changes):
        """Verdicts of a system with a pool of 32 free pages, but for what is
        changed."""
        nodes = (system.Node(0, 20, 20, 0), system.Node(1, 12, 12, 0))
        pool = system.Pool(2 * MIB, 32, 32, 0, 0, 0, nodes)
        pool = dataclasses.replace(pool, **changes.pop("pool", {}))
        found = system.scan(str(self.tree("empty-pool")))
        return verdict.judge(dataclasses.replace(found, pools=(pool,),
                                                 allowed_nodes=(0, 1),
                                                 **changes))

    def test_all_reserved(self):
        hugetlb = self.judge(pool={"reserved": 32})[0]
        self.assertFalse(hugetlb.works)
        self.assertIn("32 of those reserved", hugetlb.reason)

    def test_overcommit(self):
        hugetlb = self.judge(pool={"total": 0, "free": 0, "overcommit": 10,
                                   "nodes": ()})[0]
        self.assertEqual((hugetlb.works, hugetlb.arenas), (True, 10))
        self.assertIn("10 more on demand", hugetlb.reason)

    def test_nodes(self):
        node = (system.Node(0, 0, 0, 0), system.Node(1, 32, 32, 0))
        found = dataclasses.replace(
            system.scan(str(self.tree("empty-pool"))),
            pools=(system.Pool(2 * MIB, 32, 32, 0, 0, 0, node),),
            allowed_nodes=(0,))
        hugetlb = verdict.judge_hugetlb(found)
        self.assertFalse(hugetlb.works)
        self.assertIn("none on the NUMA nodes", hugetlb.reason)
        self.assertIn("node0/", hugetlb.improve)

    def test_thp_modes(self):
        for enabled, size_enabled, works in (
                ("always", None, True), ("madvise", "inherit", True),
                ("never", None, False), ("never", "inherit", False),
                ("never", "always", True), ("always", "never", False),
                (None, None, False)):
            with self.subTest(enabled=enabled, size_enabled=size_enabled):
                thp = self.judge(thp_enabled=enabled,
                                 thp_2mib_enabled=size_enabled)[1]
                self.assertIs(thp.works, works)
        thp = self.judge(thp_enabled="always", thp_2mib_enabled="never")[1]
        self.assertIn("hugepages-2048kB/enabled", thp.improve)

    def test_defrag(self):
        thp = self.judge(thp_defrag="never")[1]
        self.assertTrue(thp.works)
        self.assertIn("transparent_hugepage/defrag", thp.improve)
        self.assertEqual(verdict.best_improvement([thp]), thp.improve)

    def test_trial(self):
        # It tells more than the settings.
        thp = self.judge(thp_tried=True, thp_defrag="never")[1]
        self.assertEqual((thp.works, thp.improve), (True, None))
        self.assertIn("a trial got one", thp.reason)
        thp = self.judge(thp_tried=False)[1]
        self.assertIs(thp.works, False)
        self.assertIn("a trial got none", thp.reason)
        thp = self.judge(thp_tried=False, thp_defrag="never")[1]
        self.assertIn("transparent_hugepage/defrag", thp.improve)

    def test_who_asks(self):
        # Everything is advised to those who can do it.
        for changes, pool, thp in (
                ({"user": 0}, RESERVE, "echo madvise >/sys/"),
                ({"user": 1000}, "sudo hugepages.py reserve",
                 "echo madvise | sudo tee /sys/"),
                ({"user": 0, "is_confined": True},
                 "on the host, as root: " + RESERVE,
                 "on the host: echo madvise | sudo tee /sys/")):
            with self.subTest(changes):
                verdicts = self.judge(thp_enabled="never", **changes)
                self.assertTrue(verdicts[0].improve.startswith(pool))
                self.assertTrue(verdicts[1].improve.startswith(thp))


class WithoutFileSystemsTest(RecordedTestCase):
    """Where /sys or /proc is not mounted."""

    def scan(self, *missing, **changes):
        tree = self.tree("two-nodes-in-use")
        for name in missing:
            shutil.rmtree(tree / name)
        return dataclasses.replace(system.scan(str(tree)), **changes)

    def test_pool(self):
        # /proc/meminfo has the pool of the default size.
        found = self.scan("sys")
        self.assertEqual(found.pools, (
            system.Pool(2 * MIB, 32, 29, 2, 0, None, ()),))
        hugetlb = verdict.judge_hugetlb(found)
        self.assertEqual((hugetlb.works, hugetlb.arenas), (True, 27))
        self.assertIsNone(verdict.judge_hugetlb(self.scan("sys",
                                                          "proc")).works)
        # No other pool.
        pool = dataclasses.replace(found.pools[0], page_size=GIB)
        found = dataclasses.replace(found, pools=(pool,))
        self.assertIsNone(verdict.judge_hugetlb(found).works)

    def test_thp(self):
        for tried, works in (True, True), (False, False), (None, None):
            thp = verdict.judge_thp(self.scan("sys", thp_tried=tried))
            self.assertIs(thp.works, works)
            self.assertIn("no /sys/kernel/mm", thp.reason)
            self.assertNotIn("kernel has no", thp.reason)
            self.assertEqual(thp.improve is None, works is True)
        thp = verdict.judge_thp(self.scan("sys", thp_allowed=False,
                                          thp_tried=False))
        self.assertIn("PR_SET_THP_DISABLE", thp.reason)

    def test_status(self):
        tree = self.tree("empty-pool")
        shutil.rmtree(tree / "sys")
        for is_json in False, True:
            with self.assertRaisesRegex(ToolError, "cannot find out"):
                self.run_status(tree, is_json)
        found = dataclasses.replace(system.scan(str(tree)), thp_tried=True)
        with mock.patch.object(system, "scan", return_value=found):
            status, output = self.run_status(tree)
        self.assertEqual(status, 0)
        self.assertIn("thp:         works: a trial got one", output)
        self.assertIn("Nothing to improve.", output)
        self.assertNotIn("the kernel has none", output)

    def test_user_namespace(self):
        tree = self.tree("empty-pool")
        for users, writable, confined in (
                ("0 0 4294967295", False, False), ("0 1000 1", False, True),
                ("0 0 1", True, False), ("", False, False)):
            (tree / "proc/self/uid_map").write_text(users)
            with mock.patch.object(os, "access", return_value=writable):
                self.assertIs(system.scan(str(tree)).is_confined, confined)

    @requires_linux
    def test_read_only(self):
        flags = types.SimpleNamespace(f_flag=os.ST_RDONLY)
        with mock.patch.object(os, "statvfs", return_value=flags), \
                mock.patch.object(os, "access", return_value=False):
            self.assertTrue(self.scan().is_confined)


class WindowsTest(unittest.TestCase):

    def judge(self, size, held, enabled=False):
        return verdict.judge_windows(
            windows.Windows(size, held, enabled, "10.0.19045"))

    def test_verdicts(self):
        for size, held, works in ((2 * MIB, True, True),
                                  (2 * MIB, False, False),
                                  (2 * MIB, None, False), (0, True, False),
                                  (4 * MIB, True, False)):
            with self.subTest(size=size, held=held):
                large, plain = self.judge(size, held)
                self.assertIs(large.works, works)
                self.assertTrue(plain.works)

    def test_advice(self):
        improvement = verdict.best_improvement(self.judge(2 * MIB, False))
        self.assertIn("secpol.msc", improvement)
        self.assertIsNone(verdict.best_improvement(self.judge(2 * MIB, True)))

    def test_status(self):
        found = windows.Windows(2 * MIB, True, False, "10.0.19045")
        output = io.StringIO()
        with mock.patch.object(windows, "scan", return_value=found), \
                mock.patch.object(sys, "platform", "win32"), \
                contextlib.redirect_stdout(output):
            status = system_status.main(types.SimpleNamespace(
                json=False, format=None))
        self.assertEqual(status, 0)
        self.assertIn("held; the interpreter enables it", output.getvalue())

    def test_privileges(self):
        # TOKEN_PRIVILEGES: a count, and LUIDs with attributes.
        data = struct.pack("<I IiI IiI", 2, 23, 0, 2, 4, 0, 0)
        for low, expected in ((4, (True, False)), (23, (True, True)),
                              (5, (False, False))):
            luid = types.SimpleNamespace(low=low, high=0)
            self.assertEqual(windows.find_privilege(data, luid), expected)
        self.assertEqual(ctypes.sizeof(windows._LuidAndAttributes), 12)


class SourceTest(unittest.TestCase):

    def test_python_3_9(self):
        files = sorted(PACKAGE.glob("*.py"))
        self.assertIn("system.py", [file.name for file in files])
        for file in [*files, pathlib.Path(TOOL)]:
            with self.subTest(file.name):
                ast.parse(file.read_text(), feature_version=(3, 9))


@requires_linux
class RealTest(unittest.TestCase):

    def run_tool(self, *args):
        return subprocess.run(
            [sys.executable, TOOL, "status", *args],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def test_json(self):
        result = self.run_tool("--json")
        self.assertIn(result.returncode, (0, 1), result.stderr)
        self.assertEqual(result.stderr, "")
        answer = json.loads(result.stdout)
        self.assertEqual(answer["system"]["base_page_size"],
                         os.sysconf("SC_PAGESIZE"))
        self.assertEqual(answer["system"]["kernel"], os.uname().release)
        with open("/proc/meminfo") as file:
            meminfo = dict(line.split(":", 1) for line in file)
        if "Hugepagesize" in meminfo:
            [pool] = [pool for pool in answer["system"]["pools"]
                      if pool["page_size"] // 1024
                      == int(meminfo["Hugepagesize"].split()[0])]
            self.assertEqual(pool["total"], int(meminfo["HugePages_Total"]))

    def test_text(self):
        result = self.run_tool()
        self.assertIn(result.returncode, (0, 1), result.stderr)
        self.assertIn("An interpreter started now", result.stdout)

    def test_recording(self):
        # What record.sh prints is what status reads.
        text = subprocess.run(["sh", str(RECORDED / "record.sh")],
                              stdout=subprocess.PIPE, text=True,
                              check=True).stdout
        with tempfile.TemporaryDirectory() as directory:
            with mock.patch.object(pathlib.Path, "read_text",
                                   return_value=text):
                lay_out("this system", directory)
            recorded = system.scan(directory)
        real = system.scan()
        for name in ("kernel", "base_page_size", "default_huge_page_size",
                     "thp_enabled", "thp_defrag", "thp_size", "thp_allowed",
                     "allowed_nodes", "cgroup_version"):
            self.assertEqual(getattr(recorded, name), getattr(real, name),
                             name)
        self.assertEqual([pool.page_size for pool in recorded.pools],
                         [pool.page_size for pool in real.pools])
