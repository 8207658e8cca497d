"""Tests of run."""

import dataclasses
import json
import mmap
import os
import signal
import subprocess
import sys
import types
import unittest
from unittest import mock

from hugepages import ToolError, process, run

from .support import (
    ANON_HUGEPAGE, HUGETLB, INTERPRETER, SMAPS, TOOL, TestCase, mapping,
    outcome, requires_linux, statistics_line)


class StatisticsTests(unittest.TestCase):
    def test_lines(self):
        text = "\n".join([
            statistics_line(5, 1, 2, 3), "", '{"pid": 6, "hugetlb', "[]",
            '{"pid": 7}', '{"pid": "x", "thp": 3}', statistics_line(8),
            statistics_line(9).replace('"refused": {', '"refused": [{')])
        self.assertEqual(run.parse_statistics(text), {
            5: run.Statistics({"hugetlb": 1, "thp": 2, "plain": 3}),
            8: run.Statistics({"hugetlb": 0, "thp": 0, "plain": 0})})

    def test_finalized_twice(self):
        text = (statistics_line(5, 1, 9, 3) + "\n"
                + statistics_line(5, 4, 8, 3, asked=6))
        self.assertEqual(run.parse_statistics(text)[5], run.Statistics(
            {"hugetlb": 4, "thp": 9, "plain": 3}, never_asked=2))

    def test_other_interpreters(self):
        # Earlier ones counted large blocks, too; later ones may tell more.
        line = json.loads(statistics_line(5, 1, 2, 3))
        line["large"] = {"now": 0, "peak": 7, "ever": 7, "refused": {},
                         "unusable": None}
        line["later"] = None
        self.assertEqual(run.parse_statistics(json.dumps(line))[5],
                         run.Statistics({"hugetlb": 1, "thp": 2, "plain": 3}))

    def test_first_arenas(self):
        for asked, more, unusable, expected in (
                (77, 0, None, ("thp", 0)), (76, 0, None, ("thp", 1)),
                # No more than there can be; and never less than none.
                (10, 0, None, ("thp", process.FIRST)),
                (100, 0, None, ("thp", 0)), (56, 0, "no THP", ("plain", 2)),
                # Others have come in their place.
                (76, 1, None, ("thp", 0))):
            found = run.parse_statistics(statistics_line(
                5, 9, 77, 58, asked=asked, more=more, unusable=unusable))[5]
            self.assertEqual((found.next_tier, found.never_asked), expected)


class RunLineTests(unittest.TestCase):
    def line(self, *args, **kwargs):
        return run.as_line(outcome(*args, **kwargs))

    FAULTS = "; 3,456 minor and 1 major page fault; 1.235 s"

    def test_one(self):
        self.assertEqual(
            self.line(statistics_line(5, 1200, 2, 3)),
            "peak arenas: 1,200 hugetlb, 2 THP, 3 plain" + self.FAULTS)

    def test_several(self):
        self.assertEqual(
            self.line(statistics_line(5, 1, 2, 3) + "\n"
                      + statistics_line(4, 10, 20, 30)),
            "peak arenas: 11 hugetlb, 22 THP, 33 plain (sum of 2 processes; "
            "the command itself: 1 hugetlb, 2 THP, 3 plain)" + self.FAULTS)

    def test_command_is_a_shell(self):
        self.assertIn("(sum of 2 processes);",
                      self.line(statistics_line(6) + "\n"
                                + statistics_line(7)))

    def test_shared(self):
        both = statistics_line(5, 0, 20) + "\n" + statistics_line(4, 0, 20)
        text = run.as_line(dataclasses.replace(outcome(both), most_arenas=20))
        self.assertIn("(sum of 2 processes; 20 hugetlb and THP at most if "
                      "shared ones count once; the command itself", text)

    def test_sampled(self):
        seen = [run.Seen(5, True, 4, 1, 2)]
        self.assertIn("1 hugetlb, 2 THP, unknown plain (sampled, 4 looks);",
                      self.line(seen=seen))
        seen.append(run.Seen(6, True, 4, 1, 2))
        self.assertIn("1 hugetlb, 2 THP, unknown plain; sampled);",
                      self.line(seen=seen))

    def test_statistics_are_better_than_samples(self):
        text = self.line(statistics_line(5, 8, 0, 0),
                         [run.Seen(5, True, 4, 1, 2),
                          run.Seen(6, True, 4, 3, 3)])
        self.assertIn("11 hugetlb, 3 THP, 0 plain (sum of 2", text)
        self.assertIn("1 of them sampled", text)

    def test_none(self):
        self.assertEqual(self.line(), "no interpreter built "
                         "--with-pymalloc-hugepages or with the wheel was seen"
                         + self.FAULTS)

    def test_json(self):
        result = run.as_dict(outcome(statistics_line(5, 1, 2, 3),
                                     [run.Seen(6, True, 4, 1, 2)], status=3))
        self.assertEqual(json.loads(json.dumps(result)), {
            "command": ["app"], "mode": "on", "malloc": None, "pid": 5,
            "status": 3,
            "wall_seconds": 1.23456,
            "page_faults": {"minor": 3456, "major": 1},
            "patched": True,
            "peak_arenas": {"hugetlb": 2, "thp": 4, "plain": 3},
            "most_arenas": 0,
            "sampled_processes": 1,
            "processes": [
                {"pid": 5, "source": "statistics",
                 "peak": {"hugetlb": 1, "thp": 2, "plain": 3}},
                {"pid": 6, "source": "sampled", "looks": 4,
                 "peak": {"hugetlb": 1, "thp": 2, "plain": None}}]})


