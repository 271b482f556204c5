"""The process in which cells are built and timed: `python -m mpsearch.hardware.cell_process FD`, FD being its
end of a pipe.
"""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from mpsearch.hardware.cell import serve

if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
