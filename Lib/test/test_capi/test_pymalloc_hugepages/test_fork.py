"""fork(): see fork_support."""

import re
import subprocess
import textwrap
from test import support
from test.support import import_helper, os_helper
from test.support.script_helper import make_script
from .support import (
    CHILD, child_command, each, hugetlb_pool, lock_settings,
    require_interpreters, snapshots, strace_command, thp_mode)
from .fork_support import (
    AMPLE_POOL, ARENAS, COPIED, MOVED, NO_POOL, OBJECTS, ON_PLAIN, OS_FORK,
    POOLS, THREADED_OS_FORK, ForkTestCase, fork_script)

setUpModule = lock_settings


class WaysToForkTests(ForkTestCase):
    """Parent and child write to all of their objects, and lose nothing."""

    @each('parent_first', [True, False])
    @each('way, rest', [(OS_FORK, MOVED), (THREADED_OS_FORK, COPIED)])
    def test_os_fork(self, parent_first, way, rest):
        # With the small pool no page is left for the child, and the parent
        # writes at once.
        self.check_way(way, parent_first=parent_first, rest=rest)

    @each('parent_first', [True, False])
    @each('switch, mode', [('hugetlb', 'madvise'), ('on', 'never')])
    def test_no_thp(self, parent_first, switch, mode):
        self.check_way(OS_FORK, parent_first=parent_first, switch=switch,
                       mode=mode, rest=ON_PLAIN)

    @each('switch, tier', [('thp', 'thp'), ('off', 'plain')])
    @thp_mode('madvise')
    def test_switched_off(self, switch, tier):
        before, child, after = self.run_child(switch, fork_script(OS_FORK),
                                              pool=AMPLE_POOL)
        self.assertEqual(before.tiers, {tier})
        for snapshot in child, after:
            self.assertEqual(snapshot.hugetlb_pages, 0)
            self.assertEqual(snapshot.tiers, {ON_PLAIN[tier]})

    def test_thread(self):
        self.check_way('''
            def fork():
                global status
                pid = os.fork()
                if pid == 0:
                    leave(child)
                parent()
                status = wait(pid)

            run_threads(fork)
        ''', rest=COPIED)

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
        self.check_way('import ctypes\n' + OS_FORK.replace(
            'os.fork()', 'ctypes.PyDLL(None).fork()'))

    @each('pool', POOLS)
    @thp_mode('madvise')
    def test_forkserver(self, pool):
        # The server has the objects, and its children check them.
        support.skip_if_broken_multiprocessing_synchronize()
        directory = self.enterContext(os_helper.temp_dir())
        module = '\n'.join(['parent_first = False', CHILD, OBJECTS])
        make_script(directory, 'forkserver_objects', module)
        children = self.run_child('on', '''
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
        ''', pool=pool, PYTHONPATH=directory)
        self.assertEqual(len(children), 2)
        for child in children:
            self.assertEqual(child.tiers, {'unadvised'})

    @each('pool', POOLS)
    @each('threaded', ['', 'be_threaded()'])
    @thp_mode('madvise')
    def test_forked_child_forks(self, pool, threaded):
        before, grandchild, child, after = self.run_child(
            'on', fork_script(f'''
                {threaded}
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
            '''), pool=pool)
        # The child has one thread, and shares what it has.
        for snapshot in grandchild, child:
            self.assertEqual(snapshot.tiers, {'unadvised'})
        self.assertEqual(after.hugetlb_pages > 0, bool(threaded and pool))

    @each('pool', POOLS)
    @each('threaded', ['', 'be_threaded()'])
    @thp_mode('madvise')
    def test_many_children_at_once(self, pool, threaded):
        # The parent writes between the forks, and copies are made each time
        # if it has another thread.
        script = fork_script(f'''
            {threaded}
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
        ''').replace('report(objects[::50], family())', '')
        self.run_child('on', script, pool=pool)

    @each('pool', POOLS)
    def test_subinterpreter(self, pool):
        # CPython itself ends the child of a subinterpreter's fork: it is not
        # the main interpreter.  The parent must not suffer.
        require_interpreters()
        script = '''
            import _interpreters
            objects = fill(10)
            interp = _interpreters.create('legacy')
            run_in(interp, """
                import os
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                assert status == 1, status
            """)
            _interpreters.destroy(interp)
            assert intact(objects)
            report(objects[::50])
        '''

        def run():
            # Not with -X faulthandler, which makes stock CPython crash here.
            result = subprocess.run(child_command('on', script), text=True,
                                    capture_output=True)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn('not main interpreter', result.stderr)
            return snapshots(result.stdout)

        self.run_with_pool(pool, run)

    @each('pool', POOLS)
    def test_signals_are_not_lost(self, pool):
        # They are blocked during a fork, and come afterwards.
        self.run_child('on', fork_script('''
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
        '''), pool=pool)


