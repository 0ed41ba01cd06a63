"""How much faster than real time the replay is, on one core, and the memory it takes.

    python benchmarks/replay_speed.py [ARCHITECTURE] [HARDWARE] [CLIENTS]

Budget: 10,000 requests of 1,024 + 256 tokens at saturation at least 1,000 times faster than real time.
"""

import os
import resource
import sys
import time

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

from costmodel.planning.deployment import Settings, one_device
from costmodel.planning.replay import Deployment, replay
from costmodel.planning.traffic import Lengths, drawn

COUNT = 10_000


def main() -> None:
    """Fixed and varying lengths, then a million requests, for the memory."""
    architecture = sys.argv[1] if len(sys.argv) > 1 else "llama-3.1-8b"
    hardware = sys.argv[2] if len(sys.argv) > 2 else "h100-sxm"
    clients = int(sys.argv[3]) if len(sys.argv) > 3 else 256
    start = time.process_time()
    engine = one_device(architecture, hardware, Settings(max_sequences=clients))
    print(f"{architecture} on {hardware}, {clients} clients; tables in {time.process_time() - start:.2f} CPU s")
    print(f"{'requests':34} {'simulated s':>12} {'CPU s':>7} {'times real time':>16} {'peak MB':>8}")
    for count, prompt, answer in ((COUNT, "1024", "256"), (COUNT, "820..1024", "205..256"), (10**6, "1024", "256")):
        start = time.process_time()
        found = replay(Deployment(engine), drawn(count, Lengths.parse(prompt), Lengths.parse(answer)), clients=clients)
        spent = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        name = f"{count:,} of {prompt} + {answer}"
        print(f"{name:34} {found.end_s:12.1f} {spent:7.2f} {found.end_s / spent:16,.0f} {peak:8.0f}")


if __name__ == "__main__":
    main()
