"""Tests for --with-pymalloc-hugepages: the pages that pymalloc's arenas get.

What an arena sits on is read from /proc/self/smaps, never from what the
allocator says of itself.  Child processes do the allocating, so that each can
be started with a switch, a pool and a system setting of its own.

The settings of the system that a test changes are put back when its block
ends, and also if the test process is interrupted or killed.
"""

import collections
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import unittest
from test import support
from test.support import import_helper, os_helper, threading_helper
from test.support.script_helper import assert_python_failure, assert_python_ok

_testinternalcapi = import_helper.import_module('_testinternalcapi')

HUGEPAGES_BUILD = 'pymalloc_hugepages' in _testinternalcapi.get_config()
LINUX = sys.platform == 'linux'

ENV_VAR = 'PYTHON_PYMALLOC_HUGEPAGES'

# The values of the switch and of the PyConfig member.
OFF, HUGETLB, THP, ON = 0, 1, 2, 3
SWITCH = {'on': ON, '1': ON, 'thp': THP, 'hugetlb': HUGETLB,
          'off': OFF, '0': OFF}
# One name for each.
SWITCHES = ('on', 'thp', 'hugetlb', 'off')

MIB = 1024 ** 2
HUGE_PAGE = 2 * MIB
HUGETLB_DIR = f'/sys/kernel/mm/hugepages/hugepages-{HUGE_PAGE // 1024}kB'
THP_FILE = '/sys/kernel/mm/transparent_hugepage/enabled'

requires_hugepages_build = unittest.skipUnless(
    HUGEPAGES_BUILD, 'needs a build --with-pymalloc-hugepages')
requires_linux = unittest.skipUnless(LINUX, 'needs Linux')


def setUpModule():
    # The settings of the system are there once: no two runs of this module
    # may change them at the same time.
    if HUGEPAGES_BUILD and os.path.isdir(HUGETLB_DIR):
        import fcntl
        lock = os.open(HUGETLB_DIR, os.O_RDONLY)
        unittest.addModuleCleanup(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)


# Settings of the system.

def read_line(path):
    with open(path) as file:
        return file.readline().strip()


def read_or_skip(path):
    try:
        return read_line(path)
    except OSError as exc:
        raise unittest.SkipTest(f'the kernel does not have it: {exc}')


