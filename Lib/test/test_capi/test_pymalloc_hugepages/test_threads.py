"""Threads, and interpreters with a GIL of their own."""

from .support import (
    FIRST_ARENAS, HUGETLB, HUGE_PAGE, ON, SWITCH, HugePagesTestCase, each,
    each_switch, lock_settings, require_interpreters, thp_mode)

setUpModule = lock_settings


class ThreadTests(HugePagesTestCase):
    """Each thread gets 16 KiB for its frames from the same functions."""

    THREADS = 200

    @each_switch
    def test_threads_alive(self, switch):
        before, alive, after = self.run_child(switch, f'''
            import threading
            threading.stack_size(256 * 1024)
            leave = threading.Event()
            barrier = threading.Barrier({self.THREADS} + 1)

            def work():
                barrier.wait()
                leave.wait()

            report()
            threads = [Thread(target=work) for _ in range({self.THREADS})]
            for thread in threads:
                thread.start()
            barrier.wait()
            report()
            leave.set()
            for thread in threads:
                thread.join()
            report()
        ''', pool=30)
        # A thread needs a few KiB of small objects: an arena or two for all.
        # A huge page for each chunk would be 400 MiB.
        most = 4
        for snapshot in (alive, after):
            self.assertLessEqual(snapshot.hugetlb_pages,
                                 before.hugetlb_pages + most)
            self.assertLessEqual(snapshot.sizes['thp'],
                                 before.sizes['thp'] + most * HUGE_PAGE)

    @each_switch
    def test_threads_ended(self, switch):
        # 16 KiB lost with each of 1000 threads would be 16 MiB.  Before 3.13,
        # a thread may still be there when join() returns, and the next one
        # would get another stack.
        before, after = self.run_child(switch, '''
            for count in 100, 1000:
                for _ in range(count):
                    thread = Thread(target=len, args=([],))
                    thread.start()
                    thread.join()
                    while len(os.listdir('/proc/self/task')) > 1:
                        time.sleep(0)
                report()
        ''', pool=30)
        self.assertLessEqual(after.sizes.total(),
                             before.sizes.total() + 2 * HUGE_PAGE)


class InterpreterTests(HugePagesTestCase):

    ARENAS = 5

    def setUp(self):
        super().setUp()
        require_interpreters()

    @each('pool, tier', [(40, 'hugetlb'), (0, 'thp')])
    @thp_mode('madvise')
    def test_first_arenas(self, pool, tier):
        # Each interpreter has its own.
        before, created, filled = (
            snapshot.stats for snapshot in self.run_child('on', '''
                import _interpreters
                objects = fill(5)
                report()
                interps = [_interpreters.create('isolated') for _ in range(3)]
                report()
                for interp in interps:
                    run_in(interp, 'objects = fill(4)')
                report()
                for interp in interps:
                    _interpreters.destroy(interp)
            ''', pool=pool))
        for kind in 'hugetlb', 'thp':
            self.assertEqual(created[kind], before[kind])
        plain = created['plain']['now'] - before['plain']['now']
        self.assertIn(plain, range(3, 3 * FIRST_ARENAS + 1))
        # They are promoted when an interpreter needs another.
        self.assertEqual(filled['plain']['now'], before['plain']['now'])
        self.assertGreaterEqual(filled['thp']['now'],
                                before['thp']['now'] + 3 * FIRST_ARENAS)
        self.assertGreaterEqual(filled[tier]['now'],
                                before[tier]['now'] + 3 * 2)

    @thp_mode('madvise')
    def test_shared_arenas(self):
        # An interpreter that shares the main one's arenas has no first ones.
        before, filled = (
            snapshot.stats for snapshot in self.run_child('thp', '''
                import _interpreters
                objects = fill(5)
                report()
                interp = _interpreters.create('legacy')
                run_in(interp, 'objects = fill(4)')
                report()
                _interpreters.destroy(interp)
            '''))
        self.assertEqual(filled['plain']['ever'], before['plain']['ever'])
        self.assertGreaterEqual(filled['thp']['now'], before['thp']['now'] + 4)

    @each_switch
    @thp_mode('madvise')
    def test_at_the_same_time(self, switch):
        before, filled, closed = self.run_child(switch, f'''
            import _interpreters
            from functools import partial

            work = """
                for _ in range(10):
                    objects = fill({self.ARENAS})
                    assert not any(map(any, objects[::100]))
            """
            interps = [_interpreters.create('isolated') for _ in range(4)]
            fill(0)
            report()
            run_threads(*(partial(run_in, interp, work) for interp in interps))
            report()
            for interp in interps:
                _interpreters.destroy(interp)
            report()
        ''', pool=100)
        if SWITCH[switch] in (ON, HUGETLB):
            # Each keeps the objects of its last round.
            self.assertGreaterEqual(
                filled.hugetlb_pages,
                before.hugetlb_pages + 4 * (self.ARENAS - 1))
            # An interpreter leaves a few blocks behind, hence an arena or
            # two, on whatever pages.
            self.assertLessEqual(closed.hugetlb_pages,
                                 before.hugetlb_pages + 4 * 2)
        else:
            self.assertEqual(filled.hugetlb_pages, 0)

    # What a thread does in an interpreter of its own.
    RUN_THERE = '''
        import _interpreters

        def run_there():
            interp = _interpreters.create('isolated')
            run_in(interp, work)
            _interpreters.destroy(interp)
    '''

    @each('pool', [0, 20])
    @thp_mode('madvise')
    def test_many_arenas(self, pool):
        # 10,000 arenas by threads and by interpreters, all at the same time.
        self.run_child('on', self.RUN_THERE + '''
        work = """
            for _ in range(420):
                objects = fill(3)
                assert intact(objects)
                del objects
        """

        def run_here():
            exec(FILL + textwrap.dedent(work), {})

        before = fill(3)
        run_threads(*[run_here, run_there] * 4)
        assert intact(before)
        report(before)
        ''', pool=pool)

    @each('switch, pool', [('hugetlb', 60), ('on', 60), ('on', 10),
                           ('thp', 0)])
    @thp_mode('madvise')
    def test_allocate_while_others_fork(self, switch, pool):
        # Interpreters map and unmap arenas while the main one forks.  Its
        # children run another program: CPython ends one that goes on with
        # several interpreters.
        self.run_child(switch, self.RUN_THERE + '''
        import subprocess
        subprocess._USE_VFORK = subprocess._USE_POSIX_SPAWN = False

        work = """
            import time
            end = time.monotonic() + 1
            while time.monotonic() < end:
                objects = fill(8)
                assert intact(objects)
                del objects
        """

        def fork():
            assert subprocess.call(['/bin/true']) == 0

        objects = fill(3)
        run_threads(run_there, run_there, meanwhile=fork)
        assert intact(objects)
        report(objects[::50])
        ''', pool=pool)
