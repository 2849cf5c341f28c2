"""Step 3: augmentation, one cycle of the learning rate, weight decay, the EMA of the weights: to the goal

Target
    99.40% in each of the last three epochs, in every seed: the goal of the assignment, "consistently in the last
    epochs" taken literally. Step 2 meets this in 2 of 10 seeds: its gap is too large, and it fluctuates by 0.06
    percentage points (standard deviation over a seed's last five epochs).
Result
    recorded: seeds 0 to 19, last 5 of 15 epochs: mean 99.62% ± 0.02 (95% interval), lowest 99.54%
    this run: {this_run}
Analysis
    The net is that of step 2 without its dropout. The gap falls to 0.17 percentage points: after the last epoch 99.79%
    of the training images are correct, and 99.62% of the test images. A seed now fluctuates by 0.02.
    Change in test accuracy in percentage points, 95% interval over ten seeds; seeds that meet the target; clear?
        +0.24 ± 0.04  20 of 20  yes  all of step 3, against step 2
        +0.30 ± 0.05  10 of 10  yes  schedule, weight decay and EMA, against step 2 without dropout
        -0.07 ± 0.03  10 of 10  yes  without augmentation
        -0.06 ± 0.02  10 of 10  yes  without EMA
        -0.03 ± 0.04  10 of 10  no   with the dropout of step 2
        -0.01 ± 0.03  10 of 10  no   a constant learning rate of 0.006
        +0.00 ± 0.04  10 of 10  no   weight decay 0.01 instead of 0.1
        -0.02 ± 0.03  10 of 10  no   without the elastic distortion
    To step 2 without dropout (-0.14) schedule, decay and EMA add 0.30 together, and augmentation 0.07: +0.24 in all.
    We explain it so: annealing and averaging both calm the last steps, so one can do most of the other's work. With
    EMA the seeds stay at 99.40% from epoch 2 to 5 on, without it from epoch 9 to 12 on. The most frequent mistakes:
    9 read as 4, 5 as 3, 4 as 9. The peak rate, 0.015, is near `lr_find`'s minimum, 0.0145 (valley: 0.0010; medians of
    five seeds). On held-out images no other value of a number below was shown to be better.
"""
import report
from data import RandomWarp, mnist_dls
from fastai.vision.all import *
from fastcore.script import call_parse
from models import Model_3, create

target = .994    # each of the last three epochs; the reason is in the text above
epochs = 15      # the most that the rules allow
bs = 256         # images per batch
lr = 1.5e-2      # the peak of the cycle
pct_start = .1   # of all batches, up to the peak; the longer rest anneals the rate to about zero
wd = .1          # weight decay, for fastai's default of .01
ema = 9          # the EMA averages over about the last ninth of the batches so far; 0: no EMA
# The limits of a random warp, new for every image in every epoch; the units are `RandomWarp`'s.
warp = dict(degrees=8, shift=1.2, scale=.06, shear=.2, elastic=.4)


class EMA(Callback):
    """Validates the exponential moving average (EMA) of the weights, and leaves it in the net after the last epoch:
    single steps scatter around it (Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging").

    The first batches are to be forgotten, so the decay grows: of n batches, batch k counts in proportion to about
    (k/n)**(`part`-1). It exchanges the weights, not the module: before each validation, and back before training.
    """
    remove_on_fetch = True  # a validation within a validation finds the weights that it needs

    def __init__(self, part): self.part = part
    def before_fit(self): self.mean,self.weights,self.n = None,None,0
    def before_train(self):
        if self.weights: self.model.load_state_dict(self.weights)
        self.weights = None
    def after_batch(self):
        if not self.training: return
        self.n += 1
        weights = self.model.state_dict()
        if self.n == 1: self.mean = deepcopy(weights)
        decay = self.n/(self.n + self.part)
        for mean,now in zip(self.mean.values(), weights.values()):
            if mean.is_floating_point(): mean.lerp_(now, 1 - decay)
            else: mean.copy_(now)  # batch norm's counter
    def before_validate(self):
        if not self.mean: return
        self.weights = deepcopy(self.model.state_dict())
        self.model.load_state_dict(self.mean)
    def after_fit(self): self.before_fit()


def learner(model=Model_3, seed=0, bs=bs, wd=wd, warp=warp, ema=ema, pretrained=False, **kwargs):
    """An untrained fastai `Learner`; net, loaders and all random choices follow `seed`. `kwargs`: those of `mnist_dls`.
    With `pretrained` it has the weights of the recorded seed 0, chosen beforehand, not the best."""
    set_seed(seed, reproducible=True)
    dls = mnist_dls(bs=bs, tfms=RandomWarp(**warp), **kwargs)
    net = create(model).to(dls.device)
    if pretrained: net.load_state_dict(torch.load(Path(__file__).parent/'results'/'step3.pth', weights_only=True))
    cbs = [report.StopAtNaN(), *([EMA(ema)] if ema else [])]
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), metrics=accuracy, wd=wd, cbs=cbs, model_dir='runs')
    learn.recorder.train_metrics = True
    return learn


def train(epochs=epochs, lr=lr, pct_start=pct_start, cbs=None, **kwargs):
    "The `Learner` of `learner(**kwargs)`, trained."
    learn = learner(**kwargs)
    learn.fit_one_cycle(epochs, lr, pct_start=pct_start, cbs=cbs)
    return learn


def main(
    epochs:int=epochs,    # Passes over the training images; the rule is at most 15
    lr:float=lr,          # Learning rate, at the peak of its cycle
    seed:int=0,           # Seed of all random choices: same seed, machine and thread count, same numbers
    model:str='Model_3',  # Net to train, a class of models.py
    data:str='auto'       # mnist; digits (scikit-learn's); auto: digits where MNIST cannot be had; or a folder
):
    """Train step 3, print its Target / Result / Analysis. Exit status: 0 target met, or run not judged (not MNIST, or
    more than 15 epochs); 1 missed or failed; 2 wrong option; 130 interrupted."""
    return report.run('step3', train, target, __doc__, epochs, lr, seed, model, data)


if __name__ == '__main__': sys.exit(call_parse(main))
