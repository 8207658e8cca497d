"""Arenas of a stock interpreter on huge pages: taken, given back, shared by
forks, threads and interpreters."""

import json
import os
import subprocess
import sys
import unittest

from support import (HELPERS, InterpreterTest, SLICE, UNIT, compile_c,
                     for_each_interpreter, interpreters, requires_thp, scratch,
                     since, site_packages)


# For code: the hooks, called from any thread, without the GIL.
HOOKS = """\
import ctypes

class Allocator(ctypes.Structure):
    _fields_ = [
        ("ctx", ctypes.c_void_p),
        ("alloc", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p,
                                   ctypes.c_size_t)),
        ("free", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p,
                                  ctypes.c_size_t))]

allocator = Allocator()
ctypes.pythonapi.PyObject_GetArenaAllocator(ctypes.byref(allocator))
SLICE, UNIT = 1 << 20, 1 << 21

def take(size=SLICE):
    return allocator.alloc(None, size)

def give(address, size=SLICE):
    allocator.free(None, address, size)

def units():
    stats = extension.stats()
    return sum(stats[kind]["now"] for kind in ("hugetlb", "thp", "plain")
               ) - stats["retained"]["now"]

"""


# For code: interpreters, each with a GIL of its own, in threads.
THREADS = """\
import threading
try:
    import _interpreters as interpreters
except ImportError:     # before 3.13
    import _xxsubinterpreters as interpreters

failed = []

def run_one(code):
    own = interpreters.create()
    error = interpreters.run_string(own, code)
    if error is not None:
        failed.append(str(error))
    interpreters.destroy(own)

def run_interpreters(count, code, wait=True):
    threads = [threading.Thread(target=run_one, args=[code])
               for _ in range(count)]
    for thread in threads:
        thread.start()
    if wait:
        wait_for(threads)
    return threads

def wait_for(threads):
    for thread in threads:
        thread.join()
    assert not failed, failed

"""


