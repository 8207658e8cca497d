"""Tests for --with-pymalloc-hugepages: limits, leaks, threads, finalization.

Memory that cannot be had is a MemoryError, or whatever stock CPython gets, and
never SIGBUS or SIGSEGV.  What was mapped is given back.
"""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import unittest
from test import support
from test.support import import_helper, threading_helper
from test.support.script_helper import assert_python_ok
from test.test_capi import hugepages_support
from test.test_capi.hugepages_support import (
    ENV_VAR, HUGETLB_DIR, MIB, SWITCHES, HugePagesTestCase, available_pages,
    child_args, memory_cgroup, requires_hugepages_build, requires_linux,
    reserve_pages, thp_mode)


setUpModule = hugepages_support.lock_settings


@support.requires_subprocess()
@requires_hugepages_build
@requires_linux
class LimitTests(HugePagesTestCase):

    def test_data_limit(self):
        import_helper.import_module('resource')
        script = '''
            import resource
            with open('/proc/self/status') as file:
                for line in file:
                    if line.startswith('VmData:'):
                        used = int(line.split()[1]) * 1024
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            resource.setrlimit(resource.RLIMIT_DATA,
                               (used + 64 * 1024**2, hard))
            for _ in range(3):
                objects = []
                try:
                    while True:
                        objects.append(fill(1))
                except MemoryError:
                    pass
                assert len(objects) > 10
                del objects
            resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
            objects = fill(5)
            report(objects[::50])
        '''
        with thp_mode('madvise'):
            for switch in SWITCHES:
                for pool in (0, 4, 60):
                    with self.subTest(switch=switch, pool=pool):
                        self.run_with_pool(pool, self.run_child, switch,
                                           script)

    def run_in_memory_cgroup(self, limit, switch, script):
        with memory_cgroup(limit) as procs:
            command = ['/bin/sh', '-c', f'echo $$ > {procs} && exec "$0" "$@"',
                       sys.executable, *child_args(switch, script)]
            return subprocess.run(command, capture_output=True)

    def test_memory_cgroup(self):
        # The system ends a process that wants more than there is, as it does
        # with stock CPython.
        script = '''
            print('started', flush=True)
            objects = fill(100)
            print('filled', flush=True)
        '''
        for pool in 0, 4:
            for switch in SWITCHES:
                with self.subTest(switch=switch, pool=pool):
                    result = self.run_leaving_pool(
                        pool, self.run_in_memory_cgroup, 64 * MIB, switch,
                        script)
                    self.assertIn(result.returncode, (1, -signal.SIGKILL))
                    self.assertEqual(result.stdout, b'started\n')

    @support.requires_fork()
    def test_memory_cgroup_and_fork(self):
        # Pages of the pool are not charged as memory, but those that the
        # child gets in their place are.
        script = '''
            objects = fill(20)
            copy = bytes(bytearray(objects[0]))
            print('filled', flush=True)
            pid = os.fork()
            if pid == 0:
                os._exit(objects.count(copy) != len(objects))
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert objects.count(copy) == len(objects)
            print(code, flush=True)
        '''
        for limit, expected in ((32, '-9'), (256, '0')):
            with self.subTest(limit=limit):
                result = self.run_leaving_pool(
                    24, self.run_in_memory_cgroup, limit * MIB, 'on', script)
                if result.returncode != -signal.SIGKILL or expected == '0':
                    self.assertEqual(result.returncode, 0, result.stderr)
                    self.assertEqual(result.stdout.decode().split(),
                                     ['filled', expected])

    def test_pool_of_others(self):
        # Others take all pages and give them back, and the administrator
        # makes the pool smaller and larger.
        script = '''
            def wave():
                objects = fill(15)
                copy = bytes(bytearray(objects[0]))
                assert objects.count(copy) == len(objects)

            for _ in range(100):
                wave()
        '''
        nr_hugepages = f'{HUGETLB_DIR}/nr_hugepages'
        if not os.access(nr_hugepages, os.W_OK):
            self.skipTest(f'needs root: cannot write {nr_hugepages}')
        rounds = 0

        def meddle(stop):
            nonlocal rounds
            size = hugepages_support.read_line(nr_hugepages)
            while not stop.is_set():
                with contextlib.suppress(OSError, ValueError):
                    reserve_pages(available_pages()).close()
                for value in '0', size:
                    with open(nr_hugepages, 'w') as file:
                        file.write(value)
                rounds += 1

        def run():
            stop = threading.Event()
            thread = threading.Thread(target=meddle, args=(stop,))
            with threading_helper.start_threads([thread], stop.set):
                result = assert_python_ok(*child_args(switch, script))
            self.assertEqual(result.err, b'')

        for switch in 'on', 'hugetlb':
            with self.subTest(switch=switch):
                self.run_leaving_pool(30, run)
        self.assertGreater(rounds, 2)


