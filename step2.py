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
import report
from data import mnist_dls
from fastai.vision.all import *
from fastcore.script import call_parse
from models import Model_2

target = .988  # each of the last three epochs; the reason is in the text above
epochs = 15    # the most that the rules allow
bs = 256       # images per batch
lr = 3e-3      # 


def learner(model=Model_2, seed=0, bs=bs, **kwargs):
    "An untrained fastai `Learner`; net, loaders and all random choices follow `seed`. `kwargs` are those of `mnist_dls`."
    set_seed(seed, reproducible=True)
    dls = mnist_dls(bs=bs, **kwargs)
    net = model().to(memory_format=torch.channels_last)  # faster on a CPU
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=report.StopAtNaN(), model_dir='runs')
    learn.recorder.train_metrics = True
    return learn


def train(epochs=epochs, lr=lr, cbs=None, **kwargs):
    "The `Learner` of `learner(**kwargs)`, trained."
    learn = learner(**kwargs)
    learn.fit(epochs, lr, cbs=cbs)  # Adam, fastai's default, at a constant rate
    return learn


main = report.command(sys.modules[__name__])
if __name__ == '__main__': sys.exit(call_parse(main))
