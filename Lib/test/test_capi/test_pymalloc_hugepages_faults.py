"""Tests for --with-pymalloc-hugepages: system calls that fail.

A script fills and frees arenas and forks, with one thread and with two; one of
its system calls, or all of one kind from some moment on, are made to fail by
strace.  Whatever fails, the script must come to the right answer, or to a
MemoryError, or, in the child of the fork, exit with one line of explanation.
It must never be ended by a signal, nor lose a page of the pool.

With the "cpu" resource ("python -m test -u cpu") each call of the script is
made to fail in turn, which takes ten minutes, else some of them.
"""

import collections
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import unittest
from test import support
from test.test_capi import hugepages_support
from test.test_capi.hugepages_support import (
    HugePagesTestCase, requires_hugepages_build, requires_linux)


setUpModule = hugepages_support.lock_settings

# The exit statuses of the script.
RIGHT, WRONG, NO_MEMORY, CHILD_SIGNALED = 0, 66, 77, 67

# With the arenas of its start the script fills more than 50, on all tiers.
POOL = 25

SCRIPT = '''
    import os, sys, threading, time, warnings

    # A fork with two threads.
    warnings.simplefilter('ignore', DeprecationWarning)

    CONTENTS = [bytes([i]) * 400 for i in range(256)]

    def fill(arenas):
        # 36 objects of 448 bytes to a pool of 16 KiB, 128 pools to an arena.
        return [bytes(bytearray(CONTENTS[i % 256]))
                for i in range(arenas * 128 * 36)]

    def check(objects):
        return all(obj == CONTENTS[i % 256] for i, obj in enumerate(objects))

    def check_figures():
        stats = sys._pymalloc_hugepages()
        return all(0 <= stats[kind]['now'] <= stats[kind]['peak'] < 10_000
                   for kind in ('hugetlb', 'thp', 'plain', 'retained'))

    def run():
        objects = fill(30)
        freed = fill(15)
        right = check(freed)
        del freed
        pid = os.fork()
        if pid == 0:
            try:
                right = right and check(objects)
                more = fill(5)
                right = right and check_figures()
                os._exit(RIGHT if right and check(more) and check(objects)
                         else WRONG)
            except MemoryError:
                os._exit(NO_MEMORY)
        try:
            more = fill(5)
            right = right and check(more) and check(objects)
            right = right and check_figures()
        finally:
            status = os.waitpid(pid, 0)[1]
        if not right:
            return WRONG
        if os.WIFSIGNALED(status):
            return CHILD_SIGNALED
        return os.WEXITSTATUS(status)

    if sys.argv[1] == '2':
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()

    # From here on strace looks on.
    print(flush=True)
    input()
    try:
        status = run()
    except MemoryError:
        status = NO_MEMORY
    os._exit(status)
'''
for name in 'RIGHT', 'WRONG', 'NO_MEMORY', 'CHILD_SIGNALED':
    SCRIPT = re.sub(rf'\b{name}\b', str(globals()[name]), SCRIPT)

MESSAGE = b'Fatal Python error: a forked process has no memory'


@support.requires_subprocess()
@requires_hugepages_build
@requires_linux
class FaultTests(HugePagesTestCase):

    def setUp(self):
        super().setUp()
        if shutil.which('strace') is None:
            self.skipTest('needs strace')
        directory = self.enterContext(tempfile.TemporaryDirectory())
        self.log = os.path.join(directory, 'strace.log')

    def strace(self, threads, *options):
        """Run the script and return (exit status, stderr).

        No page of the pool may be lost.
        """
        return self.run_leaving_pool(POOL, self.run_script, threads, *options)

    def run_script(self, threads, *options):
        python = subprocess.Popen(
            [sys.executable, '-I', '-c', textwrap.dedent(SCRIPT),
             str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE)
        with python:
            python.stdout.readline()
            # Attached to a process that has started, it counts the calls of
            # the script only.
            strace = subprocess.Popen(
                ['strace', '-f', '-o', self.log, *options,
                 '-p', str(python.pid)], stderr=subprocess.PIPE)
            with strace:
                line = strace.stderr.readline()
                if b'attached' not in line:
                    python.kill()
                    self.skipTest(f'strace cannot be used: {line!r}')
                err = python.communicate(b'\n', support.LONG_TIMEOUT)[1]
                strace.stderr.read()
        return python.returncode, err

    def calls(self, name, threads):
        """Return how often the script makes a call, before and after the fork,
        or in the child, whose calls strace counts anew."""
        self.assertEqual(self.strace(threads, '-e', f'trace={name}'),
                         (RIGHT, b''))
        counts = collections.Counter()
        with open(self.log) as file:
            for line in file:
                if f' {name}(' in line:
                    counts[line.split()[0]] += 1
        return max(counts.values(), default=0)

    def check(self, name, threads, fault, statuses):
        with self.subTest(call=name, threads=threads, fault=fault):
            status, err = self.strace(threads, '-e', f'trace={name}',
                                      '-e', f'inject={name}:{fault}')
            self.assertIn(status, statuses, err)
            if status == 1:
                self.assertTrue(err.startswith(MESSAGE), err)
                self.assertEqual(err.count(b'\n'), 1, err)
            else:
                self.assertEqual(err, b'')

    def check_each(self, name, errors):
        for threads in 1, 2:
            count = self.calls(name, threads)
            self.assertGreater(count, 0)
            numbers = range(1, count + 1)
            if 'cpu' not in (support.use_resources or ()):
                # The first and last calls, and some between.
                step = max(1, count // 8)
                numbers = sorted({*numbers[:3], *numbers[::step],
                                  *numbers[-3:]})
            for number in numbers:
                for error in errors:
                    # A child of two threads needs its copies.
                    self.check(name, threads, f'error={error}:when={number}',
                               (RIGHT, NO_MEMORY, 1)[:1 + threads])
            # From some call on all of them fail.
            for number in numbers[0], numbers[len(numbers) // 2], numbers[-1]:
                self.check(name, threads, f'error={errors[0]}:when={number}+',
                           (RIGHT, NO_MEMORY, 1))

    def test_mmap(self):
        self.check_each('mmap', ['ENOMEM'])

    def test_munmap(self):
        self.check_each('munmap', ['ENOMEM'])

    def test_madvise(self):
        self.check_each('madvise', ['EINVAL', 'EFAULT'])

    def test_mremap(self):
        self.check_each('mremap', ['ENOMEM'])

    def test_forbidden(self):
        # As by a seccomp filter, or without /proc and /sys.
        for threads in 1, 2:
            for name in 'madvise', 'mremap', '/stat', 'openat':
                for error in 'EPERM', 'ENOSYS':
                    self.check(name, threads, f'error={error}', (RIGHT,))

    def test_prctl(self):
        # Called once, when the interpreter starts.
        for error in 'EINVAL', 'EPERM', 'ENOSYS':
            with self.subTest(error=error):
                result = self.run_leaving_pool(
                    POOL, subprocess.run,
                    ['strace', '-f', '-o', self.log, '-e', 'trace=prctl',
                     '-e', f'inject=prctl:error={error}', sys.executable,
                     '-I', '-c', textwrap.dedent(SCRIPT), '1'],
                    input=b'\n', capture_output=True)
                self.assertEqual(result.returncode, RIGHT, result.stderr)
                with open(self.log) as file:
                    self.assertIn('PR_GET_THP_DISABLE', file.read())


if __name__ == '__main__':
    unittest.main()
