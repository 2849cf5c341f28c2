"""Step 3: upright and augmented images, one cycle of the learning rate, an average of the weights: to the goal

Target
    99.40% in each of the last three epochs: the goal of the assignment, with "consistently in the last epochs" taken at its word.
    Step 2 ends at 99.78% [clean of step2] of the training images, 99.39% [mean of step2] of the test images, and swings by
    0.06% [swing of step2] from epoch to epoch: what is missing is generalization, and stable last epochs.
Result
    recorded: seeds 0 to 19, last 5 of 15 epochs: mean 99.62% ± 0.01, lowest 99.52%
    this run: {this_run}
Analysis
    The net is that of step 2 without its dropout, which takes longer and is not shown to help here; the training is new.
    Change in test accuracy, in points with a 95% interval (one that holds zero shows nothing):
        +0.23 ± 0.07 [step3]  all of step 3, against step 2
        -0.15 ± 0.06 [ablations/no-augmentation]  without augmentation
        not shown:
        -0.02 ± 0.03 [folds/step3-dropout]  with the dropout of step 2: on the held-out folds, where it was decided
        -0.03 ± 0.04 [ablations/no-ema]  the raw weights in place of their average
        -0.03 ± 0.07 [ablations/no-deskewing]  without deskewing
    What the average brings is the goal sooner, for good from epoch 2 to 5 [from of step3] on. On the same seeds the raw weights hold
    it +6.40 ± 3.12 [epochs/ablations/no-ema] epochs later.
    The gap narrows, to 99.82% [clean of step3] of the training images against 99.62% [mean of step3] of the test images; the swing of a
    seed over its last epochs falls to 0.02% [swing of step3].
    Deskewing was chosen on held-out training images, too (results/README.md).
    Adam and batches of 256 are as in steps 1 and 2; fit_one_cycle moves beta1, too, from 0.95 to 0.85 and back.
"""
import report
from data import RandomWarp, mnist_dls
from fastai.vision.all import *
from fastcore.script import call_parse
from models import Model_3

target = .994    # each of the last three epochs; the reason is in the text above
epochs = 15      # the most that the rules allow
bs = 256         # images per batch
lr = 1.5e-2      # the peak of the cycle: between `lr_find`'s minimum and steep (results/lr_find.csv)
pct_start = .1   # of all batches, up to the peak; the longer rest anneals the rate to about zero
warp = dict(degrees=8, shift=1.2, scale=.06, shear=.05, elastic=.4, deskew=True)  # the units are `RandomWarp`'s
ema_epochs = 2   # how far back the average of the weights reaches
ema_every = 4    # batches from one look at the weights to the next: each takes time


class EMA(Callback):
    """Validates the exponential moving average of the weights, and leaves it in the net at the end: single steps scatter around it.

    (Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging", here with exponential weights.)
    """
    raw = None

    def before_fit(self):
        if self.raw: self.after_validate()  # a validation was interrupted
        self.mean = deepcopy(self.model).eval()
    def after_batch(self):
        if not self.training or self.iter % ema_every: return
        n = (self.epoch*self.n_iter + self.iter) // ema_every  # looks so far
        decay = min(1 - ema_every/(ema_epochs*self.n_iter), n/(n + 3))  # short at first, to forget the untrained net
        for mean,now in zip(self.mean.state_dict().values(), self.model.state_dict().values()):
            if mean.is_floating_point(): mean.lerp_(now, 1 - decay)
            else: mean.copy_(now)
    def before_validate(self): self.raw,self.learn.model = self.model,self.mean
    def after_validate(self): self.learn.model,self.raw = self.raw,None
    def after_fit(self): self.model.load_state_dict(self.mean.state_dict())


def learner(model=Model_3, seed=0, bs=bs, warp=warp, **kwargs):
    "An untrained fastai `Learner`; net, loaders and all random choices follow `seed`. `kwargs` are those of `mnist_dls`."
    set_seed(seed, reproducible=True)
    dls = mnist_dls(bs=bs, tfms=RandomWarp(**warp), **kwargs)
    net = model().to(memory_format=torch.channels_last)  # faster on a CPU
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=[EMA(), report.StopAtNaN()], model_dir='runs')
    learn.recorder.train_metrics = True
    return learn


def train(epochs=epochs, lr=lr, cbs=None, **kwargs):
    "The `Learner` of `learner(**kwargs)`, trained."
    learn = learner(**kwargs)
    learn.fit_one_cycle(epochs, lr, pct_start=pct_start, cbs=cbs)
    return learn


main = report.command(sys.modules[__name__])
if __name__ == '__main__': sys.exit(call_parse(main))
