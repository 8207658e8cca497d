"""Packages with C code at work: with huge pages they do as without."""

import unittest

from support import (InterpreterTest, UNIT, for_each_interpreter,
                     install_packages, interpreters, make_environment, scratch)


class TestPackages(InterpreterTest):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.python = make_environment(interpreters()[cls.release],
                                      scratch() / f"packages-{cls.release}")
        install_packages(cls.python, "gevent", "greenlet", "lxml", "memray",
                         "numpy", "orjson", "pandas", "uvloop")

    def work(self, code):
        """Run the function work() of some code with huge pages and without;
        return what it returns in both."""
        code += ("result = work()\n"
                 "tell(result, extension.refusal(), slices()['peak'])\n")
        # From 3.12 on Python warns of forks with threads, and memray may have
        # a word to say about the C library.
        (result, why, used), (expected, *off) = (
            self.run_code(code, options=("-W", "ignore"), errors=None,
                          PYTHON_PYMALLOC_HUGEPAGES=switch)
            for switch in ("on", "off"))
        self.assertIsNone(why)
        self.assertGreater(used, 5)
        self.assertEqual(off, ["the switch is off", 0])
        return result, expected

    def compare(self, code):
        self.assertEqual(*self.work(code))

    def test_memray(self):
        """It sees the units as it sees what others map, and each block."""
        traces = self.work("""if True:
            import memray, tempfile
            def trace(path, **options):
                with memray.Tracker(path, **options):
                    data = fill(20)
                    del data
                with memray.FileReader(path) as reader:
                    records = reader.get_high_watermark_allocation_records()
                    return [sum(record.n_allocations for record in records),
                            reader.metadata.peak_memory]
            def work():
                with tempfile.TemporaryDirectory() as folder:
                    return [trace(folder + "/maps"),
                            trace(folder + "/blocks",
                                  trace_python_allocators=True)]
            """)
        ((_, peak), blocks), ((_, expected_peak), expected_blocks) = traces
        self.assertAlmostEqual(peak, expected_peak, delta=2 * UNIT)
        self.assertGreater(peak, 18 << 20)
        self.assertEqual(blocks, expected_blocks)
        self.assertGreater(blocks[0], 20 * 2184)

    def test_numpy(self):
        """Its threads, and its handlers of forks, too."""
        self.compare("""if True:
            import numpy
            def multiply():
                matrix = numpy.arange(250_000.0).reshape(500, 500)
                return (matrix @ matrix).trace()
            def work():
                numbers = numpy.arange(1_000_000)[::-1].copy()
                numbers.sort()
                texts = numpy.array([str(i % 9973) for i in range(200_000)],
                                    dtype=object)
                names, counts = numpy.unique(texts, return_counts=True)
                squares = numbers[:100_000].astype(object) ** 2
                product = multiply()
                pid = os.fork()
                if pid == 0:
                    more = fill(10)
                    os._exit(int(multiply() != product))
                _, status = os.waitpid(pid, 0)
                return [status, product, int(numbers[12345]), len(names),
                        int(counts.sum()), squares.sum(), texts[-1]]
            """)

    def test_pandas(self):
        self.compare("""if True:
            import pandas
            def work():
                left = pandas.DataFrame({
                    "key": [f"key {i % 5000}" for i in range(100_000)],
                    "value": range(100_000)})
                right = pandas.DataFrame({
                    "key": [f"key {i}" for i in range(5000)],
                    "name": [(i, str(i)) for i in range(5000)]})
                sums = left.groupby("key")["value"].sum()
                merged = left.merge(right, on="key")
                most = merged.groupby("name")["value"].max()
                return [sums.to_dict(), len(merged), merged["name"].iloc[-1],
                        most.sort_index().tolist()]
            """)

    def test_lxml(self):
        self.compare("""if True:
            from lxml import etree
            def work():
                root = etree.fromstring("<root>" + "".join(
                    f"<item id='{i}'><name>{i}</name><value>{i * 7}</value>"
                    "</item>" for i in range(40_000)) + "</root>")
                items = list(root)
                for item in items[::3]:
                    root.remove(item)
                even = root.xpath("//value[. mod 2 = 0]")
                return [len(even), sum(int(item.get("id")) for item in root),
                        len(etree.tostring(root)), items[-1][1].text]
            """)

    def test_greenlet(self):
        self.compare("""if True:
            import greenlet
            def work():
                parent = greenlet.getcurrent()
                def run(number):
                    kept = []
                    for turn in range(20):
                        kept.append((number, str(number * turn)))
                        parent.switch()
                    return sum(len(text) for _, text in kept)
                greenlets = [greenlet.greenlet(run) for _ in range(3000)]
                for number, each in enumerate(greenlets):
                    each.switch(number)
                for _ in range(19):
                    for each in greenlets:
                        each.switch()
                return [each.switch() for each in greenlets]
            """)

    def test_gevent(self):
        self.compare("""if True:
            import gevent, gevent.os, gevent.queue, gevent.subprocess
            def work():
                queue = gevent.queue.Queue(100)
                def produce(number):
                    for i in range(200):
                        queue.put((number, str(number * i)))
                def consume():
                    taken = [queue.get() for _ in range(20_000)]
                    said = gevent.subprocess.check_output(["echo", "well"])
                    return taken, said.decode()
                consumers = [gevent.spawn(consume) for _ in range(4)]
                gevent.joinall([gevent.spawn(produce, number)
                                for number in range(400)], raise_error=True)
                gevent.joinall(consumers, raise_error=True)
                taken, said = zip(*(each.value for each in consumers))
                pid = gevent.os.fork_and_watch()
                if pid == 0:
                    more = fill(10)
                    os._exit(0)
                _, status = gevent.os.waitpid(pid, 0)
                return [sorted(sum(taken, [])), said, status]
            """)

    def test_uvloop(self):
        self.compare("""if True:
            import asyncio, tempfile, uvloop
            async def answer(reader, writer):
                while line := await reader.readline():
                    writer.write(line.upper())
                writer.close()
            async def ask(path, number):
                reader, writer = await asyncio.open_unix_connection(path)
                kept = []
                for i in range(200):
                    writer.write(b"question %d of %d\\n" % (i, number))
                    kept.append((i, await reader.readline()))
                writer.close()
                return [line.decode() for _, line in kept]
            async def talk(path):
                server = await asyncio.start_unix_server(answer, path)
                lines = await asyncio.gather(*(ask(path, number)
                                               for number in range(100)))
                process = await asyncio.create_subprocess_exec(
                    "echo", "well", stdout=asyncio.subprocess.PIPE)
                said, _ = await process.communicate()
                server.close()
                return lines, said.decode()
            def work():
                loop = uvloop.new_event_loop()
                asyncio.set_event_loop(loop)
                with tempfile.TemporaryDirectory() as folder:
                    return loop.run_until_complete(talk(folder + "/socket"))
            """)

    def test_orjson(self):
        self.compare("""if True:
            import orjson
            def work():
                data = [{"id": i, "name": f"name {i}", "values": [i, i / 7]}
                        for i in range(30_000)]
                text = orjson.dumps(data)
                again = orjson.loads(text)
                return [again == data, len(text), again[-1]]
            """)


for_each_interpreter(globals())

if __name__ == "__main__":
    unittest.main()
