"""One thread per process for linear algebra: the test processes fill the processors already."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
