"""Arenas that are kept when freed.

Whatever a program does, its peak memory is at most what is live plus a few
arenas, and what it holds after it has dropped everything is at most 16 MiB
(two pages of the pool) more than it had before, whatever it does next.
"""

import subprocess
import textwrap
from .support import (
    KEEP_MOST, MIB, HugePagesTestCase, child_args, child_command, each,
    lock_settings, memory_cgroup, thp_mode)

setUpModule = lock_settings

# What a program holds at most that it has dropped.
HELD = 16 * MIB

ARENAS = 20

START = textwrap.dedent(f'''
    import gc

    fill(0)

    def drop(times=5):
        for _ in range(times):
            fill({ARENAS})

    def held():
        """Memory of any kind, in bytes."""
        return sum(proc_status('VmRSS', 'HugetlbPages'))

    def check_held(before):
        assert held() <= before + {HELD}, (held(), before)

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

each_tier = each('tier', ['hugetlb', 'thp'])


class RetentionTestCase(HugePagesTestCase):

    @thp_mode('madvise')
    def run_after_start(self, tier, script):
        pool = 3 * ARENAS if tier == 'hugetlb' else 0
        return self.run_child(tier, START + textwrap.dedent(script),
                              pool=pool)


class KeptTests(RetentionTestCase):
    """How many arenas are kept."""

    def check_kept(self, tier, before, snapshot):
        kept = snapshot.stats['retained']
        self.assertEqual(kept['now'], KEEP_MOST)
        self.assertEqual(kept['peak'], KEEP_MOST)
        # report() may have left a few objects in another one.
        self.assertLessEqual(snapshot.stats[tier]['now'],
                             before.stats[tier]['now'] + KEEP_MOST + 1)

    @each_tier
    def test_kept(self, tier):
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
        self.assertGreaterEqual(later.stats['retained']['ever'],
                                first.stats['retained']['ever'] + 5)

    def test_asleep(self):
        # What it keeps of the pool others lack.
        before, after = self.run_after_start('hugetlb', '''
            report()
            drop()
            time.sleep(0.1)
            report()
        ''')
        self.assertGreaterEqual(after.stats['hugetlb']['peak'], ARENAS)
        self.assertLessEqual(after.hugetlb_pages,
                             before.hugetlb_pages + KEEP_MOST + 1)

    def test_off(self):
        [snapshot] = self.run_after_start('off', 'drop(); report()')
        self.assertEqual(snapshot.stats['retained']['ever'], 0)

    @each_tier
    def test_fork(self, tier):
        # There is nothing to be copied of what is not used, and what both
        # processes have is not kept.
        snapshots = self.run_after_start(tier, f'''
            shared = fill({ARENAS})
            drop()
            report()
            pid = os.fork()
            if pid == 0:
                report(other_pids=[os.getppid()])
                del shared
                report(other_pids=[os.getppid()])
                os._exit(0)
            assert wait(pid) == 0
            report()
        ''')
        self.assertEqual([snapshot.stats['retained']['now']
                          for snapshot in snapshots], [KEEP_MOST, 0, 0, 0])

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
            size, = proc_status('VmSize')
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

    @each_tier
    @each('work', WORKS)
    def test_work(self, tier, work):
        self.run_after_start(tier, '\n'.join([
            'gc.disable()',
            'drop(1)',
            'before = held()',
            'drop(10)',
            f'take_turns([lambda: fill({ARENAS})])',
            'KINDS[1]()',
            textwrap.dedent(self.WORKS[work]),
            'check_held(before)',
            'report()']))

    @each_tier
    @each('number', range(5))
    def test_kinds(self, tier, number):
        # Each kind of memory, after having used it again and again.
        self.run_after_start(tier, f'''
            before = held()
            take_turns([KINDS[{number}]])
            check_held(before)
            report()
        ''')


class PeakTests(RetentionTestCase):
    """What was dropped is not there while something else is."""

    def peak(self, code):
        script = f'{START}\n{code}\nprint(*proc_status("VmHWM"))\n'
        return int(self.run_python(*child_args('thp', script))[0])

    @each('kinds', [2, 5])
    @thp_mode('madvise')
    def test_kinds(self, kinds):
        # The peak of each kind alone is what is live.
        peaks = [self.peak(f'KINDS[{kind}]()') for kind in range(kinds)]
        in_turns = self.peak(f'take_turns(KINDS[:{kinds}])')
        self.assertLess(in_turns, max(peaks) + HELD)

    @thp_mode('madvise')
    def test_memory_cgroup(self):
        # The system ends a process that has more.
        limit = self.peak('small()') + HELD
        script = START + 'take_turns(KINDS[:2])\n'
        with memory_cgroup(limit) as wrapper:
            result = subprocess.run(wrapper + child_command('thp', script),
                                    capture_output=True)
        self.assertEqual(result.returncode, 0, result.stderr)
