"""Tests of status of a service."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from unittest import mock

from hugepages import ToolError, cli, process, service, service_status

from .support import (
    ANON_HUGEPAGE, HUGETLB, MIB, TOOL, WITH_WHEEL, TestCase, end, is_patched,
    mapping, pool_with, requires_linux)


class FindTests(TestCase):
    def find(self, name=None, **kwargs):
        """The PIDs, and how deep each is in the tree."""
        selection = service.Selection(name, root=self.root, **kwargs)
        return dict(selection.find())

    def pids(self, *args, **kwargs):
        return list(self.find(*args, **kwargs))

    def setUp(self):
        super().setUp()
        def add(pid, name, arguments, parent=0, **kwargs):
            self.tree.add_process(pid, name, arguments, parent=parent,
                                  **kwargs)
        add(1, "init", ["/sbin/init"])
        add(2, "kthreadd", [])
        add(10, "python3", ["/usr/bin/python3", "-X", "dev", "/srv/app.py"])
        add(11, "app.py", ["/usr/bin/python3", "/srv/app.py"])
        add(12, "python3", ["python3", "-um", "x", "app.py"])
        add(13, "python3", ["python3", "-m", "app"])
        add(14, "python3", ["python3", "-c", "pass", "app.py"])
        add(15, "vi", ["vi", "app.py"])
        add(16, "worker", ["/opt/gunicorn: worker"])
        self.tree.write("proc/17/comm", "half\n")
        # As gunicorn with setproctitle, and celery.
        add(20, "gunicorn: maste", ["gunicorn: master [a/b:app]"])
        add(22, "gunicorn: worke", ["gunicorn: worker [a/b:app]"], 20)
        add(21, "gunicorn: worke", ["gunicorn: worker [a/b:app]"], 20,
            start=101)
        add(23, "sh", ["sh", "-c", "sleep 9"], 22)
        add(24, "tail", ["tail", "-f", "/var/log/gunicorn", "celeryd"])
        add(30, "[celeryd: celer", ["[celeryd: celery@host:MainProcess]"])
        self.tree.write("proc/self", "")

    def test_names(self):
        self.assertEqual(self.pids("init"), [1])
        self.assertEqual(self.pids("kthreadd"), [2])
        self.assertEqual(self.pids("app.py"), [10, 11])
        self.assertEqual(self.pids("x"), [12])
        self.assertEqual(self.pids("app"), [13])
        self.assertEqual(self.pids("python3"), [10, 11, 12, 13, 14])
        self.assertEqual(self.pids("worker"), [16])
        self.assertEqual(self.pids("gunicorn: worker"), [16])

    def test_titles(self):
        self.assertEqual(self.find("gunicorn"),
                         {16: 0, 20: 0, 22: 1, 23: 2, 21: 1})
        self.assertEqual(self.pids("gunicorn: master [a/b:app]"),
                         [20, 22, 23, 21])
        self.assertEqual(self.pids("gunicorn: maste"), [20, 22, 23, 21])
        self.assertEqual(self.pids("celeryd"), [30])

    def test_part_of_the_command_line(self):
        # Only where nothing is called so.
        self.assertEqual(self.pids("-X dev"), [10])
        self.assertEqual(self.pids("celery@host"), [30])
        self.assertEqual(self.pids("worker [a"), [22, 23, 21])

    def test_who_started_this_is_not_meant(self):
        self.tree.add_process(os.getppid(), "sh",
                              ["sh", "-c", "hugepages.py status celery@"])
        self.assertEqual(self.pids("celery@"), [30])

    def test_children(self):
        self.assertEqual(self.find("20"), {20: 0, 22: 1, 23: 2, 21: 1})
        self.assertEqual(self.find("22"), {22: 0, 23: 1})

    def test_cgroup(self):
        add = self.tree.add_process
        add(40, cgroup="0::/system.slice/app.service\n")
        add(41, cgroup="9:memory:/pod/4f\n1:cpu:/x\n"
            "0::/system.slice/app.service/worker\n", parent=40)
        add(42, cgroup="0::/system.slice/app.service2\n")
        add(44, "kworker", [], flags=process.PF_KTHREAD)
        add(43, parent=40)              # has left it
        for path in ("/system.slice/app.service", "system.slice/app.service/",
                     "/sys/fs/cgroup/system.slice/app.service"):
            self.assertEqual(self.find(cgroup=path), {40: 0, 41: 1}, path)
        for path in "/pod", "/sys/fs/cgroup/memory/pod":
            self.assertEqual(self.pids(cgroup=path), [41])
        self.assertIn(10, self.find(cgroup="/"))
        self.assertNotIn(44, self.find(cgroup="/"))
        with self.assertRaisesRegex(ToolError, "no process is in the cgroup"):
            self.find(cgroup="/nope")
        self.assertEqual(self.find("app.service"), {40: 0, 41: 1})
        self.assertEqual(self.pids("system.slice"), [40, 41, 42])
        with self.assertRaisesRegex(ToolError, "systemctl status no.service"):
            self.find("no.service")

    def test_pid(self):
        self.assertEqual(self.find("12"), {12: 0})
        with self.assertRaisesRegex(ToolError, "there is no process 12345"):
            self.find("12345")

    def test_pid_of_another_process(self):
        selection = service.Selection("12", root=self.root)
        selection.find()
        self.tree.add_process(12, start=200)
        with self.assertRaisesRegex(process.ProcessGone, "another one"):
            selection.find()

    def test_none(self):
        for name in "nope", "":
            with self.assertRaisesRegex(ToolError,
                                        f"no process is called '{name}'"):
                self.find(name)

    def test_not_itself(self):
        self.tree.add_process(os.getpid(), "itself", ["itself"])
        with self.assertRaisesRegex(ToolError, "no process is called"):
            self.find("itself")

    def test_no_proc(self):
        with self.assertRaisesRegex(ToolError, "cannot list processes"):
            service.Selection("x", root=self.path("nothing")).find()


def shared(number, written=0):
    """smaps of one process of several that share three arenas.

    number is how many processes there are, written how many arenas this one
    has written to.
    """
    left = 6144 - 2048 * written
    return mapping(
        4096, 6, f"AnonHugePages={left} Private_Dirty={2048 * written} "
        f"Pss={2048 * written + left // number}", "rd wr mr mw me ac nh")


class ServiceTestCase(TestCase):
    def setUp(self):
        super().setUp()
        self.tree.add_pool()
        self.tree.write("sys/kernel/mm/transparent_hugepage/enabled",
                        "always [madvise] never")

    def add_service(self, workers=8, **kwargs):
        """A master, and workers that share three arenas with it."""
        for pid in range(100, 101 + workers):
            self.tree.add_process(
                pid, "gunicorn", ["python", "/bin/gunicorn", "app:app"],
                parent=1 if pid == 100 else 100,
                **{"smaps": shared(workers + 1), **kwargs})

    def status(self, *args, status=0, **kwargs):
        """What status prints: (stdout, stderr)."""
        options = cli.parse_arguments(["status", *args])
        out = io.StringIO()
        out.isatty = lambda: bool(kwargs)
        size = os.terminal_size((kwargs.get("width"), kwargs.get("height")))
        with contextlib.redirect_stdout(out), \
                contextlib.redirect_stderr(io.StringIO()) as err, \
                mock.patch.object(service_status.shutil, "get_terminal_size",
                                  return_value=size):
            self.assertEqual(service_status.main(options, self.root), status)
        return out.getvalue(), err.getvalue()

    def json(self, *args, **kwargs):
        return json.loads(self.status(*args, "--json", **kwargs)[0])


class TextTests(ServiceTestCase):
    def test_service(self):
        self.add_service()
        out, err = self.status("gunicorn")
        self.assertEqual(err, "")
        lines = out.splitlines()
        self.assertEqual(lines[0].split(), [
            "PID", "ARENAS", "HUGE", "HUGETLB", "RSS", "PSS", "USS",
            "COMMAND"])
        # The master, its workers below it, and all together.
        self.assertRegex(lines[1], r"^ +100 +3 +100% +0.0 +6.0 +0.7 +0.0 "
                         r"python /bin/gunicorn app:app$")
        self.assertRegex(lines[2], r"^ +101 .*   python /bin/gunicorn")
        self.assertRegex(lines[10],
                         r"^total +3 +100% +0.0 +6.0 +0.0 9 processes$")
        self.assertEqual(lines[11], "Built --with-pymalloc-hugepages: 100, "
                         "101, 102 and 6 more.")
        self.assertLessEqual(len(lines), 13)
        self.assertIn("The total counts shared memory once.", lines[12])

    def test_shared_arenas_are_counted_once(self):
        self.add_service()
        total = self.json("100")["total"]
        self.assertEqual((total["thp"], total["huge_percent"]),
                         ({"arenas": 3, "size": 9 * (6144 // 9) * 1024,
                           "on_huge_pages": 9 * (6144 // 9) * 1024}, 100))
        # Each worker has written to an arena: it has that for itself.
        self.add_service(smaps=shared(9, written=1))
        total = self.json("100")["total"]
        self.assertEqual((total["thp"]["arenas"], total["huge_percent"]),
                         (11, 18.2))

    def test_single_process_has_no_total(self):
        self.tree.add_process(5)
        out, _ = self.status("5")
        self.assertRegex(out.splitlines()[1],
                         r"^ +5 +13 +92% +1036 .* python app.py$")
        self.assertNotIn("total", out)

    def test_wheel(self):
        self.add_service(**WITH_WHEEL)
        out, _ = self.status("gunicorn")
        self.assertIn("\nWith the wheel's extension: 100, 101, 102 and 6 "
                      "more.\n", out)
        self.assertNotIn("Built", out)
        self.assertNotIn("refused", out)

    def test_wheel_without_arenas(self):
        self.add_service(**WITH_WHEEL, smaps="")
        note = "loaded, but has no arenas: 100, 101, 102 and 6 more."
        out, _ = self.status("gunicorn", status=1)
        self.assertIn(note, out)
        self.assertIn("`python -m pymalloc_hugepages`", out)
        # One that has some has not refused, on huge pages or not.
        self.tree.add_process(100, **WITH_WHEEL,
                              smaps=mapping(4096, 16, flags="rd wr ac hg"))
        out, _ = self.status("100", status=1)
        self.assertIn("has no arenas: 101, 102, 103 and 5 more.", out)

    def test_option_and_wheel(self):
        self.add_service(2)
        self.tree.add_process(101, parent=100, **WITH_WHEEL, smaps="")
        out, _ = self.status("100")
        self.assertIn("\nBuilt --with-pymalloc-hugepages: 100, 102.\n"
                      "With the wheel's extension: 101.\n", out)
        self.assertIn("has no arenas: 101.", out)
        found = self.json("100")
        self.assertEqual([each["feature"] for each in found["processes"]],
                         ["option", "wheel", "option"])
        self.assertIn("has no arenas: 101.", "\n".join(found["notes"]))

    def test_not_patched(self):
        self.add_service(exe=b"perl")
        out, _ = self.status("gunicorn", status=1)
        self.assertIn("None is an interpreter built", out)
        self.assertRegex(out, "\n +100 +- +- ")
        self.assertNotIn("ARENAS:", out)
        out, _ = self.status("104", status=1)
        self.assertIn("This is no interpreter built", out)

    def test_helpers_that_are_no_interpreters(self):
        # They are shown, and the service has huge pages all the same.
        self.add_service()
        self.tree.add_process(200, "sh", ["sh"], parent=104, exe=b"sh")
        out, _ = self.status("gunicorn")
        self.assertRegex(out, r"\n +200 +- +- .* {5}sh\n")
        self.assertIn("10 processes", out)
        self.assertNotIn("no interpreter built", out)

    def test_unknown(self):
        self.add_service(exe=b"", maps="7f-8f r--p 0 08:01 2  /libpython3.so")
        out, _ = self.status("gunicorn", status=2)
        self.assertRegex(out, r"\n +100 +3\? +100%\? ")
        self.assertIn("cannot be read, so it is not known", out)

    def test_switched_off(self):
        self.add_service(smaps="", environ="A=b\0PYTHONMALLOC=malloc\0"
                         "PYTHON_PYMALLOC_HUGEPAGES=off\0",
                         status="THP_enabled:\t0\n")
        out, _ = self.status("gunicorn", status=1)
        self.assertIn("off, by PYTHON_PYMALLOC_HUGEPAGES=off: 100, 101", out)
        self.assertIn("may be off, by PYTHONMALLOC=malloc: 100, 101", out)
        self.assertIn("(PR_SET_THP_DISABLE) for: 100, 101", out)
        self.assertIn("A small program has none", out)
        self.assertIn("status` says", out)
        self.assertIn("-X pymalloc_hugepages=off, too", out)
        self.assertNotIn("wheel", out)

    def test_advised_but_on_plain_pages(self):
        self.add_service(smaps=mapping(4096, 16, flags="rd wr ac hg"))
        out, _ = self.status("gunicorn", status=1)
        self.assertRegex(out, r"\n +100 +8 +0% ")
        self.assertNotIn("A small program", out)

    def test_forking_with_a_pool(self):
        note = "start it with PYTHON_PYMALLOC_HUGEPAGES=thp"
        thp = "PYTHON_PYMALLOC_HUGEPAGES=thp\0"
        for pool, workers, environ, expected in (
                (0, 8, "", False), (10, 8, "", True), (10, 8, thp, False),
                (10, 8, "PYTHON_PYMALLOC_HUGEPAGES=hugetlb\0", True),
                # Nothing is shared.
                (10, 0, "", False)):
            with self.subTest(pool=pool, workers=workers, environ=environ):
                self.tree.add_pool(pool, pool)
                for pid in range(101, 109):
                    with contextlib.suppress(FileNotFoundError):
                        self.tree.remove_process(pid)
                self.add_service(workers, environ=environ)
                self.assertEqual(note in self.status("100")[0], expected)

    def test_forking_with_a_title(self):
        # It hides the environment.  So only what is on the pool tells.
        self.tree.add_pool(10, 10)
        pool = mapping(160, 2, HUGETLB + "2048", "rd wr mr mw me de ht",
                       ANON_HUGEPAGE)
        for smaps, expected in (shared(9), False), (shared(9) + pool, True):
            self.add_service(environ="\0" * 99, smaps=smaps)
            self.assertEqual("It forks:" in self.status("100")[0], expected)
        # One that shares and another one on the pool are no such service.
        self.add_service(environ="\0" * 99)
        self.tree.add_process(200, smaps=pool, parent=100)
        self.assertNotIn("It forks:", self.status("100")[0])

    def test_option_of_the_interpreter(self):
        self.tree.add_pool(10, 10)
        for option, expected in (["-Xpymalloc_hugepages=thp"], False), (
                ["-X", "pymalloc_hugepages=on"], True):
            for pid in 5, 6:
                self.tree.add_process(
                    pid, arguments=["python", *option, "app.py"],
                    smaps=shared(2), parent=5 if pid == 6 else 1)
            self.assertEqual("It forks:" in self.status("5")[0], expected)

    def test_many_are_not_all_named(self):
        environ = "PYTHON_PYMALLOC_HUGEPAGES=off\0"
        for workers, text in (3, "100, 101, 102, 103."), (
                8, "100, 101, 102 and 6 more."):
            self.add_service(workers, smaps="", environ=environ)
            self.assertIn("=off: " + text, self.status("100", status=1)[0])

    def test_forty_columns(self):
        self.add_service(workers=12)
        for width in 40, 80:
            out, _ = self.status("gunicorn", width=width, height=24)
            lines = out.splitlines()
            self.assertLessEqual(max(map(len, lines)), width)
            self.assertRegex(lines[1], "^ +100 .*python guni")
            for heading in "PID", "HUGE", "PSS", "COMMAND":
                self.assertIn(heading, lines[0].split())
            self.assertEqual("RSS" in lines[0], width == 80)
            self.assertIn("The total counts", " ".join(lines))

    def test_terminal_shows_names_and_no_folders(self):
        for arguments, expected in (
                (["/opt/x/bin/python3", "-m", "app", "/etc/app"],
                 "python3 -m app app"),
                (["/opt/bin/python3", "/srv/app.py", "/a/b"],
                 "python3 app.py /a/b"),
                (["gunicorn: master [/srv/app:app]"],
                 "gunicorn: master [/srv/app:app]")):
            self.tree.add_process(5, arguments=arguments)
            out, _ = self.status("5", width=100, height=24)
            self.assertTrue(out.splitlines()[1].endswith(" " + expected), out)

    def test_pipe_cuts_nothing(self):
        self.tree.add_process(5, arguments=["python", "x" * 500])
        self.assertIn("x" * 500, self.status("5")[0])


class UnreadableTests(ServiceTestCase):
    """Processes of other users."""

    def hide(self, *pids):
        real = process.read_memory

        def read_memory(pid, root):
            if pid in pids:
                raise PermissionError
            return real(pid, root)
        patcher = mock.patch.object(process, "read_memory", read_memory)
        patcher.start()
        self.addCleanup(patcher.stop)
        patcher = mock.patch.object(os, "geteuid", return_value=1000)
        patcher.start()
        self.addCleanup(patcher.stop)

    def test_text(self):
        self.add_service()
        self.hide(103, 105)
        out, err = self.status("gunicorn", status=2)
        self.assertRegex(out, r"\n +103( +\?){6}   python /bin/gunicorn")
        self.assertRegex(err, r"\Ahugepages.py: 2 of 9 processes cannot be "
                         r"looked at, .*sudo .*\n\Z")

    def test_one(self):
        self.add_service()
        self.hide(103)
        _, err = self.status("gunicorn", status=2)
        self.assertRegex(err, r"\Ahugepages.py: no permission to look at "
                         r"process 103: .*\n\Z")

    def test_json(self):
        self.add_service()
        self.hide(*range(100, 109))
        found = self.json("gunicorn", status=2)
        self.assertEqual(found["total"]["unreadable"], 9)
        self.assertEqual([each["pid"] for each in found["processes"]],
                         list(range(100, 109)))
        for each in found["processes"]:
            self.assertIn("no permission", each["problem"])
            self.assertIsNone(each["patched"])
            self.assertIsNone(each["memory"])

    def test_none_can_be_read(self):
        self.add_service()
        self.hide(*range(100, 109))
        for args in ["gunicorn"], ["gunicorn", "--watch"]:
            with self.assertRaisesRegex(ToolError, "no permission"):
                self.status(*args)


class WatchTests(ServiceTestCase):
    def watch(self, *steps, args=(), **kwargs):
        """What --watch shows before, between and after these steps, each of
        which changes the tree; in the end all is gone."""
        steps = iter(steps)

        def sleep(seconds):
            self.assertEqual(seconds, 7)
            step = next(steps, None)
            if step is not None:
                return step()
            for pid in process.list_pids(self.root):
                if pid != 1:
                    self.tree.remove_process(pid)

        self.tree.add_process(1, "init", ["init"], parent=0)
        with mock.patch.object(service_status.time, "sleep", sleep):
            out, err = self.status("gunicorn", "--watch", "7", *args, **kwargs)
        self.assertEqual(err, "")
        return out

    def looks(self, *steps, **kwargs):
        """The lines of each look on a terminal."""
        kwargs = {"width": 80, "height": 24, **kwargs}
        looks = self.watch(*steps, **kwargs).split("\033[H")
        self.assertEqual(looks.pop(0), "")
        for look in looks:
            self.assertTrue(look.endswith("\033[J"))
        return [look[:-3].replace("\033[K", "").splitlines()
                for look in looks]

    def marked(self, lines):
        return [re.sub(r"^([+*]) *(\d+) .*", r"\1\2", line)
                for line in lines if line[:1] in ("+", "*")]

    def test_born_and_changed(self):
        def born():
            self.tree.add_process(120, "gunicorn", ["python", "gunicorn"],
                                  parent=100, smaps=shared(9), start=300)

        def changed():
            self.tree.add_process(102, "gunicorn", ["python", "gunicorn"],
                                  parent=100, smaps=shared(9, written=1))

        self.add_service()
        looks = self.looks(born, changed)
        self.assertEqual(list(map(self.marked, looks)),
                         [[], ["+120"], ["*102"]])
        self.assertIn("10 processes", "\n".join(looks[1]))

    def test_fits(self):
        self.add_service(workers=40)

        def born():
            self.tree.add_process(190, "gunicorn", ["python", "gunicorn"],
                                  parent=100, smaps="", start=300)

        for width, height in (80, 24), (40, 10), (200, 50), (80, 6):
            looks = self.looks(born, width=width, height=height)
            for look in looks:
                self.assertLess(len(look), height)
                self.assertLessEqual(max(map(len, look)), width)
            rest = re.findall("… and (.*) more", "\n".join(looks[-1]))
            self.assertEqual(bool(rest), height != 50)
            # A new process is shown.
            self.assertIn("+190", self.marked(looks[-1]))
            self.assertIn("42 processes", "\n".join(looks[-1]))
            self.tree.remove_process(1)
            self.add_service(workers=40)

    def test_pipe(self):
        self.add_service()
        lines = self.watch(lambda: None).splitlines()
        for line in lines:
            self.assertRegex(line, r"^\d\d:\d\d:\d\d ")
        self.assertEqual(sum(" total " in line for line in lines), 2)

    def test_json(self):
        self.add_service()
        lines = self.watch(lambda: self.tree.remove_process(104),
                           args=["--json"]).splitlines()
        self.assertEqual([len(json.loads(line)["processes"])
                          for line in lines], [9, 8])

    def test_metrics(self):
        self.add_service()
        with self.assertRaisesRegex(ToolError, "looks again by itself"):
            self.watch(args=["--format", "openmetrics"])

    def test_seconds(self):
        for text in "0", "-1", "nan", "inf", "soon", "1e9":
            status, out, err = self.main("status", "5", f"--watch={text}")
            self.assertEqual((status, out), (2, ""))
            self.assertRegex(err, r"\A.*not a number of seconds.*\n\Z")


# Looks like a patched interpreter from outside: maps a libpython with the
# marker, and memory as arenas are.  Says when it is ready, ends with its
# stdin.
CHILD = """
import ctypes, mmap, sys
library, tier = sys.argv[1:]
with open(library, "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
MIB = 1 << 20
flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
if tier == "hugetlb":
    try:
        arenas = mmap.mmap(-1, 4 * MIB, flags=flags | 0x40000 | 21 << 26)
    except OSError as error:
        sys.exit(print(error.strerror))
    arenas[0] = arenas[2 * MIB] = 1
else:
    arenas = mmap.mmap(-1, 8 * MIB, flags=flags)
    address = ctypes.addressof(ctypes.c_char.from_buffer(arenas))
    start = -address % (2 * MIB)
    arenas.madvise(mmap.MADV_HUGEPAGE, start, 4 * MIB)
    arenas[start] = arenas[start + 2 * MIB] = 1
print("ready", flush=True)
sys.stdin.read()
"""


@requires_linux
class RealProcessTests(TestCase):
    def start(self, tier="thp"):
        library = self.path("libpython-test.so")
        with open(library, "wb") as file:
            file.write(process.MARKER * 99)
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, library, tier],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            universal_newlines=True,
            # It may be a patched interpreter that runs the tests.
            env={**os.environ, "PYTHON_PYMALLOC_HUGEPAGES": "off"})
        self.addCleanup(end, child)
        line = child.stdout.readline()
        if line != "ready\n":
            self.skipTest(f"cannot have {tier} pages: {line or 'no THP'}")
        return child

    def anon_huge_pages(self, pid):
        with open(f"/proc/{pid}/smaps") as file:
            return 1024 * sum(map(int, re.findall(
                r"^AnonHugePages: +(\d+) kB", file.read(), re.M)))

    def test_thp(self):
        child = self.start()
        total = self.anon_huge_pages(child.pid)
        out, _ = self.tool("status", str(child.pid), "--json",
                           status=0 if total else 1)
        [shown] = json.loads(out)["processes"]
        self.assertIs(shown["patched"], True)
        if not is_patched():
            self.assertEqual(shown["interpreter"],
                             self.path("libpython-test.so"))
        self.assertEqual((shown["thp"]["arenas"], shown["thp"]["size"]),
                         (2, 4 * MIB))
        self.assertEqual(shown["memory"]["thp"], total)
        self.assertLessEqual(shown["thp"]["on_huge_pages"], total)
        self.assertEqual(shown["hugetlb"]["arenas"], 0)

    def test_hugetlb(self):
        # Others may take some of them.
        with pool_with(16):
            child = self.start("hugetlb")
            out, _ = self.tool("--json", "status", str(child.pid))
            child.communicate()
        [shown] = json.loads(out)["processes"]
        self.assertEqual(shown["hugetlb"], {
            "arenas": 2, "size": 4 * MIB, "on_huge_pages": 4 * MIB})
        self.assertEqual(shown["huge_percent"], 100.0)

    def test_no_patched_interpreter(self):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE)
        self.addCleanup(end, child)
        out, err = self.tool("status", str(child.pid), status=1)
        self.assertIn("is no interpreter built", out)
        self.assertEqual(err, "")

    def test_dead(self):
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        self.refuse("status", str(child.pid), pattern="there is no process")
        self.refuse("status", str(child.pid), "--watch",
                    pattern="there is no process")
        self.refuse("status", "no-such-name", pattern="no process is called")

    def test_watch_until_the_process_ends(self):
        for options, pattern in ((["--json"], None),
                                 ([], r"\d\d:\d\d:\d\d .? *\d+ +2 +\d+% ")):
            with self.subTest(options), self.start() as child, \
                    subprocess.Popen(
                        [sys.executable, TOOL, "status", str(child.pid),
                         "--watch", "0.02", *options],
                        stdout=subprocess.PIPE,
                        universal_newlines=True) as tool:
                for _ in range(2):
                    line = tool.stdout.readline()
                    while pattern is not None and str(child.pid) not in line:
                        line = tool.stdout.readline()
                    if pattern is None:
                        [shown] = json.loads(line)["processes"]
                        self.assertEqual(shown["pid"], child.pid)
                    else:
                        self.assertRegex(line, pattern)
                child.communicate()
                tool.stdout.read()
                self.assertEqual(tool.wait(), 0)

    def test_watch_until_interrupted(self):
        child = self.start()
        with subprocess.Popen(
                [sys.executable, TOOL, "status", str(child.pid), "--watch",
                 "3600"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                universal_newlines=True) as tool:
            tool.stdout.readline()
            tool.send_signal(signal.SIGINT)
            self.assertEqual(tool.communicate()[1], "")
            self.assertEqual(tool.returncode, 0)