@support.requires_subprocess()
@requires_hugepages_build
@requires_linux
class LeakTests(HugePagesTestCase):
    """Address space, pages and descriptors do not grow."""

    MEASURE = '''
        import gc, sys
        def measure():
            gc.collect()
            with open('/proc/self/maps') as file:
                mappings = len(file.readlines())
            with open('/proc/self/status') as file:
                fields = dict(line.split(':', 1) for line in file)
            # In KiB.  The stack grows by a page when a call is deeper than
            # all before it, as a garbage collection may be at any time.
            space, stack, huge = (int(fields[name].split()[0]) for name in
                                  ('VmSize', 'VmStk', 'HugetlbPages'))
            return [mappings, space - stack, huge,
                    len(os.listdir('/proc/self/fd'))]

        def repeat(function, times):
            # What is done once has been done, by measure() too.
            measure()
            for _ in range(20):
                function()
            before = measure()
            for _ in range(times):
                function()
            after = measure()
            return before, after
    '''

    def check(self, script, pool):
        with thp_mode('madvise'):
            self.run_with_pool(
                pool, self.run_child, 'on',
                textwrap.dedent(self.MEASURE) + textwrap.dedent(script))

    # Objects for four arenas, of which three come and go: the first one is
    # there before, and goes on being used.
    ARENAS_EACH_TIME = 3
    TIMES = 10_000 // ARENAS_EACH_TIME + 1

    def test_arenas(self):
        script = f'''
            before, after = repeat(lambda: fill(4), {self.TIMES})
            assert before == after, (before, after)
            report()
        '''
        for pool in 0, 4, 20:
            with self.subTest(pool=pool):
                self.check(script, pool)

    def test_arenas_each_time(self):
        # The allocator's own count.
        script = '''
            for _ in range(50):
                fill(4)
            sys._debugmallocstats()
        '''
        err = assert_python_ok(*child_args('on', script)).err.decode()
        for line in err.splitlines():
            if line.startswith('# arenas allocated total'):
                self.assertGreater(int(line.split('=')[1].replace(',', '')),
                                   50 * self.ARENAS_EACH_TIME)
                break
        else:
            self.fail('no count of arenas')

    @support.requires_fork()
    def test_forks(self):
        script = '''
            objects = fill(2)

            def fork():
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                assert os.waitpid(pid, 0)[1] == 0

            before, after = repeat(fork, 1000)
            assert before == after, (before, after)
            report()
        '''
        for pool in 0, 4, 20:
            with self.subTest(pool=pool):
                self.check(script, pool)

    @support.requires_fork()
    def test_descendants(self):
        # Each generation forks the next one.
        script = '''
            objects = fill(2)
            measure()
            before = measure()
            for _ in range(50):
                pid = os.fork()
                if pid:
                    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            after = measure()
            assert before[1::2] == after[1::2], (before, after)
        '''
        for pool in 4, 20, 300:
            with self.subTest(pool=pool):
                self.run_leaving_pool(
                    pool, self.run_child, 'on',
                    textwrap.dedent(self.MEASURE) + textwrap.dedent(script))


