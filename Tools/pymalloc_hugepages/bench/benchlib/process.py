"""Child processes, how they ended, and signals that stop the driver."""

import os
import signal
import subprocess

from . import Interrupted


def clean_environment(*prefixes):
    """The environment without any setting for Python, which could change what
    is measured (PYTHONMALLOC), and without names of other prefixes."""
    return {name: value for name, value in os.environ.items()
            if not name.startswith(("PYTHON", *prefixes))}


def capture(command, **kwargs):
    """subprocess.run() of a short command, with what it prints as text."""
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, universal_newlines=True, errors="replace",
        **kwargs)


def run(command, **kwargs):
    """subprocess.Popen(command).communicate() for a command that must not
    outlive the driver.  Return (exit status, stderr as text); kwargs has a
    stdout or a stderr if another one than nothing and a pipe is wanted.

    It gets a process group of its own: Ctrl-C at the terminal reaches the
    driver alone, which then kills the command with all its children.
    """
    kwargs.setdefault("stdout", subprocess.DEVNULL)
    kwargs.setdefault("stderr", subprocess.PIPE)
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, universal_newlines=True,
        errors="replace", start_new_session=True, **kwargs)
    try:
        _, stderr = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return process.returncode, stderr


def describe_status(returncode):
    """What to say of a command that failed: "exit status 1", "Killed"."""
    if returncode < 0:
        return signal.strsignal(-returncode) or f"signal {-returncode}"
    return f"exit status {returncode}"


def stop_on_signals():
    """Let the first signal raise Interrupted, so that everything is put back,
    and later ones be ignored, so that nothing disturbs that."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(signum, frame):
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(signum)

    for each in signals:
        signal.signal(each, stop)
