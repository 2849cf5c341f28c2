"""Step 2: a better net in the same budget: p4 convolutions, a global depthwise convolution, dropout

Target
    Step 1 has two faults: a gap of 0.54 percentage points between train and test accuracy, and a test accuracy that
    fluctuates by 0.09. The training stays as it is, and the fluctuation is left to step 3. The net changes:
    - p4 convolutions use each filter in four rotations, since strokes run in all directions. So the budget allows
      8 8 16 32 32 32 channels; with ordinary convolutions it would be 8 8 8 16 16 16. For the accuracy.
    - A global depthwise convolution (pooling with a learned weight per channel and position) replaces the large
      kernel: 32 channels would make that too large.
    - Dropout after each activation, 0.05: the net cannot rely on single values. Against the gap.
    - Only the middle 24×24 pixels, and pooling before batch norm and SiLU: for speed.
    99.10% in each of the last three epochs, in every seed: a third of the errors that step 1 may leave is removed,
    0.90% are left of 1.35%. This follows from the goal, not from step 1's result: step 1 has more in the mean, 99.15%,
    but holds 99.10% in only 3 of 10 seeds.
Result
    parameters   7,596
    train        99.75% after the last epoch, without dropout and augmentation
    test         99.43% after the last epoch; last five of 15 epochs: mean 99.38% ± 0.03, lowest 99.26%
    gap          0.32 percentage points: train minus test accuracy after the last epoch
    fluctuation  0.06 percentage points: standard deviation of the test accuracy over a seed's last five epochs
    target met   in 10 of 10 seeds
    Means over seeds 0 to 9, none left out; ± is the 95% interval; "lowest" is the worst of these epochs in any seed.
Analysis
    The accuracy rises by 0.23, the gap falls from 0.54 to 0.32.
    Each row changes one part of this step (two, where it names two), or compares two recipes ("against"); rows need not
    add up. Accuracy: by how many percentage points the mean of the last five epochs changes, with its 95% interval over
    ten seeds. Clear: significant after a correction for all rows of all steps, so a "no" may stand beside an interval
    without zero; an effect is "not shown" then. The other columns are the changed recipe's own. (Their changes are in
    results/README.md; such a change counts as shown where its own interval misses zero.)

        accuracy      clear  gap   fluctuation  target met
                             0.32  0.06         10 of 10    step 2 itself
        +0.23 ± 0.04  yes    0.32  0.06         10 of 10    all of step 2, against step 1
        +0.09 ± 0.04  yes    0.55  0.08         7 of 10     the net without dropout, against step 1
        -0.14 ± 0.04  yes    0.55  0.08         7 of 10     without dropout
        -0.11 ± 0.04  yes    0.37  0.07         9 of 10     ordinary convolutions, fewer channels
        -0.07 ± 0.03  yes    0.22  0.07         10 of 10    plain global average pooling
        +0.00 ± 0.04  no     0.42  0.06         10 of 10    the large kernel of step 1
        -0.18 ± 0.04  yes    0.34  0.06         8 of 10     pooling one layer earlier
        +0.01 ± 0.04  no     0.32  0.06         10 of 10    all 28×28 pixels
        +0.02 ± 0.04  no     0.32  0.05         10 of 10    pooling after batch norm and SiLU
        -0.04 ± 0.03  no     0.35  0.07         10 of 10    ReLU instead of SiLU

    Dropout narrows the gap: without it the gap is 0.55, about as in step 1, and 0.14 of accuracy is lost. The new net
    alone, without dropout, is more accurate than step 1 by 0.09.
    p4 convolutions: with ordinary ones, and so with fewer channels (7,698 parameters), 0.11 is lost.
    The end of the net: the large kernel makes 14,476 parameters and a wider gap, 0.42; no effect on the accuracy is
    shown. Plain average pooling loses 0.07. We explain it so: it does not see where in the image a stroke is. Its gap
    is smaller, but only as its train accuracy is lower, 99.56%.
    Max-pooling stays where step 1 has it: with both poolings one layer earlier (the last map is 4×4 then) 0.18 is lost.
    We explain it so: before the first pooling a value sees 5×5 pixels, enough for the direction of a stroke.
    The changes for speed: with all pixels an epoch takes 1.34 times as long, with the later pooling 1.12 times. No
    effect of them on the accuracy is shown. Nor is one of ReLU: SiLU stays by habit.
    The rate stays 0.003, again between valley, 0.0010, and slide, 0.0076.
    For step 3 are left: a gap of 0.32, and a fluctuation of 0.06. (The whole step lowers the fluctuation, no single
    part is shown to.)
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
