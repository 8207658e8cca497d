"""Tests for --with-pymalloc-hugepages: fork().

A page of the pool belongs to the process that got it.  After a plain fork()
with an empty pool, a child that writes is ended by SIGBUS, and a parent that
writes first takes the page away from the child.  So no arena that a child uses
is on the pool: before the fork a process with one thread moves them to THP,
and where that is not possible the child gets copies.
"""

import os
import re
import subprocess
import sys
import textwrap
import unittest
from test import support
from test.support import import_helper, os_helper, threading_helper
from test.support.script_helper import make_script
from test.test_capi import hugepages_support
from test.test_capi.hugepages_support import (
    CHILD, FIRST_ARENAS, HUGE_PAGE, HUGETLB_DIR, HugePagesTestCase,
    child_args, hugetlb_cgroup, hugetlb_pool, requires_hugepages_build,
    requires_linux, snapshots, strace_command, thp_mode)


setUpModule = hugepages_support.lock_settings

# The arenas that a parent fills after the first ones, which are no pages of
# the pool.
ARENAS = 15

# Pools in which parents find nothing, too little, and enough.
NO_POOL, TINY_POOL, AMPLE_POOL = POOLS = (0, 4, ARENAS + 9)

MESSAGE = (b'Fatal Python error: a forked process has no memory for the huge '
           b'pages of its parent; ')

# What the scripts begin with, each with a parent_first of its own.
OBJECTS = f'''
import os, signal, time, traceback, warnings
from threading import Thread

# A fork while threads run is what some of the tests are for.
warnings.simplefilter('ignore', DeprecationWarning)

def content(seed, index):
    return b'%08d' % (1_000_000 * seed + index) * 50

def make(arenas, seed=0):
    """Return objects that fill about that many arenas."""
    # A bytearray takes a block of 64, and its buffer one of 416.
    return [bytearray(content(seed, i)) for i in range(arenas * 4300)]

def check(objects, seed=0):
    for i, obj in enumerate(objects):
        assert obj == content(seed, i), (i, bytes(obj[:16]))

def change(objects, seed):
    for i, obj in enumerate(objects):
        obj[:] = content(seed, i)

root = int(os.environ.get('TEST_ROOT', os.getpid()))

def family():
    """Return the processes that descend from the first one, without this."""
    parents = {{}}
    for name in filter(str.isdecimal, os.listdir('/proc')):
        try:
            with open(f'/proc/{{name}}/stat') as file:
                fields = file.read().rpartition(')')[2].split()
        except OSError:
            continue
        parents[int(name)] = int(fields[1])
    pids = {{root}}
    while more := {{pid for pid, parent in parents.items()
                   if parent in pids}} - pids:
        pids |= more
    return pids - {{os.getpid()}}

def leave(function, *args):
    """End this process after the function, with status 0 if it returns."""
    status = 1
    try:
        function(*args)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)

def be_threaded():
    """Have another thread, so that no arena can be moved."""
    Thread(target=time.sleep, args=(1000,), daemon=True).start()

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

parent_has_written, parent_writes = os.pipe()

def child():
    if parent_first:
        os.read(parent_has_written, 1)
    check(objects)
    check(in_first_arenas, 9)
    report(objects[::50], family())
    change(objects, 1)
    change(in_first_arenas, 1)
    more = make(3, 2)
    check(objects, 1)
    check(more, 2)

def parent():
    if parent_first:
        change(objects, 3)
        os.write(parent_writes, b'.')

# As a module this is for a fork server; the first process only names it.
named_only = os.environ.get('TEST_ROOT') == str(os.getpid())
in_first_arenas = [] if named_only else make({FIRST_ARENAS}, 9)
objects = [] if named_only else make({ARENAS})
'''

# What they end with: the parent has what it wrote, and can go on.
CLOSING = '''
assert status == 0, status
check(objects, 3 if parent_first else 0)
check(in_first_arenas, 9)
report(objects[::50], family())
change(objects, 4)
check(objects, 4)
'''

OS_FORK = '''
    pid = os.fork()
    if pid == 0:
        leave(child)
    parent()
    status = wait(pid)
'''