class TestArenas(InterpreterTest):

    def test_growing(self):
        count, stats = self.run_code("""if True:
            data = fill(64)
            tell(extension.refusal(), extension.stats())
            """)
        self.assertIsNone(count)
        self.assertGreaterEqual(stats["slices"]["now"], 60)
        self.assertEqual(stats["slices"]["size"], SLICE)
        self.assertEqual(stats["arena_size"], UNIT)
        units = sum(stats[kind]["now"] for kind in ("hugetlb", "thp", "plain"))
        used = stats["slices"]["now"]
        self.assertIn(2 * units - used, (0, 1))

    @requires_thp
    def test_on_transparent_huge_pages(self):
        stats, huge = self.run_code("""if True:
            data = fill(64)
            huge = size = 0
            for line in open("/proc/self/smaps"):
                name, _, value = line.partition(":")
                if name == "AnonHugePages":
                    size = int(value.split()[0]) // 2048
                elif name == "VmFlags" and "hg" in value.split():
                    huge += size
            tell(extension.stats(), huge)
            """, PYTHON_PYMALLOC_HUGEPAGES="thp")
        self.assertGreaterEqual(stats["thp"]["now"], 30)
        # The first one is promoted, by the kernel and when it likes; another
        # one may not have been touched.
        self.assertGreaterEqual(huge, stats["thp"]["now"] - 2)
        self.assertEqual(stats["hugetlb"]["ever"], 0)

    def test_on_hugetlb(self):
        self.use_pool(40)
        stats = self.run_code("""if True:
            data = fill(64)
            tell(extension.stats())
            """, PYTHON_PYMALLOC_HUGEPAGES="hugetlb")
        self.assertGreaterEqual(stats["hugetlb"]["now"], 30)

    def test_small_programs_have_no_huge_page(self):
        stats = self.run_code("tell(extension.stats())")
        self.assertEqual(stats["thp"]["ever"], 0)
        self.assertEqual(stats["hugetlb"]["ever"], 0)
        self.assertLessEqual(stats["plain"]["now"], 1)

    def test_given_back(self):
        before, full, after, stats = self.run_code("""if True:
            before = resident()
            for _ in range(3):
                data = fill(100)
                full = resident()
                del data
                gc.collect()
            tell(before, full, resident(), extension.stats())
            """, PYTHON_PYMALLOC_HUGEPAGES="thp")
        self.assertGreaterEqual(full, before + 100)
        # What is kept, the first unit, halves whose other half is in use.
        self.assertLessEqual(after, before + 20)
        self.assertLessEqual(stats["retained"]["now"], 2)
        self.assertGreaterEqual(stats["slices"]["peak"], 100)

    def test_halves(self):
        self.run_code(HOOKS + """if True:
            held = [take() for _ in range(8)]
            assert len(set(held)) == 8
            now, used = units(), slices()["now"]
            # A half that is free is taken before there is a new unit.
            for address in held[::2]:
                give(address)
            assert units() in (now, now - 1), (units(), now)
            again = [take() for _ in range(4)]
            assert units() == now, (units(), now)
            assert slices()["now"] == used
            for address in held[1::2] + again:
                give(address)
            assert slices()["now"] == used - 8
            assert units() <= now - 3, (units(), now)
            tell()
            """)

    def test_both_halves_are_of_one_unit(self):
        self.run_code(HOOKS + """if True:
            held = sorted(take() for _ in range(20))
            pairs = sum(low + SLICE == high
                        for low, high in zip(held, held[1:]))
            assert pairs >= 9, held
            assert not any(high - low < SLICE
                           for low, high in zip(held, held[1:])), held
            for address in held:
                ctypes.memset(address, 255, SLICE)
                give(address)
            tell()
            """)

    def test_other_sizes_are_the_interpreters(self):
        self.run_code(HOOKS + """if True:
            before = slices()
            for size in 16384, 65536, SLICE // 2, UNIT, UNIT + SLICE:
                address = take(size)
                assert address
                ctypes.memset(address, 1, size)
                give(address, size)
            assert slices() == before
            give(None)
            assert slices() == before
            tell()
            """)

    def test_no_memory(self):
        result = self.run_code("""if True:
            import resource
            data = fill(16)
            size = int(open("/proc/self/statm").read().split()[0]) * 4096
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (size + (32 << 20), hard))
            try:
                while True:
                    data.append(bytes(440))
            except MemoryError:
                count = len(data)
                data.clear()
                gc.collect()
                resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
            data = fill(16)
            tell(count)
            """)
        # Nearly all of it could be used.
        self.assertGreater(result, (16 + 24) * 2184)

    def test_threads_without_gil(self):
        """The hooks serve several threads at once."""
        problem, before, after = self.run_with_arena_hook("""if True:
            import _pymalloc_hugepages as extension
            import arena_hook
            import json
            before = extension.stats()["slices"]["now"]
            problem = arena_hook.stress()
            print(json.dumps([problem, before,
                              extension.stats()["slices"]["now"]]))
            """)
        self.assertIsNone(problem)
        self.assertEqual(after, before)


class TestBeforeActivation(InterpreterTest):

    def test_arenas_of_before_go_back_to_who_made_them(self):
        self.run_python("-S", "-c", """if True:
            import sys
            data = [bytes(440) for _ in range(40 * 2184)]
            sys.path.append(sys.argv[1])
            import _pymalloc_hugepages as extension
            assert extension.refusal() is None
            def size():
                return int(open("/proc/self/statm").read().split()[0]) // 256
            full = size()
            del data
            assert extension.stats()["slices"]["ever"] <= 2
            assert size() <= full - 35, (full, size())
            data = [bytes(440) for _ in range(40 * 2184)]
            assert extension.stats()["slices"]["now"] >= 35
            del data
            assert extension.stats()["slices"]["now"] <= 4
            """, str(site_packages(self.python)))


