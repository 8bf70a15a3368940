"""An engine for tests of the protocol: `options["does"]` says how it behaves, the model's path is ignored."""

from __future__ import annotations

import os
import threading
import time

import numpy as np

from benchmarks.peers.engine import Engine


def load(model, feeds, options):
    """Doubles every input; output `y` of input `x`."""
    does = options["does"]
    print("a chatty engine prints to standard output")
    if does == "refuse":
        raise RuntimeError("this processor is not supported")
    if does == "die":
        os.write(2, b"illegal instruction\n")
        os._exit(3)
    if does == "hang":
        time.sleep(60)
    results = {}

    def compute():
        results.update({name.replace("x", "y"): 2 * array for name, array in feeds.items()})
        if "spin" in options:
            until = time.thread_time() + options["spin"]
            while time.thread_time() < until:
                pass
        if does == "wrong":
            results["y"] = results["y"] + np.float32(0.1)

    def elsewhere():
        thread = threading.Thread(target=compute)
        thread.start()
        thread.join()

    own = (lambda: options["own"]) if "own" in options else None
    call = elsewhere if does == "threads" else compute
    return Engine("9.9", call, lambda: results, "a note", inner=options.get("inner", 1), seconds=own)
