"""Leaves out the tests of device code in a process that cannot run them."""

from tests.sampling.interpreter import MODULES, runs_here

collect_ignore = [] if runs_here() else list(MODULES)
