"""Tests for --with-pymalloc-hugepages: arenas that are kept when freed.

Whatever a program does, its peak memory is at most what is live plus a few
arenas, and what it holds after it has dropped everything is at most 16 MiB
(two pages of the pool) more than it had before, whatever it does next.
"""

import subprocess
import sys
import textwrap
import unittest
from test import support
from test.support.script_helper import assert_python_ok
from test.test_capi import hugepages_support
from test.test_capi.hugepages_support import (
    KEEP_MOST, MIB, HugePagesTestCase, child_args,
    memory_cgroup, requires_hugepages_build, requires_linux, thp_mode)


setUpModule = hugepages_support.lock_settings

# What a program holds at most that it has dropped.
HELD = 16 * MIB


@support.requires_subprocess()
@requires_hugepages_build
@requires_linux
class RetentionTestCase(HugePagesTestCase):

    ARENAS = 20
    START = textwrap.dedent(f'''
        import gc, subprocess, time

        fill(0)

        def drop(times=5):
            for _ in range(times):
                fill({ARENAS})

        def held():
            """Memory of any kind, in bytes, and the most that there was."""
            with open('/proc/self/status') as file:
                fields = dict(line.split(':', 1) for line in file)
            rss, hugetlb, peak = (int(fields[name].split()[0]) * 1024
                                  for name in ('VmRSS', 'HugetlbPages',
                                               'VmHWM'))
            return rss + hugetlb, peak

        def check_held(before):
            assert held()[0] <= before + {HELD}, (held(), before)

        def small():
            # 50 bytes take 96.
            return [bytes(50) for _ in range(100 * 2**20 // 104)]

        # 100 MiB each, of pymalloc's, the C library's and mapped memory.
        KINDS = [
            small,
            lambda: bytes(100 * 2**20),
            lambda: [bytes(900) for _ in range(100 * 2**20 // 944)],
            lambda: [bytes(3000) for _ in range(100 * 2**20 // 3040)],
            lambda: [dict.fromkeys(range(20)) for _ in range(80_000)],
        ]

        def take_turns(kinds, turns=3):
            for _ in range(turns):
                for kind in kinds:
                    kind()
    ''')

    def run_after_start(self, tier, script):
        pool = 3 * self.ARENAS if tier == 'hugetlb' else 0
        with thp_mode('madvise'):
            return self.run_with_pool(pool, self.run_child, tier,
                                      self.START + textwrap.dedent(script))


class KeptTests(RetentionTestCase):
    """How many arenas are kept."""

    def check_kept(self, tier, before, snapshot):
        kept = snapshot.stats['retained']
        self.assertEqual(kept['now'], KEEP_MOST)
        self.assertEqual(kept['peak'], KEEP_MOST)
        # report() may have left a few objects in another one.
        self.assertLessEqual(snapshot.stats[tier]['now'],
                             before.stats[tier]['now'] + KEEP_MOST + 1)

    def test_kept(self):
        for tier in 'hugetlb', 'thp':
            with self.subTest(tier=tier):
                before, first, later = self.run_after_start(tier, '''
                    report()
                    drop(1)
                    report()
                    drop(5)
                    report()
                ''')
                self.check_kept(tier, before, first)
                self.check_kept(tier, before, later)
                # What was kept was used again.
                self.assertGreaterEqual(
                    later.stats['retained']['ever'],
                    first.stats['retained']['ever'] + 5)

    def test_asleep(self):
        # What it keeps of the pool others lack.
        before, after = self.run_after_start('hugetlb', '''
            report()
            drop()
            time.sleep(0.1)
            report()
        ''')
        self.assertGreaterEqual(after.stats['hugetlb']['peak'], self.ARENAS)
        self.assertLessEqual(after.hugetlb_pages,
                             before.hugetlb_pages + KEEP_MOST + 1)

    def test_off(self):
        [snapshot] = self.run_after_start('off', '''
            drop()
            report()
        ''')
        self.assertEqual(snapshot.stats['retained']['ever'], 0)

    @support.requires_fork()
    def test_fork(self):
        # There is nothing to be copied of what is not used, and what both
        # processes have is not kept.
        for tier in 'hugetlb', 'thp':
            with self.subTest(tier=tier):
                snapshots = self.run_after_start(tier, f'''
                    shared = fill({self.ARENAS})
                    drop()
                    report()
                    pid = os.fork()
                    if pid == 0:
                        report(other_pids=[os.getppid()])
                        del shared
                        report(other_pids=[os.getppid()])
                        os._exit(0)
                    assert os.waitpid(pid, 0)[1] == 0
                    report()
                ''')
                kept = [snapshot.stats['retained']['now']
                        for snapshot in snapshots]
                self.assertEqual(kept, [KEEP_MOST, 0, 0, 0])

    def test_no_memory(self):
        # What is kept does not keep the program from having other memory: the
        # stack of a deep recursion comes from the allocator of arenas, too.
        [snapshot] = self.run_after_start('thp', '''
            import resource
            def recurse(depth):
                if depth:
                    recurse(depth - 1)
            sys.setrecursionlimit(100_000)
            drop()
            assert sys._pymalloc_hugepages()['retained']['now'] > 1
            with open('/proc/self/statm') as file:
                size = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
            recurse(20_000)
            report()
        ''')
        self.assertEqual(snapshot.stats['retained']['now'], 0)


