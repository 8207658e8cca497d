"""The pages that an arena really gets."""

import contextlib
import json
import subprocess
import sys
import textwrap
from test.support import import_helper, os_helper
from .support import (
    CHILD, ENV_VAR, FIRST_ARENAS, HUGE_PAGE, HugePagesTestCase, Snapshot,
    SWITCHES, child_args, child_command, each, each_switch, lock_settings,
    reserve_pages, snapshots, thp_mode)

setUpModule = lock_settings

# The arenas that a child fills after the first ones, and a pool that serves
# them.
ARENAS = 20
POOL = ARENAS + 10

SCRIPT = f'''
    objects = fill({ARENAS})
    report(first_objects())
    report(objects[::50])
    report(first_objects() + in_first_arenas[::50] + objects[::50])
'''

# What the first arenas and the others are on.
WITH_POOL = {'on': ('thp', 'hugetlb'), 'hugetlb': ('plain', 'hugetlb'),
             'thp': ('thp', 'thp'), 'off': ('plain', 'plain')}
WITHOUT_POOL = {'on': ('thp', 'thp'), 'hugetlb': ('plain', 'plain'),
                'thp': ('thp', 'thp'), 'off': ('plain', 'plain')}


class TierTests(HugePagesTestCase):

    def check_tiers(self, pool, expected, **kwargs):
        """Check the tier of every object: of those in the first arenas, where
        the objects of Python's start are, and of the others."""
        for switch, (first_tier, tier) in expected.items():
            with self.subTest(switch=switch):
                first, rest, both = self.run_child(switch, SCRIPT, pool=pool,
                                                   **kwargs)
                self.assertEqual(first.tiers, {first_tier})
                self.assertEqual(rest.tiers, {tier})
                if first_tier != tier:
                    self.assertEqual(both.arenas_on(first_tier), FIRST_ARENAS)
                if tier == 'hugetlb':
                    self.assertGreaterEqual(rest.hugetlb_pages, ARENAS)
                else:
                    self.assertEqual(rest.hugetlb_pages, 0)
                    self.assertEqual(rest.sizes['hugetlb'], 0)

    @thp_mode('madvise')
    def test_pool(self):
        self.check_tiers(POOL, WITH_POOL)

    @thp_mode('madvise')
    def test_no_pool(self):
        self.check_tiers(0, WITHOUT_POOL)

    @each('pool, tier', [(POOL, 'hugetlb'), (0, 'thp')])
    def test_first_arenas(self, pool, tier):
        # As long as no other is needed, they are plain memory, and no other
        # tier was asked.
        script = f'''
            report(first_objects())
            while True:
                stats = sys._pymalloc_hugepages()
                if stats['hugetlb']['ever'] + stats['thp']['ever'] > 0:
                    break
                in_first_arenas.append(bytes(400))
                before = stats
            print(json.dumps(before), file=sys.stderr)
            report(first_objects() + in_first_arenas)
        '''
        before = None

        def run():
            nonlocal before
            out, err = self.run_python(*child_args('on', script), err='.*')
            before = json.loads(err)
            return snapshots(out)

        small, larger = self.run_with_pool(pool, run)
        self.assertEqual(small.tiers, {'plain'})
        self.assertEqual(small.hugetlb_pages, 0)
        self.assertEqual(small.sizes['thp'], 0)
        # Nobody was asked before the last object was made.
        self.assertEqual(before['hugetlb']['refused'], {})
        self.assertGreaterEqual(before['plain']['now'], FIRST_ARENAS)
        # Then one was mapped and the first ones were advised.
        on_thp = FIRST_ARENAS + (tier == 'thp')
        self.assertEqual(larger.tiers, {'thp', tier})
        self.assertEqual(larger.arenas_on('thp'), on_thp)
        self.assertEqual(larger.stats['thp']['now'], on_thp)
        self.assertEqual(larger.stats['hugetlb']['now'], tier == 'hugetlb')

    @each_switch
    def test_small_programs(self, switch):
        # Most programs need no more, and take nothing of the pool.
        path = self.enterContext(os_helper.temp_dir()) + '/stats'
        args = '-X', f'pymalloc_hugepages={switch}', '-c', 'pass'
        self.run_with_pool(POOL, self.run_python, *args,
                           **{f'{ENV_VAR}_STATS': path})
        with open(path) as file:
            stats = json.loads(file.readlines()[-1])
        for tier in 'hugetlb', 'thp':
            self.assertEqual(stats[tier]['ever'], 0, tier)
            self.assertEqual(stats[tier]['refused'], {}, tier)
        self.assertEqual(stats['plain']['ever'], stats['plain']['peak'])
        self.assertLessEqual(stats['plain']['peak'], FIRST_ARENAS)

    @each('switch, rest', [('on', 'thp'), ('hugetlb', 'plain')])
    @thp_mode('madvise')
    def test_pool_too_small(self, switch, rest):
        _, snapshot, _ = self.run_child(switch, SCRIPT, pool=4)
        self.assertEqual(snapshot.tiers, {'hugetlb', rest})
        self.assertEqual(snapshot.hugetlb_pages, 4)

    def test_pool_is_asked_again(self):
        # An empty pool is no reason to give the pool up for good.
        script = f'''
            before = fill({ARENAS})
            report(before[::50])
            sys.stdin.readline()
            after = fill({ARENAS})
            report(after[::50])
        '''

        def run():
            with contextlib.closing(reserve_pages(POOL)):
                child = self.enterContext(subprocess.Popen(
                    child_command('hugetlb', script), text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE))
                before = Snapshot(child.stdout.readline())
                # Reserved, hence not missing.
                before.available += POOL
            out, _ = child.communicate('go\n')
            self.assertEqual(child.returncode, 0)
            return [before, *snapshots(out)]

        before, after = self.run_with_pool(POOL, run)
        self.assertEqual(before.tiers, {'plain'})
        self.assertGreaterEqual(after.hugetlb_pages, ARENAS - 1)
        self.assertIn('hugetlb', after.tiers)

    def check_thp_pages(self, switch, expected, *, pool=0, **kwargs):
        with self.subTest(switch=switch):
            _, snapshot, _ = self.run_child(switch, SCRIPT, pool=pool,
                                            **kwargs)
            if expected:
                # The kernel may be short of memory for a few.
                self.assertGreaterEqual(snapshot.thp_pages, ARENAS * 3 // 4)
            else:
                self.assertEqual(snapshot.thp_pages, 0)

    @thp_mode('madvise')
    def test_thp_madvise(self):
        self.check_thp_pages('on', True)
        self.check_thp_pages('thp', True)
        self.check_thp_pages('thp', True, pool=POOL)
        self.check_thp_pages('hugetlb', False)
        self.check_thp_pages('off', False)

    @thp_mode('always')
    def test_thp_always(self):
        self.check_tiers(0, WITHOUT_POOL)
        self.check_thp_pages('on', True)
        self.check_thp_pages('thp', True)

    @thp_mode('never')
    def test_thp_never(self):
        for switch in SWITCHES:
            self.check_thp_pages(switch, False)
        self.check_tiers(POOL, WITH_POOL)

    @each('mode', ['madvise', 'always'])
    def test_thp_disabled_for_process(self, mode):
        # prctl(PR_SET_THP_DISABLE) in a process that then becomes the child.
        import_helper.import_module('ctypes')
        disable_thp = textwrap.dedent('''
            import ctypes, os, sys
            PR_SET_THP_DISABLE = 41
            prctl = ctypes.CDLL(None, use_errno=True).prctl
            prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
            if prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) != 0:
                sys.exit(os.strerror(ctypes.get_errno()))
            os.execv(sys.argv[1], sys.argv[1:])
        ''')
        wrapper = [sys.executable, '-I', '-c', disable_thp]
        plain, pool = ('plain', 'plain'), ('plain', 'hugetlb')
        with thp_mode(mode):
            for switch in SWITCHES:
                self.check_thp_pages(switch, False, wrapper=wrapper)
            self.check_tiers(0, dict.fromkeys(SWITCHES, plain),
                             wrapper=wrapper)
            self.check_tiers(POOL, {'on': pool, 'hugetlb': pool,
                                    'thp': plain, 'off': plain},
                             wrapper=wrapper)

    @each('switch, pool', [('thp', 0), ('hugetlb', POOL)])
    def test_alignment(self, switch, pool):
        _, snapshot, _ = self.run_child(switch, SCRIPT, pool=pool)
        self.assertEqual(snapshot.tiers, {switch})
        for region in snapshot.arenas:
            for address in region.start, region.end:
                self.assertEqual(address % HUGE_PAGE, 0, hex(address))

    @each('switch, tier', [('', 'hugetlb'), ('on', 'hugetlb'),
                           ('hugetlb', 'hugetlb'), ('thp', 'thp'),
                           ('off', 'plain')])
    @thp_mode('madvise')
    def test_environment(self, switch, tier):
        # The environment variable reaches the arenas as the option does.
        def run():
            return snapshots(self.run_python(
                '-c', CHILD + textwrap.dedent(SCRIPT),
                **{ENV_VAR: switch})[0])

        _, snapshot, _ = self.run_with_pool(POOL, run)
        self.assertEqual(snapshot.tiers, {tier})
