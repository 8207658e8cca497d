"""Tests of what is read from smaps."""

import io
import itertools

from hugepages import smaps

from .support import (
    ALL_HUGETLB, ALL_THP, ANON_HUGEPAGE, EXPECTED, HUGETLB, MIB, SMAPS,
    TestCase, mapping)


class SmapsTests(TestCase):
    def test_what_counts(self):
        regions = list(smaps.parse(io.StringIO(SMAPS)))
        usage = smaps.add_up(regions)
        self.assertEqual(usage, EXPECTED)
        memory = smaps.add_up_memory(regions)
        self.assertEqual((memory.hugetlb, memory.thp), (ALL_HUGETLB, ALL_THP))
        self.assertEqual((usage.hugetlb_arenas, usage.thp_arenas), (3, 10))
        self.assertAlmostEqual(usage.percent, 100 * 24 / 26)

    def test_nothing(self):
        usage = smaps.add_up(smaps.parse(io.StringIO("")))
        self.assertEqual((usage, usage.percent), (smaps.Usage(), None))

    def test_old_kernel(self):
        # Linux 3.2 has no VmFlags and no *_Hugetlb, and names nothing.
        text = ("00200000-00600000 rw-p 00000000 00:00 0 \n"
                "Size:               4096 kB\nAnonHugePages:      2048 kB\n"
                "KernelPageSize:        4 kB\n")
        regions = list(smaps.parse(io.StringIO(text)))
        self.assertEqual(smaps.add_up(regions), smaps.Usage())
        self.assertEqual(smaps.add_up_memory(regions).thp, 2 * MIB)

    def test_unknown_lines_and_names_with_spaces_and_colons(self):
        text = ("200000-400000 rw-p 00000000 08:01 12    /tmp/a: b\n"
                "Newfangled:      12 furlongs\nProtectionKey:  0\n"
                "AnonHugePages:   2048 kB\n"
                "400000-600000 rw-p 00000000 00:00 0 \n"
                "AnonHugePages:   2048 kB\nVmFlags: rd wr hg\n")
        first, second = smaps.parse(io.StringIO(text))
        self.assertEqual((first.name, first.tier, first.thp),
                         ("/tmp/a: b", None, 2 * MIB))
        self.assertEqual((second.name, second.tier), ("", "thp"))

    def test_after_a_fork(self):
        # The advice was taken back, here of three arenas in a row.
        shared = mapping(4096, 6, "AnonHugePages=4096",
                         flags="rd wr mr mw me ac nh")
        usage = smaps.add_up(smaps.parse(io.StringIO(shared)))
        self.assertEqual(usage, smaps.Usage(
            thp_size=6 * MIB, thp=4 * MIB, thp_size_once=6 * MIB,
            thp_once=4 * MIB))

    def test_reads_no_more_than_it_needs(self):
        lines = itertools.cycle(SMAPS.splitlines(keepends=True))
        regions = list(itertools.islice(smaps.parse(lines), 1000))
        self.assertEqual(len(regions), 1000)


class SharedTests(TestCase):
    """Memory that several processes have, each of which shows it."""

    def usage(self, fields, mib=6):
        text = mapping(4096, mib, fields, flags="rd wr mr mw me ac nh")
        return smaps.add_up(smaps.parse(io.StringIO(text)))

    def test_all_is_shared(self):
        # Three arenas of three processes.
        each = self.usage("AnonHugePages=6144 Pss=2048 Private_Dirty=0")
        self.assertEqual((each.thp_arenas, each.percent), (3, 100))
        self.assertTrue(each.is_shared)
        self.assertEqual((each.thp_size_once, each.thp_once),
                         (2 * MIB, 2 * MIB))
        total = smaps.count_once([each] * 3)
        self.assertEqual((total.thp_arenas, total.percent), (3, 100))

    def test_one_has_written_to_one_of_them(self):
        # It has that arena for itself now, on plain pages.
        written = self.usage("AnonHugePages=4096 Pss=4096 Private_Dirty=2048")
        self.assertEqual((written.thp_size_once, written.thp_once),
                         (4 * MIB, 2 * MIB))
        # The other one has the old arena alone.
        other = self.usage("AnonHugePages=6144 Pss=4096 Private_Dirty=2048")
        self.assertEqual((other.thp_size_once, other.thp_once),
                         (4 * MIB, 4 * MIB))
        total = smaps.count_once([written, other])
        self.assertEqual((total.thp_arenas, total.thp), (4, 6 * MIB))

    def test_never_used(self):
        usage = self.usage("Rss=0")
        self.assertEqual((usage.thp_size_once, usage.thp_once), (6 * MIB, 0))
        self.assertFalse(usage.is_shared)

    def test_pool(self):
        # What is on the pool is nobody else's.
        text = mapping(160, 2, HUGETLB + "2048", "rd wr mr mw me de ht",
                       ANON_HUGEPAGE)
        usage = smaps.add_up(smaps.parse(io.StringIO(text)))
        total = smaps.count_once([usage] * 3)
        self.assertEqual((total.hugetlb_arenas, total.hugetlb, total.percent),
                         (3, 6 * MIB, 100))