class HeldTests(RetentionTestCase):
    """What is held after dropping, whatever the program does next."""

    # Each for some time after the program has dropped what it had.
    WORKS = {
        'nothing': '',
        'sleeps': 'time.sleep(0.2)',
        'needs no pool': '''
            for _ in range(300_000):
                {'a': 1}
        ''',
        'large blocks': '''
            for _ in range(20):
                bytes(2**20)
        ''',
        'is refused': '''
            for _ in range(10):
                try:
                    bytes(2**60)
                except MemoryError:
                    pass
        ''',
        'collects': '''
            for _ in range(50_000):
                cell = []
                cell.append(cell)
        ''',
    }

    def test_work(self):
        for tier in 'hugetlb', 'thp':
            for name, work in self.WORKS.items():
                with self.subTest(tier=tier, work=name):
                    script = textwrap.dedent(f'''
                        gc.disable()
                        drop(1)
                        before = held()[0]
                        drop(10)
                        take_turns([lambda: fill({self.ARENAS})])
                        KINDS[1]()
                    ''') + textwrap.dedent(work)
                    self.run_after_start(tier, script + textwrap.dedent('''
                        check_held(before)
                        report()
                    '''))

    def test_kinds(self):
        # Each kind of memory, after having used it again and again.
        for tier in 'hugetlb', 'thp':
            for number in range(5):
                with self.subTest(tier=tier, number=number):
                    self.run_after_start(tier, f'''
                        before = held()[0]
                        take_turns([KINDS[{number}]])
                        check_held(before)
                        report()
                    ''')


class PeakTests(RetentionTestCase):
    """What was dropped is not there while something else is."""

    def check_peak(self, kinds):
        # The peak of each kind alone is what is live.
        peaks = [self.peak(f'KINDS[{kind}]()') for kind in range(kinds)]
        in_turns = self.peak(f'take_turns(KINDS[:{kinds}])')
        self.assertLess(in_turns, max(peaks) + HELD)

    def peak(self, code):
        script = f'{self.START}\n{code}\nprint(held()[1])\n'
        return int(assert_python_ok(*child_args('thp', script)).out)

    def test_two_kinds(self):
        with thp_mode('madvise'):
            self.check_peak(2)

    def test_five_kinds(self):
        with thp_mode('madvise'):
            self.check_peak(5)

    def test_memory_cgroup(self):
        # The system ends a process that has more.
        code = self.START + 'take_turns(KINDS[:2])\n'
        with thp_mode('madvise'):
            limit = self.peak('small()') + HELD
            with memory_cgroup(limit) as procs:
                command = ['/bin/sh', '-c',
                           f'echo $$ > {procs} && exec "$0" "$@"',
                           sys.executable, *child_args('thp', code)]
                result = subprocess.run(command, capture_output=True)
        self.assertEqual(result.returncode, 0, result.stderr)


if __name__ == '__main__':
    unittest.main()