@support.requires_fork()
@support.requires_subprocess()
@requires_hugepages_build
@requires_linux
class ForkTestCase(HugePagesTestCase):

    def script(self, way, parent_first=True):
        return '\n'.join([f'parent_first = {parent_first}', OBJECTS,
                          'report(objects[::50])', textwrap.dedent(way),
                          CLOSING])

    # What the objects are on in the end that were on the pool, and on THP.
    MOVED = {'hugetlb': 'unadvised', 'thp': 'unadvised'}
    COPIED = {'hugetlb': 'thp', 'thp': 'unadvised'}
    ON_PLAIN = {'hugetlb': 'plain', 'thp': 'unadvised', 'plain': 'plain'}

    def check_family(self, pool, before, child, after, rest):
        self.assertNotEqual(child.pid, before.pid)
        if pool == AMPLE_POOL:
            self.assertEqual(before.tiers, {'hugetlb'})
        else:
            self.assertEqual(before.hugetlb_pages, pool)
        self.assertEqual(child.hugetlb_pages, 0)
        self.assertEqual(child.tiers, {rest[tier] for tier in before.tiers})
        if rest == self.MOVED:
            self.assertEqual(after.hugetlb_pages, 0)
            self.assertEqual(after.tiers, child.tiers)
        else:
            self.assertGreaterEqual(after.hugetlb_pages,
                                    before.hugetlb_pages - 1)

    def check_way(self, way, *, parent_first=True, switch='on', mode='madvise',
                  rest=None, pools=POOLS):
        with thp_mode(mode):
            for pool in pools:
                with self.subTest(pool=pool, parent_first=parent_first):
                    before, child, after = self.run_with_pool(
                        pool, self.run_child, switch,
                        self.script(way, parent_first))
                    self.check_family(pool, before, child, after,
                                      rest or self.MOVED)


