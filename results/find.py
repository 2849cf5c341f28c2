"Records in lr_find.csv what fastai's `lr_find` suggests for each step and seeds 0 to 4 on MNIST: python results/find.py, a few minutes."
import pandas as pd
from fastai.vision.all import minimum, slide, steep, valley

from record import here, step1, step2, step3


def suggestions(step, seed):
    "A row of lr_find.csv: the four suggestions, as learning rates."
    learn = step.learner(seed=seed, data='mnist')
    with learn.no_bar(): found = learn.lr_find(suggest_funcs=(valley, slide, steep, minimum), show_plot=False)
    return dict(step=step.__name__, seed=seed, **{k: f'{v:.2e}' for k,v in found._asdict().items()})


if __name__ == '__main__':
    pd.DataFrame([suggestions(step, seed) for step in (step1, step2, step3) for seed in range(5)]).to_csv(here/'lr_find.csv', index=False)
