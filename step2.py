"""Step 2: a better net in the same budget: p4 convolutions, a global depthwise convolution, dropout

Target
    99.10% in each of the last three epochs, in every seed: a third of the errors that step 1 may leave is removed,
    0.90% are left of 1.35%. Step 1 meets this in 3 of 10 seeds: its mean, 99.15%, is higher, but single epochs are
    below. Only the net changes: the recipe is that of step 1.
Result
    parameters  7,596
    train       99.75% after the last epoch
    test        99.43% after the last epoch; last five of 15 epochs: mean 99.38% ± 0.03, lowest 99.26%
    Means over seeds 0 to 9, none left out; ± is the 95% interval; "lowest" is the worst of these epochs in any seed.
Analysis
    Dropout closes the gap: it is 0.32 percentage points, without dropout 0.55, about as in step 1. The other changes
    raise the accuracy: without dropout the net is 0.09 above step 1. Dropout adds 0.14: 0.23 in all.
    Test accuracy in percentage points, 95% interval, ten seeds; seeds that meet the target; clear?
        +0.23 ± 0.04  10 of 10  yes  all of step 2, against step 1
        +0.09 ± 0.04   7 of 10  yes  the net without dropout, against step 1
        -0.14 ± 0.04   7 of 10  yes  without dropout
        -0.11 ± 0.04   9 of 10  yes  ordinary convolutions, fewer channels
        -0.07 ± 0.03  10 of 10  yes  plain global average pooling
        +0.00 ± 0.04  10 of 10  no   the large kernel of step 1
        +0.01 ± 0.04  10 of 10  no   all 28×28 pixels
        +0.02 ± 0.04  10 of 10  no   pooling after batch norm and SiLU
        -0.18 ± 0.04   8 of 10  yes  pooling one layer earlier
        -0.04 ± 0.03  10 of 10  no   ReLU instead of SiLU
    A p4 convolution uses each filter in four rotations: so 8 8 16 32 32 32 channels, not 8 8 8 12 8 8. In the same
    budget ordinary ones have 8 8 8 16 16 16 (7,698 parameters). The large kernel makes 14,476; no difference is shown.
    Two changes are for speed: only the middle 24×24 pixels, and pooling before batch norm and SiLU. Without them an
    epoch takes 1.35 and 1.11 times as long; no effect on accuracy is shown. We explain the rest so: strokes run in all
    directions; a stroke of 5 pixels is to be seen before pooling; average pooling loses where it is. SiLU stays: no
    effect is shown. The rate stays, too: `lr_find` suggests 0.0010 (valley) to 0.0076 (slide).
    Left for step 3: the gap, and the accuracy fluctuates by 0.06 (standard deviation over a seed's last five epochs).
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
    """An untrained fastai `Learner`; net, loaders and all random choices follow `seed`. `kwargs`: those of `mnist_dls`.
    Random numbers are global: train a learner before you make the next one."""
    set_seed(seed, reproducible=True)
    dls = mnist_dls(bs=bs, **kwargs)
    net = create(model).to(dls.device)
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), metrics=accuracy, model_dir='runs')
    learn.recorder.train_metrics = True
    return learn


def train(epochs=epochs, lr=lr, cbs=None, **kwargs):
    "The `Learner` of `learner(**kwargs)`, trained."
    learn = learner(**kwargs)
    learn.fit(epochs, lr, cbs=[TerminateOnNaNCallback(), *L(cbs)])  # Adam, fastai's default, at a constant rate
    return learn


def main(
    epochs:int=epochs,    # Passes over the training images; the rule is at most 15
    lr:float=lr,          # Learning rate
    seed:int=0,           # Seed of all random choices: same seed, machine and thread count, same numbers
    model:str='Model_2',  # Net to train, a class of models.py
    data:str='auto'       # mnist; digits (scikit-learn's); auto: digits where MNIST cannot be had; or a folder
):
    """Train step 2, print its Target / Result / Analysis. Exit status: 0 target met or run not judged (not MNIST, fewer
    than 3 epochs, more than 15); 1 missed or failed; 2 wrong option; 130 interrupted."""
    return report.run(sys.modules[__name__], model, epochs, lr, seed, data)


if __name__ == '__main__': sys.exit(call_parse(main))
