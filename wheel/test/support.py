"""What the tests of the wheel share: the wheel, built once by pip, and a
virtual environment with it for each interpreter.

    WHEEL_PYTHONS   stock interpreters, separated by colons; if it is not set,
                    the one that runs the tests and that of UNPATCHED_TREE
    UNPATCHED_TREE, HUGEPAGES_TREE
                    build trees of CPython as it was released, and with the
                    option; if they are not set, build/unpatched and
                    build/hugepages
    WHEEL_FILE      a wheel to test, which is built if it is not set
    WHEEL_TOOLS     a folder with abi3audit, auditwheel, build, cibuildwheel
                    and twine; if it is not set, they are installed from PyPI
"""

import atexit
import fcntl
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
WHEEL = TOP / "wheel"
MIB = 1 << 20
SLICE = MIB
UNIT = 2 * MIB
THP_MODE = "/sys/kernel/mm/transparent_hugepage/enabled"
POOL = "/sys/kernel/mm/hugepages/hugepages-2048kB"

# Variables of the user's that would change what is tested.
_DISTURBING = ("PYTHON", "LD_PRELOAD", "GLIBC_TUNABLES", "MALLOC_")


def _candidates():
    wanted = os.environ.get("WHEEL_PYTHONS")
    if wanted is not None:
        return [path for path in wanted.split(os.pathsep) if path]
    return [sys.executable, _built("unpatched")]


def _built(name):
    """The interpreter of a build tree."""
    tree = os.environ.get(name.upper() + "_TREE", str(TOP / "build" / name))
    return os.path.join(tree, "python")


def environment(**variables):
    """The environment of the tests without what could disturb, and with some
    variables."""
    result = {name: value for name, value in os.environ.items()
              if not name.startswith(_DISTURBING)}
    result.update(variables)
    return result


@functools.cache
def facts(python):
    """What an interpreter says of itself, as a dict."""
    code = """if True:
        import json, sys, sysconfig
        print(json.dumps({
            "version": sys.version_info[:3],
            "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
            "option": "_pymalloc_hugepages" in dir(sys)
                      and sys._pymalloc_hugepages()["option"],
            "include": [sysconfig.get_path("include"),
                        sysconfig.get_path("platinclude"),
                        sysconfig.get_config_h_filename()[:-len("pyconfig.h")]
                       ]}))
        """
    output = subprocess.check_output([python, "-I", "-S", "-c", code],
                                     env=environment())
    return json.loads(output)


@functools.cache
def interpreters():
    """The paths of stock interpreters by their release, "3.13.5"."""
    found = {}
    for path in filter(os.path.exists, _candidates()):
        its = facts(path)
        if (tuple(its["version"]) >= (3, 10) and not its["free_threaded"]
                and not its["option"]):
            release = ".".join(map(str, its["version"]))
            found.setdefault(release, path)
    if not found:
        raise unittest.SkipTest("no stock interpreter: set WHEEL_PYTHONS")
    return found


def patched():
    """The path of an interpreter with the option."""
    path = _built("hugepages")
    if not os.path.exists(path):
        raise unittest.SkipTest("needs an interpreter with the option: set "
                                "HUGEPAGES_TREE")
    return path


@functools.cache
def scratch():
    """A folder that is removed at the end."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="wheel-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def check_call(*args, **kwargs):
    """Run a command that must succeed; return what it has written."""
    process = subprocess.run(args, stdout=subprocess.PIPE, text=True,
                             stderr=subprocess.STDOUT, env=environment(),
                             **kwargs)
    if process.returncode != 0:
        raise AssertionError(f"{args} ended with {process.returncode}:\n"
                             + process.stdout)
    return process.stdout


@functools.cache
def pip():
    """The command of a pip that can serve other environments, as a list."""
    path = scratch() / "pip"
    check_call(next(iter(interpreters().values())), "-m", "venv", str(path))
    command = [str(path / "bin/python"), "-m", "pip",
               "--disable-pip-version-check"]
    # An older one may not run in a newer interpreter.
    check_call(*command, "install", "-q", "--upgrade", "pip")
    return command


@functools.cache
def tool(name):
    """The path of a command that comes as a package of that name."""
    folder = os.environ.get("WHEEL_TOOLS")
    if folder is None:
        check_call(*pip(), "install", "-q", name)
        folder = os.path.dirname(pip()[0])
    return os.path.join(folder, name if name != "build" else "pyproject-build")


@functools.cache
def wheel_source():
    """A copy of the sources: setuptools leaves files in them, and what it has
    left there of earlier sources it would put into the wheel."""
    path = scratch() / "source"
    shutil.copytree(WHEEL, path,
                    ignore=shutil.ignore_patterns("build", "*.egg-info",
                                                  "test", "__pycache__"))
    return path


@functools.cache
def wheel_file():
    """The path of the wheel."""
    given = os.environ.get("WHEEL_FILE")
    if given is not None:
        return pathlib.Path(given)
    check_call(*pip(), "wheel", "-q", "--no-deps", "-w", str(scratch()),
               str(wheel_source()))
    path, = scratch().glob("*.whl")
    return path


def make_bare_environment(python, path):
    """Make a virtual environment; return its python."""
    check_call(python, "-m", "venv", "--without-pip", str(path))
    return str(path / "bin/python")


def make_environment(python, path):
    """The same of one that has the wheel."""
    inside = make_bare_environment(python, path)
    check_call(*pip(), "--python", inside, "install", "-q", "--no-deps",
               "--no-index", str(wheel_file()))
    return inside


@functools.cache
def python_with_wheel(release):
    """The python of a virtual environment that has the wheel."""
    return make_environment(interpreters()[release], scratch() / release)


def install_packages(python, *names):
    """Install packages from PyPI, or skip tests."""
    process = subprocess.run(
        [*pip(), "--python", python, "install", "-q", "--no-compile",
         "--only-binary", ":all:", *names], text=True,
        # pip runs in that python.  No fault of ours may look like PyPI's.
        env=environment(PYTHON_PYMALLOC_HUGEPAGES="off"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if process.returncode != 0:
        why = process.stdout.splitlines() or ["no message"]
        raise unittest.SkipTest(f"pip does not install {' '.join(names)}: "
                                + why[-1])


def site_packages(python):
    """The folder where an environment's packages are."""
    return pathlib.Path(check_call(
        python, "-I", "-c",
        "import sysconfig; print(sysconfig.get_path('platlib'))").strip())


