"""Step 2: a better net: turned filters, a global depthwise convolution in place of the large kernel, dropout

Target
    98.80% in each of the last three epochs: no more than twice the errors that the goal of 99.40% allows. The net is to come within a
    factor of two by itself, trained as in step 1, so that step 3 has to halve the errors, and no more.
Result
    recorded: seeds 0 to 4, last 5 of 15 epochs: mean 99.39% ± 0.01, lowest 99.28%
    this run: {this_run}
Analysis
    The new net generalizes better. Its turned filters are each used at four angles, so that a layer has a quarter of the weights, which
    pays for more channels; dropout hides a twentieth of all activations, other ones in each batch.
    Change in test accuracy, in points with a 95% interval (one that holds zero shows nothing):
        +0.23 ± 0.09 [step2]  all of step 2, against step 1
        -0.10 ± 0.07 [ablations/step2-plain-filters]  plain filters in place of turned ones, fewer channels to pay for them
        +0.16 ± 0.11 [folds/step2]  with dropout, against the same net without: on the held-out folds, where it was chosen
    A gap stays: in the end 99.78% [clean of step2] of the training images are right, of the test images 99.39% [mean of step2]. So does a
    swing from epoch to epoch, 0.06% [swing of step2]. Both are left to step 3. The recipe is that of step 1; only the net changes.
"""
import report
from data import mnist_dls
from fastai.vision.all import *
from fastcore.script import call_parse
from models import Model_2

target = .988  # each of the last three epochs; the reason is in the text above
epochs = 15    # the most that the rules allow
bs = 256       # images per batch
lr = 3e-3      # as in step 1, so that only the net changes; again between `lr_find`'s valley and slide


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


def main(
    epochs:int=epochs,    # Passes over the training images; the rule is at most 15
    lr:float=lr,          # Learning rate
    seed:int=0,           # Seed of all random choices: same seed, machine and thread count, same numbers
    model:str='Model_2', # Net to train, a class of models.py
    data:str='auto',      # mnist, digits (scikit-learn's), auto (digits where MNIST cannot be had), or a folder that holds MNIST/raw
    resume:bool=False     # Continue an interrupted run from its last whole epoch
):
    "Train step2 and print its Target / Result / Analysis. Exit status: 0 target met, or run not judged; 1 missed; 2 wrong option."
    return report.run('step2', train, target, __doc__, resume, epochs=epochs, lr=lr, seed=seed, model=model, data=data)


if __name__ == '__main__': sys.exit(call_parse(main))
