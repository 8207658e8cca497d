"""Tests for --with-pymalloc-hugepages: arenas that are kept when freed.

How many are kept, and when they are given back, is tested with a clock that the
test sets in Programs/_testhugepages_retain.c.  Here it is tested that what an
interpreter does leads to it.
"""

import textwrap
import unittest
from test import support
from test.test_capi import hugepages_support
from test.test_capi.hugepages_support import (
    HUGE_PAGE, KEEP_LEAST, HugePagesTestCase, requires_hugepages_build,
    requires_linux)


setUpModule = hugepages_support.lock_settings


@support.requires_subprocess()
@requires_hugepages_build
@requires_linux
class RetentionTests(HugePagesTestCase):

    ARENAS = 20
    # The loop must not be interrupted by a collection that takes its time: the
    # arenas of one turn must be wanted soon in the next.
    CYCLE = textwrap.dedent(f'''
        import gc
        gc.disable()

        fill(0)

        def cycle():
            objects = fill({ARENAS})
            del objects
    ''')
    LOOP = CYCLE + textwrap.dedent('''
        for _ in range(3):
            cycle()
    ''')

    def run_after(self, start, tier, script):
        """Run a script that begins with CYCLE or LOOP."""
        pool = 2 * self.ARENAS + 10 if tier == 'hugetlb' else 0
        return self.run_with_pool(pool, self.run_child, tier,
                                  start + textwrap.dedent(script))

    def test_first_drop(self):
        for tier in 'hugetlb', 'thp':
            with self.subTest(tier=tier):
                [snapshot] = self.run_after(self.CYCLE, tier, '''
                    cycle()
                    report()
                ''')
                stats = snapshot.stats
                self.assertLessEqual(stats['retained']['now'], KEEP_LEAST)
                self.assertGreaterEqual(stats[tier]['peak'], self.ARENAS)
                # The first arenas are advised to be THP by now.
                self.assertLess(stats[tier]['now'], self.ARENAS // 2)

    def test_loop(self):
        for tier in 'hugetlb', 'thp':
            with self.subTest(tier=tier):
                before, after = self.run_after(self.LOOP, tier, '''
                    report()
                    for _ in range(5):
                        cycle()
                    report()
                ''')
                for snapshot in before, after:
                    kept = snapshot.stats['retained']['now']
                    self.assertGreaterEqual(kept, self.ARENAS - 2)
                    self.assertLessEqual(kept, snapshot.stats[tier]['now'])
                # Five more turns took less than one of them would have.
                self.assertLess(
                    after.stats[tier]['ever'] - before.stats[tier]['ever'],
                    self.ARENAS)

    def test_off(self):
        [snapshot] = self.run_after(self.LOOP, 'off', '''
            report()
        ''')
        self.assertEqual(snapshot.stats['retained']['ever'], 0)

    def test_full_collection(self):
        for tier in 'hugetlb', 'thp':
            with self.subTest(tier=tier):
                kept, young, full = self.run_after(self.LOOP, tier, '''
                    report()
                    gc.collect(0)
                    report()
                    gc.collect()
                    report()
                ''')
                for snapshot in kept, young:
                    self.assertGreaterEqual(snapshot.stats['retained']['now'],
                                            self.ARENAS - 2)
                self.assertEqual(full.stats['retained']['now'], 0)
                self.assertLess(
                    full.address_space,
                    kept.address_space - (self.ARENAS - 4) * HUGE_PAGE)

    def test_work_goes_on(self):
        # A program that works on in little memory gives back the rest, whether
        # its work needs pools or makes garbage for the collector.
        works = {
            'pools': '''
                    def work():
                        return [bytes(400) for _ in range(1000)]
            ''',
            'collections': '''
                    gc.enable()
                    def work():
                        cell = []
                        cell.append(cell)
            ''',
        }
        for name, work in works.items():
            with self.subTest(work=name):
                [snapshot] = self.run_after(self.LOOP, 'thp', work + f'''
                    import time
                    def kept():
                        return sys._pymalloc_hugepages()['retained']['now']
                    assert kept() >= {self.ARENAS} - 2, kept()
                    # It takes half a second, of an idle machine.
                    deadline = time.monotonic() + {support.SHORT_TIMEOUT}
                    while kept() > 1 and time.monotonic() < deadline:
                        work()
                    report()
                ''')
                self.assertLessEqual(snapshot.stats['retained']['now'], 1)

    @support.requires_fork()
    def test_fork(self):
        # There is nothing to be copied of what is not used.
        for tier in 'hugetlb', 'thp':
            with self.subTest(tier=tier):
                before, child, parent = self.run_after(self.LOOP, tier, '''
                    report()
                    pid = os.fork()
                    if pid == 0:
                        report(other_pids=[os.getppid()])
                        os._exit(0)
                    assert os.waitpid(pid, 0)[1] == 0
                    report()
                ''')
                self.assertGreaterEqual(before.stats['retained']['now'],
                                        self.ARENAS - 2)
                for snapshot in child, parent:
                    self.assertEqual(snapshot.stats['retained']['now'], 0)

    def test_no_memory(self):
        # What is kept does not keep the program from having other memory: the
        # stack of a deep recursion comes from the allocator of arenas, too.
        [snapshot] = self.run_after(self.LOOP, 'thp', '''
            import resource
            def recurse(depth):
                if depth:
                    recurse(depth - 1)
            sys.setrecursionlimit(100_000)
            assert sys._pymalloc_hugepages()['retained']['now'] > 10
            with open('/proc/self/statm') as file:
                size = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
            recurse(20_000)
            report()
        ''')
        self.assertEqual(snapshot.stats['retained']['now'], 0)


if __name__ == '__main__':
    unittest.main()
