"""Tests for --with-pymalloc-hugepages: the pages that pymalloc's arenas get.

The tests of fork() and those of limits and failing system calls are in
test_pymalloc_hugepages_fork.py and test_pymalloc_hugepages_faults.py.
"""

import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import sysconfig
import textwrap
import unittest
from test import support
from test.support import import_helper, os_helper, threading_helper
from test.support.script_helper import assert_python_failure, assert_python_ok
from test.test_capi import hugepages_support
from test.test_capi.hugepages_support import (
    CHILD, ENV_VAR, FIRST_ARENAS, HUGEPAGES_BUILD, HUGETLB, HUGE_PAGE,
    KEEP_MOST, MIB, ON, SWITCH, SWITCHES, THP, HugePagesTestCase, Snapshot,
    child_args, hugetlb_cgroup, requires_hugepages_build, requires_linux,
    reserve_pages, snapshots, thp_mode)


setUpModule = hugepages_support.lock_settings


@support.requires_subprocess()
class OptionTests(HugePagesTestCase):
    """The option of configure."""

    @unittest.skipUnless(os.name == 'posix', 'needs a build by configure')
    def test_sysconfig(self):
        self.assertEqual(
            bool(sysconfig.get_config_var('PYMALLOC_USE_HUGEPAGES')),
            HUGEPAGES_BUILD)

    def debug_malloc_stats(self, *options):
        code = 'import sys; sys._debugmallocstats()'
        result = assert_python_ok(*options, '-c', code,
                                  PYTHONMALLOC='pymalloc')
        return result.err.decode()

    def test_arena_size(self):
        if not support.with_pymalloc():
            self.skipTest('needs pymalloc')
        if HUGEPAGES_BUILD:
            size = 2 * MIB
        elif sys.maxsize > 2**32:
            size = 1 * MIB
        else:
            size = 256 * 1024
        stats = self.debug_malloc_stats()
        match = re.search(r'(\d+) arenas \* (\d+) bytes/arena', stats)
        arenas, arena_size = map(int, match.groups())
        self.assertEqual(arena_size, size)

        # The pools of all arenas: in use, free, and lost to alignment.
        pool_size = int(re.search(r'unused pools \* (\d+) bytes', stats)[1])
        pools = sum(map(int, re.findall(r'^ +\d+ +\d+ +(\d+) +\d+ +\d+$',
                                        stats, re.MULTILINE)))
        pools += int(re.search(r'(\d+) unused pools', stats)[1])
        lost = re.search(r'lost to arena alignment += +([\d,]+)', stats)[1]
        pools += int(lost.replace(',', '')) // pool_size
        self.assertEqual(pools, arenas * (size // pool_size))

    @requires_hugepages_build
    def test_arena_size_does_not_depend_on_switch(self):
        for switch in SWITCHES:
            with self.subTest(switch=switch):
                stats = self.debug_malloc_stats(
                    '-X', f'pymalloc_hugepages={switch}')
                self.assertIn(f' arenas * {2 * MIB} bytes/arena', stats)

    def test_help(self):
        for option, text in (('--help-xoptions', b'-X pymalloc_hugepages'),
                             ('--help-env', ENV_VAR.encode())):
            with self.subTest(option=option):
                out = assert_python_ok(option).out
                self.assertEqual(text in out, HUGEPAGES_BUILD)


@support.requires_subprocess()
@requires_hugepages_build
class SwitchTests(HugePagesTestCase):
    """The runtime switch, up to the member of PyConfig."""

    def check(self, expected, *options, **env_vars):
        code = ('import _testinternalcapi; '
                'print(_testinternalcapi.get_config()["pymalloc_hugepages"])')
        with self.subTest(options=options, env=env_vars):
            # Without a variable assert_python_ok() adds -I, which is no loss.
            result = assert_python_ok(*options, '-c', code, **env_vars)
            self.assertEqual(int(result.out), expected)
            self.assertEqual(result.err, b'')

    def test_default(self):
        self.check(ON)
        self.check(ON, __isolated=False)

    def test_environment(self):
        self.check(ON, **{ENV_VAR: ''})
        for value, expected in SWITCH.items():
            self.check(expected, **{ENV_VAR: value})

    def test_xoption(self):
        self.check(ON, '-X', 'pymalloc_hugepages')
        self.check(ON, '-X', 'pymalloc_hugepages=')
        for value, expected in SWITCH.items():
            self.check(expected, '-X', f'pymalloc_hugepages={value}')

    def test_xoption_wins(self):
        for xoption, env in (('thp', 'off'), ('off', 'thp'), ('hugetlb', ''),
                             ('on', 'off'), ('off', 'no-such-value')):
            self.check(SWITCH[xoption], '-X', f'pymalloc_hugepages={xoption}',
                       **{ENV_VAR: env})
        self.check(ON, '-X', 'pymalloc_hugepages', **{ENV_VAR: 'off'})

    def test_environment_ignored(self):
        for option in ('-E', '-I'):
            for value in ('off', 'no-such-value'):
                self.check(ON, option, **{ENV_VAR: value})
            self.check(THP, option, '-X', 'pymalloc_hugepages=thp',
                       **{ENV_VAR: 'off'})

    def check_error(self, name, *options, **env_vars):
        with self.subTest(options=options, env=env_vars):
            with support.SuppressCrashReport():
                result = assert_python_failure(*options, '-c', 'pass',
                                               **env_vars)
                self.assertEqual(result.rc, 1)
                self.assertEqual(result.out, b'')
                errors = [line for line in result.err.decode().splitlines()
                          if 'rror' in line]
                self.assertEqual(len(errors), 1, result.err)
                self.assertIn(name, errors[0])
                for value in SWITCH:
                    self.assertRegex(errors[0], rf'\b{value}\b')

    def test_bad_value(self):
        for value in ('2', 'ON', 'true', 'huge', ' on', 'thp,hugetlb', '\xe9'):
            self.check_error(ENV_VAR, **{ENV_VAR: value})
            self.check_error('-X pymalloc_hugepages',
                             '-X', f'pymalloc_hugepages={value}')

    def test_bad_value_of_xoption_is_not_made_good_by_environment(self):
        self.check_error('-X pymalloc_hugepages',
                         '-X', 'pymalloc_hugepages=no', **{ENV_VAR: 'off'})

    def test_interpreter_flags(self):
        code = ('import subprocess; '
                'print(subprocess._args_from_interpreter_flags())')
        for xoption in ('pymalloc_hugepages', 'pymalloc_hugepages=thp'):
            with self.subTest(xoption=xoption):
                out = assert_python_ok('-X', xoption, '-c', code).out.decode()
                self.assertIn(f"'-X', '{xoption}'", out)

    def test_multiprocessing_spawn(self):
        support.skip_if_broken_multiprocessing_synchronize()
        code = textwrap.dedent('''
            import multiprocessing, _testinternalcapi
            with multiprocessing.get_context('spawn').Pool(1) as pool:
                config = pool.apply(_testinternalcapi.get_config)
            print(config['pymalloc_hugepages'])
        ''')
        for options, env_vars in ((['-X', 'pymalloc_hugepages=thp'], {}),
                                  ([], {ENV_VAR: 'thp'})):
            with self.subTest(options=options, env=env_vars):
                out = assert_python_ok(*options, '-c', code, **env_vars).out
                self.assertEqual(int(out), THP)


@support.requires_subprocess()
@requires_hugepages_build
@requires_linux
class TierTests(HugePagesTestCase):
    """The pages that an arena really gets."""

    # The arenas that a child fills after the first ones, and a pool that
    # serves them.
    ARENAS = 20
    POOL = ARENAS + 10

    SCRIPT = f'''
        objects = fill({ARENAS})
        report(first_objects())
        report(objects[::50])
        report(first_objects() + in_first_arenas[::50] + objects[::50])
    '''

    def check_tiers(self, pool, expected, **kwargs):
        """Check the tier of every object: of those in the first arenas, where
        the objects of Python's start are, and of the others."""
        for switch, (first_tier, tier) in expected.items():
            with self.subTest(switch=switch):
                first, rest, both = self.run_with_pool(
                    pool, self.run_child, switch, self.SCRIPT, **kwargs)
                self.assertEqual(first.tiers, {first_tier})
                self.assertEqual(rest.tiers, {tier})
                if first_tier != tier:
                    self.assertEqual(both.arenas_on(first_tier), FIRST_ARENAS)
                if tier == 'hugetlb':
                    self.assertGreaterEqual(rest.hugetlb_pages, self.ARENAS)
                else:
                    self.assertEqual(rest.hugetlb_pages, 0)
                    self.assertFalse(any(region.tier == 'hugetlb'
                                         for region in rest.regions))

    # What the first arenas and the others are on.
    WITH_POOL = {'on': ('thp', 'hugetlb'), 'hugetlb': ('plain', 'hugetlb'),
                 'thp': ('thp', 'thp'), 'off': ('plain', 'plain')}
    WITHOUT_POOL = {'on': ('thp', 'thp'), 'hugetlb': ('plain', 'plain'),
                    'thp': ('thp', 'thp'), 'off': ('plain', 'plain')}

    def test_pool(self):
        with thp_mode('madvise'):
            self.check_tiers(self.POOL, self.WITH_POOL)

    def test_no_pool(self):
        with thp_mode('madvise'):
            self.check_tiers(0, self.WITHOUT_POOL)

    def test_first_arenas(self):
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
        for pool, tier in (self.POOL, 'hugetlb'), (0, 'thp'):
            with self.subTest(pool=pool):
                before = None

                def run():
                    nonlocal before
                    result = assert_python_ok(*child_args('on', script))
                    before = json.loads(result.err)
                    return snapshots(result.out)

                small, larger = self.run_with_pool(pool, run)
                self.assertEqual(small.tiers, {'plain'})
                self.assertEqual(small.hugetlb_pages, 0)
                self.assertFalse(any(region.tier == 'thp'
                                     for region in small.regions))
                # Nobody was asked before the last object was made.
                self.assertEqual(before['hugetlb']['refused'], {})
                self.assertGreaterEqual(before['plain']['now'], FIRST_ARENAS)
                # Then one was mapped and the first ones were advised.
                self.assertEqual(larger.tiers, {'thp', tier})
                self.assertEqual(larger.arenas_on('thp'),
                                 FIRST_ARENAS + (tier == 'thp'))
                self.assertEqual(larger.stats['thp']['now'],
                                 FIRST_ARENAS + (tier == 'thp'))
                self.assertEqual(larger.stats['hugetlb']['now'],
                                 int(tier == 'hugetlb'))

    def test_small_programs(self):
        # Most programs need no more, and take nothing of the pool.
        for switch in SWITCHES:
            with self.subTest(switch=switch):
                stats = None

                def run():
                    nonlocal stats
                    with os_helper.temp_dir() as directory:
                        path = os.path.join(directory, 'stats')
                        assert_python_ok(
                            '-X', f'pymalloc_hugepages={switch}', '-c',
                            'pass', **{f'{ENV_VAR}_STATS': path})
                        with open(path) as file:
                            stats = json.load(file)

                self.run_leaving_pool(self.POOL, run)
                for tier in 'hugetlb', 'thp':
                    self.assertEqual(stats[tier]['ever'], 0, tier)
                    self.assertEqual(stats[tier]['refused'], {}, tier)
                self.assertEqual(stats['plain']['ever'],
                                 stats['plain']['peak'])
                self.assertLessEqual(stats['plain']['peak'], FIRST_ARENAS)

    def test_pool_too_small(self):
        pool = 4
        with thp_mode('madvise'):
            for switch, rest in (('on', 'thp'), ('hugetlb', 'plain')):
                with self.subTest(switch=switch):
                    _, snapshot, _ = self.run_with_pool(
                        pool, self.run_child, switch, self.SCRIPT)
                    self.assertEqual(snapshot.tiers, {'hugetlb', rest})
                    self.assertEqual(snapshot.hugetlb_pages, pool)

    def test_pool_is_asked_again(self):
        # An empty pool is no reason to give the pool up for good.
        script = f'''
            before = fill({self.ARENAS})
            report(before[::50])
            sys.stdin.readline()
            after = fill({self.ARENAS})
            report(after[::50])
        '''
        command = [sys.executable, *child_args('hugetlb', script)]

        def run():
            with contextlib.closing(reserve_pages(self.POOL)):
                child = self.enterContext(
                    subprocess.Popen(command, text=True,
                                     stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE))
                before = Snapshot(child.stdout.readline())
                # Reserved, hence not missing.
                before.available += self.POOL
            out, _ = child.communicate('go\n')
            self.assertEqual(child.returncode, 0)
            return before, *snapshots(out)

        before, after = self.run_with_pool(self.POOL, run)
        self.assertEqual(before.tiers, {'plain'})
        self.assertGreaterEqual(after.hugetlb_pages, self.ARENAS - 1)
        self.assertIn('hugetlb', after.tiers)

    def check_thp_pages(self, switch, expected, *, pool=0, **kwargs):
        with self.subTest(switch=switch):
            _, snapshot, _ = self.run_with_pool(
                pool, self.run_child, switch, self.SCRIPT, **kwargs)
            if expected:
                # The kernel may be short of memory for a few.
                self.assertGreaterEqual(snapshot.thp_pages,
                                        self.ARENAS * 3 // 4)
            else:
                self.assertEqual(snapshot.thp_pages, 0)

    def test_thp_madvise(self):
        with thp_mode('madvise'):
            self.check_thp_pages('on', True)
            self.check_thp_pages('thp', True)
            self.check_thp_pages('thp', True, pool=self.POOL)
            self.check_thp_pages('hugetlb', False)
            self.check_thp_pages('off', False)

    def test_thp_always(self):
        with thp_mode('always'):
            self.check_tiers(0, self.WITHOUT_POOL)
            self.check_thp_pages('on', True)
            self.check_thp_pages('thp', True)

    def test_thp_never(self):
        with thp_mode('never'):
            for switch in SWITCHES:
                self.check_thp_pages(switch, False)
            self.check_tiers(self.POOL, self.WITH_POOL)

    def test_thp_disabled_for_process(self):
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
        wrapper = {
            '__run_using_command': [sys.executable, '-I', '-c', disable_thp],
            '__isolated': True,
        }
        for mode in ('madvise', 'always'):
            with self.subTest(mode=mode), thp_mode(mode):
                for switch in SWITCHES:
                    self.check_thp_pages(switch, False, **wrapper)
                plain = 'plain', 'plain'
                pool = 'plain', 'hugetlb'
                self.check_tiers(0, dict.fromkeys(SWITCHES, plain), **wrapper)
                self.check_tiers(self.POOL,
                                 {'on': pool, 'hugetlb': pool,
                                  'thp': plain, 'off': plain}, **wrapper)

    def test_alignment(self):
        for switch, pool in (('thp', 0), ('hugetlb', self.POOL)):
            with self.subTest(switch=switch):
                _, snapshot, _ = self.run_with_pool(
                    pool, self.run_child, switch, self.SCRIPT)
                self.assertEqual(snapshot.tiers, {switch})
                for region in snapshot.arenas:
                    for address in region.start, region.end:
                        self.assertEqual(address % HUGE_PAGE, 0, hex(address))

    def test_environment(self):
        # The environment variable reaches the arenas as the option does.
        code = CHILD + textwrap.dedent(self.SCRIPT)

        def run(switch):
            result = assert_python_ok('-c', code, **{ENV_VAR: switch})
            self.assertEqual(result.err, b'')
            return snapshots(result.out)

        with thp_mode('madvise'):
            for switch, tier in (('', 'hugetlb'), ('on', 'hugetlb'),
                                 ('hugetlb', 'hugetlb'), ('thp', 'thp'),
                                 ('off', 'plain')):
                with self.subTest(switch=switch):
                    _, snapshot, _ = self.run_with_pool(self.POOL, run,
                                                        switch)
                    self.assertEqual(snapshot.tiers, {tier})


@support.requires_subprocess()
@requires_hugepages_build
@requires_linux
class BlocksTests(HugePagesTestCase):
    """Blocks of up to 1,024 bytes are in arenas, others the C library's."""

    def setUp(self):
        super().setUp()
        import_helper.import_module('ctypes')

    # The functions of the domains.
    DOMAINS = textwrap.dedent('''
        import ctypes

        class Domain:
            def __init__(self, name):
                for function, arguments in (('Malloc', 'n'), ('Calloc', 'nn'),
                                            ('Realloc', 'pn'), ('Free', 'p')):
                    call = getattr(ctypes.pythonapi, f'Py{name}_{function}')
                    call.restype = (None if function == 'Free'
                                    else ctypes.c_void_p)
                    call.argtypes = [{'n': ctypes.c_size_t,
                                      'p': ctypes.c_void_p}[kind]
                                     for kind in arguments]
                    setattr(self, function.lower(), call)

        mem, obj = Domain('Mem'), Domain('Object')
    ''')

    def run_script(self, switch, script, **env_vars):
        return self.run_child(switch, self.DOMAINS + textwrap.dedent(script),
                              **env_vars)

    def test_limit(self):
        for domain in 'mem', 'obj':
            with self.subTest(domain=domain), thp_mode('madvise'):
                small, large = self.run_script('thp', f'''
                    fill(0)
                    for size in 1024, 1025:
                        blocks = [{domain}.malloc(size) for _ in range(9000)]
                        report(addresses=blocks)
                ''')
                self.assertIn('thp', small.tiers)
                self.assertNotIn('[heap]',
                                 {region.name for region in small.arenas})
                # A bit more than four arenas of 1,808 blocks.
                self.assertGreaterEqual(small.arenas_on('thp'), 4)
                self.assertEqual([region.name for region in large.arenas],
                                 ['[heap]'])

    def test_large_blocks_need_no_arena(self):
        # Nor a huge page.
        [snapshot] = self.run_script('on', '''
            blocks = [mem.malloc(size) for size in
                      (2000, 30_000, 500_000, 5_000_000) * 20]
            for block in blocks:
                ctypes.memset(block, 1, 2000)
            report(addresses=blocks)
        ''')
        self.assertEqual(snapshot.tiers, {'plain'})
        for kind in 'hugetlb', 'thp':
            self.assertEqual(snapshot.stats[kind]['ever'], 0)
        self.assertLessEqual(snapshot.stats['plain']['ever'], FIRST_ARENAS)

    def test_calloc_after_use(self):
        # The first block of each pool has a way of its own.
        script = '''
            for size in 16, 100, 512, 513, 1000, 1024:
                for domain in mem, obj:
                    seen = set()
                    for turn in range(3):
                        # More than a pool of 16 KiB.
                        blocks = [domain.calloc(1, size)
                                  for _ in range(4 * 16_384 // size)]
                        for block in blocks:
                            assert not any(ctypes.string_at(block, size)), (
                                hex(block), size)
                            ctypes.memset(block, 0xff, size)
                        # Else nothing was tested.
                        assert turn == 0 or len(seen & set(blocks)) > 30, size
                        seen.update(blocks)
                        for block in blocks:
                            domain.free(block)
            report()
        '''
        self.run_script('on', script, PYTHONMALLOC='pymalloc')

    def test_realloc_over_the_limit(self):
        script = '''
            pattern = os.urandom(4000)
            sizes = [16, 500, 512, 513, 1000, 1023, 1024, 1025, 2000, 4000]
            for domain in mem, obj:
                for old_size in sizes:
                    for size in sizes:
                        block = domain.malloc(old_size)
                        ctypes.memmove(block, pattern, old_size)
                        block = domain.realloc(block, size)
                        kept = min(old_size, size)
                        assert ctypes.string_at(block, kept) == pattern[:kept]
                        domain.free(block)
            report()
        '''
        for name in 'pymalloc', 'debug', 'malloc':
            for switch in 'on', 'off':
                with self.subTest(switch=switch, PYTHONMALLOC=name):
                    self.run_script(switch, script, PYTHONMALLOC=name)

    @unittest.skipUnless(platform.libc_ver()[0] == 'glibc', 'needs glibc')
    def test_malloc_trim(self):
        self.run_script('on', '''
            def resident():
                with open('/proc/self/statm') as file:
                    return int(file.read().split()[1]) * 4096
            blocks = [mem.malloc(2000) for _ in range(20_000)]
            for block in blocks:
                ctypes.memset(block, 1, 2000)
            full = resident()
            # The last one keeps the C library from giving back the rest by
            # itself.
            for block in blocks[:-1]:
                mem.free(block)
            kept = resident()
            assert full - kept < 2**20, (full, kept)
            ctypes.CDLL(None).malloc_trim(0)
            assert full - resident() > 35 * 10**6, (full, resident())
        ''')

    @unittest.skipUnless(platform.libc_ver()[0] == 'glibc', 'needs glibc')
    def test_double_free(self):
        for size in 1025, 2000, 100_000:
            script = self.DOMAINS + textwrap.dedent(f'''
                block, other = mem.malloc({size}), mem.malloc({size})
                mem.free(block)
                mem.free(block)
            ''')
            with self.subTest(size=size), support.SuppressCrashReport():
                result = assert_python_failure(*child_args('on', script))
                self.assertEqual(result.rc, -signal.SIGABRT)
                self.assertIn(b'double free', result.err)


@support.requires_subprocess()
@requires_hugepages_build
@requires_linux
class ReleaseTests(HugePagesTestCase):
    """Nothing leaks: neither pages nor address space."""

    ARENAS = 20
    POOL = ARENAS + 10

    def test_freed_objects(self):
        script = f'''
            fill(0)
            report()
            objects = fill({self.ARENAS})
            report()
            del objects
            report()
        '''
        for switch in ('on', 'hugetlb'):
            with self.subTest(switch=switch):
                before, filled, after = self.run_with_pool(
                    self.POOL, self.run_child, switch, script)
                self.assertGreaterEqual(
                    filled.hugetlb_pages - before.hugetlb_pages,
                    self.ARENAS - 1)
                # One arena for what fill() and report() have left behind.
                self.assertLessEqual(after.hugetlb_pages,
                                     before.hugetlb_pages + 1
                                     + KEEP_MOST)

    def check_exit(self, how, returncode):
        script = f'''
            import os, signal
            objects = fill({self.ARENAS})
            report()
            {how}
        '''

        def run():
            child = subprocess.run(
                [sys.executable, *child_args('hugetlb', script)],
                stdout=subprocess.PIPE, text=True)
            self.assertEqual(child.returncode, returncode)
            return snapshots(child.stdout)

        # run_with_pool() checks that all pages are back.
        [snapshot] = self.run_with_pool(self.POOL, run)
        self.assertGreaterEqual(snapshot.hugetlb_pages, self.ARENAS)

    def test_exit(self):
        self.check_exit('sys.exit(3)', 3)

    def test_os_exit(self):
        self.check_exit('os._exit(4)', 4)

    def test_killed(self):
        self.check_exit('os.kill(os.getpid(), signal.SIGKILL)',
                        -signal.SIGKILL)

    def test_address_space(self):
        # Fill and free 10 arenas again and again: 400 MiB in all.
        script = '''
            for _ in range(2):
                fill(10)
            report()
            for _ in range(20):
                fill(10)
            report()
        '''
        for switch in SWITCHES:
            for pool in (0, 4, 30):
                with self.subTest(switch=switch, pool=pool):
                    before, after = self.run_with_pool(
                        pool, self.run_child, switch, script)
                    self.assertLessEqual(after.hugetlb_pages,
                                         before.hugetlb_pages + 1)
                    self.assertLessEqual(after.address_space,
                                         before.address_space + 2 * HUGE_PAGE)


@support.requires_subprocess()
@requires_hugepages_build
@requires_linux
class ThreadTests(HugePagesTestCase):
    """Each thread gets 16 KiB for its frames from the same functions."""

    THREADS = 200

    @threading_helper.requires_working_threading()
    def test_threads_alive(self):
        script = f'''
            import threading
            threading.stack_size(256 * 1024)
            leave = threading.Event()
            barrier = threading.Barrier({self.THREADS} + 1)

            def work():
                barrier.wait()
                leave.wait()

            report()
            threads = [threading.Thread(target=work)
                       for _ in range({self.THREADS})]
            for thread in threads:
                thread.start()
            barrier.wait()
            report()
            leave.set()
            for thread in threads:
                thread.join()
            report()
        '''
        # A thread needs a few KiB of small objects: an arena or two for all.
        # A huge page for each chunk would be 400 MiB.
        most = 4
        for switch in SWITCHES:
            with self.subTest(switch=switch):
                before, alive, after = self.run_with_pool(
                    30, self.run_child, switch, script)
                for snapshot in (alive, after):
                    self.assertLessEqual(snapshot.hugetlb_pages,
                                         before.hugetlb_pages + most)
                    self.assertLessEqual(self.thp_size(snapshot),
                                         self.thp_size(before)
                                         + most * HUGE_PAGE)

    @staticmethod
    def thp_size(snapshot):
        return sum(region.end - region.start for region in snapshot.regions
                   if region.tier == 'thp')

    @threading_helper.requires_working_threading()
    def test_threads_ended(self):
        # 16 KiB lost with each of 1000 threads would be 16 MiB.
        script = '''
            import threading

            def run_threads(count):
                for _ in range(count):
                    thread = threading.Thread(target=len, args=([],))
                    thread.start()
                    thread.join()

            run_threads(100)
            report()
            run_threads(1000)
            report()
        '''
        for switch in SWITCHES:
            with self.subTest(switch=switch):
                before, after = self.run_with_pool(
                    30, self.run_child, switch, script)
                self.assertLessEqual(after.address_space,
                                     before.address_space + 2 * HUGE_PAGE)


@support.requires_subprocess()
@requires_hugepages_build
@requires_linux
class LimitTests(HugePagesTestCase):
    """Memory that cannot be had is a MemoryError, never a signal."""

    def test_address_space_limit(self):
        import_helper.import_module('resource')
        script = '''
            import resource
            with open('/proc/self/statm') as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 1024**2, hard))

            def exhaust():
                objects = []
                while True:
                    objects.append(fill(1))

            for _ in range(3):
                try:
                    exhaust()
                except MemoryError:
                    pass
                else:
                    raise AssertionError('no MemoryError')
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
            objects = fill(5)
            report(objects[::50])
        '''
        with thp_mode('madvise'):
            for switch in SWITCHES:
                for pool in (0, 4, 60):
                    with self.subTest(switch=switch, pool=pool):
                        [snapshot] = self.run_with_pool(
                            pool, self.run_child, switch, script)
                        # The limit was no reason to give up a tier for good.
                        tiers = {'on': ('hugetlb', 'thp'),
                                 'hugetlb': ('hugetlb', 'plain'),
                                 'thp': ('thp', 'thp'),
                                 'off': ('plain', 'plain')}
                        with_pool, without_pool = tiers[switch]
                        self.assertIn(with_pool if pool > 4 else without_pool,
                                      snapshot.tiers)

    def test_cgroup_limit(self):
        # The limit of a hugetlb cgroup is charged when a page is faulted in.
        # A process that was given the page by mmap() alone gets SIGBUS then.
        limit = 4
        script = '''
            objects = fill(20)
            report(objects[::50])
        '''
        with thp_mode('madvise'), hugetlb_cgroup(limit * HUGE_PAGE) as procs:
            join = ['/bin/sh', '-c', f'echo $$ > {procs} && exec "$0" "$@"']
            for switch, rest in (('on', 'thp'), ('hugetlb', 'plain')):
                with self.subTest(switch=switch):
                    [snapshot] = self.run_with_pool(
                        30, self.run_child, switch, script,
                        __run_using_command=join, __isolated=True)
                    self.assertEqual(snapshot.hugetlb_pages, limit)
                    self.assertEqual(snapshot.tiers, {'hugetlb', rest})


@support.requires_subprocess()
@requires_hugepages_build
@requires_linux
class OtherAllocatorsTests(HugePagesTestCase):
    """Hooks, other allocators, and several interpreters."""

    ARENAS = 5
    POOL = 40

    def test_hooks(self):
        script = f'''
            for _ in range(3):
                objects = fill({self.ARENAS})
            report(objects[::50])
        '''
        with thp_mode('madvise'):
            for options, env_vars in (
                    ([], {'PYTHONMALLOC': 'pymalloc_debug'}),
                    (['-X', 'dev'], {}),
                    (['-X', 'tracemalloc'], {}),
                    (['-X', 'tracemalloc'], {'PYTHONMALLOC': 'debug'})):
                for switch, tier in (('on', 'hugetlb'), ('hugetlb', 'hugetlb'),
                                     ('thp', 'thp'), ('off', 'plain')):
                    with self.subTest(switch=switch, options=options,
                                      env=env_vars):
                        [snapshot] = self.run_with_pool(
                            self.POOL, self.run_child, switch, script,
                            *options, **env_vars)
                        self.assertEqual(snapshot.tiers, {tier})

    def test_malloc(self):
        script = f'''
            objects = fill({self.ARENAS})
            report(objects[::50])
        '''
        for name in ('malloc', 'malloc_debug'):
            for switch in SWITCHES:
                with self.subTest(switch=switch, PYTHONMALLOC=name):
                    [snapshot] = self.run_with_pool(
                        self.POOL, self.run_child, switch, script,
                        PYTHONMALLOC=name)
                    self.assertEqual(snapshot.hugetlb_pages, 0)
                    self.assertEqual(snapshot.tiers, {'plain'})

    def test_arena_allocator(self):
        # An arena allocator that is set by PyObject_SetArenaAllocator()
        # chooses the pages itself.  This one is made of C functions that need
        # no Python: alloc(ctx, size) is memalign(4096, size), and
        # free(ctx, ptr, size) is abs(), which does nothing.
        import_helper.import_module('ctypes')
        script = f'''
            import ctypes, os

            class ArenaAllocator(ctypes.Structure):
                _fields_ = [(name, ctypes.c_void_p)
                            for name in ('ctx', 'alloc', 'free')]

            libc = ctypes.CDLL(None)
            address = lambda function: ctypes.cast(function, ctypes.c_void_p)
            old = ArenaAllocator()
            own = ArenaAllocator(4096, address(libc.memalign),
                                 address(libc.abs))

            ctypes.pythonapi.PyObject_GetArenaAllocator(ctypes.byref(old))
            fill(0)
            report()
            ctypes.pythonapi.PyObject_SetArenaAllocator(ctypes.byref(own))
            objects = fill({self.ARENAS})
            report(objects[::50])
            ctypes.pythonapi.PyObject_SetArenaAllocator(ctypes.byref(old))
            more_objects = fill({self.ARENAS})
            report(more_objects[::50])
            # Its arenas must not be freed by the old allocator.
            os._exit(0)
        '''
        for switch in SWITCHES:
            with self.subTest(switch=switch):
                before, own, old = self.run_with_pool(
                    self.POOL, self.run_child, switch, script)
                self.assertEqual(own.hugetlb_pages, before.hugetlb_pages)
                self.assertIn('plain', own.tiers)
                if SWITCH[switch] & HUGETLB:
                    self.assertGreaterEqual(
                        old.hugetlb_pages,
                        before.hugetlb_pages + self.ARENAS - 1)

    def test_first_arenas_of_interpreters(self):
        # Each interpreter has its own.
        import_helper.import_module('_interpreters')
        script = '''
            import _interpreters
            objects = fill(5)
            report()
            interps = [_interpreters.create('isolated') for _ in range(3)]
            report()
            for interp in interps:
                error = _interpreters.exec(interp, """if 1:
                    objects = [bytes(400) for _ in range(4 * 128 * 36)]
                """)
                assert error is None, error
            report()
        '''
        with thp_mode('madvise'):
            for pool, tier in (self.POOL, 'hugetlb'), (0, 'thp'):
                with self.subTest(pool=pool):
                    before, created, filled = (
                        snapshot.stats for snapshot in self.run_with_pool(
                            pool, self.run_child, 'on', script))
                    for kind in 'hugetlb', 'thp':
                        self.assertEqual(created[kind], before[kind])
                    plain = created['plain']['now'] - before['plain']['now']
                    self.assertIn(plain, range(3, 3 * FIRST_ARENAS + 1))
                    # They are promoted when an interpreter needs another.
                    self.assertEqual(filled['plain']['now'],
                                     before['plain']['now'])
                    self.assertGreaterEqual(filled['thp']['now'],
                                            before['thp']['now']
                                            + 3 * FIRST_ARENAS)
                    self.assertGreaterEqual(filled[tier]['now'],
                                            before[tier]['now'] + 3 * 2)

    @threading_helper.requires_working_threading()
    def test_subinterpreters(self):
        # Interpreters with obmalloc state and a GIL of their own allocate and
        # free at the same time.
        import_helper.import_module('_interpreters')
        script = f'''
            import threading
            from test.support import interpreters

            work = """if 1:
                def fill(arenas):
                    return [bytes(400) for _ in range(arenas * 128 * 36)]
                for _ in range(10):
                    objects = fill({self.ARENAS})
                    assert not any(map(any, objects[::100]))
            """
            failures = []

            def run(interp):
                try:
                    interp.exec(work)
                except interpreters.ExecutionFailed as exc:
                    failures.append(exc)

            interps = [interpreters.create() for _ in range(4)]
            fill(0)
            report()
            threads = [threading.Thread(target=run, args=(interp,))
                       for interp in interps]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            report()
            for interp in interps:
                interp.close()
            report()
            if failures:
                raise failures[0]
        '''
        pool = 100
        with thp_mode('madvise'):
            for switch in SWITCHES:
                with self.subTest(switch=switch):
                    before, filled, closed = self.run_with_pool(
                        pool, self.run_child, switch, script)
                    if SWITCH[switch] & HUGETLB:
                        # Each keeps the objects of its last round.
                        self.assertGreaterEqual(
                            filled.hugetlb_pages,
                            before.hugetlb_pages + 4 * (self.ARENAS - 1))
                        # An interpreter leaves a few blocks behind, hence an
                        # arena or two, on whatever pages.
                        self.assertLessEqual(closed.hugetlb_pages,
                                             before.hugetlb_pages + 4 * 2)
                    else:
                        self.assertEqual(filled.hugetlb_pages, 0)


if __name__ == '__main__':
    unittest.main()
