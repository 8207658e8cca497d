"""What the interpreter tells about its arenas.

Each figure is compared with what the kernel tells in /proc/self/smaps.
"""

import json
import os
import re
import subprocess
import sys
import unittest
from test.support import os_helper
from .support import (
    ENV_VAR, FIRST_ARENAS, HUGE_PAGE, HUGEPAGES_BUILD, KEEP_MOST, SWITCHES,
    ChildTestCase, HugePagesTestCase, child_args, each, each_switch,
    hugetlb_cgroup, lock_settings, require_interpreters,
    requires_hugepages_build)

setUpModule = lock_settings

# What arenas sit on, and all that is counted.
TIERS = ('hugetlb', 'thp', 'plain')
KINDS = (*TIERS, 'retained')
FILE_VAR = f'{ENV_VAR}_STATS'

# Those that a child fills after the first ones.
ARENAS = 20


class FunctionTests(unittest.TestCase):
    """sys._pymalloc_hugepages() in every build."""

    def test_items(self):
        stats = sys._pymalloc_hugepages()
        if not HUGEPAGES_BUILD:
            self.assertEqual(stats, {'option': False})
            return
        self.assertEqual(list(stats),
                         ['option', 'switch', 'arena_size', *KINDS])
        self.assertIs(stats['option'], True)
        self.assertIn(stats['switch'], SWITCHES)
        self.assertEqual(stats['arena_size'], HUGE_PAGE)
        for kind in KINDS:
            figures = stats[kind]
            self.assertEqual(
                list(figures), ['now', 'peak', 'ever', 'refused', 'unusable'])
            self.assertGreaterEqual(figures['now'], 0)
            self.assertGreaterEqual(figures['peak'], figures['now'])
            self.assertGreaterEqual(figures['ever'], figures['peak'])
            self.assertIsInstance(figures['refused'], dict)
        for kind in 'plain', 'retained':
            self.assertIsNone(stats[kind]['unusable'])

    def test_arguments(self):
        self.assertRaises(TypeError, sys._pymalloc_hugepages, None)
        self.assertRaises(TypeError, sys._pymalloc_hugepages, a=None)

    def test_results_are_apart(self):
        first, second = (sys._pymalloc_hugepages() for _ in range(2))
        first.clear()
        self.assertIn('option', second)

    @requires_hugepages_build
    def test_takes_no_memory(self):
        def arenas():
            stats = sys._pymalloc_hugepages()
            return sum(stats[kind]['now'] for kind in TIERS)

        before = arenas()
        for _ in range(20_000):
            sys._pymalloc_hugepages()
        # Other threads of the tests may need one.
        self.assertLess(arenas(), before + 2)


class StatsTestCase(ChildTestCase):

    def check_figures(self, stats):
        for kind in KINDS:
            self.assertGreaterEqual(stats[kind]['peak'], stats[kind]['now'])
            self.assertGreaterEqual(stats[kind]['ever'], stats[kind]['peak'])