class WaysToForkTests(ForkTestCase):
    """Parent and child write to all of their objects, and lose nothing."""

    def test_os_fork(self):
        self.check_way(OS_FORK)

    def test_os_fork_child_writes_first(self):
        self.check_way(OS_FORK, parent_first=False)

    @threading_helper.requires_working_threading()
    def test_other_threads(self):
        # With the small pool no page is left for the child, and the parent
        # writes at once.
        for parent_first in False, True:
            self.check_way('be_threaded()\n' + textwrap.dedent(OS_FORK),
                           parent_first=parent_first, rest=self.COPIED)

    def test_no_thp(self):
        for parent_first in False, True:
            for switch, mode in (('hugetlb', 'madvise'), ('on', 'never')):
                with self.subTest(switch=switch, mode=mode):
                    self.check_way(OS_FORK, parent_first=parent_first,
                                   switch=switch, mode=mode,
                                   rest=self.ON_PLAIN)

    def test_switched_off(self):
        for switch, tier in ('thp', 'thp'), ('off', 'plain'):
            with self.subTest(switch=switch), thp_mode('madvise'):
                before, child, after = self.run_with_pool(
                    AMPLE_POOL, self.run_child, switch, self.script(OS_FORK))
                self.assertEqual(before.tiers, {tier})
                for snapshot in child, after:
                    self.assertEqual(snapshot.hugetlb_pages, 0)
                    self.assertEqual(snapshot.tiers,
                                     {self.ON_PLAIN[tier]})

    @threading_helper.requires_working_threading()
    def test_thread(self):
        self.check_way('''
            def fork():
                global status
                pid = os.fork()
                if pid == 0:
                    leave(child)
                parent()
                status = wait(pid)

            thread = Thread(target=fork)
            thread.start()
            thread.join()
        ''', rest=self.COPIED)

    def test_multiprocessing_fork(self):
        self.check_way('''
            import multiprocessing
            process = multiprocessing.get_context('fork').Process(
                target=child)
            process.start()
            parent()
            process.join()
            status = process.exitcode
        ''')

    def test_preexec_fn(self):
        # The parent waits in Popen().
        self.check_way('''
            import subprocess
            status = subprocess.call(['/bin/true'], preexec_fn=child)
        ''', parent_first=False)

    def test_forkpty(self):
        self.check_way('''
            stdout = os.dup(1)
            pid, terminal = os.forkpty()
            if pid == 0:
                os.dup2(stdout, 1)
                leave(child)
            parent()
            try:
                while os.read(terminal, 1024):
                    pass
            except OSError:
                # The child was the last one that had the terminal open.
                pass
            status = wait(pid)
        ''')

    def test_extension(self):
        # PyDLL holds the GIL, as an extension or an embedder does that forks.
        import_helper.import_module('ctypes')
        self.check_way('''
            import ctypes
            libc = ctypes.PyDLL(None)
            ctypes.pythonapi.PyOS_BeforeFork()
            pid = libc.fork()
            if pid == 0:
                ctypes.pythonapi.PyOS_AfterFork_Child()
                leave(child)
            ctypes.pythonapi.PyOS_AfterFork_Parent()
            parent()
            status = wait(pid)
        ''')

    def test_extension_that_does_not_tell_python(self):
        import_helper.import_module('ctypes')
        self.check_way('''
            import ctypes
            pid = ctypes.PyDLL(None).fork()
            if pid == 0:
                leave(child)
            parent()
            status = wait(pid)
        ''')

    def test_forkserver(self):
        # The server has the objects, and its children check them.
        support.skip_if_broken_multiprocessing_synchronize()
        directory = self.enterContext(os_helper.temp_dir())
        module = '\n'.join(['parent_first = False', CHILD, OBJECTS])
        make_script(directory, 'forkserver_objects', module)
        script = '''
            import multiprocessing
            os.environ['TEST_ROOT'] = str(os.getpid())
            import forkserver_objects
            context = multiprocessing.get_context('forkserver')
            context.set_forkserver_preload(['forkserver_objects'])
            for _ in range(2):
                process = context.Process(target=forkserver_objects.child)
                process.start()
                process.join()
                assert process.exitcode == 0, process.exitcode
        '''
        for pool in POOLS:
            with self.subTest(pool=pool), thp_mode('madvise'):
                children = self.run_with_pool(
                    pool, self.run_child, 'on', script, PYTHONPATH=directory)
                self.assertEqual(len(children), 2)
                for child in children:
                    self.assertEqual(child.tiers, {'unadvised'})

    def test_forked_child_forks(self):
        way = '''
            pid = os.fork()
            if pid == 0:
                # A parent that writes: its child's pages must not be gone.
                pid = os.fork()
                if pid == 0:
                    leave(child)
                parent()
                status = wait(pid)
                assert status == 0, status
                check(objects, 3)
                report(objects[::50], family())
                os._exit(0)
            status = wait(pid)
            change(objects, 3)
        '''
        with thp_mode('madvise'):
            for pool in POOLS:
                for threaded in '', 'be_threaded()\n':
                    with self.subTest(pool=pool, threaded=threaded):
                        before, grandchild, child, after = self.run_with_pool(
                            pool, self.run_child, 'on',
                            self.script(threaded + textwrap.dedent(way)))
                        # The child has one thread, and shares what it has.
                        for snapshot in grandchild, child:
                            self.assertEqual(snapshot.tiers, {'unadvised'})
                        self.assertEqual(after.hugetlb_pages > 0,
                                         bool(threaded and pool))

    def test_many_children_at_once(self):
        # The parent writes between the forks, and copies are made each time
        # if it has another thread.
        way = '''
            pids = []
            for number in range(5):
                pid = os.fork()
                if pid == 0:
                    parent_first = False
                    if number:
                        change(objects, 0)
                    leave(child)
                pids.append(pid)
                change(objects, 3)
            status = any(list(map(wait, pids)))
        '''
        with thp_mode('madvise'):
            for threaded in '', 'be_threaded()\n':
                script = self.script(threaded + textwrap.dedent(way)).replace(
                    'report(objects[::50], family())', '')
                for pool in POOLS:
                    with self.subTest(pool=pool, threaded=threaded):
                        self.run_with_pool(pool, self.run_child, 'on', script)

    def test_subinterpreter(self):
        # The child of a subinterpreter's fork is ended by CPython itself: it
        # is not the main interpreter.  The parent must not suffer.
        import_helper.import_module('_interpreters')
        script = '''
            import _interpreters
            objects = fill(10)
            copies = [bytes(bytearray(obj)) for obj in objects]
            interp = _interpreters.create('legacy')
            error = _interpreters.exec(interp, """if 1:
                import os
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                assert status == 1, status
            """)
            assert error is None, error
            _interpreters.destroy(interp)
            assert objects == copies
            report(objects[::50])
        '''

        def run():
            result = subprocess.run(
                [sys.executable, *child_args('on', script)],
                capture_output=True, text=True)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn('not main interpreter', result.stderr)
            return snapshots(result.stdout)

        for pool in POOLS:
            with self.subTest(pool=pool):
                self.run_with_pool(pool, run)

    def test_signals_are_not_lost(self):
        # They are blocked during a fork, and come afterwards.
        way = '''
            import threading
            seen = []
            signal.signal(signal.SIGUSR1, lambda *args: seen.append(1))
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
            stop = threading.Event()
            def send():
                while not stop.is_set():
                    os.kill(os.getpid(), signal.SIGUSR1)
            thread = Thread(target=send)
            thread.start()
            pids = []
            for _ in range(10):
                pid = os.fork()
                if pid == 0:
                    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
                    new_mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
                    os._exit(new_mask != mask)
                pids.append(pid)
            stop.set()
            thread.join()
            status = any(list(map(wait, pids)))
            assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
            assert seen
            change(objects, 3)
        '''
        for pool in POOLS:
            with self.subTest(pool=pool):
                self.run_with_pool(pool, self.run_child, 'on',
                                   self.script(way))


