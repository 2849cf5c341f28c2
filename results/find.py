"""Records what fastai's `lr_find` suggests for each step and seeds 0 to 4 on MNIST: python results/find.py, about two minutes.

Writes results/lr_find.csv. MNIST is looked for as the steps do it: $MNIST_ROOT, else fastai's data folder.
"""
import csv, sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))

from fastai.vision.all import minimum, slide, steep, valley

import report, step1, step2, step3


def suggestions(step, seed):
    "Row of results/lr_find.csv: the four suggestions, as learning rates."
    found = step.learner(seed=seed, data='mnist').lr_find(suggest_funcs=(valley, slide, steep, minimum), show_plot=False)
    return dict(step=step.step, seed=seed, **{k: f'{v:.2e}' for k,v in found._asdict().items()})

def write(path):
    rows = [suggestions(step, seed) for step in (step1, step2, step3) for seed in range(5)]
    with open(path, 'w', newline='') as f:
        out = csv.DictWriter(f, rows[0], lineterminator='\n')
        out.writeheader()
        out.writerows(rows)


if __name__ == '__main__': report.save(write, here/'lr_find.csv')
