"""What the tests of --with-pymalloc-hugepages share.

The kernel says in /proc/self/smaps what an arena sits on: the tests never
take the allocator's word for it.  Child processes allocate, each with a
switch, a pool and system settings of its own.

A test puts back each setting of the system when its block ends.  This holds
even if the test process is interrupted or killed.
"""

import collections
import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest
from test import support
from test.support import import_helper, os_helper
from test.support.script_helper import interpreter_requires_environment

HUGEPAGES_BUILD = sys._pymalloc_hugepages()['option']

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
NR_HUGEPAGES = f'{HUGETLB_DIR}/nr_hugepages'
THP_FILE = '/sys/kernel/mm/transparent_hugepage/enabled'

requires_hugepages_build = unittest.skipUnless(
    HUGEPAGES_BUILD, 'needs a build --with-pymalloc-hugepages')


def require_interpreters():
    """Skip a test where interpreters have no arenas of their own."""
    if sys.version_info < (3, 12):
        raise unittest.SkipTest('needs Python 3.12')
    import_helper.import_module('_interpreters' if sys.version_info >= (3, 13)
                                else '_xxsubinterpreters')


def lock_settings():
    """Be the setUpModule() of a module whose tests change system settings.

    Only one such module may run at a time.
    """
    if HUGEPAGES_BUILD and os.path.isdir(HUGETLB_DIR):
        import fcntl
        lock = os.open(HUGETLB_DIR, os.O_RDONLY)
        unittest.addModuleCleanup(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)


def each(names, values):
    """Run a test with each of the values, in subtests.

    They are arguments with these names.  Several such decorators together
    make all combinations.
    """
    names = names.split(', ')

    def decorate(test):
        @functools.wraps(test)
        def run(self, *args, **others):
            for value in values:
                arguments = dict(zip(names, value if len(names) > 1
                                     else [value]))
                with self.subTest(**arguments):
                    test(self, *args, **arguments, **others)
        return run
    return decorate


each_switch = each('switch', SWITCHES)


# Settings of the system.

def read_line(path):
    with open(path) as file:
        return file.readline().strip()


def read_or_skip(path):
    try:
        return read_line(path)
    except OSError as exc:
        raise unittest.SkipTest(f'the kernel does not have it: {exc}')


def require_write_access(path):
    if not os.access(path, os.W_OK):
        raise unittest.SkipTest(f'needs root: cannot write {path}')


def write_or_skip(path, value):
    try:
        with open(path, 'w') as file:
            file.write(value)
    except OSError as exc:
        raise unittest.SkipTest(f'cannot write {value} to {path}: {exc}')


