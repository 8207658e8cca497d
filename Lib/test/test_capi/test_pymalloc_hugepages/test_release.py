"""What was mapped is given back: pages, address space and descriptors."""

import os
import signal
import subprocess
import sys
import textwrap
from .support import (
    ENV_VAR, FILL, HUGE_PAGE, KEEP_MOST, SWITCH, HugePagesTestCase,
    child_args, each, each_switch, lock_settings, thp_mode)

setUpModule = lock_settings

ARENAS = 20


class ReleaseTests(HugePagesTestCase):

    @each('switch', ['on', 'hugetlb'])
    def test_freed_objects(self, switch):
        before, filled, after = self.run_child(switch, f'''
            fill(0)
            report()
            objects = fill({ARENAS})
            report()
            del objects
            report()
        ''', pool=ARENAS + 10)
        self.assertGreaterEqual(filled.hugetlb_pages,
                                before.hugetlb_pages + ARENAS - 1)
        # One arena for what fill() and report() have left behind.
        self.assertLessEqual(after.hugetlb_pages,
                             before.hugetlb_pages + 1 + KEEP_MOST)

    @each('how, status', [
        ('sys.exit(3)', 3), ('os._exit(4)', 4),
        ('os.kill(os.getpid(), signal.SIGKILL)', -signal.SIGKILL)])
    def test_exit(self, how, status):
        # run_with_pool() checks that all pages are back.
        [snapshot] = self.run_child('hugetlb', f'''
            import signal
            objects = fill({ARENAS})
            report()
            {how}
        ''', pool=ARENAS + 10, status=status)
        self.assertGreaterEqual(snapshot.hugetlb_pages, ARENAS)

    @each_switch
    @each('pool', [0, 4, 30])
    def test_address_space(self, switch, pool):
        # Fill and free 10 arenas again and again: 400 MiB in all.
        before, after = self.run_child(switch, '''
            for times in 2, 20:
                for _ in range(times):
                    fill(10)
                report()
        ''', pool=pool)
        self.assertLessEqual(after.hugetlb_pages, before.hugetlb_pages + 1)
        self.assertLessEqual(after.sizes.total(),
                             before.sizes.total() + 2 * HUGE_PAGE)


class LeakTests(HugePagesTestCase):

    MEASURE = '''
        import gc

        def measure():
            gc.collect()
            mappings = len(read('/proc/self/maps').splitlines())
            # The stack grows by a page when a call is deeper than all before
            # it, as a garbage collection may be at any time.
            space, stack, huge = proc_status('VmSize', 'VmStk',
                                             'HugetlbPages')
            return [mappings, space - stack, huge,
                    len(os.listdir('/proc/self/fd'))]

        def check_leaks(function, times):
            # What is done once has been done, by measure() too.
            measure()
            for _ in range(20):
                function()
            before = measure()
            for _ in range(times):
                function()
            after = measure()
            assert before == after, (before, after)
    '''

    # Objects for four arenas, of which three come and go: the first one is
    # there before, and goes on being used.
    ARENAS_EACH_TIME = 3
    TIMES = 10_000 // ARENAS_EACH_TIME + 1

    @each('pool', [0, 4, 20])
    @thp_mode('madvise')
    def test_arenas(self, pool):
        self.run_child('on', self.MEASURE + f'''
        check_leaks(lambda: fill(4), {self.TIMES})
        report()
        ''', pool=pool)

    def test_arenas_each_time(self):
        # The allocator's own count.
        script = '''
            for _ in range(50):
                fill(4)
            sys._debugmallocstats()
        '''
        _, err = self.run_python(
            *child_args('on', script),
            err=r'.*\n# arenas allocated total += +[\d,]+\n.*')
        count = err.partition('# arenas allocated total')[2].split()[1]
        self.assertGreater(int(count.replace(',', '')),
                           50 * self.ARENAS_EACH_TIME)

    @each('pool', [0, 4, 20])
    @thp_mode('madvise')
    def test_forks(self, pool):
        self.run_child('on', self.MEASURE + '''
        def fork():
            assert fork_and_wait() == 0

        objects = fill(2)
        check_leaks(fork, 1000)
        report()
        ''', pool=pool)

    @each('pool', [4, 20, 300])
    def test_descendants(self, pool):
        # Each generation forks the next one.
        self.run_child('on', self.MEASURE + '''
        objects = fill(2)
        measure()
        before = measure()
        for _ in range(50):
            pid = os.fork()
            if pid:
                os._exit(wait(pid))
        after = measure()
        assert before[1::2] == after[1::2], (before, after)
        ''', pool=pool)


class FinalizationTests(HugePagesTestCase):
    """Py_Finalize() with arenas alive, and Py_Initialize() after it."""

    @each_switch
    @each('pool', [0, 8, 200])
    def run_testembed(self, test, *code, switch, pool):
        directory = os.path.dirname(sys.executable)
        program = os.path.join(directory, 'Programs', '_testembed')
        if not os.path.exists(program):
            self.skipTest(f'not in a build tree: there is no {program}')
        result = self.run_with_pool(
            pool, subprocess.run,
            [program, test, *(FILL + textwrap.dedent(text) for text in code)],
            capture_output=True, text=True, cwd=directory,
            env={**os.environ, ENV_VAR: switch})
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_arenas_alive(self):
        # A cycle that the garbage collector leaves alone keeps the objects.
        self.run_testembed('test_repeated_init_exec', f'''
            import _testinternalcapi, gc, os
            config = _testinternalcapi.get_configs()['config']
            assert (config['pymalloc_hugepages']
                    == {SWITCH}[os.environ['{ENV_VAR}']]), config
            objects = fill(10)
            objects.append(objects)
            gc.freeze()
        ''')

    def test_fork_after_each_init(self):
        self.run_testembed('test_repeated_init_exec', '''
            import os
            objects = fill(10)
            pid = os.fork()
            if pid == 0:
                os._exit(not intact(objects))
            assert os.waitpid(pid, 0)[1] == 0
            assert intact(objects)
        ''')

    def test_subinterpreters(self):
        self.run_testembed('test_repeated_init_and_subinterpreters')

    @each('pool', [0, 20])
    @each('run', range(3))
    def test_exit_with_daemon_threads(self, pool, run):
        self.run_child('on', '''
            def work():
                while True:
                    fill(2)
            threads = [Thread(target=work, daemon=True) for _ in range(4)]
            for thread in threads:
                thread.start()
            objects = fill(5)
            time.sleep(0.05)
        ''', pool=pool)
