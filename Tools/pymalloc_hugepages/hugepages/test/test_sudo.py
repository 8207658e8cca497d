"""Tests of reserve --for, called by sudo."""

import json
import os
import signal
import unittest
from unittest import mock

from hugepages import ToolError, sudo

from .support import POOL, TOOL, TestCase, requires_linux, statistics_line


try:
    import pwd
    NOBODY = pwd.getpwnam("nobody")
except (ImportError, KeyError):
    raise unittest.SkipTest("needs a system with the user nobody")
CALLED = {"SUDO_UID": str(NOBODY.pw_uid), "SUDO_GID": str(NOBODY.pw_gid),
          "SUDO_USER": NOBODY.pw_name}


class CallerTests(unittest.TestCase):
    def find(self, uid=0, **variables):
        environment = {name: value for name, value in os.environ.items()
                       if not name.startswith("SUDO_")}
        with mock.patch.object(os, "geteuid", return_value=uid), \
                mock.patch.dict(os.environ, {**environment, **variables},
                                clear=True):
            return sudo.find_caller()

    def test_caller(self):
        expected = sudo.User("nobody", NOBODY.pw_uid, NOBODY.pw_gid,
                             NOBODY.pw_dir)
        self.assertEqual(self.find(**CALLED), expected)
        self.assertEqual(self.find(SUDO_UID=CALLED["SUDO_UID"]), expected)
        self.assertEqual(self.find(**{**CALLED, "SUDO_GID": "7"}).gid, 7)

    def test_none(self):
        self.assertIsNone(self.find())
        self.assertIsNone(self.find(SUDO_UID="0", SUDO_USER="root"))
        # sudo -u: root's rights are gone already.
        self.assertIsNone(self.find(uid=1000, **CALLED))

    def test_unknown(self):
        for uid in "4000000001", "-1", "x", "", "9" * 30:
            with self.assertRaisesRegex(ToolError, "no user with the SUDO_UID "
                                        f"'{uid}'; .* unset SUDO_UID"):
                self.find(SUDO_UID=uid)


@requires_linux
@unittest.skipUnless(os.geteuid() == 0, "needs root")
class RealTests(TestCase):
    def tool(self, *args, **kwargs):
        return super().tool(*args, env={**os.environ, "HOME": "/root",
                                        "USER": "root", **CALLED}, **kwargs)

    def measure(self, script):
        if not os.path.isdir(f"/{POOL}"):
            self.skipTest("needs a kernel with huge pages")
        # It is found out in the directory that only this user may write to.
        line = statistics_line(0, 5).replace('"pid": 0', '"pid": \'$$\'')
        out, err = self.tool(
            "reserve", "--dry-run", "--json", "--for", "sh", "-c",
            f"{script}; echo '{line}' >>$PYTHON_PYMALLOC_HUGEPAGES_STATS",
            extra_groups=[0, 1])
        return json.loads(out)["for"], err.split("\n")

    def test_user(self):
        result, lines = self.measure(
            "id -u; id -g; id -G; echo $HOME $USER $LOGNAME; "
            "grep -E 'Uid|Gid|Cap(Prm|Eff)' /proc/self/status")
        uid, gid = NOBODY.pw_uid, NOBODY.pw_gid
        groups = os.getgrouplist("nobody", gid)
        self.assertEqual(lines[:3], [str(uid), str(gid),
                                     " ".join(map(str, groups))])
        self.assertEqual(lines[3], f"{NOBODY.pw_dir} nobody nobody")
        # For good: neither a saved ID nor a capability is left.
        self.assertEqual([line.split()[1:] for line in lines[4:-1]],
                         [[str(uid)] * 4, [str(gid)] * 4, ["0" * 16],
                          ["0" * 16]])
        self.assertEqual((result["user"], result["needed"]), ("nobody", 5))
        self.assertEqual(result["sampled_processes"], 0)

    def test_inherits_the_same_as_without_sudo(self):
        # The shell has ideas of its own on signals.
        with open(TOOL) as file:
            out, err = self.tool(
                "reserve", "--dry-run", "--for", "grep", "-E", "Sig(Blk|Ign)",
                "/proc/self/status", f"/proc/self/fdinfo/{file.fileno()}",
                status=2, pass_fds=[file.fileno()])
        # grep has found all its files.
        self.assertRegex(err, r"\Ahugepages\.py: no process of .*\n\Z")
        blocked, ignored = (int(line.split()[1], 16)
                            for line in out.splitlines())
        self.assertEqual(blocked, 0)
        for number in signal.SIGPIPE, signal.SIGXFSZ:
            self.assertFalse(ignored & 1 << number - 1)

    def test_cannot_be_started(self):
        self.refuse("reserve", "--for", "nonsense", status=127,
                    pattern="no such command")
        self.refuse("reserve", "--for", "/etc/shadow", status=126,
                    pattern="Permission denied")


if __name__ == "__main__":
    unittest.main()