def has_thp():
    """Whether the system gives transparent huge pages to those who ask."""
    try:
        return "[never]" not in pathlib.Path(THP_MODE).read_text()
    except OSError:
        return False


requires_thp = unittest.skipUnless(has_thp(),
                                   "needs transparent huge pages")


def compile_c(release, source, output, *flags):
    """Compile a C file of this folder with the headers of an interpreter."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise unittest.SkipTest("needs a C compiler")
    include = facts(interpreters()[release])["include"]
    check_call(compiler, "-O1", "-Wall", "-Werror", "-fPIC",
               *("-I" + path for path in include),
               str(WHEEL / "test" / source), "-o", str(output), *flags)
    return str(output)


def version_of(release):
    return tuple(map(int, release.split(".")))


def since(*version):
    """Decorate a test of what older interpreters do not have."""
    def decorate(function):
        function.since = version
        return function
    return decorate


class InterpreterTest(unittest.TestCase):
    """Tests of one interpreter: for_each_interpreter() makes a class of them
    for each."""

    release = None

    @classmethod
    def setUpClass(cls):
        if cls.release is None:
            raise unittest.SkipTest("no interpreter")
        cls.python = python_with_wheel(cls.release)

    def use_pool(self, pages):
        """Return how many huge pages of the pool are free; skip a test if
        these are too few.  No test here changes the pool; others of this tree
        wait before they do, as they take the same lock."""
        try:
            lock = os.open(POOL, os.O_RDONLY)
            self.addCleanup(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
            free, reserved = (int(pathlib.Path(POOL, name).read_text())
                              for name in ("free_hugepages", "resv_hugepages"))
            free -= reserved
        except OSError:
            free = 0
        if free < pages:
            self.skipTest(f"needs {pages} free huge pages in the pool, which "
                          f"has {free}")
        return free

    @property
    def version(self):
        return version_of(self.release)

    def run_python(self, *args, status=0, errors="", **variables):
        """Run the interpreter that has the wheel; return its stdout.

        Check its exit status and what it writes on stderr; if one is None, do
        not.
        """
        return self.run_command(self.python, *args, status=status,
                                errors=errors, **variables)

    def run_command(self, *args, status=0, errors="", **variables):
        process = subprocess.run(args, capture_output=True, text=True,
                                 env=environment(**variables), timeout=600)
        if status is not None:
            self.assertEqual(process.returncode, status, process.stderr)
        if errors is not None:
            self.assertEqual(process.stderr, errors)
        return process.stdout

    def run_code(self, code, *args, options=(), **kwargs):
        """Run Python code that has HELPERS, with arguments; return what it
        tells."""
        output = self.run_python(*options, "-c", HELPERS + code, *args,
                                 **kwargs)
        return json.loads(output)

    def run_with_arena_hook(self, code):
        """Run code that may import arena_hook, and imports the extension
        itself; return what it prints, from JSON."""
        folder = scratch() / f"hook-{self.release}"
        folder.mkdir(exist_ok=True)
        compile_c(self.release, "arena_hook.c", folder / "arena_hook.so",
                  "-shared", "-pthread")
        return json.loads(self.run_python(
            "-S", "-c", code, PYTHONPATH=os.pathsep.join(
                [str(folder), str(site_packages(self.python))])))


# For code that the tests run.
HELPERS = """\
import _pymalloc_hugepages as extension
import gc, json, os, sys

def fill(mib):
    # 480 bytes each: pymalloc's.
    return [bytes(440) for _ in range(mib * 2184)]

def tell(*values):
    print(json.dumps(values if len(values) != 1 else values[0]))

def resident():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) // 1024

def slices():
    return extension.stats()["slices"]

"""


def for_each_interpreter(namespace):
    """Put into a module's namespace, for each class of tests and each
    interpreter, a class of its own."""
    for name, cls in list(namespace.items()):
        if not (isinstance(cls, type) and issubclass(cls, InterpreterTest)
                and cls is not InterpreterTest):
            continue
        del namespace[name]
        for release in interpreters():
            own_name = f"{name}_{release.replace('.', '_')}"
            left_out = {test: None for test, function in vars(cls).items()
                        if getattr(function, "since", ()) > version_of(release)
                        }
            namespace[own_name] = type(own_name, (cls,), {
                "release": release, "__module__": cls.__module__,
                "__qualname__": own_name, **left_out})
