#!/usr/bin/env python3
"""What real programs do, from the standard library: bench_programs.py NAME...

The command line is that of bench_obmalloc.py.  The garbage collector is on.
Each does the same work each time: what is random comes from a seed.  Each
takes between a third of a second and two, of which start-up is little.
"""

import sys

import benchlib         # lets bench_obmalloc be found
import bench_obmalloc


def json_parsing():
    """Write and parse a document of 10 MB, as an API's client does."""
    import json
    import random
    rng = random.Random(1)
    records = [{"id": number, "name": f"user{number}",
                "score": rng.random() * 100,
                "tags": [f"tag{rng.randrange(500)}" for _ in range(5)],
                "address": {"street": f"{rng.randrange(999)} Main Street",
                            "zip": str(rng.randrange(10000, 99999))}}
               for number in range(60_000)]
    text = json.dumps(records)
    for _ in range(3):
        parsed = json.loads(text)
    assert len(parsed) == len(records)


def library_sources(limit):
    """Paths of modules of the standard library, of limit bytes in all: always
    the same for the same release."""
    import glob
    import os
    folder = os.path.dirname(os.__file__)
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*.py"))):
        limit -= os.path.getsize(path)
        if limit < 0:
            return
        yield path


def ast_walking():
    """Parse most of the standard library, keep all trees, and walk them."""
    import ast
    trees = []
    for path in library_sources(4_000_000):
        with open(path, encoding="utf-8") as file:
            trees.append(ast.parse(file.read()))
    names = sum(isinstance(node, ast.Name)
                for tree in trees for node in ast.walk(tree))
    assert names > 10_000


def graph_search():
    """Find the shortest ways through a random graph, by Dijkstra's method."""
    import heapq
    import random
    rng = random.Random(2)
    nodes = 60_000
    graph = {node: [(rng.randrange(nodes), rng.random()) for _ in range(6)]
             for node in range(nodes)}
    distances = {0: 0.0}
    heap = [(0.0, 0)]
    while heap:
        distance, node = heapq.heappop(heap)
        if distance > distances[node]:
            continue
        for neighbour, length in graph[node]:
            longer = distance + length
            if longer < distances.get(neighbour, float("inf")):
                distances[neighbour] = longer
                heapq.heappush(heap, (longer, neighbour))
    assert len(distances) > nodes // 2


def text_counting():
    """Count the words of a text and sort them by how often they occur."""
    import collections
    import random
    rng = random.Random(3)
    words = [f"word{int(rng.paretovariate(0.4)) % 200_000}"
             for _ in range(1_000_000)]
    text = " ".join(words)
    counts = collections.Counter(text.split())
    ranking = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    assert sum(count for _, count in ranking) == len(words)


def pickling():
    """Pickle a nested structure and load it again."""
    import pickle
    import random
    rng = random.Random(4)
    structure = [{"key": number, "values": [rng.random() for _ in range(8)],
                  "pair": (number, str(number))} for number in range(100_000)]
    for _ in range(2):
        copy = pickle.loads(pickle.dumps(structure))
    assert copy == structure


def compiling():
    """Compile a part of the standard library, as compileall does."""
    import compileall
    import shutil
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        for path in library_sources(2_500_000):
            shutil.copy(path, folder)
        assert compileall.compile_dir(folder, quiet=2, force=True)


def echo_server():
    """Serve clients that send lines and wait for them to come back."""
    import asyncio

    async def serve(reader, writer):
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
        writer.close()

    async def ask(port, number):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for turn in range(100):
            line = b"%d %d\n" % (number, turn)
            writer.write(line)
            assert await reader.readline() == line
        writer.close()
        await writer.wait_closed()

    async def everything():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            await asyncio.gather(*(ask(port, number) for number in range(100)))

    asyncio.run(everything())


WORKLOADS = {workload.__name__: workload for workload in (
    json_parsing,
    ast_walking,
    graph_search,
    text_counting,
    pickling,
    compiling,
    echo_server,
)}


if __name__ == "__main__":
    sys.exit(bench_obmalloc.main(sys.argv[1:], WORKLOADS, "bench_programs.py",
                                 collector=True))
