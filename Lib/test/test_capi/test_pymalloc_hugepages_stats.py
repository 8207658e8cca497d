"""Tests for --with-pymalloc-hugepages: what it tells about itself.

Each figure is compared with what the kernel tells in /proc/self/smaps.
"""

import collections
import json
import os
import re
import subprocess
import sys
import textwrap
import unittest
from test import support
from test.support import import_helper, os_helper
from test.support.script_helper import assert_python_ok
from test.test_capi import hugepages_support
from test.test_capi.hugepages_support import (
    ENV_VAR, FIRST_ARENAS, HUGE_PAGE, HUGEPAGES_BUILD, KEEP_MOST, SWITCHES,
    HugePagesTestCase, child_args, hugetlb_cgroup, requires_hugepages_build,
    requires_linux)


setUpModule = hugepages_support.lock_settings

# What arenas sit on, and all that is counted.
TIERS = ('hugetlb', 'thp', 'plain')
KINDS = (*TIERS, 'retained')
FILE_VAR = f'{ENV_VAR}_STATS'


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

    def test_takes_no_memory(self):
        if not HUGEPAGES_BUILD:
            self.skipTest('needs a build --with-pymalloc-hugepages')

        def arenas():
            stats = sys._pymalloc_hugepages()
            return sum(stats[kind]['now'] for kind in TIERS)

        before = arenas()
        for _ in range(20_000):
            sys._pymalloc_hugepages()
        # Other threads of the tests may need one.
        self.assertLess(arenas(), before + 2)


class StatsTestCase(HugePagesTestCase):

    # Those that a child fills after the first ones.
    ARENAS = 20

    def check_figures(self, stats):
        for kind in KINDS:
            self.assertGreaterEqual(stats[kind]['peak'], stats[kind]['now'])
            self.assertGreaterEqual(stats[kind]['ever'], stats[kind]['peak'])

    @staticmethod
    def promoted(stats):
        """How many of the first arenas were advised: they were plain memory
        before.  It is true as long as none was freed."""
        return stats['plain']['ever'] - stats['plain']['now']

    def check_smaps(self, snapshot):
        """The kernel must say the same."""
        sizes = collections.Counter()
        for region in snapshot.regions:
            sizes[region.tier] += region.end - region.start
        stats = snapshot.stats
        self.check_figures(stats)
        self.assertEqual(stats['hugetlb']['now'] * HUGE_PAGE,
                         sizes['hugetlb'])
        self.assertEqual(stats['thp']['now'] * HUGE_PAGE,
                         sizes['thp'] + sizes['unadvised'])
        self.assertLessEqual(stats['plain']['now'] * HUGE_PAGE,
                             sizes['plain'])
        self.assertLessEqual(stats['retained']['now'], KEEP_MOST)


