"""Tests for --with-pymalloc-hugepages: fork().

A page of the pool belongs to the process that got it.  After a plain fork()
with an empty pool, a child that writes is ended by SIGBUS, and a parent that
writes first takes the page away from the child.  So a child makes its arenas
its own: on pages of the pool as long as there are any, then on other pages.
"""

import contextlib
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

# Pools in which parents find nothing, too little for themselves, enough for
# themselves but not for a child too, and enough for three generations.
NO_POOL, TINY_POOL, SHORT_POOL, AMPLE_POOL = POOLS = (0, 4, 24, 100)

MESSAGE = (b'Fatal Python error: a forked process cannot make the huge pages '
           b'of its parent its own: ')

# What the scripts begin with, each with a parent_first of its own.
OBJECTS = f'''
import os, signal, traceback, warnings
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

    def check_own_pages(self, snapshot):
        # No page is shared, and none is still to be faulted in.
        mapped = sum(region.end - region.start for region in snapshot.regions
                     if region.tier == 'hugetlb')
        self.assertEqual(mapped, snapshot.hugetlb_pages * HUGE_PAGE)

    def check_child(self, pool, parent, child, rest='thp'):
        """Check what a child sits on whose parent has reported before."""
        self.check_own_pages(parent)
        self.check_own_pages(child)
        if pool == NO_POOL:
            self.assertEqual(parent.hugetlb_pages, 0)
            self.assertEqual(child.tiers, {rest})
        elif pool == TINY_POOL:
            self.assertEqual(parent.hugetlb_pages, pool)
            self.assertEqual(child.tiers, {rest})
            self.assertEqual(child.hugetlb_pages, 0)
        elif pool == SHORT_POOL:
            self.assertEqual(parent.tiers, {'hugetlb'})
            self.assertGreater(child.hugetlb_pages, 0)
            self.assertLess(child.hugetlb_pages, parent.hugetlb_pages)
            self.assertLessEqual({rest}, child.tiers)
        else:
            self.assertEqual(child.tiers, {'hugetlb'})
            self.assertGreaterEqual(child.hugetlb_pages, ARENAS)

    def check_way(self, way, *, parent_first=True, switch='on', rest='thp',
                  pools=POOLS):
        with thp_mode('madvise'):
            for pool in pools:
                with self.subTest(pool=pool, parent_first=parent_first):
                    before, child, after = self.run_with_pool(
                        pool, self.run_child, switch,
                        self.script(way, parent_first))
                    self.assertNotEqual(child.pid, before.pid)
                    self.check_child(pool, before, child, rest)
                    self.check_own_pages(after)
                    self.assertGreaterEqual(after.hugetlb_pages,
                                            before.hugetlb_pages - 1)


class WaysToForkTests(ForkTestCase):
    """Parent and child write to all of their objects, and lose nothing."""

    def test_os_fork(self):
        self.check_way(OS_FORK)

    def test_os_fork_child_writes_first(self):
        self.check_way(OS_FORK, parent_first=False)

    def test_os_fork_without_thp(self):
        self.check_way(OS_FORK, switch='hugetlb', rest='plain')

    def test_switched_off(self):
        for switch, tier in ('thp', 'thp'), ('off', 'plain'):
            with self.subTest(switch=switch), thp_mode('madvise'):
                for snapshot in self.run_with_pool(
                        AMPLE_POOL, self.run_child, switch,
                        self.script(OS_FORK)):
                    self.assertEqual(snapshot.hugetlb_pages, 0)
                    self.assertEqual(snapshot.tiers, {tier})

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
        ''')

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
                    self.check_own_pages(child)
                    if pool == AMPLE_POOL:
                        self.assertEqual(child.tiers, {'hugetlb'})

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
                with self.subTest(pool=pool):
                    before, grandchild, child, after = self.run_with_pool(
                        pool, self.run_child, 'on', self.script(way))
                    self.check_child(pool, before, child)
                    self.check_own_pages(grandchild)
                    self.check_own_pages(after)
                    if pool == AMPLE_POOL:
                        self.assertEqual(grandchild.tiers, {'hugetlb'})

    def test_many_children_at_once(self):
        # They compete for the pool, and the parent writes between the forks.
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
        script = self.script(way).replace(
            'report(objects[::50], family())', '')
        with thp_mode('madvise'):
            for pool in (*POOLS, 2 * SHORT_POOL):
                with self.subTest(pool=pool):
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


