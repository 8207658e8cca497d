"""What Windows offers to arenas: large pages, and the right to use them.

Asked through ctypes; nothing is changed, so the privilege is not enabled.
"""

import ctypes
import dataclasses
import sys
import typing


_TOKEN_QUERY = 0x0008
_TOKEN_PRIVILEGES = 3           # TOKEN_INFORMATION_CLASS
_SE_PRIVILEGE_ENABLED = 0x00000002


@dataclasses.dataclass(frozen=True)
class Windows:
    # GetLargePageMinimum(), in bytes; 0: there are no large pages.
    large_page_minimum: int
    # Whether the process token has SeLockMemoryPrivilege, and whether it is
    # enabled; None: the token cannot be read.
    privilege_held: typing.Optional[bool]
    privilege_enabled: typing.Optional[bool]
    version: str


class _Luid(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint32), ("high", ctypes.c_int32)]


class _LuidAndAttributes(ctypes.Structure):
    _fields_ = [("luid", _Luid), ("attributes", ctypes.c_uint32)]


def find_privilege(data, luid):
    """(held, enabled) of a privilege in the bytes of TOKEN_PRIVILEGES."""
    count = ctypes.c_uint32.from_buffer_copy(data).value
    entries = (_LuidAndAttributes * count).from_buffer_copy(
        data, ctypes.sizeof(ctypes.c_uint32))
    for entry in entries:
        if (entry.luid.low, entry.luid.high) == (luid.low, luid.high):
            return True, bool(entry.attributes & _SE_PRIVILEGE_ENABLED)
    return False, False


def _read_privilege(kernel32, advapi32):
    """The same of this process; (None, None) if it cannot be found out."""
    unknown = None, None
    luid = _Luid()
    token = ctypes.c_void_p()
    kernel32.GetCurrentProcess.restype = ctypes.c_void_p
    if not advapi32.LookupPrivilegeValueW(None, "SeLockMemoryPrivilege",
                                          ctypes.byref(luid)):
        return unknown
    if not advapi32.OpenProcessToken(
            ctypes.c_void_p(kernel32.GetCurrentProcess()), _TOKEN_QUERY,
            ctypes.byref(token)):
        return unknown
    try:
        size = ctypes.c_uint32()
        advapi32.GetTokenInformation(token, _TOKEN_PRIVILEGES, None, 0,
                                     ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        if not advapi32.GetTokenInformation(token, _TOKEN_PRIVILEGES, buffer,
                                            size, ctypes.byref(size)):
            return unknown
        return find_privilege(buffer.raw, luid)
    finally:
        kernel32.CloseHandle(token)


def scan():
    """Find out about this system.  Return Windows."""
    kernel32, advapi32 = ctypes.windll.kernel32, ctypes.windll.advapi32
    kernel32.GetLargePageMinimum.restype = ctypes.c_size_t
    held, enabled = _read_privilege(kernel32, advapi32)
    version = sys.getwindowsversion()
    return Windows(kernel32.GetLargePageMinimum(), held, enabled,
                   f"{version.major}.{version.minor}.{version.build}")
