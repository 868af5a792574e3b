"""The tests, each process of which computes with one thread: pytest-xdist starts a process for every CPU.

Two processes of two threads on two CPUs wait for one another: a synthetic case took 1.4 s of CPU time instead of 0.3, and the
golden case in PyTorch 1.2 instead of 0.55. Tests of several threads ask for them.
"""

import os

# Read when numpy and PyTorch are loaded, here and in the processes that tests start.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
