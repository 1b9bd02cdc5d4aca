"""Lets vLLM's Model Runner V2 start on a CPU: its kernels run in Triton's interpreter (`TRITON_INTERPRET=1`).

For a process of a test that has this folder on its PYTHONPATH, and for nothing else.
"""

from types import SimpleNamespace

from triton.backends import backends

# vLLM for CPUs uses Triton where there is a backend of this name; the interpreter asks for none.
backends["cpu"] = SimpleNamespace(compiler=None, driver=SimpleNamespace(is_active=lambda: True))
