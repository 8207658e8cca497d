"""What the tests of fork() share: a family that writes to its objects.

A page of the pool belongs to the process that got it.  After a plain fork()
with an empty pool, SIGBUS ends a child that writes, and a parent that writes
first takes the page away from the child.  So no arena that a child uses is on
the pool: before the fork a process with one thread moves them to THP, and
where that is not possible the child gets copies.
"""

import textwrap
from .support import FIRST_ARENAS, HugePagesTestCase, each, thp_mode

# The arenas that a parent fills after the first ones, which are no pages of
# the pool.
ARENAS = 8

# Pools in which parents find nothing, too little, and enough.
NO_POOL, TINY_POOL, AMPLE_POOL = POOLS = (0, 4, ARENAS + 9)

# What a child says that has no memory: a regular expression.
MESSAGE_LINE = ('Fatal Python error: a forked process has no memory for the '
                'huge pages of its parent; [^\n]*\n')

# What the objects are on in the end that were on the pool, and on THP.
MOVED = {'hugetlb': 'unadvised', 'thp': 'unadvised'}
COPIED = {'hugetlb': 'thp', 'thp': 'unadvised'}
ON_PLAIN = {'hugetlb': 'plain', 'thp': 'unadvised', 'plain': 'plain'}

# Objects that each have a content of their own.
CONTENT = '''
def content(seed, index):
    return b'%08d' % (1_000_000 * seed + index) * 100

def make(arenas, seed=0):
    """Return objects that fill about that many arenas."""
    # A bytearray takes a block of 64, and its buffer one of 816.
    return [bytearray(content(seed, i)) for i in range(arenas * 2350)]

def check(objects, seed=0):
    for i, obj in enumerate(objects):
        assert obj == content(seed, i), (i, bytes(obj[:16]))

def change(objects, seed):
    for i, obj in enumerate(objects):
        obj[:] = content(seed, i)
'''

# What the scripts begin with, each with a parent_first of its own.
OBJECTS = CONTENT + f'''
import signal, traceback

root = int(os.environ.get('TEST_ROOT', os.getpid()))

def family():
    """Return the processes that descend from the first one, without this."""
    parents = {{}}
    for name in filter(str.isdecimal, os.listdir('/proc')):
        try:
            fields = read(f'/proc/{{name}}/stat').rpartition(')')[2].split()
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

THREADED_OS_FORK = 'be_threaded()\n' + OS_FORK


def fork_script(way, parent_first=True):
    return '\n'.join([f'parent_first = {parent_first}', OBJECTS,
                      'report(objects[::50])', textwrap.dedent(way), CLOSING])


class ForkTestCase(HugePagesTestCase):

    def check_family(self, pool, before, child, after, rest):
        self.assertNotEqual(child.pid, before.pid)
        if pool == AMPLE_POOL:
            self.assertEqual(before.tiers, {'hugetlb'})
        else:
            self.assertEqual(before.hugetlb_pages, pool)
        self.assertEqual(child.hugetlb_pages, 0)
        self.assertEqual(child.tiers, {rest[tier] for tier in before.tiers})
        if rest == MOVED:
            self.assertEqual(after.hugetlb_pages, 0)
            self.assertEqual(after.tiers, child.tiers)
        else:
            self.assertGreaterEqual(after.hugetlb_pages,
                                    before.hugetlb_pages - 1)

    @each('pool', POOLS)
    def check_way(self, way, *, pool, parent_first=True, switch='on',
                  mode='madvise', rest=MOVED):
        with thp_mode(mode), self.subTest(parent_first=parent_first):
            before, child, after = self.run_child(
                switch, fork_script(way, parent_first), pool=pool)
            self.check_family(pool, before, child, after, rest)
