"""The option of configure, and the switch of a process."""

import os
import re
import sys
import sysconfig
import textwrap
import unittest
from test import support
from .support import (
    ENV_VAR, HUGEPAGES_BUILD, MIB, ON, SWITCH, THP, ChildTestCase, each,
    each_switch, requires_hugepages_build)


class OptionTests(ChildTestCase):
    """The option of configure."""

    @unittest.skipUnless(os.name == 'posix', 'needs a build by configure')
    def test_sysconfig(self):
        self.assertEqual(
            bool(sysconfig.get_config_var('PYMALLOC_USE_HUGEPAGES')),
            HUGEPAGES_BUILD)

    def debug_malloc_stats(self, *options):
        code = 'import sys; sys._debugmallocstats()'
        return self.run_python(*options, '-c', code, err='.*',
                               PYTHONMALLOC='pymalloc')[1]

    def test_arena_size(self):
        if not support.with_pymalloc():
            self.skipTest('needs pymalloc')
        if HUGEPAGES_BUILD:
            size = 2 * MIB
        elif sys.maxsize > 2**32:
            size = 1 * MIB
        else:
            size = 256 * 1024
        stats = self.debug_malloc_stats()
        match = re.search(r'(\d+) arenas \* (\d+) bytes/arena', stats)
        arenas, arena_size = map(int, match.groups())
        self.assertEqual(arena_size, size)

        # The pools of all arenas: in use, free, and lost to alignment.
        pool_size = int(re.search(r'unused pools \* (\d+) bytes', stats)[1])
        pools = sum(map(int, re.findall(r'^ +\d+ +\d+ +(\d+) +\d+ +\d+$',
                                        stats, re.MULTILINE)))
        pools += int(re.search(r'(\d+) unused pools', stats)[1])
        lost = re.search(r'lost to arena alignment += +([\d,]+)', stats)[1]
        pools += int(lost.replace(',', '')) // pool_size
        self.assertEqual(pools, arenas * (size // pool_size))

    @requires_hugepages_build
    @each_switch
    def test_arena_size_does_not_depend_on_switch(self, switch):
        stats = self.debug_malloc_stats('-X', f'pymalloc_hugepages={switch}')
        self.assertIn(f' arenas * {2 * MIB} bytes/arena', stats)

    @each('option, text', [('--help-xoptions', '-X pymalloc_hugepages'),
                           ('--help-env', ENV_VAR)])
    def test_help(self, option, text):
        self.assertEqual(text in self.run_python(option)[0], HUGEPAGES_BUILD)


@requires_hugepages_build
class SwitchTests(ChildTestCase):
    """The switch of a process, up to the member of PyConfig."""

    def check(self, expected, *options, **env_vars):
        code = ('import _testinternalcapi; '
                'config = _testinternalcapi.get_configs()["config"]; '
                'print(config["pymalloc_hugepages"])')
        with self.subTest(options=options, env=env_vars):
            out, _ = self.run_python(*options, '-c', code, **env_vars)
            self.assertEqual(int(out), expected)

    def test_default(self):
        self.check(ON)
        self.check(ON, isolated=False)

    def test_environment(self):
        for value, expected in {'': ON, **SWITCH}.items():
            self.check(expected, **{ENV_VAR: value})

    def test_xoption(self):
        self.check(ON, '-X', 'pymalloc_hugepages')
        for value, expected in {'': ON, **SWITCH}.items():
            self.check(expected, '-X', f'pymalloc_hugepages={value}')

    def test_xoption_wins(self):
        for xoption, env in (('thp', 'off'), ('off', 'thp'), ('hugetlb', ''),
                             ('on', 'off'), ('off', 'no-such-value')):
            self.check(SWITCH[xoption], '-X', f'pymalloc_hugepages={xoption}',
                       **{ENV_VAR: env})
        self.check(ON, '-X', 'pymalloc_hugepages', **{ENV_VAR: 'off'})

    @each('option', ['-E', '-I'])
    def test_environment_ignored(self, option):
        for value in ('off', 'no-such-value'):
            self.check(ON, option, **{ENV_VAR: value})
        self.check(THP, option, '-X', 'pymalloc_hugepages=thp',
                   **{ENV_VAR: 'off'})

    def check_error(self, name, *options, **env_vars):
        with (self.subTest(options=options, env=env_vars),
              support.SuppressCrashReport()):
            out, err = self.run_python(*options, '-c', 'pass', status=1,
                                       err='.*', **env_vars)
            self.assertEqual(out, '')
            [error] = [line for line in err.splitlines() if 'rror' in line]
            self.assertIn(name, error)
            for value in SWITCH:
                self.assertRegex(error, rf'\b{value}\b')

    def test_bad_value(self):
        for value in ('2', 'ON', 'true', 'huge', ' on', 'thp,hugetlb', '\xe9'):
            self.check_error(ENV_VAR, **{ENV_VAR: value})
            self.check_error('-X pymalloc_hugepages',
                             '-X', f'pymalloc_hugepages={value}')

    def test_bad_value_of_xoption_is_not_made_good_by_environment(self):
        self.check_error('-X pymalloc_hugepages',
                         '-X', 'pymalloc_hugepages=no', **{ENV_VAR: 'off'})

    @each('xoption', ['pymalloc_hugepages', 'pymalloc_hugepages=thp'])
    def test_interpreter_flags(self, xoption):
        code = ('import subprocess; '
                'print(subprocess._args_from_interpreter_flags())')
        out, _ = self.run_python('-X', xoption, '-c', code)
        self.assertIn(f"'-X', '{xoption}'", out)

    @each('options, env_vars', [(['-X', 'pymalloc_hugepages=thp'], {}),
                                ([], {ENV_VAR: 'thp'})])
    def test_multiprocessing_spawn(self, options, env_vars):
        support.skip_if_broken_multiprocessing_synchronize()
        code = textwrap.dedent('''
            import multiprocessing, _testinternalcapi
            with multiprocessing.get_context('spawn').Pool(1) as pool:
                config = pool.apply(_testinternalcapi.get_configs)['config']
            print(config['pymalloc_hugepages'])
        ''')
        out, _ = self.run_python(*options, '-c', code, **env_vars)
        self.assertEqual(int(out), THP)
