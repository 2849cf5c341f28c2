"""Times epochs of step 3 on one and on two threads, in turn, on a machine that does nothing else: writes results/threads.csv.

    python results/threads.py   # about three minutes on a CPU
"""
import csv, sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))

import torch

import report, step3


def write(path):
    rows,learn = [],step3.learner(data='mnist')
    for round in range(4):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            learn.fit(1, 1e-3)
            if round: rows.append(dict(threads=threads, seconds=learn.history.rows[-1]['seconds']))  # the first round warms up
    with open(path, 'w', newline='') as f:
        out = csv.DictWriter(f, rows[0], lineterminator='\n')
        out.writeheader()
        out.writerows(rows)


if __name__ == '__main__': report.save(write, here/'threads.csv')