class LimitTests(ForkTestCase):
    """A child for whose arenas there is no memory says so, and ends."""

    def check_no_memory(self, limit, field):
        import_helper.import_module('resource')
        script = '\n'.join(['parent_first = False', OBJECTS, f'''
import resource
be_threaded()
with open('/proc/self/status') as file:
    for line in file:
        if line.startswith('{field}:'):
            used = int(line.split()[1]) * 1024
hard = resource.getrlimit(resource.{limit})[1]
resource.setrlimit(resource.{limit}, (used + 3 * 1024**2, hard))
pid = os.fork()
if pid == 0:
    os._exit(0)
code = wait(pid)
resource.setrlimit(resource.{limit}, (hard, hard))
assert code == 1, code
check(objects)
change(objects, 1)
check(objects, 1)
report(objects[::50])
'''])

        def run():
            result = subprocess.run(
                [sys.executable, *child_args('on', script)],
                capture_output=True)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertTrue(result.stderr.startswith(MESSAGE), result.stderr)
            self.assertEqual(result.stderr.count(b'\n'), 1, result.stderr)
            return snapshots(result.stdout)

        for pool in TINY_POOL, AMPLE_POOL:
            with self.subTest(pool=pool):
                self.run_with_pool(pool, run)

    def test_address_space_limit(self):
        self.check_no_memory('RLIMIT_AS', 'VmSize')

    def test_data_limit(self):
        self.check_no_memory('RLIMIT_DATA', 'VmData')

    def test_cgroup_limit(self):
        # The pages are charged to the parent, and stay so.
        with thp_mode('madvise'), hugetlb_cgroup(4 * HUGE_PAGE) as procs:
            join = ['/bin/sh', '-c', f'echo $$ > {procs} && exec "$0" "$@"']
            for threaded, rest in ('', self.MOVED), ('be_threaded()\n',
                                                     self.COPIED):
                with self.subTest(threaded=threaded):
                    family = self.run_with_pool(
                        64, self.run_child, 'on',
                        self.script(threaded + textwrap.dedent(OS_FORK)),
                        __run_using_command=join, __isolated=True)
                    self.check_family(TINY_POOL, *family, rest)

    def test_pool_shrinks(self):
        # The pool is made smaller while it is in use, and others take what
        # there is.
        way = f'''
            be_threaded()
            pool = {HUGETLB_DIR + '/nr_hugepages'!r}
            with open(pool) as file:
                size = file.read()
            with open(pool, 'w') as file:
                file.write('0')
            {textwrap.indent(OS_FORK, ' ' * 8).strip()}
            with open(pool, 'w') as file:
                file.write(size)
        '''
        if not os.access(HUGETLB_DIR + '/nr_hugepages', os.W_OK):
            self.skipTest('needs root: cannot change the pool')
        for parent_first in False, True:
            with self.subTest(parent_first=parent_first), thp_mode('madvise'):
                before, child, after = self.run_leaving_pool(
                    AMPLE_POOL, self.run_child, 'on',
                    self.script(way, parent_first))
                self.check_family(AMPLE_POOL, before, child, after,
                                  self.COPIED)