@contextlib.contextmanager
def undo_at_exit(command, *args):
    """Run a shell command at the end of the block or of this process.

    The shell starts at once and waits for the end of its standard input,
    which the kernel closes even if this process is killed.
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
    require_write_access(path)
    with undo_at_exit('printf "%s\n" "$2" > "$1"', path, old_value):
        write_or_skip(path, value)
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
    """Return a mapping that keeps this many pages of the pool from others."""
    import mmap
    MAP_HUGETLB, MAP_HUGE_2MB = 0x40000, 21 << 26
    return mmap.mmap(-1, count * HUGE_PAGE, mmap.MAP_PRIVATE
                     | mmap.MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB)


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
            stack.enter_context(setting(NR_HUGEPAGES, str(size + missing),
                                        str(old_size)))
            if available_pages() < count:
                raise unittest.SkipTest(
                    f'the kernel has not the memory for {count} huge pages')
        elif missing < 0:
            stack.enter_context(contextlib.closing(reserve_pages(-missing)))
        yield


@contextlib.contextmanager
def cgroup(mount, file_name, limit):
    """Make a cgroup with that limit, in bytes.

    The block gets what to put before a command to run it in the cgroup.
    """
    require_write_access(mount)
    group = tempfile.mkdtemp(prefix='test_pymalloc_hugepages_', dir=mount)
    with undo_at_exit('rmdir "$1"', group):
        with open(f'{group}/{file_name}', 'w') as file:
            file.write(str(limit))
        yield ['/bin/sh', '-c',
               f'echo $$ > {group}/cgroup.procs && exec "$0" "$@"']


def cgroup_mounts():
    """Return (path, options) of the mounts of each version of cgroups."""
    mounts = {'cgroup': [], 'cgroup2': []}
    with open('/proc/self/mountinfo') as file:
        for line in file:
            kind, _, options = line.partition(' - ')[2].split(maxsplit=2)
            if kind in mounts:
                mounts[kind].append((line.split()[4],
                                     options.strip().split(',')))
    return mounts['cgroup'], mounts['cgroup2']


@contextlib.contextmanager
def hugetlb_cgroup(limit):
    """Make a cgroup with a limit on huge pages of 2 MiB: see cgroup()."""
    for mount, _ in cgroup_mounts()[1]:
        if 'hugetlb' in read_line(f'{mount}/cgroup.controllers').split():
            break
    else:
        raise unittest.SkipTest('no cgroup2 with the hugetlb controller')
    subtree = f'{mount}/cgroup.subtree_control'
    require_write_access(subtree)
    with contextlib.ExitStack() as stack:
        if 'hugetlb' not in read_line(subtree).split():
            stack.enter_context(undo_at_exit('echo -hugetlb > "$1"', subtree))
            write_or_skip(subtree, '+hugetlb')
        yield stack.enter_context(cgroup(mount, 'hugetlb.2MB.max', limit))


def memory_cgroup(limit):
    """Make a cgroup with a limit on memory: see cgroup()."""
    first, second = cgroup_mounts()
    for mount, options in first:
        if 'memory' in options:
            return cgroup(mount, 'memory.limit_in_bytes', limit)
    for mount, _ in second:
        if 'memory' in read_line(f'{mount}/cgroup.subtree_control').split():
            return cgroup(mount, 'memory.max', limit)
    raise unittest.SkipTest('no cgroup with the memory controller')


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
        # The address space on each tier.
        self.sizes = collections.Counter()
        for region in self.regions:
            self.sizes[region.tier] += region.end - region.start
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


# What the code of each interpreter begins with.
FILL = '''
def fill(arenas):
    # An object of 950 bytes takes a block of 992: 16 blocks in a pool of
    # 16 KiB, 128 pools in an arena.
    return [bytes(950) for _ in range(arenas * 128 * 16)]

def intact(objects):
    return objects.count(bytes(bytearray(950))) == len(objects)
'''

# What the scripts of child processes begin with.
CHILD = f'''
import json, os, sys, textwrap, time, warnings
from threading import Thread

# Many tests fork while threads run.
warnings.simplefilter('ignore', DeprecationWarning)

if sys.version_info[:2] == (3, 12):
    # Its module of interpreters has other names.
    import types, _xxsubinterpreters
    sys.modules['_interpreters'] = types.SimpleNamespace(
        create=lambda kind='isolated': _xxsubinterpreters.create(
            isolated=kind == 'isolated'),
        exec=_xxsubinterpreters.run_string,
        destroy=_xxsubinterpreters.destroy)

FILL = {FILL!r}
exec(FILL)
fill_arenas = fill
in_first_arenas = []

def fill(arenas):
    """Return new objects that fill at least that many arenas, after the first
    ones, which are plain memory until another is needed."""
    if not in_first_arenas:
        in_first_arenas.extend(fill_arenas({FIRST_ARENAS}))
    return fill_arenas(arenas)

def first_objects():
    """Return objects that were made while Python started."""
    namespace = vars(sys.modules['_frozen_importlib'])
    functions = [value for value in namespace.values()
                 if type(value) is type(fill)]
    assert len(functions) > 10
    return functions

def run_in(interp, code):
    """Run code in another interpreter, with fill() and intact()."""
    import _interpreters
    error = _interpreters.exec(interp, FILL + textwrap.dedent(code))
    assert error is None, error

def run_threads(*functions, meanwhile=None):
    """Run functions at the same time, and raise what one of them raises.

    Until all have returned, call the other one again and again."""
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(len(functions)) as executor:
        futures = [executor.submit(function) for function in functions]
        while meanwhile and not all(future.done() for future in futures):
            meanwhile()
        for future in futures:
            future.result()

def be_threaded():
    """Have another thread, so that a fork cannot move arenas."""
    Thread(target=time.sleep, args=(1000,), daemon=True).start()

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def fork_and_wait():
    """Have a child that ends at once, and return its exit status."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return wait(pid)

def read(path):
    with open(path) as file:
        return file.read()

def proc_status(*names, pid='self'):
    """Return fields of /proc/PID/status, in bytes."""
    fields = dict(line.split(':', 1)
                  for line in read(f'/proc/{{pid}}/status').splitlines())
    return [int(fields.get(name, '0').split()[0]) * 1024 for name in names]