class FiguresTests(HugePagesTestCase, StatsTestCase):

    SCRIPT = f'''
        objects = fill({ARENAS})
        report(objects[::50])
    '''

    @staticmethod
    def promoted(stats):
        """How many of the first arenas were advised: they were plain memory
        before.  It is true as long as none was freed."""
        return stats['plain']['ever'] - stats['plain']['now']

    def check_smaps(self, snapshot):
        """The kernel must say the same."""
        stats, sizes = snapshot.stats, snapshot.sizes
        self.check_figures(stats)
        self.assertEqual(stats['hugetlb']['now'] * HUGE_PAGE, sizes['hugetlb'])
        self.assertEqual(stats['thp']['now'] * HUGE_PAGE,
                         sizes['thp'] + sizes['unadvised'])
        self.assertLessEqual(stats['plain']['now'] * HUGE_PAGE,
                             sizes['plain'])
        self.assertLessEqual(stats['retained']['now'], KEEP_MOST)

    @each('pool, switch, tier', [
        (40, 'on', 'hugetlb'), (0, 'on', 'thp'), (40, 'hugetlb', 'hugetlb'),
        (0, 'hugetlb', 'plain'), (40, 'thp', 'thp'), (40, 'off', 'plain')])
    def test_tiers(self, pool, switch, tier):
        [snapshot] = self.run_child(switch, self.SCRIPT, pool=pool)
        self.check_smaps(snapshot)
        stats = snapshot.stats
        promoted = self.promoted(stats)
        self.assertEqual(stats['switch'], switch)
        self.assertGreaterEqual(stats[tier]['now'], ARENAS)
        self.assertEqual(promoted,
                         FIRST_ARENAS if switch in ('on', 'thp') else 0)
        if tier != 'thp':
            self.assertEqual(stats['thp']['now'], promoted)
            self.assertEqual(stats['thp']['ever'], promoted)
        if tier != 'plain':
            self.assertLessEqual(stats['plain']['now'], FIRST_ARENAS)
        if tier != 'hugetlb':
            self.assertEqual(stats['hugetlb']['ever'], 0)

    def test_pool_too_small(self):
        [snapshot] = self.run_child('on', self.SCRIPT, pool=4)
        self.check_smaps(snapshot)
        stats = snapshot.stats
        self.assertEqual(stats['hugetlb']['now'], 4)
        self.assertGreaterEqual(stats['thp']['now'], ARENAS - 4)
        # Each arena has asked the pool first, but for those that were advised
        # later.
        self.assertGreaterEqual(self.promoted(stats), FIRST_ARENAS)
        self.assertEqual(
            stats['hugetlb']['refused'],
            {'ENOMEM': stats['thp']['ever'] - self.promoted(stats)})
        self.assertIsNone(stats['hugetlb']['unusable'])
        self.assertEqual(stats['thp']['refused'], {})

    def test_cgroup_limit(self):
        with hugetlb_cgroup(4 * HUGE_PAGE) as wrapper:
            [snapshot] = self.run_child('on', self.SCRIPT, pool=40,
                                        wrapper=wrapper)
        self.check_smaps(snapshot)
        stats = snapshot.stats
        self.assertEqual(stats['hugetlb']['now'], 4)
        self.assertEqual(
            stats['hugetlb']['refused'],
            {'EFAULT': stats['thp']['ever'] - self.promoted(stats)})

    @each('pool, tier', [(100, 'hugetlb'), (0, 'thp')])
    def test_come_and_go(self, pool, tier):
        snapshots = self.run_child('on', f'''
            fill(0)
            for i in range(2):
                objects = fill({ARENAS})
                report()
                del objects
                report()
        ''', pool=pool)
        for snapshot in snapshots:
            self.check_smaps(snapshot)
        full, empty, full_again, _ = (
            snapshot.stats[tier] for snapshot in snapshots)
        self.assertGreaterEqual(full['now'], ARENAS)
        self.assertLess(empty['now'], ARENAS)
        self.assertEqual(empty['peak'], full['peak'])
        self.assertEqual(empty['ever'], full['ever'])
        self.assertGreater(full_again['ever'], full['ever'])
        self.assertLess(full_again['peak'], 2 * ARENAS)

    def test_interpreters(self):
        # The figures are those of the process, whatever the interpreter.
        require_interpreters()
        snapshots = self.run_child('on', f'''
            import _interpreters
            fill(0)
            report()
            interp = _interpreters.create()
            run_in(interp, 'objects = fill({ARENAS})')
            report()
            _interpreters.destroy(interp)
            report()
        ''', pool=60)
        for snapshot in snapshots:
            self.check_smaps(snapshot)
        before, during, after = (snapshot.stats['hugetlb']['now']
                                 for snapshot in snapshots)
        self.assertGreaterEqual(during, before + ARENAS)
        self.assertLess(after, ARENAS)

    @each('pool', [100, 4, 0])
    @each('threaded', ['', 'be_threaded()'])
    def test_fork(self, pool, threaded):
        # A child goes on from its parent's figures.  What was on the pool has
        # become THP, in both or by copies in the child.
        snapshots = self.run_child('on', f'''
            {threaded}
            objects = fill({ARENAS})
            report()
            pid = os.fork()
            if pid == 0:
                report(other_pids=[os.getppid()])
                os._exit(0)
            assert wait(pid) == 0
            report()
        ''', pool=pool)
        before, child, parent = (snapshot.stats for snapshot in snapshots)
        moved = before['hugetlb']['now']
        self.assertEqual(child['hugetlb']['now'], 0)
        self.assertGreaterEqual(child['thp']['now'],
                                before['thp']['now'] + moved)
        if threaded:
            self.assertEqual(parent['hugetlb']['now'], moved)
        else:
            # The stack of a thread is no arena, but looks as one.
            for snapshot in snapshots:
                self.check_smaps(snapshot)
            self.assertEqual(parent['thp'], child['thp'])
            self.assertEqual(parent['hugetlb'], child['hugetlb'])

    @each('switch, left_out', [
        ('on', []), ('thp', ['hugetlb']), ('hugetlb', ['thp']),
        ('off', ['hugetlb', 'thp'])])
    def test_unusable(self, switch, left_out):
        [snapshot] = self.run_child(switch, 'report()')
        for tier in 'hugetlb', 'thp':
            reason = snapshot.stats[tier]['unusable']
            if tier in left_out:
                self.assertIn('switch', reason)
            else:
                self.assertIsNone(reason)


