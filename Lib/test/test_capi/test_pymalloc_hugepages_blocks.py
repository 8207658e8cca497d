"""Tests for --with-pymalloc-hugepages: blocks that are too large for pymalloc.

Blocks above 512 bytes of the mem and object domains are in arenas of two
heaps, dense and roomy, and blocks above 1 MiB in mappings of their own.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import unittest
from test import support
from test.support import import_helper, threading_helper
from test.support.script_helper import assert_python_ok
from test.test_capi import hugepages_support
from test.test_capi.hugepages_support import (
    FIRST_ARENAS, FIRST_DENSE, FIRST_ROOMY, HUGE_PAGE, KEEP_LEAST, MIB,
    SWITCHES, HugePagesTestCase, child_args, memory_cgroup,
    requires_hugepages_build, requires_linux, thp_mode)


setUpModule = hugepages_support.lock_settings

import_helper.import_module('ctypes')

# What a process may have more than it had at its start after it has dropped
# everything: the last arena of each heap, half-empty arenas of pymalloc, what
# the C library keeps.
REST = 16 * MIB

# The allocators, and where objects have their memory.
BLOCKS = '''
import ctypes, gc

class Domain:
    """The functions of the mem or the object domain."""
    def __init__(self, name):
        for function, arguments in (('Malloc', 'n'), ('Calloc', 'nn'),
                                    ('Realloc', 'pn'), ('Free', 'p')):
            call = getattr(ctypes.pythonapi, f'Py{name}_{function}')
            # A NULL is None.
            call.restype = None if function == 'Free' else ctypes.c_void_p
            call.argtypes = [{'n': ctypes.c_size_t,
                              'p': ctypes.c_void_p}[kind]
                             for kind in arguments]
            setattr(self, function.lower(), call)

mem, obj = Domain('Mem'), Domain('Object')

def pointer_at(address):
    return ctypes.c_void_p.from_address(address).value

def memory_of(value):
    """The address of the items or bytes of an object, that is, of its block
    where that is another one."""
    word = ctypes.sizeof(ctypes.c_void_p)
    # After the reference count, the type and the size there are: of a
    # bytearray ob_alloc and ob_bytes, of a list ob_item, of a dict the
    # watchers and ma_keys.  The block of a bytes object is its own.
    offset = {bytearray: 4, list: 3, dict: 4}.get(type(value))
    return id(value) if offset is None else pointer_at(
        id(value) + offset * word)

def unwritten(size):
    """A bytes object as recv() makes it, before anything is received."""
    make = ctypes.pythonapi.PyBytes_FromStringAndSize
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_char_p, ctypes.c_ssize_t]
    return make(None, size)

def status_of(name):
    """A figure of /proc/self/status, in bytes."""
    with open('/proc/self/status') as file:
        for line in file:
            if line.startswith(name + ':'):
                return int(line.split()[1]) * 1024

def report_memory(values, other_pids=()):
    report((), other_pids, list(map(memory_of, values)))
'''


@support.requires_subprocess()
@requires_hugepages_build
@requires_linux
class BlocksTestCase(HugePagesTestCase):

    def run_blocks(self, switch, script, *options, **env_vars):
        return self.run_child(switch, BLOCKS + textwrap.dedent(script),
                              *options, **env_vars)

    def run_blocks_with_pool(self, pool, switch, script, *options, **env_vars):
        return self.run_with_pool(pool, self.run_blocks, switch, script,
                                  *options, **env_vars)


class PagesTests(BlocksTestCase):
    """What the blocks really sit on."""

    POOL = 60

    LARGE = '''
        values = [[None] * 4_000_000, bytes(30 * 2**20),
                  bytearray(30 * 2**20), dict.fromkeys(range(500_000))]
        report_memory(values)
    '''

    def test_large(self):
        # None is on the pool, which is there for those that do not move.
        with thp_mode('madvise'):
            for switch in SWITCHES:
                with self.subTest(switch=switch):
                    [snapshot] = self.run_blocks_with_pool(
                        self.POOL, switch, self.LARGE)
                    large = snapshot.stats['large']
                    thp = [region.thp for region in snapshot.arenas]
                    if switch in ('on', 'thp'):
                        self.assertEqual(snapshot.tiers, {'thp'})
                        # The kernel may be short of memory for a few.
                        self.assertGreater(sum(thp), 75 * MIB)
                        self.assertGreaterEqual(large['now'] * HUGE_PAGE,
                                                100 * MIB)
                    else:
                        # As in stock CPython: a mapping of malloc(), and its
                        # header of two words before the block.
                        self.assertEqual(snapshot.tiers, {'plain'})
                        self.assertEqual(sum(thp), 0)
                        self.assertEqual(large['ever'], 0)
                        for address in snapshot.addresses:
                            self.assertEqual(address % 4096, 16)

    # Bytes; 1,000 blocks to 4 MiB and 200 to 6 MiB.
    SIZES = {'dense': (4000, 8000), 'roomy': (30_000, 1300)}

    def check_medium(self, heap, first_count, pool, expected):
        size, count = self.SIZES[heap]
        # What is written to them makes them worth huge pages.
        script = f'''
            blocks = []
            for i in range({count}):
                blocks.append(mem.malloc({size}))
                ctypes.memset(blocks[-1], 1, {size})
            report(addresses=blocks)
        '''
        for switch, (first_tier, tier) in expected.items():
            with self.subTest(heap=heap, switch=switch, pool=pool):
                [snapshot] = self.run_blocks_with_pool(pool, switch, script)
                self.assertEqual(snapshot.tiers, {first_tier, tier})
                if first_tier != tier:
                    self.assertEqual(snapshot.arenas_on(first_tier),
                                     first_count)
                    self.assertGreaterEqual(
                        snapshot.arenas_on(tier),
                        size * count // HUGE_PAGE - first_count)
                if tier == 'thp':
                    self.assertGreaterEqual(snapshot.thp_pages,
                                            size * count // HUGE_PAGE // 2)
                if tier != 'hugetlb':
                    self.assertEqual(snapshot.hugetlb_pages, 0)
                self.assertEqual(snapshot.stats['large']['ever'], 0)

    def test_medium(self):
        # First arenas as those of pymalloc, of each heap some.
        for heap, first_count in (('dense', FIRST_DENSE),
                                  ('roomy', FIRST_ROOMY)):
            with thp_mode('madvise'):
                self.check_medium(heap, first_count, self.POOL,
                                  {'on': ('thp', 'hugetlb'),
                                   'hugetlb': ('plain', 'hugetlb'),
                                   'thp': ('thp', 'thp')})
                self.check_medium(heap, first_count, 0,
                                  {'on': ('thp', 'thp'),
                                   'thp': ('thp', 'thp'),
                                   'hugetlb': ('plain', 'plain')})

    def test_medium_of_objects(self):
        # The objects domain has the same heaps; and blocks that grow are in
        # the dense one, whatever their size.
        script = '''
            values = []
            for i in range(300):
                value = bytearray(b'x' * 600)
                while len(value) < 40_000:
                    value += b'x' * 600
                values.append(value)
            tuples = [(None,) * 400 for i in range(4000)]
            report_memory(values + tuples)
        '''
        with thp_mode('madvise'):
            [snapshot] = self.run_blocks_with_pool(self.POOL, 'on', script)
        self.assertEqual(snapshot.tiers, {'thp', 'hugetlb'})
        self.assertEqual(snapshot.arenas_on('thp'), FIRST_DENSE)

    def test_medium_off(self):
        # All is malloc()'s, and no arena is there that pymalloc has not.
        script = '''
            def arenas():
                return sys._pymalloc_hugepages()['plain']['ever']
            before = arenas()
            blocks = [mem.malloc(size) for size in range(600, 130_000, 1000)]
            report(addresses=blocks)
            assert arenas() == before, (arenas(), before)
        '''
        [snapshot] = self.run_blocks_with_pool(self.POOL, 'off', script)
        self.assertEqual([region.name for region in snapshot.arenas],
                         ['[heap]'])

    def test_limits_of_sizes(self):
        # Up to 512 bytes in pymalloc's pools, up to 1 MiB in the heaps.
        script = '''
            large = lambda: sys._pymalloc_hugepages()['large']['now']
            for domain in mem, obj:
                small, medium = domain.malloc(512), domain.malloc(513)
                assert small >> 14 != medium >> 14
                most = domain.malloc(2**20)
                assert large() == 0, large()
                least = domain.malloc(2**20 + 1)
                assert large() == 1, large()
                for block in small, medium, most, least:
                    assert block % 16 == 0, hex(block)
                    domain.free(block)
                gc.collect()
                assert large() == 0, large()
            report()
        '''
        self.run_blocks_with_pool(4, 'on', script)


class ContentTests(BlocksTestCase):
    """Nobody's content is lost or changed, and calloc() clears."""

    # Ten thousand calls at random; the model is a dict of what each block has.
    RANDOM = '''
        import random
        rng = random.Random({seed})
        ONE_MORE = 10_000

        def random_size():
            kind = rng.random()
            if kind < 0.4:
                return int(2 ** rng.uniform(0, 14))
            if kind < 0.97:
                return int(2 ** rng.uniform(9, 20.5))
            return rng.randint(1, 5 * 2**20)

        pattern = rng.randbytes(5 * 2**20 + ONE_MORE)

        def content(seed, size):
            return pattern[seed:seed + size]

        def write(block, seed, size):
            ctypes.memmove(block, content(seed, size), size)

        def check(block, seed, size):
            assert ctypes.string_at(block, size) == content(seed, size), (
                hex(block), size)

        # address: (domain, where in the pattern, size)
        blocks = {{}}

        def step():
            what = rng.random()
            size = random_size()
            seed = rng.randrange(ONE_MORE)
            if what < 0.3 or not blocks:
                domain = rng.choice([mem, obj])
                block = domain.malloc(size)
            elif what < 0.4:
                domain = rng.choice([mem, obj])
                block = domain.calloc(1, size)
                assert not any(ctypes.string_at(block, size)), hex(block)
            else:
                block = rng.choice(list(blocks))
                domain, old_seed, old_size = blocks.pop(block)
                if what < 0.7:
                    block = domain.realloc(block, size)
                    check(block, old_seed, min(size, old_size))
                else:
                    check(block, old_seed, old_size)
                    domain.free(block)
                    return
            assert block % 16 == 0, hex(block)
            assert block not in blocks, hex(block)
            write(block, seed, size)
            blocks[block] = domain, seed, size

        for number in range({steps}):
            step()
            # Or it would have ever more.
            while len(blocks) > 300:
                block = rng.choice(list(blocks))
                domain, seed, size = blocks.pop(block)
                check(block, seed, size)
                domain.free(block)
        for block, (domain, seed, size) in blocks.items():
            check(block, seed, size)
            domain.free(block)
        report()
    '''

    def test_random_sizes(self):
        for number, (switch, pool) in enumerate(
                (('on', 0), ('on', 8), ('on', 100), ('thp', 0),
                 ('hugetlb', 0), ('hugetlb', 8), ('hugetlb', 100),
                 ('off', 0))):
            with self.subTest(switch=switch, pool=pool):
                self.run_blocks_with_pool(
                    pool, switch,
                    textwrap.dedent(self.RANDOM).format(seed=number,
                                                        steps=4000))

    def test_calloc_after_use(self):
        script = '''
            def fresh(domain, size):
                block = domain.calloc(size, 1)
                assert not any(ctypes.string_at(block, size)), (
                    hex(block), size)
                ctypes.memset(block, 0xff, size)
                return block

            reused = 0
            for size in 513, 4000, 65_536, 2**20, 2**20 + 1, 5 * 2**20:
                for domain in mem, obj:
                    seen = set()
                    # As many as are kept in any case.
                    for _ in range(5):
                        blocks = [fresh(domain, size) for _ in range(2)]
                        reused += len(seen & set(blocks))
                        seen.update(blocks)
                        for block in blocks:
                            domain.free(block)
            # Else nothing was tested.
            assert reused > 50, reused
            report()
        '''
        for switch in SWITCHES:
            with self.subTest(switch=switch):
                self.run_blocks_with_pool(4, switch, script)

    def test_calloc_of_small_blocks_after_use(self):
        # The first block of each pool has a way of its own.
        script = '''
            for size in 16, 100, 512:
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
        self.run_blocks_with_pool(4, 'on', script, PYTHONMALLOC='pymalloc')

    def test_sizes_at_the_limits(self):
        # Around each limit, upwards and downwards, one byte at a time.
        script = '''
            limits = [512, 4096, 2**20, 2 * 2**20 - 64, 4 * 2**20 - 64]
            around = [limit + offset for limit in limits
                      for offset in (-17, -1, 0, 1, 17)]
            around += [1, 100, 10_000, 3 * 2**20, 7 * 2**20]
            pattern = bytes(range(256)) * (7 * 2**20 // 256)
            for domain in mem, obj:
                for first in around:
                    for second in around:
                        block = domain.malloc(first)
                        ctypes.memmove(block, pattern, first)
                        block = domain.realloc(block, second)
                        kept = min(first, second)
                        assert ctypes.string_at(block, kept) \\
                               == pattern[:kept], (first, second)
                        # All of it is there.
                        ctypes.memset(block, 1, second)
                        domain.free(block)
                # As malloc(1).
                for size in 0, 1:
                    block = domain.realloc(domain.malloc(3 * 2**20), 0)
                    assert block
                    domain.free(block)
            report()
        '''
        for switch in 'on', 'off':
            with self.subTest(switch=switch):
                self.run_blocks_with_pool(4, switch, script)

    def test_nonsense(self):
        # More than there are addresses; and what overflows.
        script = '''
            most = sys.maxsize
            for domain in mem, obj:
                for size in most, most - 100, most + 1, 2**48, 2**47:
                    assert domain.malloc(size) is None, size
                    assert domain.calloc(1, size) is None, size
                assert domain.calloc(most // 1000, 2000) is None
                for size in 1, 1000, 100_000, 3 * 2**20:
                    block = domain.malloc(size)
                    ctypes.memset(block, 7, size)
                    for more in most, most + 1, 2**48, 2**47:
                        assert domain.realloc(block, more) is None
                    assert ctypes.string_at(block, size) == bytes([7]) * size
                    domain.free(block)
            report()
        '''
        for switch in SWITCHES:
            with self.subTest(switch=switch):
                self.run_blocks_with_pool(4, switch, script)

    def test_growth_of_objects(self):
        script = '''
            items, data = [], bytearray()
            for i in range(1_000_000):
                items.append(i)
                data += b'%07d.' % i
            assert items == list(range(1_000_000))
            items.extend(range(1_000_000, 3_000_000))
            assert items == list(range(3_000_000))
            del items[1000:]
            assert items == list(range(1000))
            assert data == b''.join(b'%07d.' % i for i in range(1_000_000))
            del data[8000:]
            assert data == b''.join(b'%07d.' % i for i in range(1000))
            def write(count):
                # A str that nobody else has grows where it is.
                text = ''
                for i in range(count):
                    text += '%07d.' % i
                return text
            text = write(300_000)
            assert text == ''.join('%07d.' % i for i in range(300_000))
            table = {}
            for i in range(400_000):
                table[i] = -i
            assert all(table[i] == -i for i in range(400_000))
            report()
        '''
        for switch in SWITCHES:
            with self.subTest(switch=switch):
                self.run_blocks_with_pool(20, switch, script)


class GrowthTests(BlocksTestCase):
    """What grows is neither copied nor faulted in page by page."""

    # 64 MiB.
    GROW = {
        'list': '''
            value = []
            for _ in range(8 * 2**20):
                value.append(None)
        ''',
        'extend': '''
            value, chunk = [], [None] * 1000
            while len(value) < 8 * 2**20:
                value.extend(chunk)
        ''',
        'bytearray': '''
            value, chunk = bytearray(), b'x' * 1000
            while len(value) < 64 * 2**20:
                value += chunk
        ''',
    }

    def test_page_faults(self):
        import_helper.import_module('resource')
        for name, grow in self.GROW.items():
            script = textwrap.dedent('''
                import resource
                def faults():
                    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                before = faults(), status_of('VmRSS')
            ''') + textwrap.dedent(grow) + textwrap.dedent('''
                print(faults() - before[0], status_of('VmHWM') - before[1])
            ''')
            for switch in SWITCHES:
                with self.subTest(what=name, switch=switch), \
                        thp_mode('madvise'):
                    out = assert_python_ok(*child_args(
                        switch, BLOCKS + script)).out
                    faults, more = map(int, out.split())
                    # Or it was measured wrongly.
                    self.assertGreater(more, 64 * MIB)
                    if switch in ('on', 'thp'):
                        # 16,384 of 4 KiB; the kernel may be short of memory
                        # for a few huge pages.
                        self.assertLess(faults, 4000)
                        # Never are there two copies, nor two thirds of one.
                        self.assertLess(more, 100 * MIB)
                    else:
                        self.assertGreater(faults, 15_000)

    def test_large_blocks_move(self):
        # One above the other, so that none can grow where it is.  The first
        # ones fill their mappings; of the others the end is not advised.
        self.check_large_blocks_move(4 * MIB - 4096)
        self.check_large_blocks_move(3 * MIB)

    def test_partly_advised_block_moves(self):
        # The kernel has two mappings of it, and must make one of them again,
        # or it is copied.
        script = '''
            # Below others, so that it cannot grow where it is, and is not a
            # part of an older mapping to the kernel.
            others = [mem.malloc(7 * 2**20) for _ in range(4)]
            block = mem.malloc(7 * 2**20)
            ctypes.memset(block, 1, 7 * 2**20)
            before = status_of('VmRSS')
            for size in 9, 11, 13:
                block = mem.realloc(block, size * 2**20)
            print(status_of('VmHWM') - before)
        '''
        with thp_mode('madvise'):
            for switch in 'on', 'thp':
                with self.subTest(switch=switch):
                    out = assert_python_ok(*child_args(
                        switch, BLOCKS + textwrap.dedent(script))).out
                    # A copy would take 7 MiB.
                    self.assertLess(int(out), 4 * MIB)

    def check_large_blocks_move(self, size):
        script = f'''
            import resource
            start, count = {size}, 16
            size = start
            blocks = [mem.malloc(size) for _ in range(count)]
            for number, block in enumerate(blocks):
                ctypes.memset(block, number, size)
            def count_faults():
                return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            before = count_faults()
            for _ in range(5):
                for number in range(count):
                    blocks[number] = mem.realloc(blocks[number], 2 * size)
                    assert blocks[number]
                size *= 2
            faults = count_faults() - before
            for number, block in enumerate(blocks):
                assert ctypes.string_at(block, start) \\
                       == bytes([number]) * start
                # What was added is zeroed, as it is new.
                end = ctypes.string_at(block + size - 2**20, 2**20)
                assert not any(end)
            assert faults < 1000, faults
            del end
            gc.collect()
            report(addresses=blocks)
            for block in blocks:
                mem.free(block)
            gc.collect()
            report()
        '''
        with thp_mode('madvise'):
            for switch in 'on', 'thp':
                with self.subTest(size=size, switch=switch):
                    full, empty = self.run_blocks_with_pool(0, switch, script)
                    self.assertEqual(full.tiers, {'thp'})
                    # Each is 32 times as large now, and has a header.
                    self.assertEqual(full.stats['large']['now'],
                                     16 * (32 * size // HUGE_PAGE + 1))
                    self.assertEqual(empty.stats['large']['now'], 0)


class ReleaseTests(BlocksTestCase):
    """What is dropped is given back."""

    def check(self, build, drop='del values'):
        script = f'''
            fill(0)
            gc.collect()
            report()
            {build}
            report()
            {drop}
            gc.collect()
            report()
        '''
        with thp_mode('madvise'):
            for switch, pool in (('on', 0), ('on', 150), ('thp', 0),
                                 ('hugetlb', 0), ('hugetlb', 150)):
                with self.subTest(switch=switch, pool=pool):
                    before, full, after = self.run_blocks_with_pool(
                        pool, switch, script)
                    self.assertGreater(full.resident,
                                       before.resident + 190 * MIB)
                    self.assertLess(after.resident, before.resident + REST)
                    self.assertLess(after.address_space,
                                    before.address_space + REST)
                    self.assertEqual(after.stats['retained']['now'], 0)
                    self.assertLessEqual(after.stats['hugetlb']['now'],
                                         before.stats['hugetlb']['now'] + 3)

    def test_dense(self):
        self.check("values = [bytes([i % 256]) * 3000 for i in range(70_000)]")

    def test_roomy(self):
        self.check("values = [bytes([i % 256]) * 30_000 for i in range(7000)]")

    def test_mixed(self):
        self.check("values = [bytes([i % 256]) * (600 + i * 37 % 50_000)"
                   " for i in range(8500)]")

    def test_large(self):
        self.check("values = [b'x' * (5 * 2**20) for _ in range(40)]")

    def test_one_large(self):
        self.check("values = bytearray(b'x') * (200 * 2**20)")

    def test_shrinks(self):
        # The end of a large block is given back without a collection.
        script = '''
            value = bytearray(b'x') * (200 * 2**20)
            report()
            del value[3 * 2**20:]
            report()
            assert value == b'x' * (3 * 2**20)
        '''
        for switch in 'on', 'thp':
            full, shrunk = self.run_blocks_with_pool(0, switch, script)
            self.assertLess(shrunk.resident, full.resident - 190 * MIB)
            self.assertLess(shrunk.address_space,
                            full.address_space - 190 * MIB)
            self.assertEqual(full.stats['large']['now']
                             - shrunk.stats['large']['now'], 99)

    def test_loop_of_cut_results(self):
        # binascii makes results larger than they come to be, and cuts them:
        # the next ones fit into what is kept of them.
        script = '''
            import binascii
            gc.disable()
            data = bytes(2**20)
            def cycle():
                coded = binascii.b2a_base64(data)
                assert len(coded) < 2**21 - 64 < 2 * len(data)
                del coded
                binascii.a2b_base64(source)
            source = binascii.b2a_base64(data)
            for _ in range(3):
                cycle()
            report()
            for _ in range(20):
                cycle()
            report()
        '''
        before, after = self.run_blocks_with_pool(0, 'thp', script)
        self.assertGreater(before.stats['large']['now'], 0)
        self.assertEqual(after.stats['large']['ever'],
                         before.stats['large']['ever'])

    def test_first_drop(self):
        # Without a collection, too, all but the least is given back.
        script = '''
            gc.disable()
            report()
            values = [b'x' * (5 * 2**20) for _ in range(40)]
            del values
            report()
        '''
        before, after = self.run_blocks_with_pool(0, 'thp', script)
        self.assertLessEqual(after.stats['retained']['now'], KEEP_LEAST)
        self.assertLess(after.resident, before.resident + REST)

    def test_loop(self):
        # What is built and dropped in a loop is kept from the second turn on.
        script = '''
            gc.disable()
            def cycle():
                return b'x' * (100 * 2**20)
            for _ in range(3):
                cycle()
            report()
            for _ in range(5):
                cycle()
            report()
            gc.collect()
            report()
        '''
        before, after, collected = self.run_blocks_with_pool(0, 'thp', script)
        self.assertGreaterEqual(before.stats['retained']['now'], 50)
        self.assertEqual(after.stats['large']['ever'],
                         before.stats['large']['ever'])
        self.assertEqual(collected.stats['large']['now'], 0)
        self.assertEqual(collected.stats['retained']['now'], 0)

    def test_address_space(self):
        # Nothing is lost, whatever comes and goes.
        script = '''
            import random
            rng = random.Random(5)
            def cycle():
                values = [bytearray(int(2 ** rng.uniform(9, 22)))
                          for _ in range(300)]
                rng.shuffle(values)
                for value in values[::2]:
                    value.extend(bytes(int(2 ** rng.uniform(9, 22))))
                del value, values
                gc.collect()
            for _ in range(3):
                cycle()
            report()
            for _ in range(20):
                cycle()
            report()
        '''
        for switch, pool in (('on', 0), ('on', 20), ('thp', 0),
                             ('hugetlb', 0), ('hugetlb', 20)):
            with self.subTest(switch=switch, pool=pool):
                before, after = self.run_blocks_with_pool(pool, switch, script)
                self.assertLess(after.address_space,
                                before.address_space + REST)
                self.assertEqual(after.stats['large']['now'], 0)
                self.assertLessEqual(
                    len(after.regions), len(before.regions) + 10)


class LimitTests(BlocksTestCase):
    """Memory that cannot be had is a MemoryError, and nothing is lost."""

    SET_LIMIT = '''
        import resource
        def set_limit(mib):
            kind, field = {'AS': (resource.RLIMIT_AS, 'VmSize'),
                           'DATA': (resource.RLIMIT_DATA, 'VmData')}[LIMIT]
            hard = resource.getrlimit(kind)[1]
            if mib is None:
                resource.setrlimit(kind, (hard, hard))
            else:
                resource.setrlimit(kind, (status_of(field) + mib * 2**20,
                                          hard))
    '''

    def check(self, script, limits=('AS', 'DATA'), switches=SWITCHES,
              pools=(0, 4, 60)):
        import_helper.import_module('resource')
        for limit in limits:
            for switch in switches:
                for pool in pools:
                    with self.subTest(limit=limit, switch=switch, pool=pool):
                        self.run_blocks_with_pool(
                            pool, switch, f'LIMIT = {limit!r}\n'
                            + textwrap.dedent(self.SET_LIMIT)
                            + textwrap.dedent(script) + '\nreport()\n')

    def test_growth(self):
        self.check('''
            def check(data, items):
                assert data == b'%07d.' * 1000 % tuple(range(1000)) \\
                       * (len(data) // 8000)
                assert items == [None] * len(items)

            chunk = b'%07d.' * 1000 % tuple(range(1000))
            for _ in range(2):
                data, items = bytearray(), []
                set_limit(100)
                try:
                    while True:
                        data += chunk
                        items.extend([None] * 1000)
                except MemoryError:
                    pass
                else:
                    raise AssertionError('no MemoryError')
                set_limit(None)
                assert len(data) > 10 * 2**20, len(data)
                # Whichever failed, the other is one turn behind at most.
                assert len(data) // 8000 - len(items) // 1000 in (0, 1)
                check(data, items)
                del data[8000:], items[1000:]
                check(data, items)
                for _ in range(4000):
                    data += chunk
                    items.extend([None] * 1000)
                check(data, items)
                del data, items
        ''')

    def test_many_blocks(self):
        for size in 1000, 20_000, 300_000, 3 * MIB:
            self.check(f'''
                for _ in range(3):
                    set_limit(64)
                    values = []
                    try:
                        while True:
                            values.append(bytearray(b'x' * {size}))
                    except MemoryError:
                        pass
                    assert len(values) * {size} > 20 * 2**20, len(values)
                    expected = b'x' * {size}
                    assert all(value == expected for value in values)
                    del values, expected
                    set_limit(None)
            ''', pools=(0, 60))

    def test_realloc_refused(self):
        self.check('''
            sizes = [600, 5000, 100_000, 2**20, 3 * 2**20]
            blocks = [domain.malloc(size) for domain in (mem, obj)
                      for size in sizes]
            for block, size in zip(blocks, sizes * 2):
                ctypes.memset(block, size % 251, size)
            set_limit(16)
            for domain, part in (mem, blocks[:5]), (obj, blocks[5:]):
                for block, size in zip(part, sizes):
                    assert domain.realloc(block, 40 * 2**20) is None
            set_limit(None)
            for block, size in zip(blocks, sizes * 2):
                assert ctypes.string_at(block, size) \\
                       == bytes([size % 251]) * size
            blocks = [mem.realloc(block, 40 * 2**20) for block in blocks]
            for block, size in zip(blocks, sizes * 2):
                assert ctypes.string_at(block, size) \\
                       == bytes([size % 251]) * size
        ''')

    def test_shrinking_is_never_refused(self):
        self.check('''
            blocks = [mem.malloc(size)
                      for size in (1000, 100_000, 2**20, 3 * 2**20, 2**25)]
            set_limit(0)
            for size in 2 * 2**20, 2**20, 50_000, 600, 100, 1:
                blocks = [mem.realloc(block, min(size, 1000) if number == 0
                                      else size) if size < 100_000
                          or number > 2 else block
                          for number, block in enumerate(blocks)]
                assert all(blocks)
            set_limit(None)
        ''')

    def test_what_is_kept_is_given_back(self):
        # Blocks and arenas that nobody uses do not keep the program from
        # having other ones.
        keeps = {
            'large': "[b'x' * (60 * 2**20) for _ in range(2)]",
            'medium': "[b'x' * 20_000 for _ in range(6000)]",
            'small': "fill(60)",
        }
        wants = {
            'large': "b'x' * (150 * 2**20)",
            'several': "[b'x' * (5 * 2**20) for _ in range(28)]",
            'medium': "[b'x' * 5000 for _ in range(28_000)]",
            'small': "fill(65)",
        }
        for keep, built in keeps.items():
            for want, other in wants.items():
                with self.subTest(keep=keep, want=want):
                    self.check(f'''
                        gc.disable()
                        fill(0)
                        for _ in range(3):
                            {built}
                        kept = sys._pymalloc_hugepages()['retained']['now']
                        assert kept > 50, kept
                        set_limit(60)
                        value = {other}
                    ''', limits=['AS'], switches=['thp'], pools=[0])

    def run_in_memory_cgroup(self, limit, switch, script):
        with memory_cgroup(limit) as procs:
            command = ['/bin/sh', '-c', f'echo $$ > {procs} && exec "$0" "$@"',
                       sys.executable,
                       *child_args(switch, BLOCKS + textwrap.dedent(script))]
            return subprocess.run(command, capture_output=True)

    def test_memory_cgroup(self):
        # What fits in is there, and the system ends who wants more, as it does
        # with stock CPython: never is it SIGBUS or SIGSEGV.
        for size in 3000, 30_000, 3 * MIB:
            script = f'''
                def make(mib):
                    return [bytearray(b'x') * {size}
                            for _ in range(mib * 2**20 // {size})]
                values = make(100)
                expected = bytearray(b'x') * {size}
                assert values.count(expected) == len(values)
                print('fits', flush=True)
                more = make(400)
                print('does not', flush=True)
            '''
            for switch, pool in ('on', 0), ('on', 4), ('thp', 0), ('off', 0):
                with self.subTest(size=size, switch=switch, pool=pool):
                    result = self.run_leaving_pool(
                        pool, self.run_in_memory_cgroup, 200 * MIB, switch,
                        script)
                    self.assertIn(result.returncode, (1, -signal.SIGKILL),
                                  result.stderr)
                    self.assertEqual(result.stdout, b'fits\n')


class ThreadTests(BlocksTestCase):

    # A thread's, or an interpreter's.
    WORK = textwrap.dedent('''
        import random
        def work(seed, rounds):
            rng = random.Random(seed)
            values = []
            for number in range(rounds):
                size = int(2 ** rng.uniform(9, 21.5))
                value = bytearray([number % 251]) * size
                values.append((value, number % 251, size))
                if len(values) > 20:
                    value, byte, size = values.pop(rng.randrange(20))
                    assert value == bytes([byte]) * size
                    more = int(2 ** rng.uniform(9, 21.5))
                    value += bytes([byte]) * more
                    assert value == bytes([byte]) * (size + more)
                    values.append((value, byte, size + more))
                    del values[rng.randrange(20)]
            return values
    ''')

    POOLS = (('on', 0), ('on', 20), ('thp', 0), ('hugetlb', 20), ('off', 0))

    @threading_helper.requires_working_threading()
    def test_threads(self):
        # What one thread has made another one frees.
        script = self.WORK + textwrap.dedent('''
            import threading
            sys.setswitchinterval(1e-5)
            results, errors = [None] * 8, []
            def run(number):
                try:
                    for turn in range(4):
                        results[(number + turn) % 8] = work(number, 100)
                except BaseException as exc:
                    errors.append(exc)
            threads = [threading.Thread(target=run, args=(number,))
                       for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if errors:
                raise errors[0]
            results.clear()
            gc.collect()
            report()
        ''')
        for switch, pool in self.POOLS:
            with self.subTest(switch=switch, pool=pool):
                [snapshot] = self.run_blocks_with_pool(pool, switch, script)
                self.assertEqual(snapshot.stats['large']['now'], 0)

    @threading_helper.requires_working_threading()
    def test_interpreters(self):
        # With a GIL of their own they allocate and free at the same time.
        import_helper.import_module('_interpreters')
        script = f'work = {self.WORK!r}' + textwrap.dedent('''
            import _interpreters, threading
            errors = []
            def run(number):
                interp = _interpreters.create('isolated')
                error = _interpreters.exec(
                    interp, work + f"\\nvalues = work({number}, 400)\\n"
                    "del values[::2]\\n")
                if error is not None:
                    errors.append(error)
                _interpreters.destroy(interp)
            report()
            threads = [threading.Thread(target=run, args=(number,))
                       for number in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not errors, errors
            gc.collect()
            report()
        ''')
        for switch, pool in self.POOLS:
            with self.subTest(switch=switch, pool=pool):
                before, after = self.run_blocks_with_pool(pool, switch, script)
                self.assertEqual(after.stats['large']['now'], 0)
                if switch != 'off':
                    # An interpreter leaves a few small blocks behind, hence
                    # an arena or two each.  Without THP the large blocks are
                    # the C library's, which keeps memory for each thread.
                    arenas = 3 if switch == 'hugetlb' else 2
                    self.assertLess(
                        after.resident,
                        before.resident + REST + 6 * arenas * HUGE_PAGE)


@support.requires_fork()
class ForkTests(BlocksTestCase):
    """Parent and child have each their own, whatever the pool has."""

    SCRIPT = '''
        import signal, traceback

        def content(seed, index, size):
            return (b'%08d' % (1_000_000 * seed + index)) * (size // 8)

        # More than the first arenas of both heaps, and large ones.
        sizes = [3000] * 4000 + [24_000] * 1400 + [3 * 2**20] * 4

        def make(seed):
            return [bytearray(content(seed, i, size))
                    for i, size in enumerate(sizes)]

        def check(values, seed):
            for i, size in enumerate(sizes):
                assert values[i] == content(seed, i, size), (
                    i, size, bytes(values[i][:16]))

        def change(values, seed):
            for i, size in enumerate(sizes):
                values[i][:] = content(seed, i, size)

        values = make(0)
        report_memory(values[::10])
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                {parent_first} and os.read(read_end, 1)
                check(values, 0)
                report_memory(values[::10], [os.getppid()])
                change(values, 1)
                more = make(2)
                check(values, 1)
                check(more, 2)
                # They can be freed, and grow.
                for value in values:
                    value += bytes(value)
                del more, value, values
                gc.collect()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        {parent_first} and change(values, 3)
        os.write(write_end, b'.')
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0, status
        check(values, 3 if {parent_first} else 0)
        change(values, 4)
        check(values, 4)
        report_memory(values[::10])
    '''

    # What the parent does not get; the parent, but no child; both.
    POOLS = (0, 4, 18, 30, 120)

    def test_fork(self):
        with thp_mode('madvise'):
            for switch in 'on', 'hugetlb':
                for pool in self.POOLS:
                    for parent_first in False, True:
                        with self.subTest(switch=switch, pool=pool,
                                          parent_first=parent_first):
                            before, child, after = self.run_blocks_with_pool(
                                pool, switch, self.SCRIPT.format(
                                    parent_first=parent_first))
                            self.check(switch, pool, before, child)
                            self.assertEqual(after.hugetlb_pages,
                                             before.hugetlb_pages)

    def check(self, switch, pool, before, child):
        if pool in (0, 4):
            self.assertEqual(before.hugetlb_pages, pool)
            self.assertEqual(child.hugetlb_pages, 0)
        elif pool == 120:
            self.assertGreater(before.hugetlb_pages, 10)
            self.assertEqual(child.hugetlb_pages, before.hugetlb_pages)
            self.assertIn('hugetlb', child.tiers)
        for snapshot in before, child:
            # Large blocks and first arenas are not on the pool.
            self.assertIn('thp' if switch == 'on' else 'plain',
                          snapshot.tiers)
            mapped = sum(region.end - region.start
                         for region in snapshot.regions
                         if region.tier == 'hugetlb')
            self.assertEqual(mapped, snapshot.hugetlb_pages * HUGE_PAGE)

    def test_switched_off(self):
        for switch in 'thp', 'off':
            with self.subTest(switch=switch):
                for snapshot in self.run_blocks_with_pool(
                        120, switch, self.SCRIPT.format(parent_first=True)):
                    self.assertEqual(snapshot.hugetlb_pages, 0)


class AllocatorsTests(BlocksTestCase):
    """Other allocators, hooks, and counts."""

    SCRIPT = '''
        values = [bytearray(b'x' * size) for size in
                  [3000] * 2000 + [30_000] * 800 + [3 * 2**20, 2**23 - 4096]]
        for value in values:
            # Adds an eighth, which makes the last one 10 MiB.
            value += b'y'
        assert all(value.endswith(b'xy') for value in values)
        gc.collect()
        report_memory(values)
        del value, values
        gc.collect()
        report()
    '''

    def test_hooks(self):
        for options, env_vars in (
                ([], {'PYTHONMALLOC': 'pymalloc'}),
                ([], {'PYTHONMALLOC': 'pymalloc_debug'}),
                ([], {'PYTHONMALLOC': 'debug'}),
                (['-X', 'dev'], {}),
                (['-X', 'tracemalloc'], {}),
                (['-X', 'tracemalloc'], {'PYTHONMALLOC': 'debug'})):
            for switch, tiers in (('on', {'thp', 'hugetlb'}),
                                  ('thp', {'thp'}), ('off', {'plain'})):
                with self.subTest(switch=switch, options=options,
                                  env=env_vars), thp_mode('madvise'):
                    full, empty = self.run_blocks_with_pool(
                        60, switch, self.SCRIPT, *options, **env_vars)
                    self.assertEqual(full.tiers, tiers)
                    self.assertEqual(full.stats['large']['now'],
                                     7 if switch != 'off' else 0)
                    self.assertEqual(empty.stats['large']['now'], 0)

    def test_malloc(self):
        for name in 'malloc', 'malloc_debug':
            for switch in SWITCHES:
                with self.subTest(switch=switch, PYTHONMALLOC=name):
                    full, empty = self.run_blocks_with_pool(
                        60, switch, self.SCRIPT, PYTHONMALLOC=name)
                    self.assertEqual(full.tiers, {'plain'})
                    self.assertEqual(full.hugetlb_pages, 0)
                    for tier in 'hugetlb', 'thp', 'plain', 'large':
                        self.assertEqual(empty.stats[tier]['ever'], 0)

    def test_debug_hooks_find_overflows(self):
        # Also at the end of a medium and of a large block.
        for size in 3000, 3 * MIB:
            script = f'''
                block = mem.malloc({size})
                ctypes.memset(block, 0, {size} + 1)
                mem.free(block)
            '''
            with self.subTest(size=size), support.SuppressCrashReport():
                result = subprocess.run(
                    [sys.executable, *child_args(
                        'on', BLOCKS + textwrap.dedent(script))],
                    capture_output=True, text=True,
                    env={**os.environ, 'PYTHONMALLOC': 'debug'})
                self.assertEqual(result.returncode, -signal.SIGABRT)
                self.assertIn('not all FORBIDDENBYTE', result.stderr)

    def test_tracemalloc(self):
        script = '''
            import tracemalloc
            for size in 3000, 30_000, 3 * 2**20:
                before = tracemalloc.get_traced_memory()[0]
                values = [mem.malloc(size) for _ in range(10)]
                values = [mem.realloc(value, 2 * size) for value in values]
                more = tracemalloc.get_traced_memory()[0] - before
                assert 0 <= more - 20 * size < 5000, (size, more)
                for value in values:
                    mem.free(value)
                more = tracemalloc.get_traced_memory()[0] - before
                assert more < 5000, (size, more)
            report()
        '''
        for switch in SWITCHES:
            with self.subTest(switch=switch):
                self.run_blocks_with_pool(20, switch, script,
                                          '-X', 'tracemalloc')

    def test_allocated_blocks(self):
        # Each block counts as one, from malloc() to free().
        script = '''
            def count():
                gc.collect()
                return sys.getallocatedblocks()
            for size in 600, 3000, 30_000, 2**20, 3 * 2**20:
                for domain in mem, obj:
                    values = [None] * 100
                    before = count()
                    for i in range(100):
                        values[i] = domain.malloc(size)
                    # The addresses are objects, too.
                    assert 195 <= count() - before <= 205, (
                        size, count() - before)
                    for i in range(100):
                        values[i] = domain.realloc(values[i], size + size // 2)
                    assert 195 <= count() - before <= 205, (
                        size, count() - before)
                    for i in range(100):
                        values[i] = domain.free(values[i])
                    assert -5 <= count() - before <= 5, (
                        size, count() - before)
            report()
        '''
        for switch in SWITCHES:
            with self.subTest(switch=switch):
                self.run_blocks_with_pool(20, switch, script,
                                          PYTHONMALLOC='pymalloc')

    def test_finalization(self):
        # Blocks that are alive at the end are no reason to crash.
        script = '''
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(
                [b'x' * size for size in (3000, 30_000, 3 * 2**20) * 500]))
            import threading
            def work():
                while True:
                    [bytearray(size) for size in (3000, 30_000, 3 * 2**20)]
            for _ in range(3):
                threading.Thread(target=work, daemon=True).start()
            report()
        '''
        for switch, pool in ('on', 0), ('on', 20), ('off', 0):
            with self.subTest(switch=switch, pool=pool):
                # While they work the figures of the pool are no good.
                self.run_leaving_pool(pool, self.run_blocks, switch, script)


class SparseTests(BlocksTestCase):
    """What nobody touches takes no memory."""

    MOST_MORE = 32 * MIB

    SCRIPTS = {
        # 125 MiB of addresses.
        'malloc': '''
            values = [mem.malloc(64 * 1024) for _ in range(2000)]
            for value in values:
                ctypes.memset(value, 1, 1)
        ''',
        # As of sockets that wait.
        'bytes': 'values = [unwritten(64 * 1024) for _ in range(2000)]',
        # 300 MiB, each with an end that it does not fill.
        'large': 'values = [unwritten(3 * 2**19) for _ in range(200)]',
    }

    def test_resident_memory(self):
        for name, script in self.SCRIPTS.items():
            script = textwrap.dedent(script) + '\nreport()\n'
            resident = {}
            for switch, pool in (('off', 0), ('on', 0), ('on', 150),
                                 ('thp', 0), ('hugetlb', 150)):
                with thp_mode('madvise'):
                    [snapshot] = self.run_blocks_with_pool(
                        pool, switch, script)
                resident[switch, pool] = snapshot.resident
                with self.subTest(what=name, switch=switch, pool=pool):
                    # It is so in stock CPython.
                    self.assertLess(resident['off', 0], 64 * MIB)
                    self.assertLess(snapshot.resident,
                                    resident['off', 0] + self.MOST_MORE)
                    self.assertEqual(snapshot.hugetlb_pages, 0)

    def test_filled(self):
        # The same, if the blocks are filled, is worth huge pages.
        script = '''
            values = []
            for _ in range(2000):
                values.append(mem.malloc(64 * 1024))
                ctypes.memset(values[-1], 1, 64 * 1024)
            report(addresses=values)
        '''
        with thp_mode('madvise'):
            [snapshot] = self.run_blocks_with_pool(0, 'on', script)
        self.assertEqual(snapshot.tiers, {'thp'})
        self.assertGreater(snapshot.thp_pages, 40)


class SmallProgramTests(BlocksTestCase):
    """Who needs little takes nothing of huge pages."""

    def test_small_programs(self):
        tell = ('import sys, json; '
                'print(json.dumps(sys._pymalloc_hugepages()))')
        for options in ['-I'], ['-I', '-S'], ['-E']:
            for switch in SWITCHES:
                with self.subTest(options=options, switch=switch):
                    out = self.run_leaving_pool(
                        20, assert_python_ok, *options,
                        '-X', f'pymalloc_hugepages={switch}', '-c', tell).out
                    stats = json.loads(out)
                    for kind in 'hugetlb', 'thp', 'large', 'retained':
                        self.assertEqual(stats[kind]['ever'], 0, kind)
                        self.assertEqual(stats[kind]['refused'], {}, kind)
                    self.assertLessEqual(
                        stats['plain']['now'],
                        FIRST_ARENAS + FIRST_DENSE + FIRST_ROOMY)

    def test_resident_memory(self):
        # No more than with the switch off, but for the rest of an arena's
        # pages that were faulted in ahead.
        resident = {}
        for switch in SWITCHES[::-1]:
            [snapshot] = self.run_with_pool(20, self.run_child, switch,
                                            'report()')
            resident[switch] = snapshot.resident
            self.assertLess(snapshot.resident, resident['off'] + 2 * MIB)


if __name__ == '__main__':
    unittest.main()