class SamplerTests(TestCase):
    SMALL = mapping(160, 2, HUGETLB + "2048", "rd wr mr mw me de ht",
                    ANON_HUGEPAGE)

    def sampler(self):
        return run.Sampler(5, self.root)

    def test_shared_arenas(self):
        sampler = self.sampler()
        shared = mapping(4096, 6, "AnonHugePages=6144 Pss=3072 "
                         "Private_Dirty=0", "rd wr mr mw me ac nh")
        self.tree.add_process(5, smaps=shared, children="6")
        self.tree.add_process(6, smaps=shared, parent=5)
        sampler.look()
        self.assertEqual([each.thp for each in sampler.seen.values()], [3, 3])
        self.assertEqual(sampler.most_arenas, 3)
        self.tree.remove_process(6)
        sampler.look()
        self.assertEqual(sampler.most_arenas, 3)

    def test_highest_numbers(self):
        sampler = self.sampler()
        for smaps in self.SMALL, SMAPS, self.SMALL:
            self.tree.add_process(5, smaps=smaps)
            sampler.look()
        self.assertEqual(sampler.seen, {
            (5, 100): run.Seen(5, True, 3, 3, 10)})

    def test_descendants(self):
        add = self.tree.add_process
        add(5, children="6 7 ", exe=b"shell")
        add(6, parent=5, children="8")
        add(7, parent=5)
        add(8, parent=6)
        add(9, parent=1)
        sampler = self.sampler()
        sampler.look()
        # An orphan stays known; a new process with an old PID is another one.
        self.tree.remove_process(6)
        add(5, exe=b"shell", children="7")
        add(8, parent=1, children="10")
        add(10, parent=8)
        add(7, parent=5, start=200)
        sampler.look()
        self.assertEqual(set(sampler.seen), {
            (5, 100), (6, 100), (7, 100), (8, 100), (10, 100), (7, 200)})
        self.assertFalse(sampler.seen[5, 100].patched)
        self.assertEqual(sampler.together, {
            frozenset([(6, 100), (7, 100), (8, 100)]),
            frozenset([(7, 200), (8, 100), (10, 100)])})

    def test_orphan_whose_pid_is_another_process_now(self):
        self.tree.add_process(5, children="6")
        self.tree.add_process(6, parent=5)
        sampler = self.sampler()
        sampler.look()
        self.tree.add_process(5)
        self.tree.add_process(6, parent=1, start=200)
        sampler.look()
        self.assertEqual(set(sampler.seen), {(5, 100), (6, 100)})

    def test_nothing_there(self):
        sampler = self.sampler()
        sampler.look()
        self.assertEqual(sampler.seen, {})


