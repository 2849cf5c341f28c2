"""Records in lr_find.csv what fastai's `lr_find` suggests on MNIST, for each step and seeds 0 to 4, on one CPU thread.

    python results/lr_find.py   # a few minutes; MNIST is in $MNIST_ROOT
"""
from experiments import here, step1, step2, step3
from record import processor

import pandas as pd, torch
from fastai.vision.all import minimum, slide, steep, valley


def suggestions(step, seed):
    "A row of lr_find.csv: the learning rates that `lr_find` suggests."
    learn = step.learner(seed=seed, data='mnist', device='cpu')
    with learn.no_bar():
        found = learn.lr_find(suggest_funcs=(valley, slide, steep, minimum), show_plot=False)
    return dict(
        step=step.__name__, seed=seed, **found._asdict(),
        threads=torch.get_num_threads(), processor=processor())


if __name__ == '__main__':
    torch.set_num_threads(1)
    rows = [suggestions(step, seed) for step in (step1, step2, step3) for seed in range(5)]
    pd.DataFrame(rows).to_csv(here/'lr_find.csv', index=False, float_format='%.2e')
