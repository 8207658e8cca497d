"""What the tests of --with-pymalloc-hugepages share.

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
import subprocess
import sys
import tempfile
import textwrap
import unittest
from test import support
from test.support import import_helper, os_helper
from test.support.script_helper import assert_python_ok

_testinternalcapi = import_helper.import_module('_testinternalcapi')

HUGEPAGES_BUILD = 'pymalloc_hugepages' in _testinternalcapi.get_config()
LINUX = sys.platform == 'linux'

ENV_VAR = 'PYTHON_PYMALLOC_HUGEPAGES'

# The values of the switch and of the PyConfig member.
OFF, ON, THP, HUGETLB = 0, 1, 2, 3
SWITCH = {'on': ON, '1': ON, 'thp': THP, 'hugetlb': HUGETLB,
          'off': OFF, '0': OFF}
# One name for each.
SWITCHES = ('on', 'thp', 'hugetlb', 'off')

# How many arenas of each interpreter are plain memory at first:
# HUGEPAGES_FIRST_ARENAS of Objects/hugepages/pymalloc.c.
FIRST_ARENAS = 2

# How many freed arenas are kept at most: HUGEPAGES_KEEP_MOST of
# Objects/hugepages/arena.c.
KEEP_MOST = 2

MIB = 1024 ** 2
HUGE_PAGE = 2 * MIB
HUGETLB_DIR = f'/sys/kernel/mm/hugepages/hugepages-{HUGE_PAGE // 1024}kB'
THP_FILE = '/sys/kernel/mm/transparent_hugepage/enabled'

requires_hugepages_build = unittest.skipUnless(
    HUGEPAGES_BUILD, 'needs a build --with-pymalloc-hugepages')
requires_linux = unittest.skipUnless(LINUX, 'needs Linux')


def lock_settings():
    """Be the setUpModule() of a module whose tests change system settings.

    They are there once: no two such modules may run at the same time.
    """
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
    count = int(read_or_skip(f'{HUGETLB_DIR}/{name}'))
    # Linux counts a page as reserved once too few for as long as a forked
    # process shares it that its parent has unmapped.
    return count - 2**64 if count >= 2**63 else count


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


@contextlib.contextmanager
def memory_cgroup(limit):
    """Make a cgroup with that limit on memory, in bytes.

    The block gets the path of the file that takes its processes.
    """
    with open('/proc/self/mountinfo') as file:
        for line in file:
            mount = line.split()[4]
            kind, _, options = line.partition(' - ')[2].split(maxsplit=2)
            if kind == 'cgroup' and 'memory' in options.strip().split(','):
                name = 'memory.limit_in_bytes'
                break
            if kind == 'cgroup2' and 'memory' in read_line(
                    f'{mount}/cgroup.subtree_control').split():
                name = 'memory.max'
                break
        else:
            raise unittest.SkipTest('no cgroup with the memory controller')
    if not os.access(mount, os.W_OK):
        raise unittest.SkipTest(f'needs root: cannot write {mount}')
    group = tempfile.mkdtemp(prefix='test_pymalloc_hugepages_', dir=mount)
    with undo_at_exit('rmdir "$1"', group):
        with open(f'{group}/{name}', 'w') as file:
            file.write(str(limit))
        yield f'{group}/cgroup.procs'


def strace_command():
    """Return the name of a working strace, in a list; skip the test if there
    is none."""
    try:
        result = subprocess.run(['strace', '-o', os.devnull, 'true'],
                                capture_output=True, text=True)
    except FileNotFoundError:
        raise unittest.SkipTest('needs strace')
    if result.returncode != 0:
        raise unittest.SkipTest(f'strace cannot trace: {result.stderr}')
    return ['strace']


# What a process has.

class Region:
    """One mapping as /proc/PID/smaps describes it."""

    def __init__(self, header, fields):
        self.start, self.end = (int(address, 16)
                                for address in header.split()[0].split('-'))
        self.name = ' '.join(header.split()[5:])
        self.flags = fields['VmFlags'].split()
        self.resident = self.size_of(fields['Rss'])
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
        # It was on THP, and is shared with a forked process.  The stacks of
        # threads are so, too.
        if 'nh' in self.flags:
            return 'unadvised'
        return 'plain'


class Snapshot:
    """What a child process reported about itself at one moment."""

    def __init__(self, line):
        report = json.loads(line)
        self.pid = report['pid']
        # Pages of the pool that other processes of the test had.
        self.other_pages = report['other_pages']
        self.regions = list(self.parse_smaps(report['smaps']))
        self.available = report['available']
        # What sys._pymalloc_hugepages() returned.
        self.stats = report['stats']
        self.address_space = sum(region.end - region.start
                                 for region in self.regions)
        self.hugetlb_pages = sum(region.hugetlb
                                 for region in self.regions) // HUGE_PAGE
        # The kernel does not count pages of the pool as resident.
        self.resident = sum(region.resident + region.hugetlb
                            for region in self.regions)
        # The mappings that hold the objects: arenas, as far as they are not
        # merged with other memory.
        self.arenas = collections.Counter(map(self.region_at,
                                              report['objects']))
        self.addresses = report['objects']

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

    def arenas_on(self, tier):
        """How many arenas with some of the objects are on a tier.

        They must be aligned: those on plain pages are only if the switch has
        a value other than "off", and they are the first ones.
        """
        return len({address // HUGE_PAGE for address in self.addresses
                    if self.region_at(address).tier == tier})

    @property
    def thp_pages(self):
        """The transparent huge pages under the objects."""
        return sum(region.thp for region in self.arenas) // HUGE_PAGE


CHILD = '''
import json, os, sys

in_first_arenas = []

def fill(arenas):
    """Return new objects that fill at least that many arenas, after the first
    ones, which are plain memory until another is needed."""
    # An object of 400 bytes takes a block of 448: 36 blocks in a pool of
    # 16 KiB, 128 pools in an arena.
    if not in_first_arenas:
        in_first_arenas.extend(bytes(400)
                               for _ in range(FIRST_ARENAS * 128 * 36))
    return [bytes(400) for _ in range(arenas * 128 * 36)]

def first_objects():
    """Return objects that were made while Python started."""
    namespace = vars(sys.modules['_frozen_importlib'])
    functions = [value for value in namespace.values()
                 if type(value) is type(fill)]
    assert len(functions) > 10
    return functions

def report(objects=(), other_pids=(), addresses=()):
    """Tell what this process has, and what is under some objects, and under
    other addresses."""
    def read(path):
        with open(path) as file:
            return file.read()
    def available_pages():
        try:
            return (int(read(HUGETLB_DIR + '/free_hugepages'))
                    - int(read(HUGETLB_DIR + '/resv_hugepages')))
        except FileNotFoundError:
            return 0
    def pages(pid):
        for line in read(f'/proc/{pid}/status').splitlines():
            if line.startswith('HugetlbPages:'):
                return int(line.split()[1]) // 2048
        return 0
    # Reading takes memory, which is there the second time: nothing is mapped
    # between this and the look at the pool.
    smaps = read('/proc/self/smaps')
    smaps = read('/proc/self/smaps')
    line = json.dumps({'pid': os.getpid(),
                       'other_pages': sum(map(pages, other_pids)),
                       'available': available_pages(),
                       'smaps': smaps,
                       'stats': sys._pymalloc_hugepages(),
                       'objects': [*map(id, objects), *addresses]})
    print(line, flush=True)

'''.replace('HUGETLB_DIR', repr(HUGETLB_DIR)).replace(
    'FIRST_ARENAS', str(FIRST_ARENAS))


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
        for name in (ENV_VAR, f'{ENV_VAR}_STATS', 'PYTHONMALLOC',
                     'PYTHONMALLOCSTATS', 'PYTHONTRACEMALLOC',
                     'PYTHONDEVMODE'):
            env.unset(name)

    def run_child(self, switch, script, *options, **env_vars):
        """Run the script and return the snapshots that it reports."""
        result = assert_python_ok(*child_args(switch, script, *options),
                                  **env_vars)
        self.assertEqual(result.err, b'')
        return snapshots(result.out)

    def run_leaving_pool(self, pages, run, *args, **kwargs):
        """Call run() while exactly that many pages are available.

        Return what it returns.  All of the pages must be back then.  Where
        they are not, another process may have used the pool at the same time,
        and the call is repeated.
        """
        for _ in support.sleeping_retry(10.0, error=False):
            with hugetlb_pool(pages):
                result = run(*args, **kwargs)
                left = available_pages()
            if left == pages:
                return result
        self.fail(f'{left} pages were left in a pool of {pages}, unless other '
                  f'processes use the pool all the time')

    def run_with_pool(self, pages, run, *args, **kwargs):
        """Call run() while exactly that many pages are available.

        run() starts a child, waits for its end and returns its snapshots.
        In each of them the child, and the other processes that it names, must
        have the pages that are missing from the pool, and after its end none
        may be missing.  Where that is not so, another process may have used
        the pool at the same time, and the call is repeated.
        """
        for _ in support.sleeping_retry(10.0, error=False):
            with hugetlb_pool(pages):
                result = run(*args, **kwargs)
                left = available_pages()
            taken = [snapshot.hugetlb_pages + snapshot.other_pages
                     for snapshot in result]
            missing = [pages - snapshot.available for snapshot in result]
            if left == pages and taken == missing:
                return result
        self.fail(f'the child had {taken} huge pages while {missing} were '
                  f'missing from the pool of {pages}, and left {left}, unless '
                  f'other processes use the pool all the time')