class TestForks(InterpreterTest):

    CODE = """if True:
        import threading
        data = fill(40)
        pairs = [(i, str(i)) for i in range(20000)]
        def child():
            more = fill(20)
            assert all(str(i) == text for i, text in pairs)
            pairs.clear()
            data.clear()
            more = fill(60)
            os._exit(0)
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        if len(sys.argv) > 1:
            thread.start()
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                child()
            del data[:2000]
            _, status = os.waitpid(pid, 0)
            assert status == 0, status
        stop.set()
        assert all(str(i) == text for i, text in pairs)
        tell(extension.stats())
        """

    # From 3.12 on Python warns of threads.
    OPTIONS = ("-W", "ignore")

    def fork(self, **variables):
        """Return the figures of a process that has forked: alone, and with
        another thread."""
        return [self.run_code(self.CODE, *arguments, options=self.OPTIONS,
                              **variables)
                for arguments in ([], ["with threads"])]

    def test_fork(self):
        for stats in self.fork():
            self.assertGreater(stats["slices"]["now"], 30)

    def test_fork_with_pool(self):
        self.use_pool(60)
        for stats in self.fork():
            self.assertGreater(stats["hugetlb"]["ever"], 10)

    def test_fork_with_pool_nearly_empty(self):
        """3 pages are left: no process dies."""
        holder = """if True:
            import mmap, sys
            pages = int(sys.argv[1])
            map_hugetlb = 0x40000
            held = mmap.mmap(-1, pages << 21, flags=mmap.MAP_PRIVATE
                             | mmap.MAP_ANONYMOUS | map_hugetlb)
            held[::1 << 21] = bytes(pages)
            print("held", flush=True)
            input()
            """
        pages = str(self.use_pool(4) - 3)
        with subprocess.Popen([sys.executable, "-c", holder, pages], text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE
                              ) as process:
            self.assertEqual(process.stdout.readline(), "held\n")
            try:
                for stats in self.fork():
                    self.assertGreater(stats["hugetlb"]["ever"], 0)
            finally:
                process.communicate("\n")

    def test_handlers_that_were_there_before(self):
        """What they take, during a fork, is the interpreter's own."""
        library = compile_c(self.release, "early_fork.c",
                            scratch() / f"early-{self.release}.so", "-shared",
                            "-ldl")
        told = self.run_code("""if True:
            import ctypes
            data = fill(10)
            before = slices()["ever"]
            taken = (ctypes.c_void_p * 2).in_dll(ctypes.CDLL(sys.argv[1]),
                                                 "early_fork_taken")
            reader, writer = os.pipe()
            pid = os.fork()
            state = [slices()["ever"] - before, list(taken)]
            more = fill(10)
            state.append(slices()["ever"] - before)
            if pid == 0:
                os.write(writer, json.dumps(state).encode())
                os._exit(0)
            os.waitpid(pid, 0)
            tell(state, json.loads(os.read(reader, 1000)))
            """, library, LD_PRELOAD=library)
        for during, taken, afterwards in told:
            self.assertEqual(during, 0)
            self.assertTrue(all(taken), taken)
            self.assertGreater(afterwards, 8)


