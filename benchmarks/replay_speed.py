"""How much faster than real time the replay is, on one core, and the memory it takes.

    python benchmarks/replay_speed.py [ARCHITECTURE] [HARDWARE] [LAYOUT] [CLIENTS]

Budget: 10,000 requests of 1,024 + 256 tokens at saturation at least 1,000 times faster than real time.
"""

import os
import resource
import sys
import time

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

from costmodel.parallel.layout import parse_layout
from costmodel.planning.deployment import Served, deployment
from costmodel.planning.engine_constants import engine_constants
from costmodel.planning.engine_settings import library_settings
from costmodel.planning.replay import replay
from costmodel.planning.traffic import Lengths, drawn
from costmodel.prediction import loaded, make_precision

COUNT = 10_000
DEFAULTS = ["llama-3.1-70b", "h100-sxm", "tp8", "256"]


def main() -> None:
    """Fixed and varying lengths, then a million requests, for the memory."""
    architecture, hardware, layout, clients = (sys.argv[1:] + DEFAULTS[len(sys.argv) - 1 :])[:4]
    (model,), (device,) = loaded(architecture, hardware)
    start = time.process_time()
    host = engine_constants(None, device).host
    served = Served(model, device, make_precision(model, device), host=host)
    settings = library_settings(None, device)._replace(max_sequences=int(clients))
    engines = deployment(served, parse_layout(layout), settings)
    spent = time.process_time() - start
    print(f"{architecture} on {layout} of {hardware}, {clients} clients; tables in {spent:.2f} CPU s")
    print(f"{'requests':34} {'simulated s':>12} {'CPU s':>7} {'times real time':>16} {'peak MB':>8}")
    for count, prompt, answer in ((COUNT, "1024", "256"), (COUNT, "820..1024", "205..256"), (10**6, "1024", "256")):
        start = time.process_time()
        requests = drawn(count, Lengths.parse(prompt), Lengths.parse(answer))
        found = replay(engines, requests, clients=int(clients))
        spent = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        name = f"{count:,} of {prompt} + {answer}"
        print(f"{name:34} {found.end_s:12.1f} {spent:7.2f} {found.end_s / spent:16,.0f} {peak:8.0f}")


if __name__ == "__main__":
    main()