@contextlib.contextmanager
def undo_at_exit(command, *args):
    """Run a shell command at the end of the block or of this process.

    The shell is there from the start and waits until its standard input is
    closed.  The kernel closes it even if this process is killed.
    """
    shell = subprocess.Popen(
        ['/bin/sh', '-c', f'cat > /dev/null; {command}', 'sh', *args],
        stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        shell.stdin.close()
        if shell.wait() != 0:
            raise RuntimeError(f'cannot undo a setting: {command} {args}')


@contextlib.contextmanager
def setting(path, value, old_value):
    """Change a setting of the system for the length of the block."""
    if value == old_value:
        yield
        return
    if not os.access(path, os.W_OK):
        raise unittest.SkipTest(f'needs root: cannot write {path}')
    with undo_at_exit('printf "%s\n" "$2" > "$1"', path, old_value):
        try:
            with open(path, 'w') as file:
                file.write(value)
        except OSError as exc:
            raise unittest.SkipTest(f'cannot write {value} to {path}: {exc}')
        yield


@contextlib.contextmanager
def thp_mode(mode):
    """Have transparent huge pages "always", "madvise" or "never"."""
    old_mode = re.search(r'\[(\w+)\]', read_or_skip(THP_FILE))[1]
    with setting(THP_FILE, mode, old_mode):
        yield


def read_pool(name):
    return int(read_or_skip(f'{HUGETLB_DIR}/{name}'))


def available_pages():
    """The pages of the pool that are neither used nor reserved."""
    return read_pool('free_hugepages') - read_pool('resv_hugepages')


def reserve_pages(count):
    """Return a mapping that keeps so many pages of the pool from others."""
    import mmap
    MAP_HUGETLB = 0x40000
    MAP_HUGE_SHIFT = 26
    page_flags = MAP_HUGETLB | (HUGE_PAGE.bit_length() - 1) << MAP_HUGE_SHIFT
    return mmap.mmap(-1, count * HUGE_PAGE,
                     mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | page_flags)


@contextlib.contextmanager
def hugetlb_pool(count):
    """Have exactly that many pages available in the pool.

    A pool that is too large is not shrunk, because it might not grow again:
    its surplus is reserved for the length of the block.
    """
    with contextlib.ExitStack() as stack:
        # Pages beyond the pool, which the kernel allocates on demand.
        path = f'{HUGETLB_DIR}/nr_overcommit_hugepages'
        stack.enter_context(setting(path, '0', read_or_skip(path)))

        missing = count - available_pages()
        if missing > 0:
            # Pages that are in use when a pool is made smaller stay in it as
            # surplus until they are freed.
            size = read_pool('nr_hugepages')
            old_size = size - read_pool('surplus_hugepages')
            stack.enter_context(setting(f'{HUGETLB_DIR}/nr_hugepages',
                                        str(size + missing), str(old_size)))
            if available_pages() < count:
                raise unittest.SkipTest(
                    f'the kernel has not the memory for {count} huge pages')
        elif missing < 0:
            stack.enter_context(contextlib.closing(reserve_pages(-missing)))
        yield


# What a process has.

class Region:
    """One mapping as /proc/PID/smaps describes it."""

    def __init__(self, header, fields):
        self.start, self.end = (int(address, 16)
                                for address in header.split()[0].split('-'))
        self.flags = fields['VmFlags'].split()
        self.hugetlb = self.size_of(fields['Private_Hugetlb'])
        self.thp = self.size_of(fields['AnonHugePages'])

    @staticmethod
    def size_of(field):
        return int(field.removesuffix(' kB')) * 1024

    @property
    def tier(self):
        """The tier that made the mapping: its flags tell."""
        if 'ht' in self.flags:
            return 'hugetlb'
        if 'hg' in self.flags:
            return 'thp'
        return 'plain'


class Snapshot:
    """What a child process reported about itself at one moment."""

    def __init__(self, line):
        report = json.loads(line)
        self.regions = list(self.parse_smaps(report['smaps']))
        self.available = report['available']
        self.address_space = sum(region.end - region.start
                                 for region in self.regions)
        self.hugetlb_pages = sum(region.hugetlb
                                 for region in self.regions) // HUGE_PAGE
        # The mappings that hold the objects: arenas, as far as they are not
        # merged with other memory.
        self.arenas = collections.Counter(map(self.region_at,
                                              report['objects']))

    @staticmethod
    def parse_smaps(text):
        header, fields = None, {}
        for line in text.splitlines():
            name, _, value = line.partition(':')
            if ' ' in name:
                header, fields = line, {}
            else:
                fields[name] = value.strip()
            if name == 'VmFlags':       # the last one of a mapping
                yield Region(header, fields)

    def region_at(self, address):
        for region in self.regions:
            if region.start <= address < region.end:
                return region
        raise ValueError(f'no memory at {address:#x}')

    @property
    def tiers(self):
        """The set of the tiers that the objects are on."""
        return {region.tier for region in self.arenas}

    @property
    def thp_pages(self):
        """The transparent huge pages under the objects."""
        return sum(region.thp for region in self.arenas) // HUGE_PAGE


CHILD = '''
import json, sys

def fill(arenas):
    """Return new objects that fill at least that many arenas."""
    # An object of 400 bytes takes a block of 448: 36 blocks in a pool of
    # 16 KiB, 128 pools in an arena.
    return [bytes(400) for _ in range(arenas * 128 * 36)]

def first_objects():
    """Return objects that were made while Python started."""
    namespace = vars(sys.modules['_frozen_importlib'])
    functions = [value for value in namespace.values()
                 if type(value) is type(fill)]
    assert len(functions) > 10
    return functions

def report(objects=()):
    def read(path):
        with open(path) as file:
            return file.read()
    def available_pages():
        try:
            return (int(read(HUGETLB_DIR + '/free_hugepages'))
                    - int(read(HUGETLB_DIR + '/resv_hugepages')))
        except FileNotFoundError:
            return 0
    line = json.dumps({'available': available_pages(),
                       'smaps': read('/proc/self/smaps'),
                       'objects': [id(obj) for obj in objects]})
    print(line, flush=True)

'''.replace('HUGETLB_DIR', repr(HUGETLB_DIR))


def child_args(switch, script, *options):
    """Arguments for a child process with that switch."""
    return ['-X', f'pymalloc_hugepages={switch}', *options,
            '-c', CHILD + textwrap.dedent(script)]


def snapshots(out):
    return [Snapshot(line) for line in out.splitlines()]


class HugePagesTestCase(unittest.TestCase):

    def setUp(self):
        # Settings of the tests' own process must not change the children.
        env = self.enterContext(os_helper.EnvironmentVarGuard())
        for name in (ENV_VAR, 'PYTHONMALLOC', 'PYTHONMALLOCSTATS',
                     'PYTHONTRACEMALLOC', 'PYTHONDEVMODE'):
            env.unset(name)

    def run_child(self, switch, script, *options, **env_vars):
        """Run the script and return the snapshots that it reports."""
        result = assert_python_ok(*child_args(switch, script, *options),
                                  **env_vars)
        self.assertEqual(result.err, b'')
        return snapshots(result.out)

    def run_with_pool(self, pages, run, *args, **kwargs):
        """Call run() while exactly that many pages are available.

        run() starts a child, waits for its end and returns its snapshots.
        In each of them the child must have the pages that are missing from
        the pool, and after its end none may be missing.  Where that is not
        so, another process may have used the pool at the same time, and the
        call is repeated.
        """
        for _ in support.sleeping_retry(10.0, error=False):
            with hugetlb_pool(pages):
                result = run(*args, **kwargs)
                left = available_pages()
            taken = [snapshot.hugetlb_pages for snapshot in result]
            missing = [pages - snapshot.available for snapshot in result]
            if left == pages and taken == missing:
                return result
        self.fail(f'the child had {taken} huge pages while {missing} were '
                  f'missing from the pool of {pages}, and left {left}, unless '
                  f'other processes use the pool all the time')


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

    # The arenas that a child fills, and a pool that serves them and those of
    # the child's start.
    ARENAS = 20
    POOL = ARENAS + 10

    SCRIPT = f'''
        objects = fill({ARENAS})
        report(first_objects() + objects[::50])
    '''

    def check_tiers(self, pool, expected, **kwargs):
        """Check the tier of every object, those of Python's start included."""
        for switch, tier in expected.items():
            with self.subTest(switch=switch):
                [snapshot] = self.run_with_pool(
                    pool, self.run_child, switch, self.SCRIPT, **kwargs)
                self.assertEqual(snapshot.tiers, {tier})
                if tier == 'hugetlb':
                    self.assertGreaterEqual(snapshot.hugetlb_pages,
                                            self.ARENAS)
                else:
                    self.assertEqual(snapshot.hugetlb_pages, 0)
                    self.assertFalse(any(region.tier == 'hugetlb'
                                         for region in snapshot.regions))

    def test_pool(self):
        with thp_mode('madvise'):
            self.check_tiers(self.POOL, {'on': 'hugetlb', 'hugetlb': 'hugetlb',
                                         'thp': 'thp', 'off': 'plain'})

    def test_no_pool(self):
        with thp_mode('madvise'):
            self.check_tiers(0, {'on': 'thp', 'hugetlb': 'plain',
                                 'thp': 'thp', 'off': 'plain'})

    def test_pool_too_small(self):
        pool = 4
        with thp_mode('madvise'):
            for switch, rest in (('on', 'thp'), ('hugetlb', 'plain')):
                with self.subTest(switch=switch):
                    [snapshot] = self.run_with_pool(
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
            [snapshot] = self.run_with_pool(
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
            self.check_tiers(0, {'on': 'thp', 'hugetlb': 'plain',
                                 'thp': 'thp', 'off': 'plain'})
            self.check_thp_pages('on', True)
            self.check_thp_pages('thp', True)

    def test_thp_never(self):
        with thp_mode('never'):
            for switch in SWITCHES:
                self.check_thp_pages(switch, False)
            self.check_tiers(self.POOL, {'on': 'hugetlb', 'hugetlb': 'hugetlb',
                                         'off': 'plain'})

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
                self.check_tiers(0, dict.fromkeys(SWITCHES, 'plain'),
                                 **wrapper)
                self.check_tiers(self.POOL,
                                 {'on': 'hugetlb', 'hugetlb': 'hugetlb',
                                  'thp': 'plain', 'off': 'plain'}, **wrapper)

    def test_alignment(self):
        for switch, pool in (('thp', 0), ('hugetlb', self.POOL)):
            with self.subTest(switch=switch):
                [snapshot] = self.run_with_pool(
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
                    [snapshot] = self.run_with_pool(self.POOL, run, switch)
                    self.assertEqual(snapshot.tiers, {tier})


@support.requires_subprocess()
@requires_hugepages_build
@requires_linux
class ReleaseTests(HugePagesTestCase):
    """Nothing leaks: neither pages nor address space."""

    ARENAS = 20
    POOL = ARENAS + 10

    def test_freed_objects(self):
        script = f'''
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
                                     before.hugetlb_pages + 1)

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


@contextlib.contextmanager
def hugetlb_cgroup(limit):
    """Make a cgroup with that limit on huge pages of 2 MiB, in bytes.

    The block gets the path of the file that takes its processes.
    """
    with open('/proc/self/mountinfo') as file:
        mounts = [line.split()[4] for line in file
                  if ' - cgroup2 ' in line]
    for mount in mounts:
        if 'hugetlb' in read_line(f'{mount}/cgroup.controllers').split():
            break
    else:
        raise unittest.SkipTest('no cgroup2 with the hugetlb controller')

    subtree = f'{mount}/cgroup.subtree_control'
    if not os.access(subtree, os.W_OK):
        raise unittest.SkipTest(f'needs root: cannot write {subtree}')
    with contextlib.ExitStack() as stack:
        if 'hugetlb' not in read_line(subtree).split():
            stack.enter_context(undo_at_exit('echo -hugetlb > "$1"', subtree))
            try:
                with open(subtree, 'w') as file:
                    file.write('+hugetlb')
            except OSError as exc:
                raise unittest.SkipTest(f'cannot write {subtree}: {exc}')
        group = tempfile.mkdtemp(prefix='test_pymalloc_hugepages_', dir=mount)
        stack.enter_context(undo_at_exit('rmdir "$1"', group))
        with open(f'{group}/hugetlb.2MB.max', 'w') as file:
            file.write(str(limit))
        yield f'{group}/cgroup.procs'


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
