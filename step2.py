"""Step 2: a better net: global pooling for regularization, capacity, pooling in its right place

Target
    98.80% in each of the last three epochs: no more than twice the errors that the goal of 99.40% allows. The net is to come
    within a factor of two by itself, trained as in step 1, so that training alone has to halve the errors in step 3.
Result
    recorded: TBD
    this run: {this_run}
Analysis
    TBD
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


def learner(model=Model_2, seed=0, bs=bs, data='auto', root=None, holdout=False):
    "An untrained fastai `Learner`; net, loaders and all random choices follow `seed`. The arguments of `mnist_dls` are passed on."
    report.repeatable(seed)
    dls = mnist_dls(data, root, bs, holdout=holdout)
    net = model().to(memory_format=torch.channels_last)  # half again as fast on a CPU
    return Learner(dls, net, loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=report.History(), model_dir=report.runs/step)


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
