"""Child processes that do not outlive the driver, how they ended, and signals
that stop it."""

import os
import signal
import subprocess

from . import Interrupted


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
