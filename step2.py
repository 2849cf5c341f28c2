"""Step 2: a better net: p4 convolutions, a global depthwise convolution in place of the large kernel, dropout

Target
    99.10% in each of the last three epochs, in every seed: a third of the errors that step 1 may leave is removed,
    0.90% are left of 1.35%. Step 1 meets this in 3 of 10 seeds. Only the net changes: the recipe is that of step 1.
Result
    recorded: seeds 0 to 9, last 5 of 15 epochs: mean 99.38% ± 0.03 (95% interval), lowest 99.26%
    this run: {this_run}
Analysis
    The gap falls from 0.54 to 0.32 percentage points: after the last epoch 99.75% of the training images are correct,
    and 99.43% of the test images. Without dropout they are 99.82% and 99.27%. The parameters rise from 6,522 to 7,596.
    Change in test accuracy in percentage points, 95% interval over ten seeds; seeds that meet the target; clear?
        +0.23 ± 0.04  10 of 10  yes  all of step 2, against step 1
        -0.11 ± 0.04   9 of 10  yes  ordinary convolutions, fewer channels
        -0.14 ± 0.04   7 of 10  yes  without dropout
        +0.00 ± 0.04  10 of 10  no   the large kernel of step 1
        -0.07 ± 0.03  10 of 10  yes  plain global average pooling
        -0.04 ± 0.03  10 of 10  no   ReLU instead of SiLU
        -0.18 ± 0.04   8 of 10  yes  pooling one layer earlier
        -0.01 ± 0.04  10 of 10  no   pooling one layer later
    Our reasons, which are no measurements: strokes run in all directions, so with p4 one stroke detector serves four
    (6 and 9 stay apart, since rotations are never pooled); a net should see a stroke, 5 pixels, before it pools, and
    pooling at 3 throws detail away; a stroke at the top means something else than one below, so each position has a
    weight. The large kernel has one too, but makes 14,476 parameters. For SiLU and later pooling no effect is shown.
    The rate of step 1 again lies between `lr_find`'s valley, 0.0010, and slide, 0.0076 (medians of five seeds).
"""
import report
from data import mnist_dls
from fastai.vision.all import *
from fastcore.script import call_parse
from models import Model_2, create

target = .991  # each of the last three epochs; the reason is in the text above
epochs = 15    # the most that the rules allow
bs = 256       # images per batch
lr = 3e-3      # as in step 1, so that only the net changes; again between `lr_find`'s valley and slide


def learner(model=Model_2, seed=0, bs=bs, **kwargs):
    "An untrained fastai `Learner`; net, loaders and all random choices follow `seed`. `kwargs`: those of `mnist_dls`."
    set_seed(seed, reproducible=True)
    dls = mnist_dls(bs=bs, **kwargs)
    net = create(model).to(dls.device)
    cbs = [report.StopAtNaN()]
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=cbs, model_dir='runs')
    learn.recorder.train_metrics = True
    return learn


def train(epochs=epochs, lr=lr, cbs=None, **kwargs):
    "The `Learner` of `learner(**kwargs)`, trained."
    learn = learner(**kwargs)
    learn.fit(epochs, lr, cbs=cbs)  # Adam, fastai's default, at a constant rate
    return learn


def main(
    epochs:int=epochs,    # Passes over the training images; the rule is at most 15
    lr:float=lr,          # Learning rate
    seed:int=0,           # Seed of all random choices: same seed, machine and thread count, same numbers
    model:str='Model_2',  # Net to train, a class of models.py
    data:str='auto'       # mnist; digits (scikit-learn's); auto: digits where MNIST cannot be had; or a folder
):
    """Train step 2, print its Target / Result / Analysis. Exit status: 0 target met, or run not judged (not MNIST, or
    more than 15 epochs); 1 missed or failed; 2 wrong option; 130 interrupted."""
    return report.run('step2', train, target, __doc__, epochs, lr, seed, model, data)


if __name__ == '__main__': sys.exit(call_parse(main))