@requires_hugepages_build
class TextTests(StatsTestCase):
    """sys._debugmallocstats() and PYTHONMALLOCSTATS."""

    TABLE = re.compile(r'^# arenas of the process +now +peak +ever\n'
                       r'hugetlb +(\d+) +(\d+) +(\d+)\n'
                       r'THP-advised +(\d+) +(\d+) +(\d+)\n'
                       r'plain +(\d+) +(\d+) +(\d+)\n'
                       r'retained of these +(\d+) +(\d+) +(\d+)\n'
                       r'pymalloc_hugepages=(\w+)\n', re.MULTILINE)

    @each_switch
    def test_debugmallocstats(self, switch):
        script = f'''
            objects = fill({ARENAS})
            print(json.dumps(sys._pymalloc_hugepages()))
            sys._debugmallocstats()
        '''
        out, text = self.run_python(*child_args(switch, script), err='.*',
                                    PYTHONMALLOC='pymalloc')
        stats = json.loads(out)
        match = self.TABLE.search(text)
        self.assertIsNotNone(match, text)
        *figures, value = match.groups()
        self.assertEqual(value, switch)
        self.assertEqual(list(map(int, figures)),
                         [stats[kind][key] for kind in KINDS
                          for key in ('now', 'peak', 'ever')])
        self.assertLess(text.index('# arenas allocated current'),
                        match.start())
        for tier in TIERS:
            refused = re.findall(rf'^{tier} refused with (.+): (\d+)$', text,
                                 re.MULTILINE)
            self.assertEqual({error: int(count) for error, count in refused},
                             stats[tier]['refused'])
            reasons = re.findall(rf'^{tier} not used: (.+)$', text,
                                 re.MULTILINE)
            self.assertEqual(reasons or [None], [stats[tier]['unusable']])
        arenas = int(re.search(r'^(\d+) arenas \* ', text, re.MULTILINE)[1])
        self.assertEqual(sum(stats[tier]['now'] for tier in TIERS),
                         arenas + stats['retained']['now'])

    def test_at_exit(self):
        _, err = self.run_python('-c', 'pass', err='.*', PYTHONMALLOCSTATS='1',
                                 PYTHONMALLOC='pymalloc')
        self.assertRegex(err, self.TABLE)


@requires_hugepages_build
class FileTests(StatsTestCase):
    """PYTHON_PYMALLOC_HUGEPAGES_STATS."""

    def setUp(self):
        super().setUp()
        self.path = self.enterContext(os_helper.temp_dir()) + '/stats'
        self.variables = {FILE_VAR: self.path}

    def lines(self):
        if not os.path.exists(self.path):
            return []
        with open(self.path) as file:
            return [json.loads(line) for line in file]

    def test_line(self):
        out, _ = self.run_python(*child_args('on', f'''
            objects = fill({ARENAS})
            print(os.getpid())
        '''), **self.variables)
        [line] = self.lines()
        self.assertEqual(line.pop('pid'), int(out))
        self.check_figures(line)
        self.assertGreaterEqual(sum(line[tier]['peak'] for tier in TIERS),
                                ARENAS)
        expected = sys._pymalloc_hugepages()
        self.assertEqual(list(line), list(expected))
        for kind in KINDS:
            self.assertEqual(list(line[kind]), list(expected[kind]))

    def test_processes(self):
        self.run_python(*child_args('on', '''
            import subprocess
            for _ in range(3):
                subprocess.run([sys.executable, '-c', 'pass'], check=True)
            sys.exit(7)
        '''), status=7, **self.variables)
        self.assertEqual(len({line['pid'] for line in self.lines()}), 4)

    def test_at_the_same_time(self):
        # Each line stays whole.
        processes = [
            subprocess.Popen([sys.executable, '-S', '-c', 'pass'],
                             env=os.environ | self.variables)
            for _ in range(20)]
        for process in processes:
            self.assertEqual(process.wait(), 0)
        self.assertEqual({line['pid'] for line in self.lines()},
                         {process.pid for process in processes})

    @each('args', [['-E', '-c', 'pass'], ['-I', '-c', 'pass'],
                   ['-c', 'import os; os._exit(0)']])
    def test_not_written(self, args):
        self.run_python(*args, **self.variables)
        self.assertEqual(self.lines(), [])

    def test_no_name(self):
        self.run_python('-c', 'pass', **{FILE_VAR: ''})

    def test_cannot_be_written(self):
        path = f'{self.path}/no/such/directory'
        self.run_python('-c', 'pass', **{FILE_VAR: path},
                        err=f'{FILE_VAR}: cannot write {path}: [^\n]+\n')

    @unittest.skipUnless(os.path.exists('/dev/full'), 'needs /dev/full')
    def test_device_full(self):
        self.run_python('-c', 'pass', **{FILE_VAR: '/dev/full'},
                        err='.*cannot write /dev/full: [^\n]+\n')
