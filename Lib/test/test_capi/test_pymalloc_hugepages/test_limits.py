"""Limits on memory, with and without a fork."""

import contextlib
import signal
import subprocess
import textwrap
import threading
from test.support import threading_helper
from .support import (
    HUGE_PAGE, MIB, NR_HUGEPAGES, available_pages, child_args, child_command,
    each, each_switch, hugetlb_cgroup, lock_settings, memory_cgroup,
    read_line, require_write_access, reserve_pages, thp_mode)
from .fork_support import (
    AMPLE_POOL, COPIED, MESSAGE_LINE, MOVED, OBJECTS, OS_FORK,
    THREADED_OS_FORK, TINY_POOL, ForkTestCase, fork_script)

setUpModule = lock_settings


class LimitTests(ForkTestCase):
    """Memory that is refused is a MemoryError, or whatever stock CPython
    gets, and never SIGBUS or SIGSEGV."""

    # What objects are on without a pool, and with one.
    TIERS = {'on': ('thp', 'hugetlb'), 'hugetlb': ('plain', 'hugetlb'),
             'thp': ('thp', 'thp'), 'off': ('plain', 'plain')}

    @each('limit', ['RLIMIT_AS', 'RLIMIT_DATA'])
    @each_switch
    @each('pool', [0, 4, 60])
    @thp_mode('madvise')
    def test_process(self, limit, switch, pool):
        [snapshot] = self.run_child(switch, f'''
            set_limit('{limit}', 64 * 2**20)
            for _ in range(3):
                objects = []
                try:
                    while True:
                        objects.append(fill(1))
                except MemoryError:
                    pass
                assert len(objects) > 10
                del objects
            set_limit('{limit}', None)
            objects = fill(5)
            report(objects[::50])
        ''', pool=pool)
        # The limit was no reason to give up a tier for good.
        self.assertIn(self.TIERS[switch][pool > 4], snapshot.tiers)

    @each('limit', ['RLIMIT_AS', 'RLIMIT_DATA'])
    @each('pool', [TINY_POOL, AMPLE_POOL])
    def test_process_and_fork(self, limit, pool):
        # A child for whose arenas there is no memory says so, and ends.
        self.run_child('on', OBJECTS + textwrap.dedent(f'''
            be_threaded()
            set_limit('{limit}', 3 * 2**20)
            code = fork_and_wait()
            set_limit('{limit}', None)
            assert code == 1, code
            check(objects)
            change(objects, 1)
            check(objects, 1)
            report(objects[::50])
        '''), pool=pool, err=MESSAGE_LINE)

    @each('switch, rest', [('on', 'thp'), ('hugetlb', 'plain')])
    @thp_mode('madvise')
    def test_hugetlb_cgroup(self, switch, rest):
        # The limit of a hugetlb cgroup is charged when a page is faulted in.
        # A process that was given the page by mmap() alone gets SIGBUS then.
        limit = 4
        with hugetlb_cgroup(limit * HUGE_PAGE) as wrapper:
            [snapshot] = self.run_child(switch, '''
                objects = fill(20)
                report(objects[::50])
            ''', pool=30, wrapper=wrapper)
        self.assertEqual(snapshot.hugetlb_pages, limit)
        self.assertEqual(snapshot.tiers, {'hugetlb', rest})

    @each('way, rest', [(OS_FORK, MOVED), (THREADED_OS_FORK, COPIED)])
    @thp_mode('madvise')
    def test_hugetlb_cgroup_and_fork(self, way, rest):
        # The pages are charged to the parent, and stay so.
        with hugetlb_cgroup(4 * HUGE_PAGE) as wrapper:
            family = self.run_child('on', fork_script(way), pool=64,
                                    wrapper=wrapper)
        self.check_family(TINY_POOL, *family, rest)

    def run_in_memory_cgroup(self, limit, switch, script):
        with memory_cgroup(limit) as wrapper:
            return subprocess.run(wrapper + child_command(switch, script),
                                  capture_output=True, text=True)

    @each('pool', [0, 4])
    @each_switch
    def test_memory_cgroup(self, pool, switch):
        # The system ends a process that wants more than there is, as it does
        # with stock CPython.
        result = self.run_with_pool(
            pool, self.run_in_memory_cgroup, 64 * MIB, switch, '''
                print('started', flush=True)
                objects = fill(100)
                print('filled', flush=True)
            ''')
        self.assertIn(result.returncode, (1, -signal.SIGKILL))
        self.assertEqual(result.stdout, 'started\n')

    @each('limit, expected', [(32, '-9'), (256, '0')])
    def test_memory_cgroup_and_fork(self, limit, expected):
        # Pages of the pool are not charged as memory, but those that the
        # child gets in their place are.
        result = self.run_with_pool(
            24, self.run_in_memory_cgroup, limit * MIB, 'on', '''
                objects = fill(20)
                print('filled', flush=True)
                pid = os.fork()
                if pid == 0:
                    os._exit(not intact(objects))
                code = wait(pid)
                assert intact(objects)
                print(code, flush=True)
            ''')
        if result.returncode != -signal.SIGKILL or expected == '0':
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual(result.stdout.split(), ['filled', expected])

    @each('switch', ['on', 'hugetlb'])
    def test_pool_of_others(self, switch):
        # Others take all pages and give them back, and the administrator
        # makes the pool smaller and larger.
        require_write_access(NR_HUGEPAGES)
        rounds = 0

        def meddle(stop):
            nonlocal rounds
            size = read_line(NR_HUGEPAGES)
            while not stop.is_set():
                with contextlib.suppress(OSError, ValueError):
                    reserve_pages(available_pages()).close()
                for value in '0', size:
                    with open(NR_HUGEPAGES, 'w') as file:
                        file.write(value)
                rounds += 1

        def run():
            stop = threading.Event()
            thread = threading.Thread(target=meddle, args=(stop,))
            with threading_helper.start_threads([thread], stop.set):
                self.run_python(*child_args(switch, '''
                    for _ in range(50):
                        objects = fill(15)
                        assert intact(objects)
                        del objects
                '''))

        self.run_with_pool(30, run)
        self.assertGreater(rounds, 2)

    @each('parent_first', [False, True])
    @thp_mode('madvise')
    def test_pool_shrinks_and_fork(self, parent_first):
        # The pool is made smaller while it is in use, and others take what
        # there is.
        require_write_access(NR_HUGEPAGES)
        way = textwrap.dedent(f'''
            def resize(pages):
                with open({NR_HUGEPAGES!r}, 'w') as file:
                    file.write(pages)

            size = read({NR_HUGEPAGES!r})
            resize('0')
        ''') + THREADED_OS_FORK + 'resize(size)\n'
        # In each snapshot the pool lacks pages for that reason.
        before, child, after = self.run_with_pool(
            AMPLE_POOL, self.run_child, 'on', fork_script(way, parent_first),
            compare=False)
        self.check_family(AMPLE_POOL, before, child, after, COPIED)
