"""Real training whose ranks do not find each other, at the first start or at every one; or leave one by one.

python -m lost_ranks taken|absent|astray[_for_good]|late RUN_DIR
"""

import os
import socket
import sys
import time

from pipeline.__main__ import main

kind, run = sys.argv[1:3]
always = kind.endswith("_for_good")
rank, port = int(os.environ["SLURM_PROCID"]), int(os.environ["MASTER_PORT"])
if always or os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
    match kind.removesuffix("_for_good"), rank:
        case "taken", 0:  # somebody was quicker between the script's look at the port and our listening
            taken = socket.create_server(("0.0.0.0", port))
        case "absent", 1:  # its node hangs before Python has begun
            time.sleep(900)
        case "astray", 1:  # it waits at an address where nobody listens
            os.environ["MASTER_PORT"] = str(port + 1)
code = main(["train", run])
if kind == "late":  # the interpreter, torch and the file system take their time
    time.sleep(2 * rank)
sys.exit(code)