@support.requires_subprocess()
@requires_hugepages_build
@requires_linux
class ThreadTests(HugePagesTestCase):

    @threading_helper.requires_working_threading()
    def test_many_arenas(self):
        # 10,000 arenas by threads, and by interpreters with a GIL of their
        # own, all at the same time.
        import_helper.import_module('_interpreters')
        script = '''
            import _interpreters, threading

            work = """if 1:
                def fill(arenas):
                    return [bytes(400) for _ in range(arenas * 128 * 36)]
                expected = bytes(bytearray(400))
                for _ in range(420):
                    objects = fill(3)
                    assert objects.count(expected) == len(objects)
                    del objects
            """
            errors = []

            def run_here():
                try:
                    exec(work, {})
                except BaseException as exc:
                    errors.append(exc)

            def run_there():
                interp = _interpreters.create('isolated')
                error = _interpreters.exec(interp, work)
                if error is not None:
                    errors.append(error)
                _interpreters.destroy(interp)

            before = fill(3)
            threads = [threading.Thread(target=target)
                       for target in [run_here, run_there] * 4]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not errors, errors
            assert before.count(bytes(bytearray(400))) == len(before)
            report(before)
        '''
        with thp_mode('madvise'):
            for pool in 0, 20:
                with self.subTest(pool=pool):
                    self.run_with_pool(pool, self.run_child, 'on', script)


@support.requires_subprocess()
@requires_hugepages_build
@requires_linux
class FinalizationTests(HugePagesTestCase):
    """Py_Finalize() with arenas alive, and Py_Initialize() after it."""

    def run_testembed(self, *args):
        directory = os.path.dirname(sys.executable)
        program = os.path.join(directory, 'Programs', '_testembed')
        if not os.path.exists(program):
            self.skipTest(f'not in a build tree: there is no {program}')
        for switch in SWITCHES:
            for pool in 0, 8, 200:
                with self.subTest(switch=switch, pool=pool):
                    result = self.run_leaving_pool(
                        pool, subprocess.run, [program, *args],
                        capture_output=True, text=True, cwd=directory,
                        env={**os.environ, ENV_VAR: switch})
                    self.assertEqual(result.returncode, 0, result.stderr)

    def test_arenas_alive(self):
        # References that nobody gives back keep the objects.
        import_helper.import_module('_testcapi')
        self.run_testembed('test_repeated_init_exec', textwrap.dedent('''
            import _testinternalcapi, os
            config = _testinternalcapi.get_config()
            switch = {'off': 0, 'on': 1, 'thp': 2, 'hugetlb': 3}
            assert (config['pymalloc_hugepages']
                    == switch[os.environ['%s']]), config
            objects = [bytes(400) for _ in range(10 * 128 * 36)]
            import ctypes
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(objects))
        ''' % ENV_VAR))

    @support.requires_fork()
    def test_fork_after_each_init(self):
        self.run_testembed('test_repeated_init_exec', textwrap.dedent('''
            import os
            objects = [bytes(400) for _ in range(10 * 128 * 36)]
            expected = bytes(bytearray(400))
            pid = os.fork()
            if pid == 0:
                os._exit(objects.count(expected) != len(objects))
            assert os.waitpid(pid, 0)[1] == 0
            assert objects.count(expected) == len(objects)
        '''))

    def test_subinterpreters(self):
        self.run_testembed('test_repeated_init_and_subinterpreters')

    def test_exit_with_daemon_threads(self):
        script = '''
            import threading, time
            def work():
                while True:
                    fill(2)
            threads = [threading.Thread(target=work, daemon=True)
                       for _ in range(4)]
            for thread in threads:
                thread.start()
            objects = fill(5)
            time.sleep(0.05)
        '''
        for pool in 0, 20:
            for _ in range(3):
                with self.subTest(pool=pool):
                    self.run_leaving_pool(pool, self.run_child, 'on', script)


if __name__ == '__main__':
    unittest.main()