class SharingTests(ForkTestCase):
    """Parent and child share what neither of them writes to."""

    @each('pool', [NO_POOL, AMPLE_POOL])
    @each('threaded', ['', 'be_threaded()'])
    @thp_mode('madvise')
    def test_advice(self, pool, threaded):
        # khugepaged leaves alone what both have, or it would copy it.  What is
        # mapped later may be on huge pages, but those of the pool come last.
        before, *child, parent, parent_more = self.run_child(
            'on', OBJECTS + textwrap.dedent(f'''
                {threaded}
                report(objects[::50])
                pid = os.fork()
                if pid:
                    assert wait(pid) == 0
                report(objects[::50], family())
                more = fill(8)
                report(more[::50], family())
                if pid == 0:
                    os._exit(0)
            '''), pool=pool)
        rest = COPIED if threaded else MOVED
        self.check_family(pool, before, child[0], parent, rest)
        for first, then in child, (parent, parent_more):
            self.assertGreaterEqual(then.arenas_on('thp'), 5)
            self.assertEqual(then.stats['hugetlb']['ever'],
                             first.stats['hugetlb']['ever'])

    def test_neighbours_at_once(self):
        # The kernel hands out neighbouring addresses, but for a few.
        log = self.enterContext(os_helper.temp_dir()) + '/log'
        script = 'objects = fill(50); fork_and_wait()'
        with hugetlb_pool(NO_POOL):
            subprocess.run([*strace_command(), '-f', '-o', log,
                            '-e', 'trace=madvise',
                            *child_command('thp', script)], check=True)
        with open(log) as file:
            calls = re.findall('MADV_NOHUGEPAGE', file.read())
        self.assertIn(len(calls), range(1, 6))

    @thp_mode('madvise')
    def test_workers(self):
        # A parent on pages of the pool and its four children together have
        # little more memory than it had alone.  Forks after the first one
        # copy nothing.
        self.run_child('on', OBJECTS + textwrap.dedent('''
            def memory(pid):
                fields = dict(line.split(':', 1) for line in
                              read(f'/proc/{pid}/smaps_rollup').splitlines()
                              if line.endswith(' kB'))
                return sum(int(fields[name].split()[0]) for name in
                           ('Pss', 'Private_Hugetlb', 'Shared_Hugetlb'))

            def arenas():
                return [sys._pymalloc_hugepages()[kind]['ever']
                        for kind in ('hugetlb', 'thp', 'plain')]

            more_objects = make(22, 5)
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
        '''), pool=48)


class CostTests(ForkTestCase):
    """A process whose arenas need nothing pays nothing."""

    SCRIPT = textwrap.dedent(f'''
        import subprocess
        objects = fill({ARENAS})
        # Once before, so that what is done once has been done.
        for mark in '/before', '/begin':
            os.path.exists(mark)
            run()
            os.path.exists('/end')
    ''')

    FORK = 'run = fork_and_wait'
    SUBPROCESS = ("run = lambda: "
                  "subprocess.call(['/bin/true'], close_fds=False)")
    POSIX_SPAWN = ("run = lambda: "
                   "wait(os.posix_spawn('/bin/true', ['true'], {}))")

    def system_calls(self, switch, way):
        """Return the calls from the second run to its end, by their names."""
        log = self.enterContext(os_helper.temp_dir()) + '/log'
        command = child_command(switch, f'{way}\n{self.SCRIPT}')
        subprocess.run([*strace_command(), '-o', log, *command], check=True)
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

    @each('way', [SUBPROCESS, POSIX_SPAWN])
    def test_vfork_and_posix_spawn(self, way):
        with hugetlb_pool(AMPLE_POOL):
            expected = self.system_calls('off', way)
            self.assertIn('wait4', expected)
            self.assertEqual(self.system_calls('on', way), expected)

    def test_second_fork(self):
        # The first one has moved the arenas.
        with hugetlb_pool(AMPLE_POOL):
            expected = self.system_calls('off', self.FORK)
            self.assertEqual(self.system_calls('on', self.FORK), expected)
            # Had it a cost, it would show.
            self.assertNotEqual(self.system_calls('hugetlb', self.FORK),
                                expected)
