"""Programs that embed Python and fork: none may hang, crash or lose data.

Each is linked to the unpatched build, too, where it must end as well: else the
program is wrong.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import support
from support import HUGEPAGES, TOP, UNPATCHED

sys.path.insert(0, str(TOP / "Tools/pymalloc_hugepages/bench"))

from benchlib import BenchError, memory


EMBED = pathlib.Path(__file__).resolve().parent / "embed"
POOL = "/sys/kernel/mm/hugepages/hugepages-2048kB"

# Each ends within two seconds on an idle machine.
TIMEOUT_SECONDS = 60

# Values of the switch, and how many pages are free in the pool, if that
# matters.  The programs have up to ten arenas: a pool of four is empty when a
# child writes.
ALL = [("off", None), ("thp", None), ("on", 0), ("on", 4), ("on", 100),
       ("hugetlb", 4), ("hugetlb", 100)]


def setUpModule():
    """Let other tests that change the pool wait."""
    if os.path.isdir(POOL):
        lock = os.open(POOL, os.O_RDONLY)
        unittest.addModuleCleanup(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)


@contextlib.contextmanager
def pool_of(pages):
    """Have this many free pages in the pool."""
    if pages is None:
        yield
        return
    with memory.Pool() as pool:
        if not pool.writable:
            raise unittest.SkipTest("needs root, to change the pool")
        for seconds in 1, 2, 4, None:
            try:
                pool.set_available(pages)
                break
            except (BenchError, OSError) as error:
                # Another process may be changing the pool.
                if seconds is None:
                    raise unittest.SkipTest(str(error))
                time.sleep(seconds)
        yield


class Tree:
    """A build tree, and the programs that are linked to its library."""

    def __init__(self, path, directory):
        self.path = path
        self.directory = directory
        self.source = support.source_of(path)

    def ask(self):
        """What sysconfig says of this build."""
        return json.loads(subprocess.check_output(
            [self.path / "python", "-I", "-c",
             "import json, sysconfig; "
             "print(json.dumps(sysconfig.get_config_vars()))"]))

    def compile(self, name):
        """Link a program, as CPython's Makefile links the interpreter."""
        told = self.ask()
        words = [*shlex.split(told["CC"]), "-g", "-O2", "-Wall",
                 f"-I{self.source}/Include", f"-I{self.path}",
                 EMBED / f"{name}.c", "-o", self.directory / name,
                 *shlex.split(told["LINKFORSHARED"]),
                 self.path / told["LIBRARY"],
                 *(word for variable in ("LIBS", "MODLIBS", "SYSLIBS")
                   for word in shlex.split(told[variable])), "-lpthread"]
        subprocess.run(words, check=True)

    def run(self, name, *arguments, switch=None, prefix=(), **variables):
        """Run a program, which is built if need be; prefix is a command before
        it.  Return why it failed, or None."""
        if not (self.directory / name).exists():
            self.compile(name)
        extensions = self.path / (self.path / "pybuilddir.txt").read_text()
        env = {"PATH": os.environ["PATH"], "PYTHONHOME": str(self.source),
               "PYTHONPATH": f"{self.source}/Lib:{extensions}", **variables}
        if switch is not None:
            env["PYTHON_PYMALLOC_HUGEPAGES"] = switch
        process = subprocess.Popen(
            [*prefix, self.directory / name, *map(str, arguments)], env=env,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True)
        try:
            output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            return f"it hangs: no end after {TIMEOUT_SECONDS} seconds"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
        return (f"status {process.returncode}:\n{output}"
                if process.returncode else None)


class EmbeddingTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.trees = {}
        for name, path in ("stock", UNPATCHED), ("huge pages", HUGEPAGES):
            folder = pathlib.Path(directory.name, name)
            folder.mkdir()
            cls.trees[name] = Tree(path, folder)

    def check(self, *command, **variables):
        """Run a program with both builds, and with all kinds of pages."""
        self.assertIsNone(self.trees["stock"].run(*command, **variables))
        for switch, pages in ALL:
            with self.subTest(switch=switch, pages=pages), pool_of(pages):
                self.assertIsNone(self.trees["huge pages"].run(
                    *command, switch=switch, **variables))

    def test_signal_handler_forks(self):
        self.check("signal_fork")

    def test_hooks_of_python(self):
        self.check("python_hooks")

    def test_lock_order(self):
        self.check("lock_order")

    def check_handler(self, **variables):
        for handler in "prepare", "parent", "child":
            with self.subTest(handler=handler):
                self.check("handler_alloc", handler, **variables)

    def test_handler_allocates(self):
        self.check_handler()

    def test_handler_allocates_beside_a_thread(self):
        self.check_handler(THREAD="1")

    def test_earliest_handler_allocates(self):
        self.check_handler(EARLIEST="1")

    def test_earliest_handler_allocates_beside_a_thread(self):
        self.check_handler(EARLIEST="1", THREAD="1")


if __name__ == "__main__":
    unittest.main()
