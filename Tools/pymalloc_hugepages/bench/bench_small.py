#!/usr/bin/env python3
"""What costs little memory, and must not cost more: bench_small.py NAME...

The command line is that of bench_obmalloc.py.  The garbage collector is on.
"""

import sys

import benchlib         # lets bench_obmalloc be found
import bench_obmalloc


# Threads that are alive at once, each with a connection.
THREADS = 1000

# Lines that each connection sends and gets back.
LINES = 5

# Seconds after which a connection that is silent is an error.
PATIENCE = 60


def allow_open_files(count):
    """Let this process have this many files open, or exit with a line."""
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
        except (OSError, ValueError):
            sys.exit(f"bench_small.py: {count} open files are needed, and "
                     f"{hard} are the limit: raise it (ulimit -Hn)")


def thread_server():
    """Serve 1,000 clients, each by a thread of its own, all at once.

    The clients are this process's first thread: it sends a line on every
    connection before it reads an answer, so that no thread can end before all
    have begun.
    """
    import socket
    import threading

    # Two ends of each connection, and some that the interpreter has open.
    allow_open_files(2 * THREADS + 100)

    def serve(connection):
        with connection, connection.makefile("rwb") as stream:
            for line in stream:
                words = line.split()
                stream.write(b" ".join(reversed(words)) + b"\n")
                stream.flush()

    clients = []
    threads = []
    for _ in range(THREADS):
        client, connection = socket.socketpair()
        client.settimeout(PATIENCE)
        clients.append(client)
        # As a daemon: a client's error ends the process.
        threads.append(threading.Thread(target=serve, args=(connection,),
                                        daemon=True))
        threads[-1].start()
    for number in range(LINES):
        for index, client in enumerate(clients):
            client.sendall(b"line %d of %d\n" % (number, index))
        for index, client in enumerate(clients):
            answer = b""
            while not answer.endswith(b"\n"):
                part = client.recv(4096)
                assert part, "a thread has ended too early"
                answer += part
            assert answer == b"%d of %d line\n" % (index, number), answer
    assert all(thread.is_alive() for thread in threads)
    for client in clients:
        client.close()
    for thread in threads:
        thread.join()


WORKLOADS = {"thread_server": thread_server}


if __name__ == "__main__":
    sys.exit(bench_obmalloc.main(sys.argv[1:], WORKLOADS, "bench_small.py",
                                 collector=True))
