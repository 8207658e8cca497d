"""Tests of stress_fork.py: that it sees what it is there to see."""

import argparse
import contextlib
import io
import os
import pathlib
import signal
import subprocess
import sys
import unittest
from unittest import mock

from stress import stress_fork
from stress.stress_fork import Corruption, Store


SCRIPT = pathlib.Path(stress_fork.__file__)
SOURCE = stress_fork.make_bytes(1)


def make_store(seed=1):
    store = Store(seed, SOURCE)
    store.fill(50, 1)
    return store


class StoreTest(unittest.TestCase):

    def test_same_seed(self):
        stores = [make_store(seed) for seed in (1, 1, 2)]
        for store in stores:
            for _ in range(20):
                store.step()
            store.verify()
        first, again, other = (store.entries for store in stores)
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)

    def test_wrong_byte(self):
        store = make_store()
        store.entries[7][0][-1] ^= 1
        with self.assertRaisesRegex(Corruption, "object 7 at 0x"):
            store.verify()
        # What is written anew is right again.
        store.write_all()
        store.verify()

    def test_wrong_object_of_group(self):
        store = make_store()
        objects, content = store.groups[0]
        objects[3] = content[:-1] + b"?"
        with self.assertRaisesRegex(Corruption, "object 3 at 0x"):
            store.verify()
        del objects[3]
        with self.assertRaisesRegex(Corruption, "4607 of 4608 objects"):
            store.verify()

    def test_fork_while_writing(self):
        # Old or new, but nothing else.
        store = make_store()
        obj, version = store.entries[0]
        store.writing = 0, version + 1000
        store.verify()
        obj[:] = store.content(version + 1000, len(obj))
        store.verify()
        obj[:] = store.content(version + 2000, len(obj))
        with self.assertRaises(Corruption):
            store.verify()


@unittest.skipUnless(hasattr(os, "fork"), "needs fork()")
class WaysTest(unittest.TestCase):

    def end(self, how):
        """Return the work of a child that ends so."""
        def work(leave=False):
            if how == "well":
                return os._exit(0) if leave else None
            if how == "signal":
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(3)
        return work

    def test_each_way(self):
        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        for name, way in stress_fork.WAYS.items():
            with self.subTest(name):
                way(self.end("well"))
                for how in "signal", "status":
                    with self.assertRaises(Corruption):
                        way(self.end(how))

    def test_child_sees_corruption(self):
        store = make_store()
        store.entries[0][0][0] ^= 1
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.dup2(write, 2)
            stress_fork.run_child([store], "seed", may_fork=False)
        os.close(write)
        with open(read) as file:
            self.assertIn("Corruption: object 0", file.read())
        self.assertEqual(os.waitpid(pid, 0)[1], 1 << 8)


class LossTest(unittest.TestCase):
    """What has been lost when all is over."""

    def setUp(self):
        self.stress = stress_fork.Stress(
            argparse.Namespace(forks=20, pool=8, seed=1))

    def faults(self, function, *arguments):
        with contextlib.redirect_stdout(io.StringIO()) as output:
            function(*arguments)
        return [line for line in output.getvalue().splitlines()
                if line.startswith("FAILED")]

    def test_growth(self):
        slack = stress_fork.ADDRESS_SPACE_SLACK
        for after, fault in (((5, 100 + slack), None),
                             ((4, 0), None),
                             ((6, 100), "1 file descriptors were left open"),
                             ((5, 2048 + slack), "KiB of address space")):
            with self.subTest(after=after):
                faults = self.faults(self.stress.check_growth, (5, 100), after)
                self.assertEqual(len(faults), fault is not None)
                self.assertIn(fault or "", "".join(faults))
        self.assertEqual(self.stress.faults, 2)

    def test_pool(self):
        with mock.patch.multiple(stress_fork, available_pages=lambda: 6,
                                 own_status=lambda: (1, 0)), \
                mock.patch("time.sleep"):
            self.assertEqual(self.faults(self.stress.check_pool, 7), [])
            self.assertEqual(self.faults(self.stress.check_pool, 8),
                             ["FAILED: 1 pages of the pool are missing"])
        self.assertEqual(self.stress.faults, 1)


class ProgramTest(unittest.TestCase):

    def refuse(self, pattern, *arguments):
        done = subprocess.run([sys.executable, str(SCRIPT), *arguments],
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertRegex(done.stderr, rf"\Astress_fork\.py: {pattern}\n\Z")
        self.assertEqual(done.stdout, "")

    def test_bad_arguments(self):
        self.refuse("--forks must be 1 or more", "--forks", "0")
        self.refuse("--pool must be 1 or more", "--pool", "-1")
        self.refuse(".*--seed.*'x'", "--seed", "x")
        self.refuse(".*--switch.*'thp'.*", "--switch", "thp")
        self.refuse(".*--more", "--more")

    def test_wrong_interpreter(self):
        with mock.patch("sysconfig.get_config_var", return_value=None), \
                mock.patch("importlib.util.find_spec", return_value=None), \
                mock.patch("sys.argv", [str(SCRIPT)]), \
                contextlib.redirect_stderr(io.StringIO()) as output:
            self.assertEqual(stress_fork.main(), 2)
        self.assertRegex(output.getvalue(),
                         r"\Astress_fork\.py: .* is not built "
                         r"--with-pymalloc-hugepages, nor has the wheel\n\Z")

    def test_parts(self):
        # All forks, half of them in one process, and never many in another.
        for forks in 1, 2, 31, 100:
            options = argparse.Namespace(forks=forks, seed=5)
            parts = list(stress_fork.parts(options))
            self.assertEqual(sum(part[1] for part in parts), forks)
            self.assertEqual(parts[0][:2], ("hugetlb", (forks + 1) // 2))
            self.assertEqual(len({part[2] for part in parts}), len(parts))
            for switch, count, _ in parts[1:]:
                self.assertEqual(switch, "on")
                self.assertLessEqual(count, stress_fork.FEW_FORKS)


if __name__ == "__main__":
    unittest.main()
