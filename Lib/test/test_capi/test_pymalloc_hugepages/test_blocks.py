"""Blocks in arenas, blocks of the C library, and other allocators."""

import platform
import signal
import textwrap
import unittest
from test import support
from test.support import import_helper
from .support import (
    FIRST_ARENAS, HUGETLB, HUGE_PAGE, ON, SWITCH, HugePagesTestCase,
    child_args, each, each_switch, lock_settings, thp_mode)

setUpModule = lock_settings

needs_glibc = unittest.skipUnless(platform.libc_ver()[0] == 'glibc',
                                  'needs glibc')


class BlocksTests(HugePagesTestCase):
    """Blocks of up to 1,024 bytes are in arenas, others the C library's."""

    def setUp(self):
        super().setUp()
        import_helper.import_module('ctypes')

    # The functions of the domains.
    DOMAINS = textwrap.dedent('''
        import ctypes

        class Domain:
            def __init__(self, name):
                for function, arguments in (('Malloc', 'n'), ('Calloc', 'nn'),
                                            ('Realloc', 'pn'), ('Free', 'p')):
                    call = getattr(ctypes.pythonapi, f'Py{name}_{function}')
                    call.restype = (None if function == 'Free'
                                    else ctypes.c_void_p)
                    call.argtypes = [{'n': ctypes.c_size_t,
                                      'p': ctypes.c_void_p}[kind]
                                     for kind in arguments]
                    setattr(self, function.lower(), call)

        mem, obj = Domain('Mem'), Domain('Object')
    ''')

    def run_script(self, switch, script, **kwargs):
        return self.run_child(switch, self.DOMAINS + textwrap.dedent(script),
                              **kwargs)

    @each('domain', ['mem', 'obj'])
    @thp_mode('madvise')
    def test_limit(self, domain):
        small, large = self.run_script('thp', f'''
            fill(0)
            for size in 1024, 1025:
                blocks = [{domain}.malloc(size) for _ in range(9000)]
                report(addresses=blocks)
        ''')
        self.assertIn('thp', small.tiers)
        self.assertNotIn('[heap]', {region.name for region in small.arenas})
        # A bit more than four arenas of 1,808 blocks.
        self.assertGreaterEqual(small.arenas_on('thp'), 4)
        self.assertEqual([region.name for region in large.arenas], ['[heap]'])

    def test_large_blocks_need_no_arena(self):
        # Nor a huge page.
        [snapshot] = self.run_script('on', '''
            blocks = [mem.malloc(size) for size in
                      (2000, 30_000, 500_000, 5_000_000) * 20]
            for block in blocks:
                ctypes.memset(block, 1, 2000)
            report(addresses=blocks)
        ''')
        self.assertEqual(snapshot.tiers, {'plain'})
        for kind in 'hugetlb', 'thp':
            self.assertEqual(snapshot.stats[kind]['ever'], 0)
        self.assertLessEqual(snapshot.stats['plain']['ever'], FIRST_ARENAS)

    def test_calloc_after_use(self):
        # The first block of each pool has a way of its own.
        self.run_script('on', '''
            for size in 16, 100, 512, 513, 1000, 1024:
                for domain in mem, obj:
                    seen, again = set(), 0
                    for turn in range(4):
                        # More than a pool of 16 KiB.
                        blocks = [domain.calloc(1, size)
                                  for _ in range(4 * 16_384 // size)]
                        for block in blocks:
                            assert not any(ctypes.string_at(block, size)), (
                                hex(block), size)
                            ctypes.memset(block, 0xff, size)
                        again += len(seen & set(blocks))
                        seen.update(blocks)
                        for block in blocks:
                            domain.free(block)
                    # Else nothing was tested.  A turn may have another arena
                    # than the one before.
                    assert again > 30, size
        ''', PYTHONMALLOC='pymalloc')

    @each('name', ['pymalloc', 'debug', 'malloc'])
    @each('switch', ['on', 'off'])
    def test_realloc_over_the_limit(self, name, switch):
        self.run_script(switch, '''
            pattern = os.urandom(4000)
            sizes = [16, 500, 512, 513, 1000, 1023, 1024, 1025, 2000, 4000]
            for domain in mem, obj:
                for old_size in sizes:
                    for size in sizes:
                        block = domain.malloc(old_size)
                        ctypes.memmove(block, pattern, old_size)
                        block = domain.realloc(block, size)
                        kept = min(old_size, size)
                        assert ctypes.string_at(block, kept) == pattern[:kept]
                        domain.free(block)
        ''', PYTHONMALLOC=name)

    @needs_glibc
    def test_malloc_trim(self):
        self.run_script('on', '''
            def resident():
                return proc_status('VmRSS')[0]
            blocks = [mem.malloc(2000) for _ in range(20_000)]
            for block in blocks:
                ctypes.memset(block, 1, 2000)
            full = resident()
            # The last one keeps the C library from giving back the rest by
            # itself.
            for block in blocks[:-1]:
                mem.free(block)
            kept = resident()
            assert full - kept < 2**20, (full, kept)
            ctypes.CDLL(None).malloc_trim(0)
            assert full - resident() > 35 * 10**6, (full, resident())
        ''')

    @needs_glibc
    @each('size', [1025, 2000, 100_000])
    def test_double_free(self, size):
        script = self.DOMAINS + textwrap.dedent(f'''
            block, other = mem.malloc({size}), mem.malloc({size})
            mem.free(block)
            mem.free(block)
        ''')
        with support.SuppressCrashReport():
            self.run_python(*child_args('on', script), err='.*double free.*',
                            status=-signal.SIGABRT)