class TestInterpreters(InterpreterTest):

    @since(3, 12)
    def test_with_a_gil_of_their_own(self):
        before, after = self.run_code(THREADS + """if True:
            before = slices()["now"]
            run_interpreters(4, '''if True:
                import gc
                import _pymalloc_hugepages as extension
                assert extension.refusal() is None
                for _ in range(4):
                    data = [bytes(440) for _ in range(10 * 2184)]
                    assert all(len(each) == 440 for each in data)
                    data = None
                    gc.collect()
                kept = [bytes(440) for _ in range(5 * 2184)]
                ''')
            tell(before, slices()["now"])
            """)
        # Python itself leaves 2.5 MiB of each.
        self.assertLessEqual(after, before + 4 * 4)

    @since(3, 12)
    def test_activated_while_interpreters_run(self):
        ever = self.run_python("-S", "-c", THREADS + """if True:
            import sys, time
            sys.path.append(sys.argv[1])
            started = run_interpreters(4, '''if True:
                for _ in range(60):
                    data = [bytes(440) for _ in range(6 * 2184)]
                    assert all(len(each) == 440 for each in data)
                    data = None
                ''', wait=False)
            time.sleep(0.05)
            import _pymalloc_hugepages as extension
            assert extension.refusal() is None
            wait_for(started)
            print(extension.stats()["slices"]["ever"])
            """, str(site_packages(self.python)))
        self.assertGreater(int(ever), 0)

    def initialize_for_each(self, *scripts, **variables):
        """Return what these tell, each in a Python that was initialized for it
        in the same process, which keeps 40 MiB of blocks in between."""
        program = compile_c(self.release, "twice.c",
                            scratch() / f"twice-{self.release}",
                            *self.library_flags())
        # One from a build tree says that it misses some folders.
        output = self.run_command(
            program, *(HELPERS + script for script in scripts), errors=None,
            PYTHONPATH=self.path_of_library(), **variables)
        return [json.loads(line) for line in output.splitlines()]

    def test_python_initialized_again(self):
        first, *others = self.initialize_for_each(*["""if True:
            data = fill(20)
            tell(extension.refusal(), slices()["now"] > 10)
            """] * 3)
        self.assertEqual(first, [None, True])
        for refusal, _ in others:
            if self.version < (3, 12):
                self.assertIsNone(refusal)
            else:
                self.assertIn("Python was initialized again", refusal)

    FORK_WHEN_INITIALIZED_AGAIN = """if True:
        used = slices()["now"], resident()
        data = fill(20)
        for _ in range(2):
            pid = os.fork()
            if pid == 0:
                data.clear()
                more = fill(40)
                os._exit(more.count(bytes(440)) != len(more))
            _, status = os.waitpid(pid, 0)
            assert status == 0, status
        more = fill(40)
        assert (data + more).count(bytes(440)) == len(data + more)
        with open("/proc/self/smaps") as maps:
            flags = [line.split() for line in maps
                     if line.startswith("VmFlags")]
        tell(*used, sum("nh" in line for line in flags), extension.stats())
        """

    @requires_thp
    @since(3, 13)
    def test_fork_when_python_was_initialized_again(self):
        """It has unmapped halves of units.  Nothing is done to what is mapped
        in their place."""
        used, now_resident, unadvised, stats = self.initialize_for_each(
            "pass", self.FORK_WHEN_INITIALIZED_AGAIN,
            PYTHON_PYMALLOC_HUGEPAGES="thp")[0]
        self.assertGreaterEqual(used, 39)
        self.assertLess(now_resident, used)
        self.assertGreaterEqual(stats["thp"]["now"], 19)
        self.assertEqual(unadvised, 0)

    def test_fork_when_python_was_initialized_again_with_pool(self):
        self.use_pool(60)
        *_, stats = self.initialize_for_each(
            "data = fill(40)", self.FORK_WHEN_INITIALIZED_AGAIN)[0]
        self.assertGreater(stats["hugetlb"]["ever"], 10)

    def library_flags(self):
        """What links a program with this interpreter's libpython."""
        code = """if True:
            import json, sysconfig
            names = ("Py_ENABLE_SHARED LIBDIR LDLIBRARY LIBS SYSLIBS MODLIBS "
                     "LINKFORSHARED")
            print(json.dumps([sysconfig.get_config_var(name) or ""
                              for name in names.split()]))
            """
        shared, folder, library, *rest = json.loads(self.run_command(
            interpreters()[self.release], "-I", "-S", "-c", code))
        if not os.path.exists(os.path.join(folder, library)):
            folder = os.path.dirname(os.path.realpath(
                interpreters()[self.release]))
        path = os.path.join(folder, library)
        if not os.path.exists(path):
            self.skipTest("there is no " + path)
        flags = [flag for text in reversed(rest) for flag in text.split()]
        return [path, "-Wl,-rpath," + folder, *flags, "-pthread", "-lutil"]

    def path_of_library(self):
        """Where such a program finds its library, and the extension."""
        code = "import sys; print(*sys.path, sep=':')"
        path = self.run_command(interpreters()[self.release], "-I", "-S", "-c",
                                code).strip()
        return f"{path}:{site_packages(self.python)}"


for_each_interpreter(globals())

if __name__ == "__main__":
    unittest.main()