@support.requires_subprocess()
@requires_hugepages_build
@requires_linux
class FiguresTests(StatsTestCase):

    SCRIPT = f'''
        objects = fill({StatsTestCase.ARENAS})
        report(objects[::50])
    '''

    def test_tiers(self):
        for pool, switch, tier in ((40, 'on', 'hugetlb'), (0, 'on', 'thp'),
                                   (40, 'hugetlb', 'hugetlb'),
                                   (0, 'hugetlb', 'plain'),
                                   (40, 'thp', 'thp'), (40, 'off', 'plain')):
            with self.subTest(pool=pool, switch=switch):
                [snapshot] = self.run_with_pool(
                    pool, self.run_child, switch, self.SCRIPT)
                self.check_smaps(snapshot)
                stats = snapshot.stats
                self.assertEqual(stats['switch'], switch)
                self.assertGreaterEqual(stats[tier]['now'], self.ARENAS)
                self.assertEqual(self.promoted(stats), FIRST_ARENAS
                                 if switch in ('on', 'thp') else 0)
                if tier != 'thp':
                    self.assertEqual(stats['thp']['now'],
                                     self.promoted(stats))
                    self.assertEqual(stats['thp']['ever'],
                                     self.promoted(stats))
                if tier != 'plain':
                    self.assertLessEqual(stats['plain']['now'], FIRST_ARENAS)
                if tier != 'hugetlb':
                    self.assertEqual(stats['hugetlb']['ever'], 0)

    def test_pool_too_small(self):
        [snapshot] = self.run_with_pool(4, self.run_child, 'on', self.SCRIPT)
        self.check_smaps(snapshot)
        stats = snapshot.stats
        self.assertEqual(stats['hugetlb']['now'], 4)
        self.assertGreaterEqual(stats['thp']['now'], self.ARENAS - 4)
        # Each arena has asked the pool first, but for those that were advised
        # later.
        self.assertGreaterEqual(self.promoted(stats), FIRST_ARENAS)
        self.assertEqual(
            stats['hugetlb']['refused'],
            {'ENOMEM': stats['thp']['ever'] - self.promoted(stats)})
        self.assertIsNone(stats['hugetlb']['unusable'])
        self.assertEqual(stats['thp']['refused'], {})

    def test_cgroup_limit(self):
        with hugetlb_cgroup(4 * HUGE_PAGE) as procs:
            join = ['/bin/sh', '-c', f'echo $$ > {procs} && exec "$0" "$@"']
            [snapshot] = self.run_with_pool(
                40, self.run_child, 'on', self.SCRIPT,
                __run_using_command=join, __isolated=True)
        self.check_smaps(snapshot)
        stats = snapshot.stats
        self.assertEqual(stats['hugetlb']['now'], 4)
        self.assertEqual(
            stats['hugetlb']['refused'],
            {'EFAULT': stats['thp']['ever'] - self.promoted(stats)})

    def test_come_and_go(self):
        script = f'''
            fill(0)
            for i in range(2):
                objects = fill({self.ARENAS})
                report()
                del objects
                report()
        '''
        for pool, tier in (100, 'hugetlb'), (0, 'thp'):
            with self.subTest(tier=tier):
                snapshots = self.run_with_pool(
                    pool, self.run_child, 'on', script)
                for snapshot in snapshots:
                    self.check_smaps(snapshot)
                full, empty, full_again, _ = (
                    snapshot.stats[tier] for snapshot in snapshots)
                self.assertGreaterEqual(full['now'], self.ARENAS)
                self.assertLess(empty['now'], self.ARENAS)
                self.assertEqual(empty['peak'], full['peak'])
                self.assertEqual(empty['ever'], full['ever'])
                self.assertGreater(full_again['ever'], full['ever'])
                self.assertLess(full_again['peak'], 2 * self.ARENAS)

    def test_interpreters(self):
        # The figures are those of the process, whatever the interpreter.
        import_helper.import_module('_interpreters')
        script = f'''
            import _interpreters
            fill(0)
            report()
            interp = _interpreters.create()
            error = _interpreters.exec(interp, """if 1:
                objects = [bytes(400) for _ in range({self.ARENAS} * 128 * 36)]
            """)
            assert error is None, error
            report()
            _interpreters.destroy(interp)
            report()
        '''
        before, during, after = self.run_with_pool(
            60, self.run_child, 'on', script)
        for snapshot in before, during, after:
            self.check_smaps(snapshot)
        self.assertGreaterEqual(
            during.stats['hugetlb']['now'],
            before.stats['hugetlb']['now'] + self.ARENAS)
        self.assertLess(after.stats['hugetlb']['now'], self.ARENAS)

    @support.requires_fork()
    def test_fork(self):
        # A child goes on from its parent's figures.  What was on the pool has
        # become THP, in both or by copies in the child.
        script = f'''
            import threading, time, warnings
            warnings.simplefilter('ignore', DeprecationWarning)
            if THREADED:
                threading.Thread(target=time.sleep, args=(1000,),
                                 daemon=True).start()
            objects = fill({self.ARENAS})
            report()
            pid = os.fork()
            if pid == 0:
                report(other_pids=[os.getppid()])
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            report()
        '''
        for pool in 100, 4, 0:
            for threaded in False, True:
                with self.subTest(pool=pool, threaded=threaded):
                    snapshots = self.run_with_pool(
                        pool, self.run_child, 'on',
                        script.replace('THREADED', str(threaded)))
                    before, child, parent = (snapshot.stats
                                             for snapshot in snapshots)
                    if not threaded:
                        # The stack of a thread is no arena, but looks as one.
                        for snapshot in snapshots:
                            self.check_smaps(snapshot)
                    moved = before['hugetlb']['now']
                    self.assertEqual(child['hugetlb']['now'], 0)
                    self.assertGreaterEqual(child['thp']['now'],
                                            before['thp']['now'] + moved)
                    if threaded:
                        self.assertEqual(parent['hugetlb']['now'], moved)
                    else:
                        self.assertEqual(parent['thp'], child['thp'])
                        self.assertEqual(parent['hugetlb'], child['hugetlb'])

    def test_unusable(self):
        for switch, hugetlb, thp in (('on', False, False),
                                     ('thp', True, False),
                                     ('hugetlb', False, True),
                                     ('off', True, True)):
            with self.subTest(switch=switch):
                [snapshot] = self.run_child(switch, 'report()')
                for tier, left_out in ('hugetlb', hugetlb), ('thp', thp):
                    reason = snapshot.stats[tier]['unusable']
                    if left_out:
                        self.assertIn('switch', reason)
                    else:
                        self.assertIsNone(reason)