class SharingTests(ForkTestCase):
    """Parent and child share what neither of them writes to."""

    def test_advice(self):
        # khugepaged leaves alone what both have, or it would copy it.  What is
        # mapped later may be on huge pages, but those of the pool come last.
        for pool in NO_POOL, AMPLE_POOL:
            for threaded in '', 'be_threaded()':
                script = '\n'.join([OBJECTS, threaded, textwrap.dedent('''
                    report(objects[::50])
                    pid = os.fork()
                    if pid:
                        assert wait(pid) == 0
                    report(objects[::50], family())
                    more = fill(8)
                    report(more[::50], family())
                    if pid == 0:
                        os._exit(0)
                ''')])
                with (self.subTest(pool=pool, threaded=threaded),
                      thp_mode('madvise')):
                    before, *child, parent, parent_more = self.run_with_pool(
                        pool, self.run_child, 'on', script)
                    rest = self.COPIED if threaded else self.MOVED
                    self.check_family(pool, before, child[0], parent, rest)
                    for first, then in child, (parent, parent_more):
                        self.assertGreaterEqual(then.arenas_on('thp'), 5)
                        self.assertEqual(then.stats['hugetlb']['ever'],
                                         first.stats['hugetlb']['ever'])

    def test_neighbours_at_once(self):
        # The kernel hands out neighbouring addresses, but for a few.
        log = self.enterContext(os_helper.temp_dir()) + '/log'
        script = '''
            objects = fill(50)
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        '''
        with hugetlb_pool(NO_POOL):
            subprocess.run([*strace_command(), '-f', '-o', log,
                            '-e', 'trace=madvise', sys.executable, '-I',
                            *child_args('thp', script)], check=True)
        with open(log) as file:
            calls = re.findall('MADV_NOHUGEPAGE', file.read())
        self.assertIn(len(calls), range(1, 6))

    def test_workers(self):
        # A parent on pages of the pool and its four children together have
        # little more memory than it had alone.  Forks after the first one
        # copy nothing.
        script = '\n'.join([OBJECTS, '''
def memory(pid):
    fields = {}
    with open(f'/proc/{pid}/smaps_rollup') as file:
        for line in file:
            name, _, value = line.partition(':')
            fields[name] = value
    return sum(int(fields[name].split()[0]) for name in
               ('Pss', 'Private_Hugetlb', 'Shared_Hugetlb')) // 1024

def arenas():
    return [sys._pymalloc_hugepages()[kind]['ever']
            for kind in ('hugetlb', 'thp', 'plain')]

more_objects = make(15, 5)
must_check, check_now = os.pipe()
figures = []

def work():
    # Also if the parent dies.
    os.close(check_now)
    os.read(must_check, 1)
    check(objects)
    check(more_objects, 5)

alone = memory(os.getpid())
pids = []
for number in range(4):
    pid = os.fork()
    if pid == 0:
        leave(work)
    pids.append(pid)
    figures.append(arenas())
assert figures[0] == figures[-1], figures
assert sys._pymalloc_hugepages()['hugetlb']['now'] == 0
together = sum(map(memory, [os.getpid(), *pids]))
change(objects, 3)
os.write(check_now, b'....')
assert list(map(wait, pids)) == [0] * 4
assert together < 1.5 * alone, (together, alone)
report()
'''])
        with thp_mode('madvise'):
            self.run_with_pool(2 * AMPLE_POOL, self.run_child, 'on', script)