class ChildInTroubleTests(ForkTestCase):
    """A child that dies or stops in fork() does not hold its parent."""

    def run_attached(self, way, faults, pool):
        """Run the script, under strace from when it is about to fork.

        Return its exit status, its stderr and what strace has written.
        """
        script = '\n'.join(['parent_first = False', OBJECTS, '''
print('ready', flush=True)
sys.stdin.readline()
''', textwrap.dedent(way), CLOSING.replace('report(objects[::50], family())',
                                           '')])
        log = self.enterContext(os_helper.temp_dir()) + '/log'

        def run():
            with contextlib.ExitStack() as stack:
                process = stack.enter_context(subprocess.Popen(
                    [sys.executable, *child_args('on', script)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, text=True))
                self.assertEqual(process.stdout.readline(), 'ready\n')
                tracer = stack.enter_context(subprocess.Popen(
                    [*strace_command(), '-f', '-o', log,
                     '-p', str(process.pid), *faults],
                    stderr=subprocess.PIPE, text=True))
                # "Process 42 attached" comes when it is so.
                self.assertIn('attached', tracer.stderr.readline())
                out, err = process.communicate('go\n')
                tracer.communicate()
            return process.returncode, err

        status, err = self.run_leaving_pool(pool, run)
        with open(log) as file:
            return status, err, file.read()

    def test_killed(self):
        # With no page left the child moves each arena, hence mremap().
        for number in 1, 3:
            with self.subTest(number=number):
                status, err, log = self.run_attached(
                    '''
                    pid = os.fork()
                    if pid == 0:
                        os._exit(0)
                    assert wait(pid) == -signal.SIGKILL
                    status = 0
                    ''',
                    ['-e', 'trace=mremap',
                     '-e', f'inject=mremap:signal=KILL:when={number}'],
                    TINY_POOL)
                self.assertEqual((status, err), (0, ''))
                self.assertIn('killed by SIGKILL', log)

    def test_stopped(self):
        # The parent goes on, writes, and lets the child go on, which then
        # still finds what was there at the fork.
        for number in 1, 3:
            with self.subTest(number=number):
                status, err, log = self.run_attached(
                    '''
                    pid = os.fork()
                    if pid == 0:
                        leave(check, objects)
                    change(objects, 3)
                    parent_first = True
                    assert os.waitpid(pid, os.WUNTRACED)[1] & 0xff == 0x7f
                    os.kill(pid, signal.SIGCONT)
                    status = wait(pid)
                    ''',
                    ['-e', 'trace=mremap',
                     '-e', f'inject=mremap:signal=STOP:when={number}'],
                    TINY_POOL)
                self.assertEqual((status, err), (0, ''))
                self.assertIn('stopped by SIGSTOP', log)

    def test_no_descriptors(self):
        # Parent and child have no pipe to talk over, but shared memory.
        import_helper.import_module('resource')
        way = '''
            import resource
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            pid = os.fork()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            if pid == 0:
                leave(child)
            parent()
            status = wait(pid)
        '''
        for parent_first in False, True:
            self.check_way(way, parent_first=parent_first)

    def check_no_memory(self, limit, field):
        import_helper.import_module('resource')
        script = '\n'.join(['parent_first = False', OBJECTS, f'''
import resource
with open('/proc/self/status') as file:
    for line in file:
        if line.startswith('{field}:'):
            used = int(line.split()[1]) * 1024
hard = resource.getrlimit(resource.{limit})[1]
resource.setrlimit(resource.{limit}, (used + 1024**2, hard))
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
        # The limit is charged when a page is faulted in: the child takes the
        # parent's share of it.
        way = OS_FORK
        with thp_mode('madvise'), hugetlb_cgroup(4 * HUGE_PAGE) as procs:
            join = ['/bin/sh', '-c', f'echo $$ > {procs} && exec "$0" "$@"']
            for parent_first in False, True:
                with self.subTest(parent_first=parent_first):
                    before, child, after = self.run_with_pool(
                        64, self.run_child, 'on',
                        self.script(way, parent_first),
                        __run_using_command=join, __isolated=True)
                    self.assertEqual(before.hugetlb_pages, 4)
                    self.check_child(TINY_POOL, before, child)

    def test_pool_shrinks(self):
        # The pool is made smaller while it is in use, and others take what
        # there is.
        way = f'''
            import mmap
            pool = {HUGETLB_DIR + '/nr_hugepages'!r}
            with open(pool) as file:
                size = file.read()
            with open(pool, 'w') as file:
                file.write('0')
            {textwrap.indent(OS_FORK, ' ' * 8).strip()}
            with open(pool, 'w') as file:
                file.write(size)
        '''
        if not os.access(HUGETLB_DIR + '/nr_hugepages',
                         os.W_OK):
            self.skipTest('needs root: cannot change the pool')
        for parent_first in False, True:
            with self.subTest(parent_first=parent_first):
                before, child, after = self.run_leaving_pool(
                    SHORT_POOL, self.run_child, 'on',
                    self.script(way, parent_first))
                self.check_own_pages(child)
                self.assertEqual(child.hugetlb_pages, 0)
                self.assertEqual(after.hugetlb_pages, before.hugetlb_pages)


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
            # Had it a cost, it would show.
            self.assertNotEqual(self.system_calls('on', self.FORK),
                                self.system_calls('off', self.FORK))


if __name__ == '__main__':
    unittest.main()
