"""System calls that fail.

A script fills and frees arenas and forks, with one thread and with two.
strace makes each of its system calls fail in turn, and all of one kind from
some moment on.  Whatever fails, the script must come to the right answer, or
to a MemoryError, or, in the child of the fork, exit with one line of
explanation.  No signal may end it, and it must lose no page of the pool.
"""

import collections
import os
import subprocess
import textwrap
from test import support
from test.support import os_helper
from .support import (
    HugePagesTestCase, child_command, each, lock_settings, strace_command)
from .fork_support import CONTENT, MESSAGE_LINE

setUpModule = lock_settings

# The exit statuses of the script that are not Python's own.
NO_MEMORY, CHILD_SIGNALED = 77, 67

# The script fills more than twice as many arenas, on all tiers.
POOL = 6

SCRIPT = CONTENT + textwrap.dedent(f'''
    def go_on(objects):
        more = make(3)
        check(objects)
        check(more)
        stats = sys._pymalloc_hugepages()
        for kind in 'hugetlb', 'thp', 'plain', 'retained':
            assert 0 <= stats[kind]['now'] <= stats[kind]['peak'] < 10_000

    def run():
        objects = make(8)
        freed = make(6)
        check(freed)
        del freed
        pid = os.fork()
        if pid == 0:
            try:
                go_on(objects)
                os._exit(0)
            except MemoryError:
                os._exit({NO_MEMORY})
        try:
            go_on(objects)
        finally:
            code = wait(pid)
        return {CHILD_SIGNALED} if code < 0 else code

    # From here on strace looks on.
    print(flush=True)
    input()
    try:
        code = run()
    except MemoryError:
        code = {NO_MEMORY}
    os._exit(code)
''')

each_threads = each('threads', [1, 2])


class FaultTests(HugePagesTestCase):

    def setUp(self):
        super().setUp()
        # The script and strace take turns.  On one processor that is fast; to
        # wake another one takes a virtual machine longer than the call.
        processors = os.sched_getaffinity(0)
        self.addCleanup(os.sched_setaffinity, 0, processors)
        os.sched_setaffinity(0, {min(processors)})
        self.log = self.enterContext(os_helper.temp_dir()) + '/log'
        self.strace = [*strace_command(), '-f', '-o', self.log]

    def run_script(self, threads, *options):
        """Run the script and return (exit status, stderr)."""
        before = 'be_threaded()\n' if threads == 2 else ''
        python = subprocess.Popen(
            child_command('on', before + SCRIPT),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)
        with python:
            python.stdout.readline()
            # Attached to a process that has started, it counts the calls of
            # the script only.
            strace = subprocess.Popen(
                [*self.strace, *options, '-p', str(python.pid)],
                stderr=subprocess.PIPE, text=True)
            with strace:
                line = strace.stderr.readline()
                if 'attached' not in line:
                    python.kill()
                    self.skipTest(f'strace cannot be used: {line!r}')
                _, err = python.communicate('\n', support.LONG_TIMEOUT)
                strace.stderr.read()
        return python.returncode, err

    def calls(self, name, threads):
        """Return how often the script makes a call, before and after the fork,
        or in the child, whose calls strace counts from one."""
        result = self.run_with_pool(POOL, self.run_script, threads,
                                    '-e', f'trace={name}')
        self.assertEqual(result, (0, ''))
        counts = collections.Counter()
        with open(self.log) as file:
            for line in file:
                if f' {name}(' in line:
                    counts[line.split()[0]] += 1
        return max(counts.values(), default=0)

    def check(self, name, threads, fault, statuses):
        with self.subTest(call=name, threads=threads, fault=fault):
            status, err = self.run_with_pool(
                POOL, self.run_script, threads, '-e', f'trace={name}',
                '-e', f'inject={name}:{fault}')
            self.assertIn(status, statuses, err)
            self.assertRegex(
                err, rf'\A{MESSAGE_LINE if status == 1 else ""}\Z')

    @each_threads
    @each('name, errors', [('mmap', ['ENOMEM']), ('munmap', ['ENOMEM']),
                           ('madvise', ['EINVAL', 'EFAULT']),
                           ('mremap', ['ENOMEM'])])
    def test_each_call(self, threads, name, errors):
        count = self.calls(name, threads)
        self.assertGreater(count, 0)
        for number in range(1, count + 1):
            for error in errors:
                # A child of two threads needs its copies.
                self.check(name, threads, f'error={error}:when={number}',
                           (0, NO_MEMORY, 1)[:1 + threads])
        # From some call on all of them fail.
        for number in 1, (count + 1) // 2, count:
            self.check(name, threads, f'error={errors[0]}:when={number}+',
                       (0, NO_MEMORY, 1))

    @each_threads
    @each('name', ['madvise', 'mremap', '/stat', 'openat'])
    @each('error', ['EPERM', 'ENOSYS'])
    def test_forbidden(self, threads, name, error):
        # As by a seccomp filter, or without /proc and /sys.
        self.check(name, threads, f'error={error}', (0,))

    @each('error', ['EINVAL', 'EPERM', 'ENOSYS'])
    def test_prctl(self, error):
        # Called once, when the interpreter starts.
        result = self.run_with_pool(
            POOL, subprocess.run,
            [*self.strace, '-e', 'trace=prctl', '-e',
             f'inject=prctl:error={error}', *child_command('on', SCRIPT)],
            input=b'\n', capture_output=True)
        self.assertEqual(result.returncode, 0, result.stderr)
        with open(self.log) as file:
            self.assertIn('PR_GET_THP_DISABLE', file.read())