@requires_linux
class RunTests(TestCase):
    def setUp(self):
        super().setUp()
        self.script = self.path("interpreter.py")
        with open(self.script, "w") as file:
            file.write(INTERPRETER)

    def run_tool(self, *command, options=(), **kwargs):
        return self.tool("run", *options, "--", *command, **kwargs)

    def test_statistics(self):
        out, err = self.run_tool(sys.executable, self.script, "3", "1", "2",
                                 "4", status=3)
        self.assertEqual(out, "")
        self.assertRegex(
            err, r"\Ahugepages.py: peak arenas: 1 hugetlb, 2 THP, 4 plain; "
            r"[\d,]+ minor and [\d,]+ major page faults?; \d+\.\d{3} s\n\Z")

    def test_descendants(self):
        _, err = self.run_tool(sys.executable, self.script, "0", "1", "2", "4",
                               "1", options=["--json"])
        result = json.loads(err)
        self.assertEqual(result["peak_arenas"],
                         {"hugetlb": 101, "thp": 22, "plain": 7})
        self.assertEqual([entry["source"] for entry in result["processes"]],
                         ["statistics"] * 2)
        self.assertEqual(result["processes"][0]["pid"], result["pid"])

    def test_no_interpreter(self):
        _, err = self.run_tool("true")
        self.assertIn("no interpreter built --with-pymalloc-hugepages", err)

    def test_output_file(self):
        path = self.path("line.json")
        out, err = self.run_tool(
            "sh", "-c", "echo out; echo err >&2; exit 9", status=9,
            options=["--json", "--output", path])
        self.assertEqual((out, err), ("out\n", "err\n"))
        with open(path) as file:
            self.assertEqual(json.load(file)["status"], 9)
        self.refuse("run", "--output", self.path("no/dir"), "sh", "-c",
                    "echo run", pattern="cannot write .*No such file")

    def test_environment(self):
        show = 'echo "$PYTHON_PYMALLOC_HUGEPAGES" $OTHER'
        env = {**os.environ, "OTHER": "x", "PYTHON_PYMALLOC_HUGEPAGES": "0"}
        for options, value in ([], "on"), (["--mode", "thp"], "thp"):
            out, _ = self.run_tool("sh", "-c", show, options=options, env=env)
            self.assertEqual(out, f"{value} x\n")

    def test_page_faults_are_counted(self):
        # Each writes to 20 MiB of plain pages, the second in a child.
        touch = "bytearray(20 << 20)"
        child = ("import subprocess, sys; "
                 f"subprocess.call([sys.executable, '-c', '{touch}'])")
        for program in touch, child:
            with self.subTest(program):
                _, err = self.run_tool(sys.executable, "-c", program,
                                       options=["--json", "--mode", "off"])
                faults = json.loads(err)["page_faults"]["minor"]
                self.assertGreater(faults, (20 << 20) // mmap.PAGESIZE // 2)

    def test_statuses(self):
        self.run_tool("sh", "-c", "kill -KILL $$", status=128 + 9)
        self.refuse("run", "no-such-command", pattern="no such command",
                    status=127)
        self.refuse("run", self.path("no/such"), pattern="no such command",
                    status=127)
        self.refuse("run", self.directory, pattern="Permission denied",
                    status=126)
        text = self.path("text")
        with open(text, "w") as file:
            file.write("#!/no/such/interpreter\n")
        self.refuse("run", text, pattern="ermission denied", status=126)
        os.chmod(text, 0o755)
        self.refuse("run", text, pattern="first line names", status=127)

    def test_command_line_belongs_to_the_command(self):
        for args in (["--", "sh", "-c", 'echo "$@"', "sh"],
                     ["--mode", "on", "sh", "-c", 'echo "$@"', "sh"],
                     ["--mode=off", "--json", "sh", "-c", 'echo "$@"', "sh"]):
            out, _ = self.tool("run", *args, "--json", "--", "--mode", "-h")
            self.assertEqual(out, "--json -- --mode -h\n")

    def test_signals_and_descriptors_are_as_if_run_without_the_tool(self):
        self.run_tool("sh", "-c", "kill -PIPE $$", status=128 + 13)
        out, _ = self.run_tool("sed", "-n", "s/^SigBlk:[^0-9]*//p",
                               "/proc/self/status")
        self.assertEqual(int(out, 16), 0)
        read_end, write_end = os.pipe()
        with open(read_end) as file:
            self.run_tool("sh", "-c", f"echo through >&{write_end}",
                          pass_fds=[write_end])
            os.close(write_end)
            self.assertEqual(file.read(), "through\n")
        # A parent that ignores SIGCHLD.
        self.run_tool("sh", "-c", "exit 5", status=5, preexec_fn=lambda:
                      signal.signal(signal.SIGCHLD, signal.SIG_IGN))

    def test_nothing_is_left(self):
        env = {**os.environ, "TMPDIR": self.path("")}
        before = os.listdir(self.directory)
        self.run_tool(sys.executable, self.script, *"0111", env=env)
        self.refuse("run", "no-such-command", pattern=".", status=127, env=env)
        self.assertEqual(os.listdir(self.directory), before)
        with mock.patch.object(run.tempfile, "TemporaryDirectory",
                               side_effect=OSError(30, "Read-only")):
            with self.assertRaisesRegex(ToolError, "Read-only; set TMPDIR"):
                run.execute(["true"], "on")

    # A handler may run while print() is at work, which cannot be called again
    # then.  The alarm ends it, and so the test, if a signal never comes.
    CATCH = """
import os, signal
signal.alarm(60)
caught = []
for each in signal.SIGINT, signal.SIGHUP:
    signal.signal(each, lambda signum, frame: (
        caught.append(signum), os.write(1, b"%d\\n" % signum)))
signal.signal(signal.SIGTERM, lambda signum, frame: exit(len(caught)))
print("ready", flush=True)
while True:
    signal.pause()
"""

    @staticmethod
    def set_signals(*ignored):
        """Let the terminal's signals act, whatever this process inherited:
        what runs in the background or under nohup ignores some.
        """
        for each in signal.SIGINT, signal.SIGHUP, signal.SIGTERM:
            signal.signal(each, signal.SIG_IGN if each in ignored
                          else signal.SIG_DFL)

    def test_signals_are_passed_on(self):
        with subprocess.Popen(
                [sys.executable, TOOL, "run",
                 sys.executable, "-c", self.CATCH],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                universal_newlines=True, preexec_fn=self.set_signals) as tool:
            self.assertEqual(tool.stdout.readline(), "ready\n")
            for signum in signal.SIGINT, signal.SIGHUP:
                tool.send_signal(signum)
                line = tool.stdout.readline()
                if line != f"{signum:d}\n":
                    tool.kill()
                    self.fail(f"{line!r}, then {tool.communicate()}")
            tool.terminate()
            out, err = tool.communicate()
            self.assertEqual((tool.returncode, out), (2, ""))
            self.assertRegex(err, r"\Ahugepages\.py: [^\n]*\n\Z")

    def test_signals_of_the_kernel_are_not_passed_on(self):
        # SI_USER, SI_KERNEL and SI_QUEUE; the last is the child's end.
        infos = [types.SimpleNamespace(si_signo=signum, si_code=code)
                 for signum, code in [(15, 0), (2, 0x80), (1, 0x80), (10, -1),
                                      (signal.SIGCHLD, 1)]]
        waits = [(0, 0, None)] * len(infos) + [(5, 0, "usage")]
        with mock.patch.object(run.signal, "sigwaitinfo", side_effect=infos), \
                mock.patch.object(run.os, "wait4", side_effect=waits), \
                mock.patch.object(run.os, "kill") as kill:
            self.assertEqual(run._wait(5, {1}), (0, "usage"))
        self.assertEqual(kill.mock_calls,
                         [mock.call(5, 15), mock.call(5, 10)])

    def test_interrupt_of_the_terminal_comes_once(self):
        import pty
        pid, terminal = pty.fork()
        if pid == 0:
            try:
                self.set_signals()
                os.execv(sys.executable, [sys.executable, TOOL, "run",
                                          sys.executable, "-c", self.CATCH])
            finally:
                os._exit(99)
        with open(terminal, "r+b", buffering=0) as file:
            def wait_for(text, data=b""):
                while text not in data:
                    try:
                        data += file.read(1000)
                    except OSError as error:        # all have closed it
                        self.fail(f"{error}, after {data}")
            wait_for(b"ready")
            file.write(b"\x03")
            wait_for(b"2\r\n")
            # What is passed on comes in the order in which it was sent.
            os.kill(pid, signal.SIGTERM)
            wait_for(b" s\r\n")
            _, status = os.waitpid(pid, 0)
        self.assertEqual(os.WEXITSTATUS(status), 1)

    def test_signal_that_is_ignored_stays_so(self):
        with subprocess.Popen(
                [sys.executable, TOOL, "run",
                 sys.executable, "-c", self.CATCH],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                universal_newlines=True,
                preexec_fn=lambda: self.set_signals(signal.SIGINT)) as tool:
            self.assertEqual(tool.stdout.readline(), "ready\n")
            tool.send_signal(signal.SIGINT)
            tool.terminate()
            self.assertEqual(tool.communicate(), ("", None))
            self.assertEqual(tool.returncode, 0)