class OtherAllocatorsTests(HugePagesTestCase):
    """Hooks, and allocators other than pymalloc or that of its arenas."""

    ARENAS = 5
    POOL = 40

    @each('options, env_vars', [
        ([], {'PYTHONMALLOC': 'pymalloc_debug'}), (['-X', 'dev'], {}),
        (['-X', 'tracemalloc'], {}),
        (['-X', 'tracemalloc'], {'PYTHONMALLOC': 'debug'})])
    @each('switch, tier', [('on', 'hugetlb'), ('hugetlb', 'hugetlb'),
                           ('thp', 'thp'), ('off', 'plain')])
    @thp_mode('madvise')
    def test_hooks(self, options, env_vars, switch, tier):
        [snapshot] = self.run_child(switch, f'''
            for _ in range(3):
                objects = fill({self.ARENAS})
            report(objects[::50])
        ''', *options, pool=self.POOL, **env_vars)
        self.assertEqual(snapshot.tiers, {tier})

    @each('name', ['malloc', 'malloc_debug'])
    @each_switch
    def test_malloc(self, name, switch):
        [snapshot] = self.run_child(switch, f'''
            objects = fill({self.ARENAS})
            report(objects[::50])
        ''', pool=self.POOL, PYTHONMALLOC=name)
        self.assertEqual(snapshot.hugetlb_pages, 0)
        self.assertEqual(snapshot.tiers, {'plain'})

    @each_switch
    def test_arena_allocator(self, switch):
        # An arena allocator that is set by PyObject_SetArenaAllocator()
        # chooses the pages itself.  This one is made of C functions that need
        # no Python: alloc(ctx, size) is memalign(4096, size), and
        # free(ctx, ptr, size) is abs(), which does nothing.
        import_helper.import_module('ctypes')
        before, own, old = self.run_child(switch, f'''
            import ctypes

            class ArenaAllocator(ctypes.Structure):
                _fields_ = [(name, ctypes.c_void_p)
                            for name in ('ctx', 'alloc', 'free')]

            libc = ctypes.CDLL(None)
            address = lambda function: ctypes.cast(function, ctypes.c_void_p)
            old = ArenaAllocator()
            own = ArenaAllocator(4096, address(libc.memalign),
                                 address(libc.abs))

            ctypes.pythonapi.PyObject_GetArenaAllocator(ctypes.byref(old))
            fill(0)
            report()
            ctypes.pythonapi.PyObject_SetArenaAllocator(ctypes.byref(own))
            objects = fill({self.ARENAS})
            report(objects[::50])
            ctypes.pythonapi.PyObject_SetArenaAllocator(ctypes.byref(old))
            more_objects = fill({self.ARENAS})
            report(more_objects[::50])
            # Its arenas must not be freed by the old allocator.
            os._exit(0)
        ''', pool=self.POOL)
        self.assertEqual(own.hugetlb_pages, before.hugetlb_pages)
        self.assertIn('plain', own.tiers)
        if SWITCH[switch] in (ON, HUGETLB):
            self.assertGreaterEqual(
                old.hugetlb_pages, before.hugetlb_pages + self.ARENAS - 1)

    @each_switch
    def test_arena_freed_by_another(self, switch):
        # Another arena allocator may free arenas as it likes.  Their memory is
        # then anybody's, such as malloc()'s; it is no more in a pool.
        import_helper.import_module('ctypes')
        self.run_child(switch, f'''
            import ctypes

            def allocator(*names):
                class Allocator(ctypes.Structure):
                    _fields_ = [(name, ctypes.c_void_p) for name in names]
                return Allocator(), Allocator()

            # abs(ctx, ...) does nothing.
            nothing = ctypes.cast(ctypes.CDLL(None).abs, ctypes.c_void_p)
            arenas, no_arenas = allocator('ctx', 'alloc', 'free')
            raw, no_raw = allocator('ctx', 'malloc', 'calloc', 'realloc',
                                    'free')
            api = ctypes.pythonapi
            api.PyObject_GetArenaAllocator(ctypes.byref(arenas))
            api.PyObject_GetArenaAllocator(ctypes.byref(no_arenas))
            api.PyMem_GetAllocator(0, ctypes.byref(raw))
            api.PyMem_GetAllocator(0, ctypes.byref(no_raw))
            no_arenas.free = no_raw.free = nothing.value

            objects = fill({self.ARENAS})
            arena = id(objects[len(objects) // 2]) & -{HUGE_PAGE}
            block = ctypes.c_void_p(arena + {HUGE_PAGE} // 2 + 64)
            api.PyObject_SetArenaAllocator(ctypes.byref(no_arenas))
            del objects
            ctypes.memset(arena, 0x55, {HUGE_PAGE})
            api.PyMem_SetAllocator(0, ctypes.byref(no_raw))
            api.PyObject_Free(block)
            api.PyMem_SetAllocator(0, ctypes.byref(raw))
            memory = ctypes.string_at(arena, {HUGE_PAGE})
            assert memory == bytes([0x55]) * {HUGE_PAGE}
            # Those that are there must not be freed by the old allocator.
            os._exit(0)
        ''', pool=self.POOL)