class InterpretersTests(ForkTestCase):

    @threading_helper.requires_working_threading()
    def test_allocate_while_others_fork(self):
        # Interpreters with a GIL of their own map and unmap arenas while the
        # main one forks.  Its children run another program: CPython ends one
        # that goes on with several interpreters.
        import_helper.import_module('_interpreters')
        script = '''
            import _interpreters, subprocess, threading, time
            subprocess._USE_VFORK = subprocess._USE_POSIX_SPAWN = False

            work = """if 1:
                import time
                expected = bytes(bytearray(400))
                end = time.monotonic() + 2
                while time.monotonic() < end:
                    objects = [bytes(400) for _ in range(8 * 128 * 36)]
                    assert objects.count(expected) == len(objects)
                    del objects
            """
            errors = []

            def run():
                interp = _interpreters.create('isolated')
                error = _interpreters.exec(interp, work)
                if error is not None:
                    errors.append(error)
                _interpreters.destroy(interp)

            objects = fill(3)
            threads = [threading.Thread(target=run) for _ in range(2)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                assert subprocess.call(['/bin/true']) == 0
            for thread in threads:
                thread.join()
            assert not errors, errors
            assert objects.count(bytes(bytearray(400))) == len(objects)
            report(objects[::50])
        '''
        with thp_mode('madvise'):
            for switch, pool in (('hugetlb', 60), ('on', 60), ('on', 10),
                                 ('thp', 0)):
                with self.subTest(switch=switch, pool=pool):
                    self.run_with_pool(pool, self.run_child, switch, script)


class CostTests(ForkTestCase):
    """Who does not need it does not pay for it."""

    SCRIPT = f'''
        import subprocess
        objects = fill({ARENAS})
        # Once before, so that what is done once has been done.
        for mark in '/before', '/begin':
            os.path.exists(mark)
            run()
            os.path.exists('/end')
    '''

    FORK = '''
        def run():
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
    '''
    SUBPROCESS = '''
        def run():
            subprocess.call(['/bin/true'], close_fds=False)
    '''
    POSIX_SPAWN = '''
        def run():
            pid = os.posix_spawn('/bin/true', ['true'], {})
            os.waitpid(pid, 0)
    '''

    def system_calls(self, switch, way):
        """Return the calls from the second run to its end, by their names."""
        log = self.enterContext(os_helper.temp_dir()) + '/log'
        script = textwrap.dedent(way) + textwrap.dedent(self.SCRIPT)
        subprocess.run([*strace_command(), '-o', log, sys.executable, '-I',
                        *child_args(switch, script)], check=True)
        with open(log) as file:
            lines = file.read().split('"/begin"')[1].split('"/end"')[0]
        return re.findall(r'^(\w+)\(', lines, re.MULTILINE)

    def test_without_pages_of_the_pool(self):
        with hugetlb_pool(NO_POOL):
            expected = self.system_calls('off', self.FORK)
            self.assertIn('wait4', expected)
            for switch in 'on', 'hugetlb', 'thp':
                with self.subTest(switch=switch):
                    self.assertEqual(self.system_calls(switch, self.FORK),
                                     expected)

    def test_vfork_and_posix_spawn(self):
        with hugetlb_pool(AMPLE_POOL):
            for way in self.SUBPROCESS, self.POSIX_SPAWN:
                with self.subTest(way=way):
                    expected = self.system_calls('off', way)
                    self.assertIn('wait4', expected)
                    self.assertEqual(self.system_calls('on', way), expected)

    def test_second_fork(self):
        # The first one has moved the arenas.
        with hugetlb_pool(AMPLE_POOL):
            self.assertEqual(self.system_calls('on', self.FORK),
                             self.system_calls('off', self.FORK))
            # Had it a cost, it would show.
            self.assertNotEqual(self.system_calls('hugetlb', self.FORK),
                                self.system_calls('off', self.FORK))


if __name__ == '__main__':
    unittest.main()