def set_limit(name, more):
    """Have a limit this many bytes above what is used; None lifts it."""
    import resource
    field = {{'RLIMIT_AS': 'VmSize', 'RLIMIT_DATA': 'VmData'}}[name]
    number = getattr(resource, name)
    hard = resource.getrlimit(number)[1]
    most = hard if more is None else proc_status(field)[0] + more
    resource.setrlimit(number, (most, hard))

def available_pages():
    try:
        return (int(read('{HUGETLB_DIR}/free_hugepages'))
                - int(read('{HUGETLB_DIR}/resv_hugepages')))
    except FileNotFoundError:
        return 0

def report(objects=(), other_pids=(), addresses=()):
    """Tell what this process has, and what is under some objects, and under
    other addresses."""
    # Reading takes memory, which is there the second time: nothing is mapped
    # between this and the look at the pool.
    smaps = read('/proc/self/smaps')
    smaps = read('/proc/self/smaps')
    pages = [proc_status('HugetlbPages', pid=pid)[0] // {HUGE_PAGE}
             for pid in other_pids]
    print(json.dumps({{'pid': os.getpid(),
                       'other_pages': sum(pages),
                       'available': available_pages(),
                       'smaps': smaps,
                       'stats': sys._pymalloc_hugepages(),
                       'objects': [*map(id, objects), *addresses]}}),
          flush=True)

'''


def child_args(switch, script, *options):
    """Arguments for a child process with that switch."""
    return ['-X', f'pymalloc_hugepages={switch}', *options,
            '-c', CHILD + textwrap.dedent(script)]


def child_command(switch, script):
    return [sys.executable, '-I', *child_args(switch, script)]


def snapshots(out):
    return [Snapshot(line) for line in out.splitlines()]


@support.requires_subprocess()
class ChildTestCase(unittest.TestCase):

    def setUp(self):
        # Settings of the tests' own process must not change the children.
        env = self.enterContext(os_helper.EnvironmentVarGuard())
        for name in (ENV_VAR, f'{ENV_VAR}_STATS', 'PYTHONMALLOC',
                     'PYTHONMALLOCSTATS', 'PYTHONTRACEMALLOC',
                     'PYTHONDEVMODE'):
            env.unset(name)

    def run_python(self, *args, wrapper=(), status=0, err='', isolated=None,
                   **env_vars):
        """Return (stdout, stderr) of a process that must end with the status.

        Its stderr must match the regular expression.  Without a variable for
        its environment the process ignores all of them, by -I.
        """
        ignores_all = not env_vars and not interpreter_requires_environment()
        if isolated is None:
            isolated = ignores_all
        option = ['-I'] if isolated else ['-E'] if ignores_all else []
        # As test.support.script_helper does it, which has no wrapper in each
        # series of Python.
        result = subprocess.run(
            [*wrapper, sys.executable, '-X', 'faulthandler', *option, *args],
            env=os.environ | {'TERM': ''} | env_vars, input=b'',
            capture_output=True)
        out = result.stdout.decode()
        text = result.stderr.decode(errors='replace')
        self.assertEqual(result.returncode, status, text)
        self.assertRegex(text, rf'(?s)\A(?:{err})\Z')
        return out, text

    def run_child(self, switch, script, *options, pool=None, **kwargs):
        """Run the script and return the snapshots that it reports.

        With a pool this is done by run_with_pool().
        """
        if pool is not None:
            return self.run_with_pool(pool, self.run_child, switch, script,
                                      *options, **kwargs)
        out, _ = self.run_python(*child_args(switch, script, *options),
                                 **kwargs)
        return snapshots(out)


@requires_hugepages_build
@unittest.skipUnless(sys.platform == 'linux', 'needs Linux')
class HugePagesTestCase(ChildTestCase):

    def run_with_pool(self, pages, run, *args, compare=True, **kwargs):
        """Call run() while exactly that many pages are available.

        Return what it returns, if all of them are back then.  If these are
        snapshots, the child and the other processes that it names must have
        had, at that moment, the pages that were missing from the pool.  If
        not so, another process may have used the pool, and the call is
        repeated.
        """
        for pause in (0, .1, .2, .4, .8, *[1] * 9):
            time.sleep(pause)
            with hugetlb_pool(pages):
                result = run(*args, **kwargs)
                left = available_pages()
            shown = result if compare and isinstance(result, list) else []
            taken = [snapshot.hugetlb_pages + snapshot.other_pages
                     for snapshot in shown]
            missing = [pages - snapshot.available for snapshot in shown]
            if left == pages and taken == missing:
                return result
        self.fail(f'{left} pages were left in a pool of {pages}, and the '
                  f'child had {taken} pages while {missing} were missing, '
                  f'unless other processes use the pool all the time')