@support.requires_subprocess()
@requires_hugepages_build
class TextTests(StatsTestCase):
    """sys._debugmallocstats() and PYTHONMALLOCSTATS."""

    TABLE = re.compile(r'^# arenas of the process +now +peak +ever\n'
                       r'hugetlb +(\d+) +(\d+) +(\d+)\n'
                       r'THP-advised +(\d+) +(\d+) +(\d+)\n'
                       r'plain +(\d+) +(\d+) +(\d+)\n'
                       r'retained of these +(\d+) +(\d+) +(\d+)\n'
                       r'pymalloc_hugepages=(\w+)\n', re.MULTILINE)

    def test_debugmallocstats(self):
        script = f'''
            objects = fill({self.ARENAS})
            print(json.dumps(sys._pymalloc_hugepages()))
            sys._debugmallocstats()
        '''
        for switch in SWITCHES:
            with self.subTest(switch=switch):
                result = assert_python_ok(*child_args(switch, script),
                                          PYTHONMALLOC='pymalloc')
                stats = json.loads(result.out)
                text = result.err.decode()
                match = self.TABLE.search(text)
                self.assertIsNotNone(match, text)
                *figures, value = match.groups()
                self.assertEqual(value, switch)
                expected = [stats[kind][key] for kind in KINDS
                            for key in ('now', 'peak', 'ever')]
                self.assertEqual(list(map(int, figures)), expected)
                self.assertLess(text.index('# arenas allocated current'),
                                match.start())
                for tier, name in (('hugetlb', 'hugetlb'), ('thp', 'THP'),
                                   ('plain', 'plain')):
                    refused = re.findall(
                        rf'^{name} refused with (.+): (\d+)$', text,
                        re.MULTILINE)
                    self.assertEqual({error: int(count)
                                      for error, count in refused},
                                     stats[tier]['refused'])
                    self.assertEqual(
                        re.findall(rf'^{name} not used: (.+)$', text,
                                   re.MULTILINE),
                        [stats[tier]['unusable']]
                        if stats[tier]['unusable'] else [])
                arenas = int(re.search(r'^(\d+) arenas \* ', text,
                                       re.MULTILINE)[1])
                kept = stats['retained']['now']
                self.assertEqual(sum(stats[tier]['now'] for tier in TIERS),
                                 arenas + kept)

    def test_at_exit(self):
        result = assert_python_ok('-c', 'pass', PYTHONMALLOCSTATS='1',
                                  PYTHONMALLOC='pymalloc')
        self.assertRegex(result.err.decode(), self.TABLE)


@support.requires_subprocess()
@requires_hugepages_build
class FileTests(StatsTestCase):
    """PYTHON_PYMALLOC_HUGEPAGES_STATS."""

    def setUp(self):
        super().setUp()
        self.path = self.enterContext(os_helper.temp_dir()) + '/stats'

    def run_python(self, *args, **env_vars):
        return subprocess.run([sys.executable, *args], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env={**os.environ, FILE_VAR: self.path,
                                   **env_vars})

    def lines(self):
        if not os.path.exists(self.path):
            return []
        with open(self.path) as file:
            return [json.loads(line) for line in file]

    def test_line(self):
        script = textwrap.dedent(f'''
            objects = fill({self.ARENAS})
            print(os.getpid())
        ''')
        result = self.run_python(*child_args('on', script))
        self.assertEqual((result.returncode, result.stderr), (0, ''))
        [line] = self.lines()
        self.assertEqual(line.pop('pid'), int(result.stdout))
        self.check_figures(line)
        self.assertGreaterEqual(sum(line[tier]['peak'] for tier in TIERS),
                                self.ARENAS)
        expected = sys._pymalloc_hugepages()
        self.assertEqual(list(line), list(expected))
        for kind in KINDS:
            self.assertEqual(list(line[kind]), list(expected[kind]))

    def test_processes(self):
        script = textwrap.dedent('''
            import subprocess, sys
            for _ in range(3):
                subprocess.run([sys.executable, '-c', 'pass'], check=True)
            sys.exit(7)
        ''')
        result = self.run_python('-c', script)
        self.assertEqual((result.returncode, result.stderr), (7, ''))
        self.assertEqual(len({line['pid'] for line in self.lines()}), 4)

    def test_at_the_same_time(self):
        # Each line stays whole.
        processes = [
            subprocess.Popen([sys.executable, '-S', '-c', 'pass'],
                             env={**os.environ, FILE_VAR: self.path})
            for _ in range(20)]
        for process in processes:
            self.assertEqual(process.wait(), 0)
        self.assertEqual({line['pid'] for line in self.lines()},
                         {process.pid for process in processes})

    def test_not_written(self):
        for args in (['-E', '-c', 'pass'], ['-I', '-c', 'pass'],
                     ['-c', 'import os; os._exit(0)']):
            with self.subTest(args=args):
                result = self.run_python(*args)
                self.assertEqual((result.returncode, result.stderr), (0, ''))
                self.assertEqual(self.lines(), [])
        result = self.run_python('-c', 'pass', **{FILE_VAR: ''})
        self.assertEqual((result.returncode, result.stderr), (0, ''))

    def test_cannot_be_written(self):
        path = f'{self.path}/no/such/directory'
        result = self.run_python('-c', 'pass', **{FILE_VAR: path})
        self.assertEqual(result.returncode, 0)
        self.assertRegex(result.stderr,
                         rf'\A{FILE_VAR}: cannot write {path}: .+\n\Z')

    @unittest.skipUnless(os.path.exists('/dev/full'), 'needs /dev/full')
    def test_device_full(self):
        result = self.run_python('-c', 'pass', **{FILE_VAR: '/dev/full'})
        self.assertEqual(result.returncode, 0)
        self.assertRegex(result.stderr, r'cannot write /dev/full: .+\n\Z')


if __name__ == '__main__':
    unittest.main()
