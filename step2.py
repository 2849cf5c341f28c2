"""Step 2: another net: global pooling in place of the large kernel, capacity, pooling early; dropout tried

Target
    98.80% in each of the last three epochs: no more than twice the errors that the goal of 99.40% allows. The net is to come
    within a factor of two by itself, trained as in step 1, so that training alone has to halve the errors in step 3.
Result
    recorded: seeds 0 to 4, last 5 of 15 epochs: mean 99.15% ± 0.03, lowest 98.91%
    this run: {this_run}
Analysis
    The new net is worth +0.11 ± 0.03 points [step2 against step1], trained in the same way, and no late epoch of any seed is
    below 98.91% [lowest of step2]. Which of its parts earns that, five seeds cannot say; each difference is within twice its error:
    the plain average in place of the depthwise pooling makes -0.05 ± 0.05 points [ablations/average-pooling against step2];
    flattening and a linear layer in its place, -0.03 ± 0.05 points [ablations/flattened against step2];
    max-pooling after batch norm and ReLU, as in step 1, +0.00 ± 0.05 points [ablations/pooling-last against step2]. So max-pooling
    stays before batch norm and ReLU, which then have a quarter of the pixels to do.
    Dropout of 0.05 after each ReLU, the classical move here, does help: +0.13 ± 0.04 points [ablations/dropout against step2].
    It stays out all the same, because the help does not last: in step 3 it makes -0.06 ± 0.02 points
    [ablations/step3-dropout against step3].
    The gap stays, 99.57% [train of step2] of the training images against 99.15% [mean of step2] of the test images,
    and so does the swing, 0.08% [swing of step2]. Both are left to the training.
"""
from fastai.vision.all import *
from fastcore.script import call_parse

import report
from data import mnist_dls
from models import Model_2, table

step = Path(__file__).stem
target = .988  # each of the last three epochs; the reason is in the text above
epochs = 15    # the most that the rules allow
bs = 128       # images per batch
lr = 3e-3      # as in step 1, so that only the net changes; between `lr_find`'s valley and slide (results/lr_find.csv)


def learner(model=Model_2, seed=0, bs=bs, data='auto', root=None, fold=None):
    "An untrained fastai `Learner`; net, loaders and all random choices follow `seed`. The arguments of `mnist_dls` are passed on."
    report.repeatable(seed)
    dls = mnist_dls(data, root, bs, fold=fold)
    net = model().to(memory_format=torch.channels_last)  # faster on a CPU
    return report.LeanLearner(dls, net, loss_func=report.CrossEntropy(), metrics=report.accuracy,
                              cbs=report.History(), model_dir=report.runs/step)


def train(epochs=epochs, lr=lr, cbs=None, **kwargs):
    "The `Learner` of `learner(**kwargs)`, trained; the row of each epoch is in its `history.rows`."
    learn = learner(**kwargs)
    learn.fit(epochs, lr, cbs=cbs)  # Adam, fastai's default, at a constant rate
    return learn


def main(
    epochs:report.natural=epochs, # Passes over the training images
    seed:report.whole=0,          # Seed of all random choices
    lr:report.rate=lr,            # Learning rate
    bs:report.several=bs,         # Images per training batch
    root:str=None,                # Folder that holds MNIST/raw; else $MNIST_ROOT, else fastai's data folder
    data:report.source='auto',    # mnist: insist on it; digits: scikit-learn's small ones; auto: those where MNIST cannot be had
    resume:bool=False,            # Go on with a run that was interrupted, from its last whole epoch
    find:bool=False,              # Run lr_find, print its suggestions, save its picture, and stop
):
    "Train this step and print its Target / Result / Analysis. Exit status: 0 target met or not judged, 1 missed."
    chosen = dict(seed=seed, bs=bs, data=data, root=root)
    if find: return report.find(learner(**chosen), step)
    print(table(Model_2()))
    guard = report.Guard(step, resume, epochs=epochs, lr=lr, seed=seed, bs=bs)
    return report.finish(train(epochs, lr, guard, **chosen), guard, __doc__, target, epochs)


if __name__ == '__main__': sys.exit(call_parse(main))
