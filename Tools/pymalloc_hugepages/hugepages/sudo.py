"""Who called sudo, and how to be that user again."""

import dataclasses
import os

from . import ToolError


@dataclasses.dataclass(frozen=True)
class User:
    name: str
    uid: int
    gid: int
    home: str

    @property
    def variables(self):
        """What sudo has set to root's."""
        return {"HOME": self.home, "LOGNAME": self.name, "USER": self.name}

    def become(self):
        """Give up root, and root's groups, for good."""
        os.initgroups(self.name, self.gid)
        os.setgid(self.gid)
        os.setuid(self.uid)


def find_caller():
    """The User who called sudo; None if nobody did, or root.  Raise ToolError
    if the system does not know that user."""
    uid = os.environ.get("SUDO_UID", "0")
    if os.geteuid() != 0 or uid == "0":
        return None
    import pwd                                  # not on Windows
    try:
        entry = pwd.getpwuid(int(uid))
        gid = int(os.environ.get("SUDO_GID", entry.pw_gid))
    except (KeyError, ValueError):
        raise ToolError(
            "reserve --for: runs the command as the user who called sudo, and "
            f"this system has no user with the SUDO_UID {uid!r}; to run it as "
            "root, unset SUDO_UID") from None
    return User(entry.pw_name, entry.pw_uid, gid, entry.pw_dir)
